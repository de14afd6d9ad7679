//! IQ3_XXS: 256 weights of 3 bits from a codebook; each 32 have a scale of 4 bits.
//!
//! ```text
//! d d | p0 … p63 | 8 × (t t t t)        98 bytes
//! weight = d · (1/4 + scale/2) · ±magnitude
//! ```
//! `p` are points of four magnitudes. The little-endian word `t` of each sub-block of 32 has seven signs for each eight
//! weights, lowest first, then the scale in the top four bits; the eighth sign makes the number of minus signs even.

use bytemuck::{Pod, Zeroable};
use drophammer_formats::DType;

use super::iq_grids::{IQ3_XXS, LEVELS_IQ3_XXS};
use super::iq2_xxs::even_signs;
use crate::codec::BlockFormat;
use crate::half_float::Half;
use crate::lanes::LANES;
use crate::search::codebook::{self, FINE, Shape, Shift, Signs};
use crate::simd::Level;
use crate::weights::{Tile, Weights};

/// Weights that share a scale, and such groups in a block.
const N: usize = 32;
const SUBS: usize = 8;

/// A block of IQ3_XXS.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct BlockIq3Xxs {
    /// Unit of the scales.
    pub d: Half,
    /// Points.
    pub qs: [u8; 64],
    /// Signs and scales, little-endian.
    pub scales_and_signs: [[u8; 4]; SUBS],
}

/// Writes `step · magnitude` with its sign for the digits of a point, three bits each.
#[inline(always)]
pub(super) fn put_3bit(levels: &[f32; 8], step: f32, point: u16, signs: u8, out: &mut [f32]) {
    for (j, out) in out.iter_mut().enumerate() {
        let value = step * levels[usize::from(point >> (3 * j) & 7)];
        *out = if signs >> j & 1 == 1 { -value } else { value };
    }
}

const SHAPE: Shape = Shape {
    book: codebook::iq3_xxs,
    multiples: (0.25, 0.5),
    top: 15,
    signs: Signs::Even,
    shift: Shift::None,
    ladder: FINE,
    rehearsals: 1,
};

pub(crate) struct Iq3Xxs;

impl BlockFormat for Iq3Xxs {
    const DTYPE: DType = DType::Iq3Xxs;
    type Block = BlockIq3Xxs;

    fn encode(level: Level, rows: &[f32], weights: Weights<'_>, out: &mut [BlockIq3Xxs]) {
        let mut tile = Tile::new(level, N);
        for (i, blocks) in out.chunks_mut(LANES / SUBS).enumerate() {
            tile.load(rows, weights, i * LANES * N);
            let coded = codebook::code(level, &SHAPE, &tile.x, &tile.w, SUBS);
            for (k, block) in blocks.iter_mut().enumerate() {
                let first = k * SUBS;
                block.d = Half::from_f32(coded.d[first]);
                for b in 0..SUBS {
                    let lane = first + b;
                    let mut tail = u32::from(coded.scale[lane]) << 28;
                    for (i, signs) in coded.signs[lane].iter().enumerate() {
                        tail |= u32::from(signs & 0x7f) << (7 * i);
                    }
                    block.scales_and_signs[b] = tail.to_le_bytes();
                    for (q, point) in block.qs[8 * b..].iter_mut().zip(coded.points[lane]) {
                        *q = point as u8;
                    }
                }
            }
        }
    }

    #[inline(always)]
    fn decode(block: &BlockIq3Xxs, out: &mut [f32]) {
        let d = block.d.to_f32();
        for (b, out) in out.chunks_exact_mut(N).enumerate() {
            let tail = u32::from_le_bytes(block.scales_and_signs[b]);
            let step = d * (0.5 + (tail >> 28) as f32) * 0.5;
            for (k, out) in out.chunks_exact_mut(4).enumerate() {
                let signs = even_signs((tail >> (7 * (k / 2))) as u8) >> (4 * (k % 2));
                put_3bit(&LEVELS_IQ3_XXS, step, IQ3_XXS[usize::from(block.qs[8 * b + k])], signs, out);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Iq3Xxs;
    crate::testing::codec_tests!(Iq3Xxs);
}
