//! Q1_0: 128 weights of 1 bit with one scale.
//!
//! ```text
//! d d | b0 … b15        18 bytes; weight j = bit j ? d : -d
//! ```

use bytemuck::{Pod, Zeroable};
use drophammer_formats::DType;

use crate::codec::BlockFormat;
use crate::half_float::Half;
use crate::lanes::{LANES, Lanes};
use crate::weights::{Tile, Weights};

/// Weights in a block.
const N: usize = 128;

/// A block of Q1_0.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct BlockQ1_0 {
    /// Scale.
    pub d: Half,
    /// One bit per weight: set for plus.
    pub qs: [u8; N / 8],
}

pub(crate) struct Q1_0;

impl BlockFormat for Q1_0 {
    const DTYPE: DType = DType::Q1_0;
    type Block = BlockQ1_0;

    /// With signs alone to choose, least squares gives the weighted mean magnitude.
    #[inline(always)]
    fn encode<L: Lanes>(rows: &[f32], weights: Weights<'_>, out: &mut [BlockQ1_0]) {
        for (i, blocks) in out.chunks_mut(LANES).enumerate() {
            let start = i * LANES * N;
            let Tile { x, w } = Tile::<L, N>::load(rows, weights, start);
            let (mut sum, mut total) = (L::zero(), L::zero());
            for j in 0..N {
                // Divided first: a sum of the largest magnitudes would overflow.
                sum = sum + w[j] * (x[j].abs() * L::splat(1.0 / N as f32));
                total = total + w[j] * L::splat(1.0 / N as f32);
            }
            let values = rows[start..].chunks_exact(N);
            for ((block, d), x) in blocks.iter_mut().zip((sum / total).to_array()).zip(values) {
                block.d = Half::from_f32(d);
                for (byte, x) in block.qs.iter_mut().zip(x.chunks_exact(8)) {
                    *byte = x.iter().enumerate().fold(0, |bits, (j, &x)| bits | u8::from(x >= 0.0) << j);
                }
            }
        }
    }

    #[inline(always)]
    fn decode(block: &BlockQ1_0, out: &mut [f32]) {
        let d = block.d.to_f32();
        for (&bits, out) in block.qs.iter().zip(out.chunks_exact_mut(8)) {
            for (j, out) in out.iter_mut().enumerate() {
                *out = if bits >> j & 1 == 1 { d } else { -d };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Q1_0;
    crate::testing::codec_tests!(Q1_0);
}
