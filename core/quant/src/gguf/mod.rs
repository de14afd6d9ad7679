//! GGUF's block types: one file per number format, each with a picture of its block, its encoder and its decoder.
//!
//! Blocks are `repr(C)` with alignment 1 and exactly the bytes of the file, so a mapped tensor can be read as a
//! slice of them. In the pictures one letter is one byte; a `/` parts the nibbles of a byte, low one first.

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
