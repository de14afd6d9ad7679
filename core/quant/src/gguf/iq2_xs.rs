//! IQ2_XS: 256 weights of 2 bits from a codebook; each 16 have a scale of 4 bits.
//!
//! ```text
//! d d | 32 × (q q) | s0 … s7        74 bytes; s = scale of 16 / scale of the next 16
//! weight = d · (1/8 + scale/4) · ±magnitude
//! ```
//! Each little-endian `q` holds a point of eight magnitudes in nine bits and seven signs above; the eighth makes the number of
//! minus signs even.

use bytemuck::{Pod, Zeroable};
use drophammer_formats::DType;

use super::iq_grids::IQ2_XS;
use super::iq2_xxs::{even_signs, put_2bit};
use crate::codec::BlockFormat;
use crate::half_float::Half;
use crate::lanes::LANES;
use crate::search::codebook::{self, COARSE, Shape, Shift, Signs};
use crate::simd::Level;
use crate::weights::{Tile, Weights};

/// Weights that share a scale, and such groups in a block.
const N: usize = 16;
const SUBS: usize = 16;

/// A block of IQ2_XS.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct BlockIq2Xs {
    /// Unit of the scales.
    pub d: Half,
    /// Points and signs, little-endian.
    pub qs: [[u8; 2]; 32],
    /// Scales.
    pub scales: [u8; 8],
}

const SHAPE: Shape = Shape {
    book: codebook::iq2_xs,
    multiples: (0.125, 0.25),
    top: 15,
    signs: Signs::Even,
    shift: Shift::None,
    ladder: COARSE,
    rehearsals: 1,
};

pub(crate) struct Iq2Xs;

impl BlockFormat for Iq2Xs {
    const DTYPE: DType = DType::Iq2Xs;
    type Block = BlockIq2Xs;

    fn encode(level: Level, rows: &[f32], weights: Weights<'_>, out: &mut [BlockIq2Xs]) {
        let mut tile = Tile::new(level, N);
        for (i, blocks) in out.chunks_mut(LANES / SUBS).enumerate() {
            tile.load(rows, weights, i * LANES * N);
            let coded = codebook::code(level, &SHAPE, &tile.x, &tile.w, SUBS);
            for (k, block) in blocks.iter_mut().enumerate() {
                let first = k * SUBS;
                block.d = Half::from_f32(coded.d[first]);
                block.scales =
                    std::array::from_fn(|b| coded.scale[first + 2 * b] | coded.scale[first + 2 * b + 1] << 4);
                for (b, qs) in block.qs.chunks_exact_mut(2).enumerate() {
                    let lane = first + b;
                    for p in 0..2 {
                        qs[p] = (coded.points[lane][p] | u16::from(coded.signs[lane][p] & 0x7f) << 9)
                            .to_le_bytes();
                    }
                }
            }
        }
    }

    #[inline(always)]
    fn decode(block: &BlockIq2Xs, out: &mut [f32]) {
        let d = block.d.to_f32();
        for (p, (q, out)) in block.qs.iter().zip(out.chunks_exact_mut(8)).enumerate() {
            let scale = block.scales[p / 4] >> (4 * (p / 2 % 2)) & 0x0f;
            let step = d * (0.5 + f32::from(scale)) * 0.25;
            let q = u16::from_le_bytes(*q);
            put_2bit(step, IQ2_XS[usize::from(q & 511)], even_signs((q >> 9) as u8), out);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Iq2Xs;
    crate::testing::codec_tests!(Iq2Xs);
}
