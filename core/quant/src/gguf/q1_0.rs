//! Q1_0: 128 weights of 1 bit with one scale.
//!
//! ```text
//! d d | b0 … b15        18 bytes; weight j = bit j ? d : -d
//! ```

use bytemuck::{Pod, Zeroable};
use drophammer_formats::DType;

use crate::codec::BlockFormat;
use crate::half_float::Half;
use crate::lanes::LANES;
use crate::simd::Level;
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
    fn encode(level: Level, rows: &[f32], weights: Weights<'_>, out: &mut [BlockQ1_0]) {
        let mut tile = Tile::new(level, N);
        for (i, blocks) in out.chunks_mut(LANES).enumerate() {
            let start = i * LANES * N;
            tile.load(rows, weights, start);
            let (mut sum, mut total) = ([0.0f32; LANES], [0.0f32; LANES]);
            for (x, w) in tile.x.iter().zip(&tile.w) {
                for lane in 0..LANES {
                    // Divided first: a sum of the largest magnitudes would overflow.
                    sum[lane] += w[lane] * (x[lane].abs() / N as f32);
                    total[lane] += w[lane] / N as f32;
                }
            }
            for (lane, (block, x)) in blocks.iter_mut().zip(rows[start..].chunks_exact(N)).enumerate() {
                block.d = Half::from_f32(sum[lane] / total[lane]);
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
