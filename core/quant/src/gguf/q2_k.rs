//! Q2_K: 256 weights of 2 bits; each 16 have a scale and an offset of 4 bits, multiples of two shared halves.
//!
//! ```text
//! s0 … s15 | q: 2 × 32 bytes | d d | m m        84 bytes; s[b] = scale / min
//! weight 16·b + j = d · scale[b] · q - m · min[b]
//! ```
//! Each half of the block is 128 weights in four rows of 32; bits `2r` and `2r + 1` of `q[j]` are row `r`.

use bytemuck::{Pod, Zeroable};
use drophammer_formats::DType;

use crate::codec::BlockFormat;
use crate::half_float::Half;
use crate::lanes::transpose;
use crate::search::superblock::WithOffsets;
use crate::simd::{self, Level};
use crate::weights::{Tile, Weights};

/// Weights in a sub-block, and sub-blocks in a block.
const N: usize = 16;
const SUBS: usize = 16;

/// A block of Q2_K.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct BlockQ2K {
    /// Scale in the low, offset in the high nibble.
    pub scales: [u8; SUBS],
    /// Quants.
    pub qs: [u8; 64],
    /// Unit of the scales.
    pub d: Half,
    /// Unit of the offsets.
    pub dmin: Half,
}

pub(crate) struct Q2K;

/// The codes of sixteen sub-blocks of sixteen weights, in the order of the weights.
pub(super) fn in_order(tile: &Tile) -> [u8; 256] {
    let mut out = [0; 256];
    for (out, part) in out.as_chunks_mut::<256>().0.iter_mut().zip(tile.codes.as_chunks::<N>().0) {
        out.copy_from_slice(transpose::sixteen(part).as_flattened());
    }
    out
}

/// Packs 256 quants of two bits: each byte takes one weight from each of the four rows of its half.
pub(super) fn pack_two_bits(quants: &[u8]) -> [u8; 64] {
    let mut out = [0; 64];
    for (bytes, q) in out.chunks_exact_mut(32).zip(quants.chunks_exact(128)) {
        for j in 0..32 {
            bytes[j] = q[j] | q[j + 32] << 2 | q[j + 64] << 4 | q[j + 96] << 6;
        }
    }
    out
}

impl BlockFormat for Q2K {
    const DTYPE: DType = DType::Q2K;
    type Block = BlockQ2K;

    const TOP: u8 = 3;

    fn recode(block: &mut Self::Block, codes: &[u8]) {
        block.qs = pack_two_bits(codes);
    }

    fn encode(level: Level, rows: &[f32], weights: Weights<'_>, out: &mut [BlockQ2K]) {
        let mut tile = Tile::new(level, N);
        for (i, block) in out.iter_mut().enumerate() {
            tile.load(rows, weights, i * N * SUBS);
            let found = simd::run(level, WithOffsets { tile: &mut tile, n: 3.0, levels: 15.0, subs: SUBS });
            block.d = Half::from_f32(found.d[0]);
            block.dmin = Half::from_f32(found.dmin[0]);
            block.scales = std::array::from_fn(|b| found.scale[b] | found.min[b] << 4);
            Self::recode(block, &in_order(&tile));
        }
    }

    #[inline(always)]
    fn decode(block: &BlockQ2K, out: &mut [f32]) {
        let (d, dmin) = (block.d.to_f32(), block.dmin.to_f32());
        for (b, out) in out.chunks_exact_mut(N).enumerate() {
            let (half, row, side) = (b / 8, b % 8 / 2, b % 2);
            let (scale, min) = (block.scales[b] & 0x0f, block.scales[b] >> 4);
            let (step, offset) = (d * f32::from(scale), dmin * f32::from(min));
            let qs = &block.qs[32 * half + 16 * side..][..N];
            for (out, q) in out.iter_mut().zip(qs) {
                *out = step * f32::from(q >> (2 * row) & 3) - offset;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Q2K;
    crate::testing::codec_tests!(Q2K);
}
