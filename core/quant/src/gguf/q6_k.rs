//! Q6_K: 256 weights of 6 bits; each 16 have a scale of 8 bits, a multiple of one shared half.
//!
//! ```text
//! l: 2 × 64 bytes | h: 2 × 32 bytes | s0 … s15 | d d        210 bytes
//! weight 16·b + j = d · s[b] · (q - 32)
//! ```
//! Each half of the block is 128 weights in four rows of 32: the low nibbles of `l[0..32]` and `l[32..64]` are rows 0
//! and 1, their high nibbles rows 2 and 3; bits `2r` and `2r + 1` of `h[j]` are the top bits of row `r`.

use bytemuck::{Pod, Zeroable};
use drophammer_formats::DType;

use crate::codec::BlockFormat;
use crate::half_float::Half;
use crate::lanes::Lanes;
use crate::search::grid::Centred;
use crate::search::superblock;
use crate::weights::{Tile, Weights};

/// Weights in a sub-block, and sub-blocks in a block.
const N: usize = 16;
const SUBS: usize = 16;

/// A block of Q6_K.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct BlockQ6K {
    /// Low four bits.
    pub ql: [u8; 128],
    /// Top two bits.
    pub qh: [u8; 64],
    /// Multiples of `d`.
    pub scales: [i8; SUBS],
    /// Unit of the scales.
    pub d: Half,
}

pub(crate) struct Q6K;

impl BlockFormat for Q6K {
    const DTYPE: DType = DType::Q6K;
    type Block = BlockQ6K;

    #[inline(always)]
    fn encode<L: Lanes>(rows: &[f32], weights: Weights<'_>, out: &mut [BlockQ6K]) {
        for (i, block) in out.iter_mut().enumerate() {
            let Tile { x, w } = Tile::<L, N>::load(rows, weights, i * N * SUBS);
            let fitted = if weights.vary() {
                superblock::symmetric::<L, SUBS, true>(&x, &w, Centred(32.0), 128.0)
            } else {
                superblock::symmetric::<L, SUBS, false>(&x, &w, Centred(32.0), 128.0)
            };
            let inverse = (fitted.d * fitted.scale).recip_or_zero();
            let mut quants = [0u8; N * SUBS];
            for j in 0..N {
                let column = ((x[j] * inverse).round().clamp(-32.0, 31.0) + L::splat(32.0)).to_bytes();
                for (lane, q) in column.into_iter().enumerate() {
                    quants[lane * N + j] = q;
                }
            }
            block.d = Half::from_f32(fitted.d.to_array()[0]);
            block.scales = (fitted.scale + L::splat(128.0)).to_bytes().map(|s| (s ^ 0x80) as i8);
            let halves = block.ql.chunks_exact_mut(64).zip(block.qh.chunks_exact_mut(32));
            for ((low, high), q) in halves.zip(quants.chunks_exact(128)) {
                for j in 0..32 {
                    let row = [q[j], q[j + 32], q[j + 64], q[j + 96]];
                    low[j] = (row[0] & 0x0f) | row[2] << 4;
                    low[j + 32] = (row[1] & 0x0f) | row[3] << 4;
                    high[j] = (row[0] >> 4) | (row[1] >> 4) << 2 | (row[2] >> 4) << 4 | (row[3] >> 4) << 6;
                }
            }
        }
    }

    #[inline(always)]
    fn decode(block: &BlockQ6K, out: &mut [f32]) {
        let d = block.d.to_f32();
        for half in 0..2 {
            let low = &block.ql[64 * half..64 * half + 64];
            let high = &block.qh[32 * half..32 * half + 32];
            for row in 0..4 {
                let shift = if row < 2 { 0 } else { 4 };
                let low = &low[32 * (row % 2)..32 * (row % 2) + 32];
                let start = 128 * half + 32 * row;
                for side in 0..2 {
                    let step = d * f32::from(block.scales[8 * half + 2 * row + side]);
                    for j in 16 * side..16 * side + 16 {
                        let q = (low[j] >> shift & 0x0f) | (high[j] >> (2 * row) & 3) << 4;
                        out[start + j] = step * (i32::from(q) - 32) as f32;
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Q6K;
    crate::testing::codec_tests!(Q6K);
}
