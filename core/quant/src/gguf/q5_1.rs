//! Q5_1: 32 weights of 5 bits with a scale and an offset.
//!
//! ```text
//! d d | m m | h h h h | q0/q16 q1/q17 … q15/q31        24 bytes; weight j = d · (q[j] + 16·h[j]) + m
//! ```
//! Bit `j` of the little-endian word `h` is the fifth bit of weight `j`.

use bytemuck::{Pod, Zeroable};
use drophammer_formats::DType;

use super::q5_0::pack_fifth_bits;
use crate::codec::BlockFormat;
use crate::grouped::ScaleType;
use crate::half_float::Half;
use crate::lanes::LANES;
use crate::search::affine::OwnLine;
use crate::search::even;
use crate::simd::{self, Level};
use crate::weights::{Tile, Weights};

/// Weights in a block.
const N: usize = 32;

/// A block of Q5_1.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct BlockQ5_1 {
    /// Scale.
    pub d: Half,
    /// Value of quant 0.
    pub m: Half,
    /// Fifth bits, weight `j` in bit `j`.
    pub qh: [u8; 4],
    /// Low four bits: weight `j` in the low, weight `j + 16` in the high nibble.
    pub qs: [u8; N / 2],
}

impl BlockQ5_1 {
    fn fill(&mut self, [d, m]: [f32; 2], codes: &[u8; N]) {
        (self.d, self.m) = (Half::from_f32(d), Half::from_f32(m));
        Q5_1::recode(self, codes);
    }
}

pub(crate) struct Q5_1;

impl BlockFormat for Q5_1 {
    const DTYPE: DType = DType::Q5_1;
    type Block = BlockQ5_1;

    const TOP: u8 = 31;

    fn recode(block: &mut Self::Block, codes: &[u8]) {
        (block.qh, block.qs) = pack_fifth_bits(codes);
    }

    fn encode(level: Level, rows: &[f32], weights: Weights<'_>, out: &mut [BlockQ5_1]) {
        if weights.are_even() {
            return even::offset(level, rows, 31.0, out, BlockQ5_1::fill);
        }
        let mut tile = Tile::new(level, N);
        for (i, blocks) in out.chunks_mut(LANES).enumerate() {
            tile.load(rows, weights, i * LANES * N);
            let line = simd::run(level, OwnLine { tile: &mut tile, top: 31.0, stored: ScaleType::F16 });
            for (lane, (block, codes)) in blocks.iter_mut().zip(tile.lines().as_chunks().0).enumerate() {
                block.fill([line.d[lane], line.m[lane]], codes);
            }
        }
    }

    #[inline(always)]
    fn decode(block: &BlockQ5_1, out: &mut [f32]) {
        let (d, m) = (block.d.to_f32(), block.m.to_f32());
        let high_bits = u32::from_le_bytes(block.qh);
        let (low, high) = out.split_at_mut(N / 2);
        for (j, ((&q, low), high)) in block.qs.iter().zip(low).zip(high).enumerate() {
            let fifth = ((high_bits >> j) << 4) & 0x10;
            *low = (u32::from(q & 0x0f) | fifth) as f32 * d + m;
            let fifth = (high_bits >> (j + 12)) & 0x10;
            *high = (u32::from(q >> 4) | fifth) as f32 * d + m;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Q5_1;
    crate::testing::codec_tests!(Q5_1);
}
