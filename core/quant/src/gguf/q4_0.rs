//! Q4_0: 32 weights of 4 bits with one scale.
//!
//! ```text
//! d d | q0/q16 q1/q17 … q15/q31        18 bytes; weight j = d · (q[j] - 8)
//! ```

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

/// A block of Q4_0.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct BlockQ4_0 {
    /// Scale.
    pub d: Half,
    /// Quants plus 8: weight `j` in the low, weight `j + 16` in the high nibble.
    pub qs: [u8; N / 2],
}

impl BlockQ4_0 {
    fn fill(&mut self, d: f32, codes: &[u8; N]) {
        self.d = Half::from_f32(d);
        Q4_0::recode(self, codes);
    }
}

pub(crate) struct Q4_0;

impl BlockFormat for Q4_0 {
    const DTYPE: DType = DType::Q4_0;
    type Block = BlockQ4_0;

    const TOP: u8 = 15;

    fn recode(block: &mut Self::Block, codes: &[u8]) {
        let (low, high) = codes.split_at(N / 2);
        for (q, (low, high)) in block.qs.iter_mut().zip(low.iter().zip(high)) {
            *q = low | high << 4;
        }
    }

    fn encode(level: Level, rows: &[f32], weights: Weights<'_>, out: &mut [BlockQ4_0]) {
        if weights.are_even() {
            return even::scaled(level, rows, 8.0, out, BlockQ4_0::fill);
        }
        let mut tile = Tile::new(level, N);
        for (i, blocks) in out.chunks_mut(LANES).enumerate() {
            tile.load(rows, weights, i * LANES * N);
            let d =
                simd::run(level, OwnScale { tile: &mut tile, grid: Centred(8.0), stored: ScaleType::F16 });
            for ((block, codes), d) in blocks.iter_mut().zip(tile.lines().as_chunks().0).zip(d) {
                block.fill(d, codes);
            }
        }
    }

    #[inline(always)]
    fn decode(block: &BlockQ4_0, out: &mut [f32]) {
        let d = block.d.to_f32();
        let (low, high) = out.split_at_mut(N / 2);
        for ((&q, low), high) in block.qs.iter().zip(low).zip(high) {
            *low = (i32::from(q & 0x0f) - 8) as f32 * d;
            *high = (i32::from(q >> 4) - 8) as f32 * d;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Q4_0;
    crate::testing::codec_tests!(Q4_0);
}
