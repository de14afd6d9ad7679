//! Q3_K: 256 weights of 3 bits; each 16 have a scale of 6 bits, a multiple of one shared half.
//!
//! ```text
//! h: 32 bytes | q: 2 × 32 bytes | s0 … s11 | d d        110 bytes
//! weight 16·b + j = d · (scale[b] - 32) · (q + 4·h - 4)
//! ```
//! Each half of the block is 128 weights in four rows of 32; bits `2r` and `2r + 1` of `q[j]` are the low bits of row
//! `r`, bit `4·half + r` of `h[j]` its top bit. Scales: low four bits of 0..8 and 8..16 in the low and high nibbles of
//! `s[0..8]`; top two bits of scale `b` at bit `2·(b / 4)` of `s[8 + b % 4]`.

use bytemuck::{Pod, Zeroable};
use drophammer_formats::DType;

use super::q2_k::{in_order, pack_two_bits};
use crate::codec::BlockFormat;
use crate::half_float::Half;
use crate::search::grid::Centred;
use crate::search::superblock::WithoutOffsets;
use crate::simd::{self, Level};
use crate::weights::{Tile, Weights};

/// Weights in a sub-block, and sub-blocks in a block.
const N: usize = 16;
const SUBS: usize = 16;

/// A block of Q3_K.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct BlockQ3K {
    /// Top bits.
    pub hmask: [u8; 32],
    /// Low two bits.
    pub qs: [u8; 64],
    /// Sixteen scales of 6 bits: see [`BlockQ3K::scale`].
    pub scales: [u8; 12],
    /// Unit of the scales.
    pub d: Half,
}

impl BlockQ3K {
    /// The scale multiple of sub-block `b` (0..16), from -32 to 31.
    #[inline(always)]
    pub fn scale(&self, b: usize) -> i8 {
        let low = self.scales[b % 8] >> (4 * (b / 8)) & 0x0f;
        let high = self.scales[8 + b % 4] >> (2 * (b / 4)) & 3;
        (low | high << 4) as i8 - 32
    }
}

pub(crate) struct Q3K;

impl BlockFormat for Q3K {
    const DTYPE: DType = DType::Q3K;
    type Block = BlockQ3K;

    const TOP: u8 = 7;

    fn recode(block: &mut Self::Block, codes: &[u8]) {
        block.hmask = [0; 32];
        for (row, q) in codes.chunks_exact(32).enumerate() {
            for j in 0..32 {
                block.hmask[j] |= (q[j] >> 2) << row;
            }
        }
        let mut low = [0; N * SUBS];
        for (low, code) in low.iter_mut().zip(codes) {
            *low = code & 3;
        }
        block.qs = pack_two_bits(&low);
    }

    fn encode(level: Level, rows: &[f32], weights: Weights<'_>, out: &mut [BlockQ3K]) {
        let mut tile = Tile::new(level, N);
        for (i, block) in out.iter_mut().enumerate() {
            tile.load(rows, weights, i * N * SUBS);
            let search = WithoutOffsets { tile: &mut tile, grid: Centred(4.0), levels: 32.0, subs: SUBS };
            let (d, scales) = simd::run(level, search);
            block.d = Half::from_f32(d[0]);
            block.scales = [0; 12];
            for (b, scale) in scales.into_iter().enumerate() {
                block.scales[b % 8] |= (scale & 0x0f) << (4 * (b / 8));
                block.scales[8 + b % 4] |= (scale >> 4) << (2 * (b / 4));
            }
            Self::recode(block, &in_order(&tile));
        }
    }

    #[inline(always)]
    fn decode(block: &BlockQ3K, out: &mut [f32]) {
        let d = block.d.to_f32();
        for (b, out) in out.chunks_exact_mut(N).enumerate() {
            let (half, row, side) = (b / 8, b % 8 / 2, b % 2);
            let step = d * f32::from(block.scale(b));
            let qs = &block.qs[32 * half + 16 * side..][..N];
            let top = &block.hmask[16 * side..][..N];
            for ((out, q), top) in out.iter_mut().zip(qs).zip(top) {
                let q = (q >> (2 * row) & 3) | (top >> (4 * half + row) & 1) << 2;
                *out = step * (i32::from(q) - 4) as f32;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Q3K;
    crate::testing::codec_tests!(Q3K);
}
