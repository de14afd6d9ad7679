//! AVX-512, with VNNI where there is: one register is sixteen lanes.
//!
//! Without VNNI (the first servers that had AVX-512, of 2017 and 2018) products of bytes are summed in sixteen bits first, as
//! [`avx2`](super::avx2) tells.

#[allow(clippy::wildcard_imports)] // intrinsics carry their own prefix
use std::arch::x86_64::*;

use super::amx::Tiled;
use super::avx2::{TWICE, pairs, sums_of_bytes};
use super::{Isa, LANES, dots_in_runs, dots_of_one_in_runs, dots_one_by_one, dots_step_by_step};

/// AVX-512 F, BW, DQ, VL, and whether VNNI.
#[derive(Clone, Copy)]
pub(crate) struct Avx512<const VNNI: bool>;

#[inline(always)]
fn first(n: usize) -> u16 {
    ((1u32 << n.min(16)) - 1) as u16
}

/// Of 32 words in two halves the first of each, then the second of each, …
static INTERLEAVED: [u16; 2 * LANES] = {
    let mut order = [0; 2 * LANES];
    let mut i = 0;
    while i < 2 * LANES {
        order[i] = (i / 2 + i % 2 * LANES) as u16;
        i += 1;
    }
    order
};

/// Integers up to 127 as bytes.
#[inline(always)]
unsafe fn signed_bytes([low, high]: [__m512; 2]) -> __m256i {
    // SAFETY: the caller promises the instruction set.
    unsafe {
        let low = _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(low));
        _mm256_set_m128i(_mm512_cvtepi32_epi8(_mm512_cvtps_epi32(high)), low)
    }
}

/// Of four vectors their lanes joined by `$join`, in each quarter one of each vector.
macro_rules! across {
    ($x:expr, $join:ident) => {{
        let [a, b, c, d] = $x;
        let (ab, cd) = (
            $join(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b)),
            $join(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d)),
        );
        let (ab, cd) = (_mm512_castps_pd(ab), _mm512_castps_pd(cd));
        let (low, high) = (_mm512_unpacklo_pd(ab, cd), _mm512_unpackhi_pd(ab, cd));
        $join(_mm512_castpd_ps(low), _mm512_castpd_ps(high))
    }};
}

/// Its quarters.
#[inline(always)]
unsafe fn parts_of_four(x: __m512) -> [__m128; 4] {
    // SAFETY: the caller promises the instruction set.
    unsafe {
        [
            _mm512_castps512_ps128(x),
            _mm512_extractf32x4_ps::<1>(x),
            _mm512_extractf32x4_ps::<2>(x),
            _mm512_extractf32x4_ps::<3>(x),
        ]
    }
}

#[inline(always)]
unsafe fn lanes(x: __m128) -> [f32; 4] {
    let mut lanes = [0.0; 4];
    // SAFETY: room for four.
    unsafe { _mm_storeu_ps(lanes.as_mut_ptr(), x) };
    lanes
}

// SAFETY of every block below: the caller promises the instruction set and the elements that are loaded or stored.
impl<const VNNI: bool> Isa for Avx512<VNNI> {
    type F = __m512;
    type I = __m512i;
    type B = __m512i;
    type Codes = [__m512i; 8];

    const BYTES: bool = true;

