//! MXFP4: 32 weights as 4-bit floats (E2M1) with a power of two for a scale (E8M0).
//!
//! ```text
//! e | q0/q16 q1/q17 … q15/q31        17 bytes; weight j = 2^(e - 127) · e2m1[q[j]]
//! ```
//! Bit 3 of `q` is the sign; magnitudes are 0, ½, 1, 1½, 2, 3, 4, 6. They are kept doubled, as whole numbers, and the
//! scale halved.

use bytemuck::{Pod, Zeroable};
use drophammer_formats::DType;

use crate::codec::BlockFormat;
use crate::lanes::{LANES, Lanes};
use crate::search::grid::E2m1;
use crate::search::symmetric::AmongScales;
use crate::simd::{self, Level};
use crate::weights::{Row, Tile, Weights};

/// Weights in a block.
const N: usize = 32;

/// Twice the value of every 4-bit float.
pub const E2M1_DOUBLED: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// Half of the power of two that an E8M0 byte means. (255 means NaN in OCP's format, 2^128 in GGUF.)
#[inline(always)]
pub fn e8m0_half_to_f32(byte: u8) -> f32 {
    let exponent = u32::from(byte);
    f32::from_bits(if exponent < 2 { 0x0020_0000 << exponent } else { (exponent - 1) << 23 })
}

/// A block of MXFP4.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct BlockMxfp4 {
    /// Exponent of the scale, biased by 127.
    pub e: u8,
    /// 4-bit floats: weight `j` in the low, weight `j + 16` in the high nibble.
    pub qs: [u8; N / 2],
}

/// Twice the magnitude of the 4-bit float nearest to `u / 2`, for `u ≥ 0`.
#[inline(always)]
pub(crate) fn nearest_e2m1<L: Lanes>(u: L) -> L {
    climb(u, [1.0, 1.0, 1.0, 1.0, 2.0, 2.0, 4.0])
}

/// The 4-bit code of the float nearest to `u / 2`.
#[inline(always)]
pub(crate) fn code_e2m1<L: Lanes>(u: L) -> L {
    let magnitude = climb(u.abs(), [1.0; 7]);
    // A negative zero would only confuse: zero has one code.
    let signed = magnitude + L::splat(8.0);
    let negative = L::select(u.lt(L::zero()), signed, magnitude);
    L::select(L::zero().lt(magnitude), negative, magnitude)
}

/// Adds one step for each middle between magnitudes that `u` exceeds.
#[inline(always)]
fn climb<L: Lanes>(u: L, steps: [f32; 7]) -> L {
    const MIDDLES: [f32; 7] = [0.5, 1.5, 2.5, 3.5, 5.0, 7.0, 10.0];
    let mut sum = L::zero();
    for (middle, step) in MIDDLES.into_iter().zip(steps) {
        sum = L::select(L::splat(middle).lt(u), sum + L::splat(step), sum);
    }
    sum
}

/// The largest magnitude of every lane.
pub(super) fn largest_magnitudes(rows: &[Row]) -> Row {
    rows.iter()
        .fold([0.0; LANES], |largest, row| std::array::from_fn(|lane| largest[lane].max(row[lane].abs())))
}

pub(crate) struct Mxfp4;

impl BlockFormat for Mxfp4 {
    const DTYPE: DType = DType::Mxfp4;
    type Block = BlockMxfp4;

    /// The exponent that keeps the largest magnitude between 4 and 8 is the plain choice; one step to either side often
    /// loses less.
    fn encode(level: Level, rows: &[f32], weights: Weights<'_>, out: &mut [BlockMxfp4]) {
        let mut tile = Tile::new(level, N);
        for (i, blocks) in out.chunks_mut(LANES).enumerate() {
            tile.load(rows, weights, i * LANES * N);
            // Below 2^-100 everything rounds to zero; no scale or its inverse leaves the range of normal numbers.
            let plain = largest_magnitudes(&tile.x).map(|x| ((x.to_bits() >> 23) as i32 - 2).clamp(25, 252));
            let steps = [0, -1, 1];
            let candidates = steps.map(|step| plain.map(|e| 2.0 * e8m0_half_to_f32((e + step) as u8)));
            let best = simd::run(level, AmongScales { tile: &mut tile, grid: E2m1, candidates: &candidates });
            let lines = tile.lines();
            for (lane, block) in blocks.iter_mut().enumerate() {
                block.e = (plain[lane] + steps[usize::from(best[lane])]) as u8;
                let (low, high) = lines[lane * N..(lane + 1) * N].split_at(N / 2);
                for j in 0..N / 2 {
                    block.qs[j] = low[j] | high[j] << 4;
                }
            }
        }
    }

    #[inline(always)]
    fn decode(block: &BlockMxfp4, out: &mut [f32]) {
        let d = e8m0_half_to_f32(block.e);
        let (low, high) = out.split_at_mut(N / 2);
        for ((&q, low), high) in block.qs.iter().zip(low).zip(high) {
            *low = f32::from(E2M1_DOUBLED[usize::from(q & 0x0f)]) * d;
            *high = f32::from(E2M1_DOUBLED[usize::from(q >> 4)]) * d;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Mxfp4;
    crate::testing::codec_tests!(Mxfp4);
}
