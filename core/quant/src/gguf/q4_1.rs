//! Q4_1: 32 weights of 4 bits with a scale and an offset.
//!
//! ```text
//! d d | m m | q0/q16 q1/q17 … q15/q31        20 bytes; weight j = d · q[j] + m
//! ```

use bytemuck::{Pod, Zeroable};
use drophammer_formats::DType;

use crate::codec::BlockFormat;
use crate::half_float::Half;
use crate::lanes::{LANES, Lanes};
use crate::search::affine;
use crate::weights::{Tile, Weights};

/// Weights in a block.
const N: usize = 32;

/// A block of Q4_1.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct BlockQ4_1 {
    /// Scale.
    pub d: Half,
    /// Value of quant 0.
    pub m: Half,
    /// Quants: weight `j` in the low, weight `j + 16` in the high nibble.
    pub qs: [u8; N / 2],
}

pub(crate) struct Q4_1;

impl BlockFormat for Q4_1 {
    const DTYPE: DType = DType::Q4_1;
    type Block = BlockQ4_1;

    #[inline(always)]
    fn encode<L: Lanes>(rows: &[f32], weights: Weights<'_>, out: &mut [BlockQ4_1]) {
        for (i, blocks) in out.chunks_mut(LANES).enumerate() {
            let Tile { x, w } = Tile::<L, N>::load(rows, weights, i * LANES * N);
            let line = if weights.vary() {
                affine::half_line::<L, true>(&x, &w, 15.0)
            } else {
                affine::half_line::<L, false>(&x, &w, 15.0)
            };
            let inverse = line.d.recip_or_zero();
            let quant = |x: L| ((x - line.m) * inverse).round().clamp(0.0, 15.0);
            let (scales, offsets) = (line.d.to_array(), line.m.to_array());
            for ((block, d), m) in blocks.iter_mut().zip(scales).zip(offsets) {
                block.d = Half::from_f32(d);
                block.m = Half::from_f32(m);
            }
            for j in 0..N / 2 {
                let pairs = (quant(x[j]) + quant(x[j + N / 2]) * L::splat(16.0)).to_bytes();
                for (block, pair) in blocks.iter_mut().zip(pairs) {
                    block.qs[j] = pair;
                }
            }
        }
    }

    #[inline(always)]
    fn decode(block: &BlockQ4_1, out: &mut [f32]) {
        let (d, m) = (block.d.to_f32(), block.m.to_f32());
        let (low, high) = out.split_at_mut(N / 2);
        for ((&q, low), high) in block.qs.iter().zip(low).zip(high) {
            *low = f32::from(q & 0x0f) * d + m;
            *high = f32::from(q >> 4) * d + m;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Q4_1;
    crate::testing::codec_tests!(Q4_1);
}
