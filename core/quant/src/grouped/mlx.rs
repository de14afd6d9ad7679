//! libmlx's quantized matrices as bytes: packed codes, scales and biases, by its own rule (mlx 0.32.4), bit for bit.
//!
//! ```text
//! weight  one little-endian stream of bits per row, in 32-bit words
//! scales  per group: the matrix's float type (affine), E8M0 (mxfp4, mxfp8) or E4M3 (nvfp4)
//! biases  per group, affine only
//! ```
//!
//! The rule is [`Fit::Owner`](super::Fit)'s, done sixteen weights at a time and without intermediate codes.

use super::{Levels, ScaleType};
use crate::lanes::{LANES, Lanes};
use crate::plain::f8_e4m3_to_f32;
use crate::simd::{self, Kernel, Level};

/// The longest group of any of its formats.
const LONGEST_GROUP: usize = 128;

/// A format of quantized matrices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Matrix {
    /// What codes stand for: `Affine`, `E2m1` or `E4m3`.
    pub levels: Levels,
    /// Weights per group.
    pub group: usize,
    /// How scales are stored.
    pub scale: ScaleType,
    /// The float type of the matrix before: what its values are rounded to, and affine scales and biases are stored as.
    pub base: ScaleType,
}

impl Matrix {
    /// Bytes of packed codes of `columns` weights.
    pub const fn weight_bytes(&self, columns: usize) -> usize {
        columns * self.levels.bits() as usize / 8
    }

    /// Bytes of the scales (and of the biases) of `columns` weights.
    pub const fn scale_bytes(&self, columns: usize) -> usize {
        columns / self.group
            * match self.scale {
                ScaleType::F32 => 4,
                ScaleType::F16 | ScaleType::BF16 => 2,
                ScaleType::E8M0 | ScaleType::E4M3 => 1,
            }
    }

    /// Encodes whole rows of finite values already rounded to [`Matrix::base`]. `biases` is empty where there are none.
    ///
    /// # Panics
    /// If lengths do not fit together or groups are not multiples of 16 up to 128.
    pub fn encode(&self, rows: &[f32], weight: &mut [u8], scales: &mut [u8], biases: &mut [u8]) {
        self.encode_at(simd::level(), rows, weight, scales, biases);
    }

    /// [`Matrix::encode`] with the instructions of a given level; the bytes are the same at every level.
    ///
    /// # Panics
    /// As [`Matrix::encode`].
    pub fn encode_at(
        &self,
        level: Level,
        rows: &[f32],
        weight: &mut [u8],
        scales: &mut [u8],
        biases: &mut [u8],
    ) {
        let group = self.group;
        assert!(group > 0 && group <= LONGEST_GROUP && group.is_multiple_of(LANES), "groups of {group}");
        assert!(rows.len().is_multiple_of(group), "{} weights in groups of {group}", rows.len());
        assert_eq!(weight.len(), self.weight_bytes(rows.len()), "packed codes");
        assert_eq!(scales.len(), self.scale_bytes(rows.len()), "scales");
        assert_eq!(biases.len(), if self.levels.has_offset() { scales.len() } else { 0 }, "biases");
        simd::run(level, Encode { matrix: *self, rows, weight, scales, biases });
    }
}

struct Encode<'a> {
    matrix: Matrix,
    rows: &'a [f32],
    weight: &'a mut [u8],
    scales: &'a mut [u8],
    biases: &'a mut [u8],
}

impl Kernel for Encode<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let Self { matrix, rows, weight, scales, biases } = self;
        let bits = matrix.levels.bits();
        let (packed, scale) = (matrix.weight_bytes(matrix.group), matrix.scale_bytes(matrix.group));
        let mut codes = [0; LONGEST_GROUP];
        let mut biases = biases.chunks_exact_mut(scale);
        let places = weight.chunks_exact_mut(packed).zip(scales.chunks_exact_mut(scale));
        for (x, (weight, scale)) in rows.chunks_exact(matrix.group).zip(places) {
            let codes = &mut codes[..matrix.group];
            match matrix.levels {
                Levels::Affine { bits } => {
                    let (d, m) = affine::<L>(x, bits, codes);
                    store(d, matrix.scale, scale);
                    if let Some(bias) = biases.next() {
                        store(m, matrix.scale, bias);
                    }
                }
                levels => scale[0] = small_float::<L>(x, levels, matrix, codes),
            }
            pack(codes, bits, weight);
        }
    }
}

