//! Q4_K: 256 weights of 4 bits; each 32 have a scale and an offset of 6 bits, multiples of two shared halves.
//!
//! ```text
//! d d | m m | s0 … s11 | q: 4 × 32 bytes        144 bytes
//! weight 32·b + j = d · scale[b] · q - m · min[b]
//! ```
//! Chunk `c` of `q` holds sub-block `2c` in its low and `2c + 1` in its high nibbles. The 16 six-bit numbers in `s`:
//!
//! ```text
//! byte    0..4                 4..8                8..12
//!         scale 0..4 (6 bits)  min 0..4 (6 bits)   scale 4..8, low 4 bits / min 4..8, low 4 bits
//!         above: top 2 bits    above: top 2 bits
//!         of scale 4..8        of min 4..8
//! ```

use bytemuck::{Pod, Zeroable};
use drophammer_formats::DType;

use crate::codec::BlockFormat;
use crate::half_float::Half;
use crate::lanes::LANES;
use crate::search::superblock::WithOffsets;
use crate::simd::{self, Level};
use crate::weights::{Tile, Weights};

/// Weights in a sub-block, and sub-blocks in a block.
const N: usize = 32;
const SUBS: usize = 8;

/// A block of Q4_K.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct BlockQ4K {
    /// Unit of the scales.
    pub d: Half,
    /// Unit of the offsets.
    pub dmin: Half,
    /// Eight scales and eight offsets of 6 bits: see [`scale_min_k4`].
    pub scales: [u8; 12],
    /// Quants in nibbles.
    pub qs: [u8; 128],
}

/// Scale and offset multiples of sub-block `b` (0..8), as Q4_K and Q5_K pack them.
#[inline(always)]
pub fn scale_min_k4(scales: &[u8; 12], b: usize) -> (u8, u8) {
    if b < 4 {
        (scales[b] & 63, scales[b + 4] & 63)
    } else {
        let (low, scale_top, min_top) = (scales[b + 4], scales[b - 4] >> 6, scales[b] >> 6);
        ((low & 0x0f) | scale_top << 4, low >> 4 | min_top << 4)
    }
}

/// The reverse of [`scale_min_k4`] for all sub-blocks.
#[inline(always)]
pub(super) fn pack_scales_k4(scales: &[u8], mins: &[u8]) -> [u8; 12] {
    let mut out = [0; 12];
    for b in 0..4 {
        out[b] = scales[b] | scales[b + 4] >> 4 << 6;
        out[b + 4] = mins[b] | mins[b + 4] >> 4 << 6;
        out[b + 8] = (scales[b + 4] & 0x0f) | mins[b + 4] << 4;
    }
    out
}

pub(crate) struct Q4K;

impl BlockFormat for Q4K {
    const DTYPE: DType = DType::Q4K;
    type Block = BlockQ4K;

    const TOP: u8 = 15;

    fn recode(block: &mut Self::Block, codes: &[u8]) {
        for (bytes, codes) in block.qs.chunks_exact_mut(N).zip(codes.chunks_exact(2 * N)) {
            let (low, high) = codes.split_at(N);
            for j in 0..N {
                bytes[j] = low[j] | high[j] << 4;
            }
        }
    }

    fn encode(level: Level, rows: &[f32], weights: Weights<'_>, out: &mut [BlockQ4K]) {
        let mut tile = Tile::new(level, N);
        for (i, blocks) in out.chunks_mut(LANES / SUBS).enumerate() {
            tile.load(rows, weights, i * LANES * N);
            let search = WithOffsets { tile: &mut tile, n: 15.0, levels: 63.0, subs: SUBS };
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
    fn decode(block: &BlockQ4K, out: &mut [f32]) {
        let (d, dmin) = (block.d.to_f32(), block.dmin.to_f32());
        for (c, (qs, out)) in block.qs.chunks_exact(N).zip(out.chunks_exact_mut(2 * N)).enumerate() {
            let (low, high) = out.split_at_mut(N);
            let (scale, min) = scale_min_k4(&block.scales, 2 * c);
            let (step, offset) = (d * f32::from(scale), dmin * f32::from(min));
            for (out, q) in low.iter_mut().zip(qs) {
                *out = step * f32::from(q & 0x0f) - offset;
            }
            let (scale, min) = scale_min_k4(&block.scales, 2 * c + 1);
            let (step, offset) = (d * f32::from(scale), dmin * f32::from(min));
            for (out, q) in high.iter_mut().zip(qs) {
                *out = step * f32::from(q >> 4) - offset;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Q4K, pack_scales_k4, scale_min_k4};
    crate::testing::codec_tests!(Q4K);

    #[test]
    fn packed_scales_come_back_whole() {
        let scales = [63, 1, 32, 17, 48, 15, 62, 33];
        let mins = [0, 63, 16, 31, 47, 1, 60, 5];
        let packed = pack_scales_k4(&scales, &mins);
        for b in 0..8 {
            assert_eq!(scale_min_k4(&packed, b), (scales[b], mins[b]), "sub-block {b}");
        }
    }
}
