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
use crate::weights::{Tile, Weights};

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

/// `Σ w (x - d·q)²` with 4-bit floats of half-scale `d`.
#[inline(always)]
pub(super) fn e2m1_error<L: Lanes>(x: &[L], w: &[L], d: L) -> L {
    let inverse = d.recip_or_zero();
    let mut error = L::zero();
    for j in 0..x.len() {
        let magnitude = x[j].abs();
        let miss = magnitude - d * nearest_e2m1(magnitude * inverse);
        error = error + w[j] * miss * miss;
    }
    error
}

pub(crate) struct Mxfp4;

impl BlockFormat for Mxfp4 {
    const DTYPE: DType = DType::Mxfp4;
    type Block = BlockMxfp4;

    /// The exponent that keeps the largest magnitude between 4 and 8 is the plain choice; one step to either side often
    /// loses less.
    #[inline(always)]
    fn encode<L: Lanes>(rows: &[f32], weights: Weights<'_>, out: &mut [BlockMxfp4]) {
        for (i, blocks) in out.chunks_mut(LANES).enumerate() {
            let Tile { x, w } = Tile::<L, N>::load(rows, weights, i * LANES * N);
            let mut largest = L::zero();
            for x in &x {
                largest = largest.max(x.abs());
            }
            // Below 2^-100 everything rounds to zero; no scale or its inverse leaves the range of normal numbers.
            let plain = largest.to_array().map(|x| ((x.to_bits() >> 23) as i32 - 2).clamp(25, 252));
            let (mut best, mut least) = (plain, [f32::INFINITY; LANES]);
            for step in [0, -1, 1] {
                let exponents = plain.map(|e| e + step);
                let scale = L::load(&exponents.map(|e| e8m0_half_to_f32(e as u8)));
                let errors = e2m1_error(&x, &w, scale).to_array();
                for lane in 0..LANES {
                    if errors[lane] < least[lane] {
                        (best[lane], least[lane]) = (exponents[lane], errors[lane]);
                    }
                }
            }
            let inverse = L::load(&best.map(|e| e8m0_half_to_f32(e as u8))).recip_or_zero();
            for (block, e) in blocks.iter_mut().zip(best) {
                block.e = e as u8;
            }
            for j in 0..N / 2 {
                let (low, high) = (code_e2m1(x[j] * inverse), code_e2m1(x[j + N / 2] * inverse));
                let pairs = (low + high * L::splat(16.0)).to_bytes();
                for (block, pair) in blocks.iter_mut().zip(pairs) {
                    block.qs[j] = pair;
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
