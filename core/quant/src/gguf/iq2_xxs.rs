//! IQ2_XXS: 256 weights of 2 bits from a codebook; each 32 have a scale of 4 bits.
//!
//! ```text
//! d d | 8 × (p0 p1 p2 p3 | t t t t)        66 bytes
//! weight = d · (1/8 + scale/4) · ±magnitude
//! ```
//! Each sub-block of 32 has four points of eight magnitudes and a little-endian word `t`: seven signs for each point, lowest
//! first, then the scale in the top four bits. The eighth sign makes the number of minus signs even.

use bytemuck::{Pod, Zeroable};
use drophammer_formats::DType;

use super::iq_grids::{IQ2_XXS, LEVELS_2BIT};
use crate::codec::BlockFormat;
use crate::half_float::Half;
use crate::lanes::LANES;
use crate::search::codebook::{self, COARSE, Shape, Shift, Signs};
use crate::simd::Level;
use crate::weights::{Tile, Weights};

/// Weights that share a scale, and such groups in a block.
const N: usize = 32;
const SUBS: usize = 8;

/// A block of IQ2_XXS.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct BlockIq2Xxs {
    /// Unit of the scales.
    pub d: Half,
    /// Points, signs and scales.
    pub qs: [[u8; 8]; SUBS],
}

/// All eight signs from the seven that are stored.
#[inline(always)]
pub fn even_signs(seven: u8) -> u8 {
    let seven = seven & 0x7f;
    seven | ((seven.count_ones() & 1) as u8) << 7
}

/// Writes `step · magnitude` with its sign for the digits of a point, two bits each.
#[inline(always)]
pub(super) fn put_2bit(step: f32, point: u16, signs: u8, out: &mut [f32]) {
    for (j, out) in out.iter_mut().enumerate() {
        let value = step * LEVELS_2BIT[usize::from(point >> (2 * j) & 3)];
        *out = if signs >> j & 1 == 1 { -value } else { value };
    }
}

const SHAPE: Shape = Shape {
    book: codebook::iq2_xxs,
    multiples: (0.125, 0.25),
    top: 15,
    signs: Signs::Even,
    shift: Shift::None,
    ladder: COARSE,
    rehearsals: 1,
};

pub(crate) struct Iq2Xxs;

impl BlockFormat for Iq2Xxs {
    const DTYPE: DType = DType::Iq2Xxs;
    type Block = BlockIq2Xxs;

    fn encode(level: Level, rows: &[f32], weights: Weights<'_>, out: &mut [BlockIq2Xxs]) {
        let mut tile = Tile::new(level, N);
        for (i, blocks) in out.chunks_mut(LANES / SUBS).enumerate() {
            tile.load(rows, weights, i * LANES * N);
            let coded = codebook::code(level, &SHAPE, &tile.x, &tile.w, SUBS);
            for (k, block) in blocks.iter_mut().enumerate() {
                let first = k * SUBS;
                block.d = Half::from_f32(coded.d[first]);
                for (b, qs) in block.qs.iter_mut().enumerate() {
                    let lane = first + b;
                    let mut tail = u32::from(coded.scale[lane]) << 28;
                    for p in 0..4 {
                        qs[p] = coded.points[lane][p] as u8;
                        tail |= u32::from(coded.signs[lane][p] & 0x7f) << (7 * p);
                    }
                    qs[4..].copy_from_slice(&tail.to_le_bytes());
                }
            }
        }
    }

    #[inline(always)]
    fn decode(block: &BlockIq2Xxs, out: &mut [f32]) {
        let d = block.d.to_f32();
        for (qs, out) in block.qs.iter().zip(out.chunks_exact_mut(N)) {
            let tail = u32::from_le_bytes([qs[4], qs[5], qs[6], qs[7]]);
            let step = d * (0.5 + (tail >> 28) as f32) * 0.25;
            for (p, out) in out.chunks_exact_mut(8).enumerate() {
                put_2bit(step, IQ2_XXS[usize::from(qs[p])], even_signs((tail >> (7 * p)) as u8), out);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Iq2Xxs;
    crate::testing::codec_tests!(Iq2Xxs);
}
