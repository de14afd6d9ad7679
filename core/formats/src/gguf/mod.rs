//! GGUF, versions 2 and 3: typed metadata, tensor infos, aligned tensor data; in one file or split over several.
//!
//! Specification: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>. Dimensions are innermost first in the
//! file and outermost first in [`TensorInfo`](crate::TensorInfo): the reversal happens here and nowhere else.

mod metadata;
mod reader;
mod split;
mod value;
mod writer;

pub use metadata::Metadata;
pub use reader::{Gguf, parse};
pub use split::{SplitName, check_split, split_keys};
pub(crate) use split::{check_total, strip_keys};
pub use value::{Array, Value};
pub use writer::{plan, write};

/// The first four bytes of every GGUF file.
pub const MAGIC: [u8; 4] = *b"GGUF";

/// The version written.
pub const VERSION: u32 = 3;

/// Alignment of tensor data where the metadata do not say otherwise.
pub const DEFAULT_ALIGNMENT: u64 = 32;

/// The key that sets another alignment.
pub const ALIGNMENT_KEY: &str = "general.alignment";
