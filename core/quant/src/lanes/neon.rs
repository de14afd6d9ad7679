//! Sixteen lanes in four NEON registers.
#![allow(unsafe_code)] // intrinsics of the 64-bit Arm baseline
#![allow(clippy::wildcard_imports)] // intrinsics carry their own prefix

use std::arch::aarch64::*;
use std::ops::{Add, Div, Mul, Sub};

use super::{LANES, Lanes};

/// Four 128-bit registers, low lanes first.
#[derive(Debug, Clone, Copy)]
pub struct Neon([float32x4_t; 4]);

impl Neon {
    #[inline(always)]
    fn zip(self, other: Self, f: impl Fn(float32x4_t, float32x4_t) -> float32x4_t) -> Self {
        Self([
            f(self.0[0], other.0[0]),
            f(self.0[1], other.0[1]),
            f(self.0[2], other.0[2]),
            f(self.0[3], other.0[3]),
        ])
    }
}

macro_rules! operators {
    ($($trait:ident $method:ident $intrinsic:ident),*) => {$(
        impl $trait for Neon {
            type Output = Self;
            #[inline(always)]
            fn $method(self, other: Self) -> Self {
                // SAFETY: NEON belongs to the target's baseline.
                self.zip(other, |a, b| unsafe { $intrinsic(a, b) })
            }
        }
    )*};
}
operators!(Add add vaddq_f32, Sub sub vsubq_f32, Mul mul vmulq_f32, Div div vdivq_f32);

// SAFETY of every block below: NEON belongs to the target's baseline; loads and stores stay within 16 floats.
impl Lanes for Neon {
    type Mask = [uint32x4_t; 4];

    #[inline(always)]
    fn splat(x: f32) -> Self {
        // SAFETY: see above.
        Self([unsafe { vdupq_n_f32(x) }; 4])
    }

    #[inline(always)]
    fn load(x: &[f32; LANES]) -> Self {
        // SAFETY: see above.
        Self(std::array::from_fn(|i| unsafe { vld1q_f32(x.as_ptr().add(4 * i)) }))
    }

    #[inline(always)]
    fn store(self, out: &mut [f32; LANES]) {
        for (i, part) in self.0.into_iter().enumerate() {
            // SAFETY: see above.
            unsafe { vst1q_f32(out.as_mut_ptr().add(4 * i), part) }
        }
    }

    #[inline(always)]
    fn min(self, other: Self) -> Self {
        // SAFETY: see above.
        self.zip(other, |a, b| unsafe { vbslq_f32(vcltq_f32(a, b), a, b) })
    }

    #[inline(always)]
    fn max(self, other: Self) -> Self {
        // SAFETY: see above.
        self.zip(other, |a, b| unsafe { vbslq_f32(vcgtq_f32(a, b), a, b) })
    }

    #[inline(always)]
    fn abs(self) -> Self {
        // SAFETY: see above.
        Self(self.0.map(|x| unsafe { vabsq_f32(x) }))
    }

    #[inline(always)]
    fn sqrt(self) -> Self {
        // SAFETY: see above.
        Self(self.0.map(|x| unsafe { vsqrtq_f32(x) }))
    }

    #[inline(always)]
    fn lt(self, other: Self) -> Self::Mask {
        // SAFETY: see above.
        std::array::from_fn(|i| unsafe { vcltq_f32(self.0[i], other.0[i]) })
    }

    #[inline(always)]
    fn select(mask: Self::Mask, yes: Self, no: Self) -> Self {
        // SAFETY: see above.
        Self(std::array::from_fn(|i| unsafe { vbslq_f32(mask[i], yes.0[i], no.0[i]) }))
    }

    #[inline(always)]
    fn round_to_f16(self) -> Self {
        Self::load(&self.to_array().map(|x| half::f16::from_f32_const(x).to_f32_const()))
    }

    #[inline(always)]
    fn to_bytes(self) -> [u8; LANES] {
        self.to_array().map(|x| x as u8)
    }
}
