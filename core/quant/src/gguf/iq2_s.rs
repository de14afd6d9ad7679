//! IQ2_S: 256 weights of 2 bits from a codebook; each 16 have a scale of 4 bits.
//!
//! ```text
//! d d | p0 … p31 | m0 … m31 | h0 … h7 | s0 … s7        82 bytes
//! weight = d · (1/8 + scale/4) · ±magnitude
//! ```
//! `p` are the low eight bits of points of eight magnitudes, `m` their signs; bits `2k` and `2k + 1` of `h[b]` are the top bits
//! of point `4·b + k`. `s` holds the scale of 16 weights in its low and of the next 16 in its high nibble.

use bytemuck::{Pod, Zeroable};
use drophammer_formats::DType;

use super::iq_grids::IQ2_S;
use super::iq2_xxs::put_2bit;
use crate::codec::BlockFormat;
use crate::half_float::Half;
use crate::lanes::LANES;
use crate::search::codebook::{self, COARSE, Shape, Shift, Signs};
use crate::simd::Level;
use crate::weights::{Tile, Weights};

/// Weights that share a scale, and such groups in a block.
const N: usize = 16;
const SUBS: usize = 16;

/// A block of IQ2_S.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct BlockIq2S {
    /// Unit of the scales.
    pub d: Half,
    /// Points, low eight bits.
    pub qs: [u8; 32],
    /// Signs.
    pub signs: [u8; 32],
    /// Points, top two bits.
    pub qh: [u8; 8],
    /// Scales.
    pub scales: [u8; 8],
}

const SHAPE: Shape = Shape {
    book: codebook::iq2_s,
    multiples: (0.125, 0.25),
    top: 15,
    signs: Signs::Free,
    shift: Shift::None,
    ladder: COARSE,
    rehearsals: 0,
};

pub(crate) struct Iq2S;

impl BlockFormat for Iq2S {
    const DTYPE: DType = DType::Iq2S;
    type Block = BlockIq2S;

    fn encode(level: Level, rows: &[f32], weights: Weights<'_>, out: &mut [BlockIq2S]) {
        let mut tile = Tile::new(level, N);
        for (i, blocks) in out.chunks_mut(LANES / SUBS).enumerate() {
            tile.load(rows, weights, i * LANES * N);
            let coded = codebook::code(level, &SHAPE, &tile.x, &tile.w, SUBS);
            for (k, block) in blocks.iter_mut().enumerate() {
                let first = k * SUBS;
                block.d = Half::from_f32(coded.d[first]);
                block.scales =
                    std::array::from_fn(|b| coded.scale[first + 2 * b] | coded.scale[first + 2 * b + 1] << 4);
                block.qh = [0; 8];
                for p in 0..32 {
                    let (lane, k) = (first + p / 2, p % 2);
                    let point = coded.points[lane][k];
                    block.qs[p] = point as u8;
                    block.signs[p] = coded.signs[lane][k];
                    block.qh[p / 4] |= ((point >> 8) as u8) << (2 * (p % 4));
                }
            }
        }
    }

    #[inline(always)]
    fn decode(block: &BlockIq2S, out: &mut [f32]) {
        let d = block.d.to_f32();
        for (p, out) in out.chunks_exact_mut(8).enumerate() {
            let scale = block.scales[p / 4] >> (4 * (p / 2 % 2)) & 0x0f;
            let step = d * (0.5 + f32::from(scale)) * 0.25;
            let top = u16::from(block.qh[p / 4] >> (2 * (p % 4)) & 3);
            put_2bit(step, IQ2_S[usize::from(u16::from(block.qs[p]) | top << 8)], block.signs[p], out);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Iq2S;
    crate::testing::codec_tests!(Iq2S);
}
