//! Sixteen lanes in plain Rust: the meaning that every other implementation is tested against.

use std::ops::{Add, Div, Mul, Sub};

use super::{LANES, Lanes};

/// Vectors as arrays, left to the compiler.
#[derive(Debug, Clone, Copy)]
#[repr(align(64))]
pub struct Portable([f32; LANES]);

impl Portable {
    #[inline(always)]
    fn zip(self, other: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        let mut out = [0.0; LANES];
        for i in 0..LANES {
            out[i] = f(self.0[i], other.0[i]);
        }
        Self(out)
    }

    #[inline(always)]
    fn map(self, f: impl Fn(f32) -> f32) -> Self {
        let mut out = [0.0; LANES];
        for i in 0..LANES {
            out[i] = f(self.0[i]);
        }
        Self(out)
    }
}

macro_rules! operators {
    ($($trait:ident $method:ident $op:tt),*) => {$(
        impl $trait for Portable {
            type Output = Self;
            #[inline(always)]
            fn $method(self, other: Self) -> Self {
                self.zip(other, |a, b| a $op b)
            }
        }
    )*};
}
operators!(Add add +, Sub sub -, Mul mul *, Div div /);

impl Lanes for Portable {
    type Mask = [bool; LANES];

    #[inline(always)]
    fn splat(x: f32) -> Self {
        Self([x; LANES])
    }

    #[inline(always)]
    fn load(x: &[f32; LANES]) -> Self {
        Self(*x)
    }

    #[inline(always)]
    fn store(self, out: &mut [f32; LANES]) {
        *out = self.0;
    }

    #[inline(always)]
    fn min(self, other: Self) -> Self {
        self.zip(other, |a, b| if a < b { a } else { b })
    }

    #[inline(always)]
    fn max(self, other: Self) -> Self {
        self.zip(other, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    fn abs(self) -> Self {
        self.map(f32::abs)
    }

    #[inline(always)]
    fn sqrt(self) -> Self {
        self.map(f32::sqrt)
    }

    #[inline(always)]
    fn lt(self, other: Self) -> Self::Mask {
        let mut out = [false; LANES];
        for i in 0..LANES {
            out[i] = self.0[i] < other.0[i];
        }
        out
    }

    #[inline(always)]
    fn select(mask: Self::Mask, yes: Self, no: Self) -> Self {
        let mut out = [0.0; LANES];
        for i in 0..LANES {
            out[i] = if mask[i] { yes.0[i] } else { no.0[i] };
        }
        Self(out)
    }

    #[inline(always)]
    fn round_to_f16(self) -> Self {
        self.map(|x| half::f16::from_f32_const(x).to_f32_const())
    }

    #[inline(always)]
    fn to_bytes(self) -> [u8; LANES] {
        let mut out = [0; LANES];
        for i in 0..LANES {
            out[i] = self.0[i] as u8;
        }
        out
    }
}