    const FLOAT_ROWS: usize = 12;
    const STRIPS: usize = 2;
    const STRIPS_OF_CODES: usize = if VNNI { 2 } else { 1 };
    const SUMS_WORDS: bool = !VNNI;
    // Measured on processors without VNNI: a fortieth to a twenty-fifth.
    const ASKS_AHEAD: usize = if VNNI { 0 } else { 1024 };

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::F {
        // SAFETY: see the head of this block.
        unsafe { _mm512_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self::F {
        // SAFETY: see the head of this block.
        unsafe { _mm512_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn load_first(p: *const f32, n: usize) -> Self::F {
        // SAFETY: see the head of this block; masked lanes are not accessed.
        unsafe { _mm512_maskz_loadu_ps(first(n), p) }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, x: Self::F) {
        // SAFETY: see the head of this block.
        unsafe { _mm512_storeu_ps(p, x) }
    }
    #[inline(always)]
    unsafe fn store_first(p: *mut f32, n: usize, x: Self::F) {
        // SAFETY: see the head of this block; masked lanes are not accessed.
        unsafe { _mm512_mask_storeu_ps(p, first(n), x) }
    }
    #[inline(always)]
    unsafe fn load_half(p: *const u16) -> Self::F {
        // SAFETY: see the head of this block.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(p.cast())) }
    }
    #[inline(always)]
    unsafe fn load_bfloat(p: *const u16) -> Self::F {
        // SAFETY: see the head of this block.
        unsafe {
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast()))))
        }
    }
    #[inline(always)]
    unsafe fn store_half(p: *mut u16, x: Self::F) {
        // SAFETY: see the head of this block.
        unsafe {
            _mm256_storeu_si256(
                p.cast(),
                _mm512_cvtps_ph::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x),
            );
        }
    }
    #[inline(always)]
    unsafe fn load_bytes(p: *const u8) -> Self::F {
        // SAFETY: see the head of this block.
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(p.cast()))) }
    }
    #[inline(always)]
    unsafe fn load_signed_bytes(p: *const i8) -> Self::F {
        // SAFETY: see the head of this block.
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(p.cast()))) }
    }
    #[inline(always)]
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: see the head of this block.
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: see the head of this block.
        unsafe { _mm512_sub_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: see the head of this block.
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn div(a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: see the head of this block.
        unsafe { _mm512_div_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: see the head of this block.
        unsafe { _mm512_max_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn min(a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: see the head of this block.
        unsafe { _mm512_min_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        // SAFETY: see the head of this block.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    unsafe fn abs(a: Self::F) -> Self::F {
        // SAFETY: see the head of this block.
        unsafe { _mm512_abs_ps(a) }
    }
    #[inline(always)]
    unsafe fn round(a: Self::F) -> Self::F {
        // SAFETY: see the head of this block.
        unsafe { _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a) }
    }
    #[inline(always)]
    unsafe fn power_of_two(n: Self::F) -> Self::F {
        // SAFETY: see the head of this block.
        unsafe { _mm512_scalef_ps(_mm512_set1_ps(1.0), n) }
    }
    #[inline(always)]
    unsafe fn sum(a: Self::F) -> f32 {
        // SAFETY: see the head of this block.
        unsafe { _mm512_reduce_add_ps(a) }
    }
    #[inline(always)]
    unsafe fn largest(a: Self::F) -> f32 {
        // SAFETY: see the head of this block.
        unsafe { _mm512_reduce_max_ps(a) }
    }
    #[inline(always)]
    unsafe fn sum_of_four(x: [Self::F; 4]) -> [f32; 4] {
        // SAFETY: see the head of this block.
        unsafe {
            let [x, y, z, w] = parts_of_four(across!(x, _mm512_add_ps));
            lanes(_mm_add_ps(_mm_add_ps(x, y), _mm_add_ps(z, w)))
        }
    }
    #[inline(always)]
    unsafe fn largest_of_four(x: [Self::F; 4]) -> [f32; 4] {
        // SAFETY: see the head of this block.
        unsafe {
            let [x, y, z, w] = parts_of_four(across!(x, _mm512_max_ps));
            lanes(_mm_max_ps(_mm_max_ps(x, y), _mm_max_ps(z, w)))
        }
    }
    #[inline(always)]
    unsafe fn above(x: Self::F, limit: f32) -> u16 {
        // SAFETY: see the head of this block.
        unsafe { _mm512_cmp_ps_mask::<_CMP_GT_OQ>(_mm512_abs_ps(x), _mm512_set1_ps(limit)) }
    }
    #[inline(always)]
    unsafe fn replaced(x: Self::F, bits: u16, value: f32) -> Self::F {
        // SAFETY: see the head of this block.
        unsafe { _mm512_mask_mov_ps(x, bits, _mm512_set1_ps(value)) }
    }
    #[inline(always)]
    unsafe fn sums(x: [Self::F; 2]) -> [i32; 2] {
        // SAFETY: see the head of this block.
        unsafe { sums_of_bytes::<VNNI>(signed_bytes(x)) }
    }
    #[inline(always)]
    unsafe fn activations(x: [Self::F; 2]) -> [u32; 16] {
        let mut words = [0; 16];
        // SAFETY: see the head of this block; 32 bytes are 8 words.
        unsafe { _mm256_storeu_si256(words.as_mut_ptr().cast(), signed_bytes(x)) };
        words
    }
    #[inline(always)]
    unsafe fn words(x: [Self::F; 2]) -> [u32; 16] {
        let mut words = [0; 16];
        for (i, x) in x.into_iter().enumerate() {
            // SAFETY: see the head of this block; sixteen numbers of 16 bits are 8 words.
            unsafe {
                let x = _mm512_cvtepi32_epi16(_mm512_cvtps_epi32(x));
                _mm256_storeu_si256(words.as_mut_ptr().add(8 * i).cast(), pairs(x));
            }
        }
        words
    }

    #[inline(always)]
    unsafe fn zero_i() -> Self::I {
        // SAFETY: see the head of this block.
        unsafe { _mm512_setzero_si512() }
    }
    #[inline(always)]
    unsafe fn splat_i(x: i32) -> Self::I {
        // SAFETY: see the head of this block.
        unsafe { _mm512_set1_epi32(x) }
    }
    #[inline(always)]
    unsafe fn add_i(a: Self::I, b: Self::I) -> Self::I {
        // SAFETY: see the head of this block.
        unsafe { _mm512_add_epi32(a, b) }
    }
    #[inline(always)]
    unsafe fn to_float(x: Self::I) -> Self::F {
        // SAFETY: see the head of this block.
        unsafe { _mm512_cvtepi32_ps(x) }
    }

    #[inline(always)]
    unsafe fn load_b(p: *const u8) -> Self::B {
        // SAFETY: see the head of this block.
        unsafe { _mm512_loadu_si512(p.cast()) }
    }
    #[inline(always)]
    unsafe fn store_b(p: *mut u8, x: Self::B) {
        // SAFETY: see the head of this block.
        unsafe { _mm512_storeu_si512(p.cast(), x) }
    }
    #[inline(always)]
    unsafe fn splat_b(x: u8) -> Self::B {
        // SAFETY: see the head of this block.
        unsafe { _mm512_set1_epi8(x as i8) }
    }
    #[inline(always)]
    unsafe fn and(a: Self::B, b: Self::B) -> Self::B {
        // SAFETY: see the head of this block.
        unsafe { _mm512_and_si512(a, b) }
    }
    #[inline(always)]
    unsafe fn or(a: Self::B, b: Self::B) -> Self::B {
        // SAFETY: see the head of this block.
        unsafe { _mm512_or_si512(a, b) }
    }
    #[inline(always)]
    unsafe fn shift_right<const N: u32>(a: Self::B) -> Self::B {
        // SAFETY: see the head of this block.
        unsafe { _mm512_srli_epi16::<N>(a) }
    }
    #[inline(always)]
    unsafe fn shift_right_signed<const N: u32>(a: Self::B) -> Self::B {
        // SAFETY: see the head of this block.
        unsafe { _mm512_srai_epi16::<N>(a) }
    }
    #[inline(always)]
    unsafe fn shift_left<const N: u32>(a: Self::B) -> Self::B {
        // SAFETY: see the head of this block.
        unsafe { _mm512_slli_epi16::<N>(a) }
    }
    #[inline(always)]
    unsafe fn look_up(table: &[u8; 16], indices: Self::B) -> Self::B {
        // SAFETY: see the head of this block; the table has 16 bytes.
        unsafe {
            _mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_loadu_si128(table.as_ptr().cast())), indices)
        }
    }
    #[inline(always)]
    unsafe fn codes(bytes: [Self::B; 8]) -> Self::Codes {
        bytes
    }
    #[inline(always)]
    unsafe fn codes_about_128(mut bytes: [Self::B; 8]) -> Self::Codes {
        if VNNI {
            return bytes;
        }
        for w in &mut bytes {
            // SAFETY: see the head of this block.
            *w = unsafe { _mm512_xor_si512(*w, _mm512_set1_epi8(i8::MIN)) };
        }
        bytes
    }
    #[inline(always)]
    unsafe fn codes_of_nibbles(packed: [Self::B; 4]) -> Self::Codes {
        let mut codes = [packed[0]; 8];
        for (i, packed) in packed.into_iter().enumerate() {
            // SAFETY: see the head of this block.
            unsafe {
                let nibble = _mm512_set1_epi8(0x0f);
                codes[i] = _mm512_and_si512(packed, nibble);
                codes[4 + i] = _mm512_and_si512(_mm512_srli_epi16::<4>(packed), nibble);
            }
        }
        codes
    }
    /// Codes as unsigned bytes, without VNNI as signed ones.
    #[inline(always)]
    unsafe fn dot(acc: Self::I, w: Self::B, x: i32) -> Self::I {
        // SAFETY: see the head of this block.
        unsafe {
            let x = _mm512_set1_epi32(x);
            if VNNI {
                return _mm512_dpbusd_epi32(acc, w, x);
            }
            // At most 2 · 128 · 127, which sixteen bits hold.
            let x = _mm512_mask_sub_epi8(x, _mm512_movepi8_mask(w), _mm512_setzero_si512(), x);
            let sums = _mm512_maddubs_epi16(_mm512_abs_epi8(w), x);
            _mm512_add_epi32(acc, Self::widened(sums, Self::ones()))
        }
    }
    #[inline(always)]
    unsafe fn dot_words(acc: Self::I, w: Self::B, x: i32) -> Self::I {
        // SAFETY: see the head of this block.
        unsafe {
            let x = _mm512_set1_epi32(x);
            if VNNI {
                return _mm512_dpwssd_epi32(acc, w, x);
            }
            _mm512_add_epi32(acc, _mm512_madd_epi16(w, x))
        }
    }
    #[inline(always)]
    unsafe fn dots_of_one(acc: Self::I, w: &[Self::B], x: *const i32, run: usize) -> Self::I {
        // SAFETY: see the head of this block.
        unsafe {
            if VNNI || run == 1 {
                dots_step_by_step::<Self>(acc, w, x)
            } else {
                dots_of_one_in_runs::<Self>(acc, Self::zero_i(), w, x, run, Self::ones())
            }
        }
    }
    #[inline(always)]
    unsafe fn dots_of_strips<const S: usize, const M: usize>(
        acc: &mut [[Self::I; M]; S],
        w: [*const u8; S],
        steps: usize,
        x: *const i32,
        strides: (usize, usize),
        run: usize,
    ) {
        // SAFETY: see the head of this block.
        unsafe {
            if VNNI || run == 1 {
                return dots_one_by_one::<Self, false, S, M>(acc, w, steps, x, strides);
            }
            for (acc, w) in acc.iter_mut().zip(w) {
                let begin = [Self::zero_i(); M];
                dots_in_runs::<Self, M>(acc, begin, w, (steps, run), x, strides, Self::ones());
            }
        }
    }
    /// In sixteen bits, two sums to a lane, but with VNNI.
    #[inline(always)]
    unsafe fn densest(sums: Self::I, w: Self::B, x: i32) -> Self::I {
        // SAFETY: see the head of this block.
        unsafe {
            if VNNI {
                return Self::dot(sums, w, x);
            }
            _mm512_add_epi16(sums, _mm512_maddubs_epi16(w, _mm512_set1_epi32(x)))
        }
    }
    #[inline(always)]
    unsafe fn widened(sums: Self::I, by: Self::B) -> Self::I {
        if VNNI {
            return sums;
        }
        // SAFETY: see the head of this block.
        unsafe { _mm512_madd_epi16(sums, by) }
    }
    #[inline(always)]
    unsafe fn ones() -> Self::B {
        // SAFETY: see the head of this block.
        unsafe { _mm512_set1_epi16(1) }
    }
    #[inline(always)]
    unsafe fn load_pairs(p: *const i8) -> Self::B {
        // SAFETY: see the head of this block.
        unsafe {
            let words = _mm512_cvtepi8_epi32(_mm_loadu_si128(p.cast()));
            _mm512_shuffle_epi8(words, _mm512_broadcast_i32x4(_mm_loadu_si128(TWICE.as_ptr().cast())))
        }
    }
    #[inline(always)]
    unsafe fn columns(bytes: Self::B) -> [Self::F; 4] {
        // SAFETY: see the head of this block.
        unsafe {
            let byte = _mm512_set1_epi32(0xff);
            [
                _mm512_cvtepi32_ps(_mm512_and_si512(bytes, byte)),
                _mm512_cvtepi32_ps(_mm512_and_si512(_mm512_srli_epi32::<8>(bytes), byte)),
                _mm512_cvtepi32_ps(_mm512_and_si512(_mm512_srli_epi32::<16>(bytes), byte)),
                _mm512_cvtepi32_ps(_mm512_srli_epi32::<24>(bytes)),
            ]
        }
    }
    #[inline(always)]
    unsafe fn columns_of_words([even, odd]: [Self::B; 2]) -> [Self::F; 4] {
        // SAFETY: see the head of this block.
        unsafe {
            [
                _mm512_cvtepi32_ps(_mm512_srai_epi32::<16>(_mm512_slli_epi32::<16>(even))),
                _mm512_cvtepi32_ps(_mm512_srai_epi32::<16>(_mm512_slli_epi32::<16>(odd))),
                _mm512_cvtepi32_ps(_mm512_srai_epi32::<16>(even)),
                _mm512_cvtepi32_ps(_mm512_srai_epi32::<16>(odd)),
            ]
        }
    }
}

// SAFETY of every block below: as above.
impl Tiled for Avx512<true> {
    #[inline(always)]
    unsafe fn bfloat_pairs(first: Self::F, second: Self::F) -> Self::B {
        // SAFETY: see the head of this block, with AVX512-BF16.
        unsafe {
            let halves = std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(second, first));
            _mm512_permutexvar_epi16(_mm512_loadu_si512(INTERLEAVED.as_ptr().cast()), halves)
        }
    }
    #[inline(always)]
    unsafe fn bfloats(x: [Self::F; 2]) -> Self::B {
        // SAFETY: see the head of this block, with AVX512-BF16; the types have the same bits.
        unsafe { std::mem::transmute(_mm512_cvtne2ps_pbh(x[1], x[0])) }
    }
    #[cfg(test)]
    #[inline(always)]
    unsafe fn dot_bfloats(acc: Self::F, w: Self::B, x: u32) -> Self::F {
        // SAFETY: see the head of this block, with AVX512-BF16; the types have the same bits.
        unsafe {
            let bfloats = |x| std::mem::transmute::<__m512i, __m512bh>(x);
            _mm512_dpbf16_ps(acc, bfloats(w), bfloats(_mm512_set1_epi32(x as i32)))
        }
    }
}
