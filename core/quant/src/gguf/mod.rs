//! GGUF's block types: one file per number format, each with a picture of its block, its encoder and its decoder.
//!
//! Blocks are `repr(C)` with alignment 1 and exactly the bytes of the file, so a mapped tensor can be read as a
//! slice of them. In the pictures one letter is one byte; a `/` parts the nibbles of a byte, low one first.

mod iq4_nl;
mod iq4_xs;
mod mxfp4;
mod nvfp4;
mod q1_0;
mod q2_k;
mod q3_k;
mod q4_0;
mod q4_1;
mod q4_k;
mod q5_0;
mod q5_1;
mod q5_k;
mod q6_k;
mod q8_0;
mod tq1_0;
mod tq2_0;

pub(crate) use iq4_nl::Iq4Nl;
pub use iq4_nl::{BlockIq4Nl, IQ4_LEVELS};
pub use iq4_xs::BlockIq4Xs;
pub(crate) use iq4_xs::Iq4Xs;
pub(crate) use mxfp4::Mxfp4;
pub use mxfp4::{BlockMxfp4, E2M1_DOUBLED, e8m0_half_to_f32};
pub(crate) use mxfp4::{code_e2m1, nearest_e2m1};
pub(crate) use nvfp4::Nvfp4;
pub use nvfp4::{BlockNvfp4, ue4m3_half_to_f32};
pub use q1_0::BlockQ1_0;
pub(crate) use q1_0::Q1_0;
pub use q2_k::BlockQ2K;
pub(crate) use q2_k::Q2K;
pub use q3_k::BlockQ3K;
pub(crate) use q3_k::Q3K;
pub use q4_0::BlockQ4_0;
pub(crate) use q4_0::Q4_0;
pub use q4_1::BlockQ4_1;
pub(crate) use q4_1::Q4_1;
pub(crate) use q4_k::Q4K;
pub use q4_k::{BlockQ4K, scale_min_k4};
pub use q5_0::BlockQ5_0;
pub(crate) use q5_0::Q5_0;
pub use q5_1::BlockQ5_1;
pub(crate) use q5_1::Q5_1;
pub use q5_k::BlockQ5K;
pub(crate) use q5_k::Q5K;
pub use q6_k::BlockQ6K;
pub(crate) use q6_k::Q6K;
pub use q8_0::BlockQ8_0;
pub(crate) use q8_0::Q8_0;
pub use tq1_0::BlockTq1_0;
pub(crate) use tq1_0::Tq1_0;
pub use tq2_0::BlockTq2_0;
pub(crate) use tq2_0::Tq2_0;
