//! Q5_0: 32 weights of 5 bits with one scale.
//!
//! ```text
//! d d | h h h h | q0/q16 q1/q17 … q15/q31        22 bytes; weight j = d · (q[j] + 16·h[j] - 16)
//! ```
//! Bit `j` of the little-endian word `h` is the fifth bit of weight `j`.

use bytemuck::{Pod, Zeroable};
use drophammer_formats::DType;

use crate::codec::BlockFormat;
use crate::grouped::ScaleType;
use crate::half_float::Half;
use crate::lanes::LANES;
use crate::search::even;
use crate::search::grid::Centred;
use crate::search::symmetric::OwnScale;
use crate::simd::{self, Level};
use crate::weights::{Tile, Weights};

/// Weights in a block.
const N: usize = 32;

/// A block of Q5_0.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct BlockQ5_0 {
    /// Scale.
    pub d: Half,
    /// Fifth bits, weight `j` in bit `j`.
    pub qh: [u8; 4],
    /// Low four bits: weight `j` in the low, weight `j + 16` in the high nibble.
    pub qs: [u8; N / 2],
}

impl BlockQ5_0 {
    fn fill(&mut self, d: f32, codes: &[u8; N]) {
        self.d = Half::from_f32(d);
        Q5_0::recode(self, codes);
    }
}

pub(crate) struct Q5_0;

impl BlockFormat for Q5_0 {
    const DTYPE: DType = DType::Q5_0;
    type Block = BlockQ5_0;

    const TOP: u8 = 31;

    fn recode(block: &mut Self::Block, codes: &[u8]) {
        (block.qh, block.qs) = pack_fifth_bits(codes);
    }

    fn encode(level: Level, rows: &[f32], weights: Weights<'_>, out: &mut [BlockQ5_0]) {
        if weights.are_even() {
            return even::scaled(level, rows, 16.0, out, BlockQ5_0::fill);
        }
        let mut tile = Tile::new(level, N);
        for (i, blocks) in out.chunks_mut(LANES).enumerate() {
            tile.load(rows, weights, i * LANES * N);
            let d =
                simd::run(level, OwnScale { tile: &mut tile, grid: Centred(16.0), stored: ScaleType::F16 });
            for ((block, codes), d) in blocks.iter_mut().zip(tile.lines().as_chunks().0).zip(d) {
                block.fill(d, codes);
            }
        }
    }

    #[inline(always)]
    fn decode(block: &BlockQ5_0, out: &mut [f32]) {
        let d = block.d.to_f32();
        let high_bits = u32::from_le_bytes(block.qh);
        let (low, high) = out.split_at_mut(N / 2);
        for (j, ((&q, low), high)) in block.qs.iter().zip(low).zip(high).enumerate() {
            let fifth = ((high_bits >> j) << 4) & 0x10;
            *low = ((u32::from(q & 0x0f) | fifth) as i32 - 16) as f32 * d;
            let fifth = (high_bits >> (j + 12)) & 0x10;
            *high = ((u32::from(q >> 4) | fifth) as i32 - 16) as f32 * d;
        }
    }
}

/// The fifth-bit word and the nibbles of 5-bit quants.
pub(super) fn pack_fifth_bits(quants: &[u8]) -> ([u8; 4], [u8; N / 2]) {
    let mut high_bits = 0u32;
    let mut nibbles = [0u8; N / 2];
    for j in 0..N / 2 {
        let (low, high) = (quants[j], quants[j + N / 2]);
        nibbles[j] = (low & 0x0f) | (high << 4);
        high_bits |= u32::from(low >> 4) << j | u32::from(high >> 4) << (j + N / 2);
    }
    (high_bits.to_le_bytes(), nibbles)
}

#[cfg(test)]
mod tests {
    use super::Q5_0;
    crate::testing::codec_tests!(Q5_0);
}
