//! IQ3_S: 256 weights of 3 bits from a codebook; each 32 have a scale of 4 bits.
//!
//! ```text
//! d d | p0 … p63 | h0 … h7 | m0 … m31 | s0 … s3        110 bytes
//! weight = d · (1 + 2·scale) · ±magnitude
//! ```
//! `p` are the low eight bits of points of four magnitudes, bit `k` of `h[b]` the ninth of point `8·b + k`; `m` are the signs of
//! eight weights each. `s` holds the scale of 32 weights in its low and of the next 32 in its high nibble.

use bytemuck::{Pod, Zeroable};
use drophammer_formats::DType;

use super::iq_grids::{IQ3_S, LEVELS_IQ3_S};
use super::iq3_xxs::put_3bit;
use crate::codec::BlockFormat;
use crate::half_float::Half;
use crate::lanes::LANES;
use crate::search::codebook::{self, FINE, Shape, Shift, Signs};
use crate::simd::Level;
use crate::weights::{Tile, Weights};

/// Weights that share a scale, and such groups in a block.
const N: usize = 32;
const SUBS: usize = 8;

/// A block of IQ3_S.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct BlockIq3S {
    /// Unit of the scales.
    pub d: Half,
    /// Points, low eight bits.
    pub qs: [u8; 64],
    /// Points, ninth bit.
    pub qh: [u8; 8],
    /// Signs.
    pub signs: [u8; 32],
    /// Scales.
    pub scales: [u8; 4],
}

const SHAPE: Shape = Shape {
    book: codebook::iq3_s,
    multiples: (1.0, 2.0),
    top: 15,
    signs: Signs::Free,
    shift: Shift::None,
    ladder: FINE,
    rehearsals: 1,
};

pub(crate) struct Iq3S;

impl BlockFormat for Iq3S {
    const DTYPE: DType = DType::Iq3S;
    type Block = BlockIq3S;

    fn encode(level: Level, rows: &[f32], weights: Weights<'_>, out: &mut [BlockIq3S]) {
        let mut tile = Tile::new(level, N);
        for (i, blocks) in out.chunks_mut(LANES / SUBS).enumerate() {
            tile.load(rows, weights, i * LANES * N);
            let coded = codebook::code(level, &SHAPE, &tile.x, &tile.w, SUBS);
            for (k, block) in blocks.iter_mut().enumerate() {
                let first = k * SUBS;
                block.d = Half::from_f32(coded.d[first]);
                block.scales =
                    std::array::from_fn(|b| coded.scale[first + 2 * b] | coded.scale[first + 2 * b + 1] << 4);
                for b in 0..SUBS {
                    let lane = first + b;
                    block.signs[4 * b..4 * b + 4].copy_from_slice(&coded.signs[lane]);
                    block.qh[b] = 0;
                    for (p, point) in coded.points[lane].into_iter().enumerate() {
                        block.qs[8 * b + p] = point as u8;
                        block.qh[b] |= ((point >> 8) as u8) << p;
                    }
                }
            }
        }
    }

    #[inline(always)]
    fn decode(block: &BlockIq3S, out: &mut [f32]) {
        let d = block.d.to_f32();
        for (b, out) in out.chunks_exact_mut(N).enumerate() {
            let scale = block.scales[b / 2] >> (4 * (b % 2)) & 0x0f;
            let step = d * (1 + 2 * scale) as f32;
            for (p, out) in out.chunks_exact_mut(4).enumerate() {
                let ninth = u16::from(block.qh[b] >> p & 1);
                let point = IQ3_S[usize::from(u16::from(block.qs[8 * b + p]) | ninth << 8)];
                let signs = block.signs[4 * b + p / 2] >> (4 * (p % 2));
                put_3bit(&LEVELS_IQ3_S, step, point, signs, out);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Iq3S;
    crate::testing::codec_tests!(Iq3S);
}
