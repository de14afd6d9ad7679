//! Number formats: how weights become few bits, and what that costs.
//!
//! - [`codec()`] gives the [`Codec`] of a storage type; [`quantize`] and [`dequantize`] check lengths and values first.
//!   [`gguf`] holds GGUF's block types, [`plain`] the types without blocks.
//! - [`grouped`] holds the formats of MLX, OpenVINO and ONNX, whose scales lie in tensors of their own.
//! - [`channels`] holds rows with one scale each, as accelerators read them.
//! - [`presets`] names mixtures (`q4_k_m`, …) and says which type each tensor gets.
//! - [`importance`] reads and writes activation statistics; [`sensitivity`] says what each tensor costs in each type, and
//!   [`budget`] solves for the mixture that fits a size.
//! - [`compensate`] makes up for rounding errors, [`equalize`] scales columns before they are rounded.
//! - [`metrics`] measures what was lost.
//! - [`pass`] streams a whole model through encoders into its output files, once, resumably.
//! - [`simd`] chooses the vector instructions, [`lanes`] is what encoders are written in.
//!
//! Nothing here reads files, clocks or threads' identities: the same values give the same bytes everywhere.

#![allow(clippy::needless_range_loop)] // lanes, weights and quants are walked in step by one index

pub mod budget;
pub mod channels;
pub mod codec;
pub mod compensate;
pub mod equalize;
pub mod gguf;
pub mod grouped;
mod half_float;
pub mod importance;
pub mod lanes;
pub mod metrics;
pub mod pass;
pub mod plain;
pub mod presets;
mod registry;
mod search;
pub mod sensitivity;
pub mod simd;
#[cfg(test)]
mod testing;
mod weights;

pub use codec::{Codec, CodecError, dequantize, first_non_finite, quantize};
pub use half_float::Half;
pub use registry::codec;
