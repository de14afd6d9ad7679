//! IQ4_XS: 256 weights of 4 bits on sixteen uneven levels; each 32 have a scale of 6 bits, a multiple of one half.
//!
//! ```text
//! d d | h h | l0 l1 l2 l3 | i: 8 × 16 bytes        136 bytes
//! weight 32·b + j = d · (scale[b] - 32) · level[i]
//! ```
//! Low four bits of scale `b` in nibble `b % 2` of `l[b / 2]`, top two at bit `2·b` of the little-endian word `h`. Indices of
//! each sub-block lie as in [IQ4_NL](super::BlockIq4Nl).

use bytemuck::{Pod, Zeroable};
use drophammer_formats::DType;

use super::iq4_nl::IQ4_LEVELS;
use crate::codec::BlockFormat;
use crate::half_float::Half;
use crate::lanes::LANES;
use crate::search::grid::NonLinear;
use crate::search::superblock::WithoutOffsets;
use crate::simd::{self, Level};
use crate::weights::{Tile, Weights};

/// Weights in a sub-block, and sub-blocks in a block.
const N: usize = 32;
const SUBS: usize = 8;

/// A block of IQ4_XS.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct BlockIq4Xs {
    /// Unit of the scales.
    pub d: Half,
    /// Top two bits of the scales, little-endian.
    pub scales_h: [u8; 2],
    /// Low four bits of the scales.
    pub scales_l: [u8; 4],
    /// Level indices.
    pub qs: [u8; 128],
}

impl BlockIq4Xs {
    /// The scale multiple of sub-block `b` (0..8), from -32 to 31.
    #[inline(always)]
    pub fn scale(&self, b: usize) -> i8 {
        let low = self.scales_l[b / 2] >> (4 * (b % 2)) & 0x0f;
        let high = (u16::from_le_bytes(self.scales_h) >> (2 * b) & 3) as u8;
        (low | high << 4) as i8 - 32
    }
}

pub(crate) struct Iq4Xs;

impl BlockFormat for Iq4Xs {
    const DTYPE: DType = DType::Iq4Xs;
    type Block = BlockIq4Xs;

    fn encode(level: Level, rows: &[f32], weights: Weights<'_>, out: &mut [BlockIq4Xs]) {
        let mut tile = Tile::new(level, N);
        for (i, blocks) in out.chunks_mut(LANES / SUBS).enumerate() {
            tile.load(rows, weights, i * LANES * N);
            let search = WithoutOffsets { tile: &mut tile, grid: NonLinear, levels: 32.0, subs: SUBS };
            let (d, scales) = simd::run(level, search);
            let lines = tile.lines();
            for (k, block) in blocks.iter_mut().enumerate() {
                let first = k * SUBS;
                block.d = Half::from_f32(d[first]);
                block.scales_l = [0; 4];
                let mut high = 0u16;
                for b in 0..SUBS {
                    let scale = scales[first + b];
                    block.scales_l[b / 2] |= (scale & 0x0f) << (4 * (b % 2));
                    high |= u16::from(scale >> 4) << (2 * b);
                    let (low, high) = lines[(first + b) * N..(first + b + 1) * N].split_at(N / 2);
                    for (j, byte) in block.qs[b * N / 2..][..N / 2].iter_mut().enumerate() {
                        *byte = low[j] | high[j] << 4;
                    }
                }
                block.scales_h = high.to_le_bytes();
            }
        }
    }

    #[inline(always)]
    fn decode(block: &BlockIq4Xs, out: &mut [f32]) {
        let d = block.d.to_f32();
        for (b, (qs, out)) in block.qs.chunks_exact(N / 2).zip(out.chunks_exact_mut(N)).enumerate() {
            let step = d * f32::from(block.scale(b));
            let (low, high) = out.split_at_mut(N / 2);
            for ((&q, low), high) in qs.iter().zip(low).zip(high) {
                *low = step * f32::from(IQ4_LEVELS[usize::from(q & 0x0f)]);
                *high = step * f32::from(IQ4_LEVELS[usize::from(q >> 4)]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Iq4Xs;
    crate::testing::codec_tests!(Iq4Xs);
}
