//! Readers and writers of model file formats.
//!
//! What lives here: bytes and their structure. A reader maps a file, checks every length, offset and count against
//! the file before using it, and returns typed errors; it never panics, never allocates from an unchecked number
//! and never executes what it reads. What a tensor *means* (architecture, quantization) is the business of the
//! crates above.
//!
//! - [`Source::open`] is the door for everything a user may drop: a Hugging Face or MLX directory, a safetensors
//!   or GGUF file, an adapter.
//! - [`safetensors`], [`gguf`] and [`onnx`] read one file and lay out new ones.
//! - [`openvino`] writes graphs as OpenVINO reads them; [`npy`] reads NumPy's arrays, as samples for calibration come.
//! - [`layout`] and [`placed`] write outputs whose every offset is known before the first byte, so tensors may be
//!   written in any order, in parallel, and again after an interruption.
//! - [`settle`] tells whether a download is complete; [`digest`] names contents.

pub mod digest;
mod dtype;
mod error;
pub mod gguf;
pub mod layout;
pub mod mapped;
pub mod npy;
pub mod onnx;
pub mod openvino;
pub mod placed;
pub mod safetensors;
pub mod settle;
pub mod source;
mod tensor;

pub use dtype::DType;
pub use error::{Error, Fault, Result};
pub use source::{Source, SourceKind, TokenizerFiles};
pub use tensor::{TensorDecl, TensorInfo};
