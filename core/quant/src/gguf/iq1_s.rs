//! IQ1_S: 256 weights of about 1.5 bits from a codebook of ternary tuples; each 32 have a scale of 3 bits and a shift.
//!
//! ```text
//! d d | p0 … p31 | 8 × (h h)        50 bytes
//! weight = d · (1 + 2·scale) · (trit ± 1/8)
//! ```
//! `p` are the low eight bits of points of eight trits. The little-endian word `h` of each sub-block of 32 has the top three
//! bits of its four points, lowest first, the scale in bits 12 to 14 and in bit 15 whether trits are shifted down.

use bytemuck::{Pod, Zeroable};
use drophammer_formats::DType;

use super::iq_grids::{IQ1, IQ1_SHIFT, LEVELS_1BIT};
use crate::codec::BlockFormat;
use crate::half_float::Half;
use crate::lanes::LANES;
use crate::search::codebook::{self, Shape, Shift, Signs, TERNARY};
use crate::simd::Level;
use crate::weights::{Tile, Weights};

/// Weights that share a scale, and such groups in a block.
const N: usize = 32;
const SUBS: usize = 8;

/// A block of IQ1_S.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct BlockIq1S {
    /// Unit of the scales.
    pub d: Half,
    /// Points, low eight bits.
    pub qs: [u8; 32],
    /// Points, top three bits, scales and shifts, little-endian.
    pub qh: [[u8; 2]; SUBS],
}

/// Writes `step · (trit ± 1/8)` for the digits of a point.
#[inline(always)]
pub(super) fn put_trits(step: f32, point: u16, down: bool, out: &mut [f32]) {
    let shift = if down { -IQ1_SHIFT } else { IQ1_SHIFT };
    for (j, out) in out.iter_mut().enumerate() {
        *out = step * (LEVELS_1BIT[usize::from(point >> (2 * j) & 3)] + shift);
    }
}

const SHAPE: Shape = Shape {
    book: codebook::iq1,
    multiples: (1.0, 2.0),
    top: 7,
    signs: Signs::None,
    shift: Shift::Scale,
    ladder: TERNARY,
    rehearsals: 0,
};

pub(crate) struct Iq1S;

impl BlockFormat for Iq1S {
    const DTYPE: DType = DType::Iq1S;
    type Block = BlockIq1S;

    fn encode(level: Level, rows: &[f32], weights: Weights<'_>, out: &mut [BlockIq1S]) {
        let mut tile = Tile::new(level, N);
        for (i, blocks) in out.chunks_mut(LANES / SUBS).enumerate() {
            tile.load(rows, weights, i * LANES * N);
            let coded = codebook::code(level, &SHAPE, &tile.x, &tile.w, SUBS);
            for (k, block) in blocks.iter_mut().enumerate() {
                let first = k * SUBS;
                block.d = Half::from_f32(coded.d[first]);
                for b in 0..SUBS {
                    let lane = first + b;
                    let mut high =
                        u16::from(coded.scale[lane]) << 12 | u16::from(coded.shifted[lane] & 1) << 15;
                    for (p, point) in coded.points[lane].into_iter().take(4).enumerate() {
                        block.qs[4 * b + p] = point as u8;
                        high |= (point >> 8) << (3 * p);
                    }
                    block.qh[b] = high.to_le_bytes();
                }
            }
        }
    }

    #[inline(always)]
    fn decode(block: &BlockIq1S, out: &mut [f32]) {
        let d = block.d.to_f32();
        for (b, out) in out.chunks_exact_mut(N).enumerate() {
            let high = u16::from_le_bytes(block.qh[b]);
            let step = d * f32::from(2 * (high >> 12 & 7) + 1);
            for (p, out) in out.chunks_exact_mut(8).enumerate() {
                let index = u16::from(block.qs[4 * b + p]) | (high >> (3 * p) & 7) << 8;
                put_trits(step, IQ1[usize::from(index)], high >> 15 == 1, out);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Iq1S;
    crate::testing::codec_tests!(Iq1S);
}
