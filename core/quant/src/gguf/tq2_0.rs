//! TQ2_0: 256 ternary weights of 2 bits with one scale.
//!
//! ```text
//! q: 2 × 32 bytes | d d        66 bytes; weight j = d · (q[j] - 1)
//! ```
//! Each half of the block is 128 weights in four rows of 32; bits `2r` and `2r + 1` of `q[j]` are row `r`.

use bytemuck::{Pod, Zeroable};
use drophammer_formats::DType;

use super::q2_k::pack_two_bits;
use crate::codec::BlockFormat;
use crate::grouped::ScaleType;
use crate::half_float::Half;
use crate::lanes::LANES;
use crate::search::grid::Ternary;
use crate::search::symmetric::OwnScale;
use crate::simd::{self, Level};
use crate::weights::{Tile, Weights};

/// Weights in a block.
const N: usize = 256;

/// A block of TQ2_0.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct BlockTq2_0 {
    /// Weights plus one.
    pub qs: [u8; 64],
    /// Scale.
    pub d: Half,
}

/// Finds scales of all blocks and rounds their weights to quants 0, 1 and 2. Weights that are ternary already come back
/// exactly.
pub(super) fn ternary(
    level: Level,
    rows: &[f32],
    weights: Weights<'_>,
    blocks: usize,
    mut put: impl FnMut(usize, Half, &[u8; N]),
) {
    let mut tile = Tile::new(level, N);
    for first in (0..blocks).step_by(LANES) {
        tile.load(rows, weights, first * N);
        let d = simd::run(level, OwnScale { tile: &mut tile, grid: Ternary, stored: ScaleType::F16 });
        let lines = tile.lines().as_chunks().0;
        for (lane, d) in d.into_iter().enumerate().take(blocks - first) {
            put(first + lane, Half::from_f32(d), &lines[lane]);
        }
    }
}

pub(crate) struct Tq2_0;

impl BlockFormat for Tq2_0 {
    const DTYPE: DType = DType::Tq2_0;
    type Block = BlockTq2_0;

    fn encode(level: Level, rows: &[f32], weights: Weights<'_>, out: &mut [BlockTq2_0]) {
        ternary(level, rows, weights, out.len(), |i, d, quants| {
            out[i] = BlockTq2_0 { qs: pack_two_bits(quants), d };
        });
    }

    #[inline(always)]
    fn decode(block: &BlockTq2_0, out: &mut [f32]) {
        let d = block.d.to_f32();
        for (qs, out) in block.qs.chunks_exact(32).zip(out.chunks_exact_mut(128)) {
            for (row, out) in out.chunks_exact_mut(32).enumerate() {
                for (out, q) in out.iter_mut().zip(qs) {
                    *out = (i32::from(q >> (2 * row) & 3) - 1) as f32 * d;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Tq2_0;
    crate::testing::codec_tests!(Tq2_0);

    #[test]
    fn ternary_weights_come_back_exactly() {
        let rows: Vec<f32> = (0..1024).map(|i| [0.0, 0.75, -0.75][i * i % 7 % 3]).collect();
        for dtype in [DTYPE, drophammer_formats::DType::Tq1_0] {
            assert_eq!(crate::testing::loss(dtype, &rows, None).squared, 0.0, "{dtype}");
        }
    }
}
