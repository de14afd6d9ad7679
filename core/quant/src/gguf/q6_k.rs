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

use super::q2_k::in_order;
use crate::codec::BlockFormat;
use crate::half_float::Half;
use crate::search::grid::Centred;
use crate::search::superblock::WithoutOffsets;
use crate::simd::{self, Level};
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

    const TOP: u8 = 63;

    fn recode(block: &mut Self::Block, codes: &[u8]) {
        let halves = block.ql.chunks_exact_mut(64).zip(block.qh.chunks_exact_mut(32));
        for ((low, high), q) in halves.zip(codes.chunks_exact(128)) {
            for j in 0..32 {
                let row = [q[j], q[j + 32], q[j + 64], q[j + 96]];
                low[j] = (row[0] & 0x0f) | row[2] << 4;
                low[j + 32] = (row[1] & 0x0f) | row[3] << 4;
                high[j] = (row[0] >> 4) | (row[1] >> 4) << 2 | (row[2] >> 4) << 4 | (row[3] >> 4) << 6;
            }
        }
    }

    fn encode(level: Level, rows: &[f32], weights: Weights<'_>, out: &mut [BlockQ6K]) {
        let mut tile = Tile::new(level, N);
        for (i, block) in out.iter_mut().enumerate() {
            tile.load(rows, weights, i * N * SUBS);
            let search = WithoutOffsets { tile: &mut tile, grid: Centred(32.0), levels: 128.0, subs: SUBS };
            let (d, scales) = simd::run(level, search);
            block.d = Half::from_f32(d[0]);
            block.scales = scales.map(|s| (s ^ 0x80) as i8);
            Self::recode(block, &in_order(&tile));
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
