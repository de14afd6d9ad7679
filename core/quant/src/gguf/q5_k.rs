//! Q5_K: 256 weights of 5 bits; each 32 have a scale and an offset of 6 bits, multiples of two shared halves.
//!
//! ```text
//! d d | m m | s0 … s11 | h: 32 bytes | q: 4 × 32 bytes        176 bytes
//! weight 32·b + j = d · scale[b] · (q + 16·h) - m · min[b]
//! ```
//! Chunk `c` of `q` holds sub-block `2c` in its low and `2c + 1` in its high nibbles; bit `b` of `h[j]` is the fifth
//! bit of weight `j` in sub-block `b`. The scales are packed as in [Q4_K](super::BlockQ4K).

use bytemuck::{Pod, Zeroable};
use drophammer_formats::DType;

use super::q4_k::{pack_scales_k4, scale_min_k4};
use crate::codec::BlockFormat;
use crate::half_float::Half;
use crate::lanes::LANES;
use crate::search::superblock::WithOffsets;
use crate::simd::{self, Level};
use crate::weights::{Tile, Weights};

/// Weights in a sub-block, and sub-blocks in a block.
const N: usize = 32;
const SUBS: usize = 8;

/// A block of Q5_K.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct BlockQ5K {
    /// Unit of the scales.
    pub d: Half,
    /// Unit of the offsets.
    pub dmin: Half,
    /// Eight scales and eight offsets of 6 bits: see [`scale_min_k4`].
    pub scales: [u8; 12],
    /// Fifth bits: sub-block `b` in bit `b`.
    pub qh: [u8; 32],
    /// Low four bits in nibbles.
    pub qs: [u8; 128],
}

pub(crate) struct Q5K;

impl BlockFormat for Q5K {
    const DTYPE: DType = DType::Q5K;
    type Block = BlockQ5K;

    const TOP: u8 = 31;

    fn recode(block: &mut Self::Block, codes: &[u8]) {
        block.qh = [0; 32];
        let parts = block.qs.chunks_exact_mut(N).zip(codes.chunks_exact(2 * N));
        for (c, (bytes, codes)) in parts.enumerate() {
            let (low, high) = codes.split_at(N);
            for j in 0..N {
                bytes[j] = (low[j] & 0x0f) | high[j] << 4;
                block.qh[j] |= ((low[j] >> 4) | (high[j] >> 4) << 1) << (2 * c);
            }
        }
    }

    fn encode(level: Level, rows: &[f32], weights: Weights<'_>, out: &mut [BlockQ5K]) {
        let mut tile = Tile::new(level, N);
        for (i, blocks) in out.chunks_mut(LANES / SUBS).enumerate() {
            tile.load(rows, weights, i * LANES * N);
            let search = WithOffsets { tile: &mut tile, n: 31.0, levels: 63.0, subs: SUBS };
            let found = simd::run(level, search);
            let lines = tile.lines();
            for (k, block) in blocks.iter_mut().enumerate() {
                let first = k * SUBS;
                block.d = Half::from_f32(found.d[first]);
                block.dmin = Half::from_f32(found.dmin[first]);
                block.scales = pack_scales_k4(&found.scale[first..], &found.min[first..]);
                Self::recode(block, &lines[first * N..(first + SUBS) * N]);
            }
        }
    }

    #[inline(always)]
    fn decode(block: &BlockQ5K, out: &mut [f32]) {
        let (d, dmin) = (block.d.to_f32(), block.dmin.to_f32());
        for (c, (qs, out)) in block.qs.chunks_exact(N).zip(out.chunks_exact_mut(2 * N)).enumerate() {
            let (low, high) = out.split_at_mut(N);
            let (scale, min) = scale_min_k4(&block.scales, 2 * c);
            let (step, offset) = (d * f32::from(scale), dmin * f32::from(min));
            for ((out, q), h) in low.iter_mut().zip(qs).zip(&block.qh) {
                *out = step * f32::from((q & 0x0f) | ((h >> (2 * c)) & 1) << 4) - offset;
            }
            let (scale, min) = scale_min_k4(&block.scales, 2 * c + 1);
            let (step, offset) = (d * f32::from(scale), dmin * f32::from(min));
            for ((out, q), h) in high.iter_mut().zip(qs).zip(&block.qh) {
                *out = step * f32::from((q >> 4) | ((h >> (2 * c + 1)) & 1) << 4) - offset;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Q5K;
    crate::testing::codec_tests!(Q5K);
}