/// The end of larger magnitude is hit exactly, and zero too where it lies inside the range.
#[inline(always)]
fn affine<L: Lanes>(x: &[f32], bits: u8, codes: &mut [u8]) -> (f32, f32) {
    let steps = ((1u32 << bits) - 1) as f32;
    let x = x.as_chunks::<LANES>().0;
    let (mut lows, mut highs) = (L::load(&x[0]), L::load(&x[0]));
    for x in &x[1..] {
        let x = L::load(x);
        (lows, highs) = (x.min(lows), x.max(highs));
    }
    let low = lows.to_array().into_iter().fold(f32::INFINITY, f32::min);
    let high = highs.to_array().into_iter().fold(f32::NEG_INFINITY, f32::max);
    let mirrored = low.abs() > high.abs();
    let mut scale = ((high - low) / steps).max(1e-7);
    if !mirrored {
        scale = -scale;
    }
    let edge = if mirrored { low } else { high };
    let at_edge = (edge / scale).round_ties_even();
    let mut bias = 0.0;
    if at_edge != 0.0 {
        scale = edge / at_edge;
        bias = edge;
    }
    let (d, m) = (L::splat(scale), L::splat(bias));
    for (x, codes) in x.iter().zip(codes.as_chunks_mut::<LANES>().0) {
        *codes = ((L::load(x) - m) / d).clamp(0.0, steps).round().to_bytes();
    }
    (scale, bias)
}

/// The largest magnitude meets the largest level, as nearly as the scale's type allows; gives the scale's byte.
#[inline(always)]
fn small_float<L: Lanes>(x: &[f32], levels: Levels, matrix: Matrix, codes: &mut [u8]) -> u8 {
    let top = if levels == Levels::E2m1 { 6.0 } else { 448.0 };
    let x = x.as_chunks::<LANES>().0;
    let mut largest = L::zero();
    for x in x {
        largest = L::load(x).abs().max(largest);
    }
    let largest = largest.to_array().into_iter().fold(0.0, f32::max);
    let wish = matrix.base.round(largest / top);
    let byte = match matrix.scale {
        // A group of zeros has the scale one.
        ScaleType::E8M0 if wish == 0.0 => 127,
        scale => scale.to_byte(wish),
    };
    let scale = match matrix.scale {
        ScaleType::E4M3 => f8_e4m3_to_f32(byte),
        _ => crate::plain::f8_e8m0_to_f32(byte),
    };
    if scale == 0.0 || wish == 0.0 {
        codes.fill(0);
        return byte;
    }
    let d = L::splat(scale);
    for (x, codes) in x.iter().zip(codes.as_chunks_mut::<LANES>().0) {
        let u = L::load(x) / d;
        *codes = if levels == Levels::E2m1 { e2m1(u) } else { u.to_array().map(e4m3) };
    }
    byte
}

/// The nearest 4-bit floats, ties to the smaller magnitude; zero has one code.
#[inline(always)]
fn e2m1<L: Lanes>(u: L) -> [u8; LANES] {
    let (zero, one) = (L::zero(), L::splat(1.0));
    let magnitude = u.abs();
    let mut code = zero;
    for middle in [0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0] {
        code = code + L::select(L::splat(middle).lt(magnitude), one, zero);
    }
    let negative = L::select(u.lt(zero), L::splat(8.0), zero);
    L::select(zero.lt(code), code + negative, zero).to_bytes()
}

