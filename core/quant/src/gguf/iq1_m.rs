//! IQ1_M: 256 weights of 1.75 bits from a codebook of ternary tuples; each 16 have a scale of 3 bits, each 8 a shift.
//!
//! ```text
//! p0 … p31 | h0 … h15 | 4 × (s s)        56 bytes
//! weight = d · (1 + 2·scale) · (trit ± 1/8)
//! ```
//! `p` are the low eight bits of points of eight trits; nibble `k` of `h[b]` belongs to point `2·b + k`: its top three bits, and above
//! whether its trits are shifted down. Each little-endian word `s` has four scales, lowest first, and above them four bits of
//! the half `d`, lowest first.

use bytemuck::{Pod, Zeroable};
use drophammer_formats::DType;

use super::iq_grids::IQ1;
use super::iq1_s::put_trits;
use crate::codec::BlockFormat;
use crate::half_float::Half;
use crate::lanes::LANES;
use crate::search::codebook::{self, Shape, Shift, Signs, TERNARY};
use crate::simd::Level;
use crate::weights::{Tile, Weights};

/// Weights that share a scale, and such groups in a block.
const N: usize = 16;
const SUBS: usize = 16;

/// A block of IQ1_M.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct BlockIq1M {
    /// Points, low eight bits.
    pub qs: [u8; 32],
    /// Points, top three bits, and shifts.
    pub qh: [u8; SUBS],
    /// Scales and their unit, little-endian.
    pub scales: [[u8; 2]; 4],
}

impl BlockIq1M {
    /// Unit of the scales.
    #[inline(always)]
    pub fn d(&self) -> Half {
        let bits = self
            .scales
            .iter()
            .enumerate()
            .fold(0, |bits, (i, word)| bits | (u16::from_le_bytes(*word) >> 12) << (4 * i));
        Half::from_bits(bits)
    }
}

const SHAPE: Shape = Shape {
    book: codebook::iq1,
    multiples: (1.0, 2.0),
    top: 7,
    signs: Signs::None,
    shift: Shift::Point,
    ladder: TERNARY,
    rehearsals: 0,
};

pub(crate) struct Iq1M;

impl BlockFormat for Iq1M {
    const DTYPE: DType = DType::Iq1M;
    type Block = BlockIq1M;

    fn encode(level: Level, rows: &[f32], weights: Weights<'_>, out: &mut [BlockIq1M]) {
        let mut tile = Tile::new(level, N);
        for (i, blocks) in out.chunks_mut(LANES / SUBS).enumerate() {
            tile.load(rows, weights, i * LANES * N);
            let coded = codebook::code(level, &SHAPE, &tile.x, &tile.w, SUBS);
            for (k, block) in blocks.iter_mut().enumerate() {
                let first = k * SUBS;
                let d = Half::from_f32(coded.d[first]).to_bits();
                block.scales = std::array::from_fn(|i| {
                    let scales =
                        (0..4).fold(0, |word, j| word | u16::from(coded.scale[first + 4 * i + j]) << (3 * j));
                    (scales | (d >> (4 * i) & 15) << 12).to_le_bytes()
                });
                for b in 0..SUBS {
                    let lane = first + b;
                    block.qh[b] = 0;
                    for k in 0..2 {
                        let point = coded.points[lane][k];
                        let down = coded.shifted[lane] >> k & 1;
                        block.qs[2 * b + k] = point as u8;
                        block.qh[b] |= ((point >> 8) as u8 | down << 3) << (4 * k);
                    }
                }
            }
        }
    }

    #[inline(always)]
    fn decode(block: &BlockIq1M, out: &mut [f32]) {
        let d = block.d().to_f32();
        for (p, out) in out.chunks_exact_mut(8).enumerate() {
            let (b, high) = (p / 2, block.qh[p / 2] >> (4 * (p % 2)));
            let scale = u16::from_le_bytes(block.scales[b / 4]) >> (3 * (b % 4)) & 7;
            let step = d * f32::from(2 * scale + 1);
            let index = u16::from(block.qs[p]) | u16::from(high & 7) << 8;
            put_trits(step, IQ1[usize::from(index)], high & 8 != 0, out);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Iq1M;
    crate::testing::codec_tests!(Iq1M);
}
