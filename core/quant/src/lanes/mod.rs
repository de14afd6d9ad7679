//! Sixteen floats at a time.
//!
//! [`Lanes`] is the small vocabulary in which encoders are written. Each implementation performs exactly the same
//! IEEE-754 single-precision operation per lane (round to nearest even, no fused multiply-add, no approximate
//! reciprocal), and reductions across lanes pair them in one fixed order. So a kernel gives the same bits at every level: that is what
//! makes published files reproducible on any processor.

#![allow(clippy::return_self_not_must_use)] // operators in all but form

use std::ops::{Add, Div, Mul, Sub};

mod portable;
pub(crate) mod transpose;
pub use portable::Portable;

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
pub use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
pub use avx512::Avx512;

#[cfg(target_arch = "aarch64")]
mod neon;
#[cfg(target_arch = "aarch64")]
pub use neon::Neon;

/// Lanes in a vector, whatever the instruction set.
pub const LANES: usize = 16;

/// 1.5 × 2²³: adding and subtracting it rounds to the nearest integer, ties to even, for |x| < 2²².
const ROUNDER: f32 = 12_582_912.0;

/// A vector of 16 single-precision numbers.
pub trait Lanes:
    Copy
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + std::fmt::Debug
    + 'static
{
    /// One truth value per lane.
    type Mask: Copy;

    /// All lanes the same.
    fn splat(x: f32) -> Self;
    /// Lane `i` from `x[i]`.
    fn load(x: &[f32; LANES]) -> Self;
    /// Lane `i` into `out[i]`.
    fn store(self, out: &mut [f32; LANES]);
    /// `self < other ? self : other`, so `other` where either is NaN.
    fn min(self, other: Self) -> Self;
    /// `self > other ? self : other`, so `other` where either is NaN.
    fn max(self, other: Self) -> Self;
    /// Magnitude.
    fn abs(self) -> Self;
    /// Correctly rounded square root.
    fn sqrt(self) -> Self;
    /// Ordered `self < other`.
    fn lt(self, other: Self) -> Self::Mask;
    /// Lane by lane: `yes` where the mask holds, else `no`.
    fn select(mask: Self::Mask, yes: Self, no: Self) -> Self;
    /// The nearest half-precision number, ties to even.
    fn round_to_f16(self) -> Self;
    /// Whole numbers in 0..=255 as bytes; the result is unspecified for other values.
    fn to_bytes(self) -> [u8; LANES];

    /// The nearest whole number, ties to even; exact for |x| < 2²², the caller clamps.
    #[inline(always)]
    fn round(self) -> Self {
        let rounder = Self::splat(ROUNDER);
        (self + rounder) - rounder
    }

    /// All zero.
    #[inline(always)]
    fn zero() -> Self {
        Self::splat(0.0)
    }

    /// Within `low..=high`; `low` for NaN.
    #[inline(always)]
    fn clamp(self, low: f32, high: f32) -> Self {
        self.max(Self::splat(low)).min(Self::splat(high))
    }

    /// `1 / self`, and 0 where `self` is 0.
    #[inline(always)]
    fn recip_or_zero(self) -> Self {
        let nonzero = Self::zero().lt(self.abs());
        Self::select(nonzero, Self::splat(1.0) / self, Self::zero())
    }

    /// The nearest finite half-precision number, ties to even.
    #[inline(always)]
    fn saturating_f16(self) -> Self {
        self.clamp(-65504.0, 65504.0).round_to_f16()
    }

    /// The sum of all lanes, by halves: lane `i` is added to lane `i + 8`, then to `i + 4`, `i + 2`, `i + 1`.
    #[inline(always)]
    fn sum(self) -> f32 {
        let mut lanes = self.to_array();
        for half in [8, 4, 2, 1] {
            for i in 0..half {
                lanes[i] += lanes[i + half];
            }
        }
        lanes[0]
    }

    /// The largest lane, if none is NaN.
    #[inline(always)]
    fn largest(self) -> f32 {
        let mut lanes = self.to_array();
        for half in [8, 4, 2, 1] {
            for i in 0..half {
                lanes[i] = if lanes[i] > lanes[i + half] { lanes[i] } else { lanes[i + half] };
            }
        }
        lanes[0]
    }

    /// The lanes as an array.
    #[inline(always)]
    fn to_array(self) -> [f32; LANES] {
        let mut out = [0.0; LANES];
        self.store(&mut out);
        out
    }
}

#[cfg(test)]
mod tests;