/// The nearest finite E4M3, ties to even.
#[inline(always)]
fn e4m3(x: f32) -> u8 {
    let sign = ((x.to_bits() >> 24) & 0x80) as u8;
    let magnitude = x.abs().min(448.0);
    // Adding just under half of the last place kept, plus that place's bit, rounds ties to even.
    let bits = magnitude.to_bits();
    let normal = (bits + 0x7_ffff + (bits >> 20 & 1)) >> 20;
    let denormal = (magnitude * 512.0).round_ties_even() as u8;
    sign | if magnitude < 0.015_625 { denormal } else { normal.wrapping_sub((127 - 7) << 3) as u8 }
}

#[inline(always)]
fn store(x: f32, scale: ScaleType, out: &mut [u8]) {
    match (scale, out) {
        (ScaleType::F16, [low, high]) => [*low, *high] = half::f16::from_f32(x).to_le_bytes(),
        (ScaleType::BF16, [low, high]) => {
            let bits = scale.round(x).to_bits() >> 16;
            [*low, *high] = (bits as u16).to_le_bytes();
        }
        (_, out) => out.copy_from_slice(&x.to_le_bytes()),
    }
}

/// Codes as a little-endian stream of bits; their number is a multiple of 8.
#[inline(always)]
fn pack(codes: &[u8], bits: u32, out: &mut [u8]) {
    match bits {
        8 => out.copy_from_slice(codes),
        4 => {
            for (codes, out) in codes.as_chunks::<8>().0.iter().zip(out.as_chunks_mut::<4>().0) {
                let v = u64::from_le_bytes(*codes);
                let v = (v | v >> 4) & 0x00ff_00ff_00ff_00ff;
                let v = (v | v >> 8) & 0x0000_ffff_0000_ffff;
                *out = ((v | v >> 16) as u32).to_le_bytes();
            }
        }
        _ => {
            for (codes, out) in codes.as_chunks::<8>().0.iter().zip(out.chunks_exact_mut(bits as usize)) {
                let word =
                    codes.iter().zip(0..).fold(0u64, |word, (&code, i)| word | u64::from(code) << (i * bits));
                out.copy_from_slice(&word.to_le_bytes()[..bits as usize]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plain::f32_to_f8_e4m3;

    #[test]
    fn eight_bit_floats_are_the_nearest() {
        for i in 0..200_000 {
            let x = (i as f32 - 100_000.0) * 0.0047;
            for x in [x, x * 1e-3, x * 1e-5] {
                assert_eq!(e4m3(x), f32_to_f8_e4m3(x), "{x}");
            }
        }
    }

    #[test]
    fn every_level_gives_the_same_bytes_and_a_group_of_zeros_is_zeros() {
        let mut rows: Vec<f32> =
            (0..1024).map(|i| f32::sin(i as f32 * 0.37) * (1.0 + (i / 64) as f32)).collect();
        rows[128..256].fill(0.0);
        for (levels, scale, group) in [
            (Levels::Affine { bits: 3 }, ScaleType::F32, 64),
            (Levels::Affine { bits: 4 }, ScaleType::F32, 32),
            (Levels::E2m1, ScaleType::E8M0, 32),
            (Levels::E2m1, ScaleType::E4M3, 16),
            (Levels::E4m3, ScaleType::E8M0, 32),
        ] {
            let matrix = Matrix { levels, group, scale, base: ScaleType::F32 };
            let made: Vec<_> = Level::supported()
                .map(|level| {
                    let mut weight = vec![0; matrix.weight_bytes(1024)];
                    let mut scales = vec![0; matrix.scale_bytes(1024)];
                    let mut biases = vec![0; if levels.has_offset() { scales.len() } else { 0 }];
                    matrix.encode_at(level, &rows, &mut weight, &mut scales, &mut biases);
                    (weight, scales, biases)
                })
                .collect();
            assert!(made.iter().all(|bytes| *bytes == made[0]), "{levels:?}");
            let zeros = &made[0].0[matrix.weight_bytes(128)..matrix.weight_bytes(256)];
            assert!(zeros.iter().all(|byte| *byte == 0), "{levels:?}");
        }
    }
}
