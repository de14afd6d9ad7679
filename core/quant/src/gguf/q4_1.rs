//! Q4_1: 32 weights of 4 bits with a scale and an offset.
//!
//! ```text
//! d d | m m | q0/q16 q1/q17 … q15/q31        20 bytes; weight j = d · q[j] + m
//! ```

use bytemuck::{Pod, Zeroable};
use drophammer_formats::DType;

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

impl BlockQ4_1 {
    fn fill(&mut self, [d, m]: [f32; 2], codes: &[u8; N]) {
        (self.d, self.m) = (Half::from_f32(d), Half::from_f32(m));
        Q4_1::recode(self, codes);
    }
}

pub(crate) struct Q4_1;

impl BlockFormat for Q4_1 {
    const DTYPE: DType = DType::Q4_1;
    type Block = BlockQ4_1;

    const TOP: u8 = 15;

    fn recode(block: &mut Self::Block, codes: &[u8]) {
        let (low, high) = codes.split_at(N / 2);
        for (q, (low, high)) in block.qs.iter_mut().zip(low.iter().zip(high)) {
            *q = low | high << 4;
        }
    }

    fn encode(level: Level, rows: &[f32], weights: Weights<'_>, out: &mut [BlockQ4_1]) {
        if weights.are_even() {
            return even::offset(level, rows, 15.0, out, BlockQ4_1::fill);
        }
        let mut tile = Tile::new(level, N);
        for (i, blocks) in out.chunks_mut(LANES).enumerate() {
            tile.load(rows, weights, i * LANES * N);
            let line = simd::run(level, OwnLine { tile: &mut tile, top: 15.0, stored: ScaleType::F16 });
            for (lane, (block, codes)) in blocks.iter_mut().zip(tile.lines().as_chunks().0).enumerate() {
                block.fill([line.d[lane], line.m[lane]], codes);
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
