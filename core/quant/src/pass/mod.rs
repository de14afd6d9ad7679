//! One pass over a model: every tensor is read, transformed and written once, in bounded chunks of rows, by a few
//! threads, with a journal from which a killed pass continues.
//!
//! Every plugin forges through this room. What comes in: [`Item`]s, each a source of rows (or plain bytes), an
//! [`Encoder`] and the output tensors it fills; and a [`TensorSink`] whose offsets are fixed beforehand. What holds:
//!
//! - *Bounded memory.* Peak memory is threads × one chunk, whatever the size of the model or its largest tensor;
//!   [`estimate()`] says how much before anything starts.
//! - *Same bytes.* Chunks depend on shapes alone and their places are fixed, so the output does not depend on the
//!   number of threads or on interruptions.
//! - *Nothing twice.* A finished item is entered in a [`journal`] with its digest; a pass that finds the journal
//!   verifies what it names and does the rest.
//!
//! Architectures, file formats and choice of types stay outside.

mod error;
mod estimate;
mod item;
pub mod journal;
mod run;
mod sink;
mod source_rows;

pub use error::PassError;
pub use estimate::{Estimate, estimate};
pub use item::{BoxError, ByteSource, CodecEncoder, Encoder, Importance, Item, Output, RowSource};
pub use run::{Advance, Options, Progress, Report, run};
pub use sink::{TensorSink, forge};
pub use source_rows::{SourceBytes, SourceRows};
