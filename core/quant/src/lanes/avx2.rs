//! Sixteen lanes in two AVX2 registers.
#![allow(unsafe_code)] // intrinsics; reached only through `simd::run`, which checks the processor
#![allow(clippy::wildcard_imports)] // intrinsics carry their own prefix

use std::arch::x86_64::*;
use std::ops::{Add, Div, Mul, Sub};

use super::{LANES, Lanes};

/// Folds eight lanes to one, the upper half onto the lower one each time.
macro_rules! by_halves {
    ($eight:expr, $fold:ident) => {{
        let eight = $eight;
        let four = $fold(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
        let two = $fold(four, _mm_movehl_ps(four, four));
        _mm_cvtss_f32($fold(two, _mm_movehdup_ps(two)))
    }};
}
pub(super) use by_halves;

/// Two 256-bit registers, low lanes first.
#[derive(Debug, Clone, Copy)]
pub struct Avx2(__m256, __m256);

macro_rules! operators {
    ($($trait:ident $method:ident $intrinsic:ident),*) => {$(
        impl $trait for Avx2 {
            type Output = Self;
            #[inline(always)]
            fn $method(self, other: Self) -> Self {
                // SAFETY: values of this type exist only inside `simd::run_avx2`.
                unsafe { Self($intrinsic(self.0, other.0), $intrinsic(self.1, other.1)) }
            }
        }
    )*};
}
operators!(Add add _mm256_add_ps, Sub sub _mm256_sub_ps, Mul mul _mm256_mul_ps, Div div _mm256_div_ps);

// SAFETY of every block below: values of this type exist only inside `simd::run_avx2`, which is entered after the
// processor's AVX2, FMA and F16C have been detected; loads and stores go through references to 16 floats.
impl Lanes for Avx2 {
    type Mask = (__m256, __m256);

    #[inline(always)]
    fn splat(x: f32) -> Self {
        // SAFETY: see above.
        unsafe { Self(_mm256_set1_ps(x), _mm256_set1_ps(x)) }
    }

    #[inline(always)]
    fn load(x: &[f32; LANES]) -> Self {
        // SAFETY: see above; the second half starts at lane 8 of 16.
        unsafe { Self(_mm256_loadu_ps(x.as_ptr()), _mm256_loadu_ps(x.as_ptr().add(8))) }
    }

    #[inline(always)]
    fn store(self, out: &mut [f32; LANES]) {
        // SAFETY: see above; the second half starts at lane 8 of 16.
        unsafe {
            _mm256_storeu_ps(out.as_mut_ptr(), self.0);
            _mm256_storeu_ps(out.as_mut_ptr().add(8), self.1);
        }
    }

    #[inline(always)]
    fn min(self, other: Self) -> Self {
        // SAFETY: see above.
        unsafe { Self(_mm256_min_ps(self.0, other.0), _mm256_min_ps(self.1, other.1)) }
    }

    #[inline(always)]
    fn max(self, other: Self) -> Self {
        // SAFETY: see above.
        unsafe { Self(_mm256_max_ps(self.0, other.0), _mm256_max_ps(self.1, other.1)) }
    }

    #[inline(always)]
    fn abs(self) -> Self {
        // SAFETY: see above.
        unsafe {
            let sign = _mm256_set1_ps(-0.0);
            Self(_mm256_andnot_ps(sign, self.0), _mm256_andnot_ps(sign, self.1))
        }
    }

    #[inline(always)]
    fn sqrt(self) -> Self {
        // SAFETY: see above.
        unsafe { Self(_mm256_sqrt_ps(self.0), _mm256_sqrt_ps(self.1)) }
    }

    #[inline(always)]
    fn lt(self, other: Self) -> Self::Mask {
        // SAFETY: see above.
        unsafe {
            (_mm256_cmp_ps::<_CMP_LT_OQ>(self.0, other.0), _mm256_cmp_ps::<_CMP_LT_OQ>(self.1, other.1))
        }
    }

    #[inline(always)]
    fn select(mask: Self::Mask, yes: Self, no: Self) -> Self {
        // SAFETY: see above.
        unsafe { Self(_mm256_blendv_ps(no.0, yes.0, mask.0), _mm256_blendv_ps(no.1, yes.1, mask.1)) }
    }

    #[inline(always)]
    fn round_to_f16(self) -> Self {
        // SAFETY: see above.
        unsafe {
            Self(
                _mm256_cvtph_ps(_mm256_cvtps_ph::<{ _MM_FROUND_TO_NEAREST_INT }>(self.0)),
                _mm256_cvtph_ps(_mm256_cvtps_ph::<{ _MM_FROUND_TO_NEAREST_INT }>(self.1)),
            )
        }
    }

    #[inline(always)]
    fn to_bytes(self) -> [u8; LANES] {
        let mut out = [0u8; LANES];
        // SAFETY: see above; the array holds the 16 bytes that are stored.
        unsafe {
            let (low, high) = (_mm256_cvtps_epi32(self.0), _mm256_cvtps_epi32(self.1));
            let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packus_epi32(low, high));
            let bytes = _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
            _mm_storeu_si128(out.as_mut_ptr().cast(), bytes);
        }
        out
    }

    #[inline(always)]
    fn sum(self) -> f32 {
        // SAFETY: see above.
        unsafe { by_halves!(_mm256_add_ps(self.0, self.1), _mm_add_ps) }
    }

    #[inline(always)]
    fn largest(self) -> f32 {
        // SAFETY: see above.
        unsafe { by_halves!(_mm256_max_ps(self.0, self.1), _mm_max_ps) }
    }
}
