//! AVX2 with FMA and F16C, and with AVX-VNNI where there is: two registers are sixteen lanes.
//!
//! AVX-VNNI multiplies bytes and sums in 32 bits, as AVX-512's VNNI does. AVX2's own instruction for bytes, `vpmaddubsw`, sums
//! two products in sixteen bits. Codes of up to six bits leave room there for those of more steps, and one instruction widens all
//! of them, or multiplies them by a scale: twice as many products as by words, since integers are what these processors do fewest
//! of. Codes that reach 128 are taken as signed, by their magnitudes and by activations with their signs; each step's sums are
//! widened.

#[allow(clippy::wildcard_imports)] // intrinsics carry their own prefix
use std::arch::x86_64::*;

use super::{Isa, dots_in_runs, dots_of_one_in_runs, dots_one_by_one, dots_step_by_step};

/// AVX2, FMA, F16C, and whether AVX-VNNI.
#[derive(Clone, Copy)]
pub(crate) struct Avx2<const VNNI: bool>;

/// A mask whose first `n` of 8 lanes are set.
#[inline(always)]
unsafe fn first(n: usize) -> __m256i {
    // SAFETY: the caller promises AVX2.
    unsafe { _mm256_cmpgt_epi32(_mm256_set1_epi32(n as i32), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7)) }
}

/// Sixteen words with the middle two of each four changed over: see [`Isa::words`].
///
/// # Safety
/// The processor has AVX2.
#[inline(always)]
pub(super) unsafe fn pairs(x: __m256i) -> __m256i {
    // SAFETY: the caller's promise.
    unsafe {
        let order = _mm256_setr_epi8(
            0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15, 0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10,
            11, 14, 15,
        );
        _mm256_shuffle_epi8(x, order)
    }
}

/// Integers up to 127 as bytes.
///
/// # Safety
/// The processor has AVX2.
#[inline(always)]
unsafe fn signed_bytes([low, high]: [(__m256, __m256); 2]) -> __m256i {
    // SAFETY: the caller's promise.
    unsafe {
        let low = _mm256_packs_epi32(_mm256_cvtps_epi32(low.0), _mm256_cvtps_epi32(low.1));
        let high = _mm256_packs_epi32(_mm256_cvtps_epi32(high.0), _mm256_cvtps_epi32(high.1));
        // Packing works in 128-bit halves: fours go back in order.
        let order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
        _mm256_permutevar8x32_epi32(_mm256_packs_epi16(low, high), order)
    }
}

/// The lower word of each lane of 32 bits, twice.
pub(super) const TWICE: [i8; 16] = [0, 1, 0, 1, 4, 5, 4, 5, 8, 9, 8, 9, 12, 13, 12, 13];

/// 32 signed bytes as [`Isa::sums`] gives their sums; with `VNNI` as one number.
///
/// # Safety
/// The processor has AVX2.
#[inline(always)]
pub(super) unsafe fn sums_of_bytes<const VNNI: bool>(bytes: __m256i) -> [i32; 2] {
    // SAFETY: the caller's promise.
    unsafe {
        let x = _mm256_maddubs_epi16(_mm256_set1_epi8(1), bytes);
        let x = if VNNI { _mm256_madd_epi16(x, _mm256_set1_epi16(1)) } else { x };
        // Sums of words: eight of up to 254 need no more room.
        let add = |x, y| if VNNI { _mm256_add_epi32(x, y) } else { _mm256_add_epi16(x, y) };
        let x = add(x, _mm256_shuffle_epi32::<0b01_00_11_10>(x));
        let x = add(x, _mm256_shuffle_epi32::<0b10_11_00_01>(x));
        [_mm256_extract_epi32::<0>(x), _mm256_extract_epi32::<4>(x)]
    }
}

macro_rules! both {
    ($f:ident, $($a:expr),*) => {
        // SAFETY: see the head of the implementation.
        unsafe { ($f($($a.0),*), $f($($a.1),*)) }
    };
}

// SAFETY of every block below: the caller promises the instruction set and the elements that are loaded or stored.
impl<const VNNI: bool> Isa for Avx2<VNNI> {
    type F = (__m256, __m256);
    type I = (__m256i, __m256i);
    type B = (__m256i, __m256i);
    type Codes = [Self::B; 8];

    const BYTES: bool = true;
    const SUMS_WORDS: bool = !VNNI;
    const BEGINS_WORDS: bool = !VNNI;

    const FLOAT_ROWS: usize = 6;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::F {
        // SAFETY: see the head of this block.
        unsafe { (_mm256_set1_ps(x), _mm256_set1_ps(x)) }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self::F {
        // SAFETY: see the head of this block.
        unsafe { (_mm256_loadu_ps(p), _mm256_loadu_ps(p.add(8))) }
    }
    #[inline(always)]
    unsafe fn load_first(p: *const f32, n: usize) -> Self::F {
        // SAFETY: see the head of this block; masked lanes are not accessed.
        unsafe {
            (
                _mm256_maskload_ps(p, first(n)),
                _mm256_maskload_ps(p.wrapping_add(8), first(n.saturating_sub(8))),
            )
        }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, x: Self::F) {
        // SAFETY: see the head of this block.
        unsafe {
            _mm256_storeu_ps(p, x.0);
            _mm256_storeu_ps(p.add(8), x.1);
        }
    }
    #[inline(always)]
    unsafe fn store_first(p: *mut f32, n: usize, x: Self::F) {
        // SAFETY: see the head of this block; masked lanes are not accessed.
        unsafe {
            _mm256_maskstore_ps(p, first(n), x.0);
            _mm256_maskstore_ps(p.wrapping_add(8), first(n.saturating_sub(8)), x.1);
        }
    }
    #[inline(always)]
    unsafe fn load_half(p: *const u16) -> Self::F {
        // SAFETY: see the head of this block.
        unsafe {
            (_mm256_cvtph_ps(_mm_loadu_si128(p.cast())), _mm256_cvtph_ps(_mm_loadu_si128(p.add(8).cast())))
        }
    }
    #[inline(always)]
    unsafe fn load_bfloat(p: *const u16) -> Self::F {
        // SAFETY: see the head of this block.
        unsafe {
            let widen = |p: *const u16| {
                let x = _mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast()));
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(x))
            };
            (widen(p), widen(p.add(8)))
        }
    }
    #[inline(always)]
    unsafe fn store_half(p: *mut u16, x: Self::F) {
        // SAFETY: see the head of this block.
        unsafe {
            _mm_storeu_si128(p.cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(x.0));
            _mm_storeu_si128(p.add(8).cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(x.1));
        }
    }
    #[inline(always)]
    unsafe fn load_bytes(p: *const u8) -> Self::F {
        // SAFETY: see the head of this block.
        unsafe {
            let x = _mm_loadu_si128(p.cast());
            let widen = |x| _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(x));
            (widen(x), widen(_mm_srli_si128::<8>(x)))
        }
    }
    #[inline(always)]
    unsafe fn load_signed_bytes(p: *const i8) -> Self::F {
        // SAFETY: see the head of this block.
        unsafe {
            let x = _mm_loadu_si128(p.cast());
            let widen = |x| _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(x));
            (widen(x), widen(_mm_srli_si128::<8>(x)))
        }
    }
    #[inline(always)]
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F {
        both!(_mm256_add_ps, a, b)
    }
    #[inline(always)]
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F {
        both!(_mm256_sub_ps, a, b)
    }
    #[inline(always)]
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F {
        both!(_mm256_mul_ps, a, b)
    }
    #[inline(always)]
    unsafe fn div(a: Self::F, b: Self::F) -> Self::F {
        both!(_mm256_div_ps, a, b)
    }
    #[inline(always)]
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F {
        both!(_mm256_max_ps, a, b)
    }
    #[inline(always)]
    unsafe fn min(a: Self::F, b: Self::F) -> Self::F {
        both!(_mm256_min_ps, a, b)
    }
    #[inline(always)]
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        both!(_mm256_fmadd_ps, a, b, c)
    }
    #[inline(always)]
    unsafe fn abs(a: Self::F) -> Self::F {
        // SAFETY: see the head of this block.
        unsafe {
            let sign = _mm256_set1_ps(-0.0);
            (_mm256_andnot_ps(sign, a.0), _mm256_andnot_ps(sign, a.1))
        }
    }
    #[inline(always)]
    unsafe fn round(a: Self::F) -> Self::F {
        const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
        // SAFETY: see the head of this block.
        unsafe { (_mm256_round_ps::<NEAREST>(a.0), _mm256_round_ps::<NEAREST>(a.1)) }
    }
    #[inline(always)]
    unsafe fn power_of_two(n: Self::F) -> Self::F {
        // SAFETY: see the head of this block.
        unsafe {
            let power = |n| {
                let exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
                _mm256_castsi256_ps(_mm256_slli_epi32::<23>(exponent))
            };
            (power(n.0), power(n.1))
        }
    }
    #[inline(always)]
    unsafe fn sum(a: Self::F) -> f32 {
        // SAFETY: see the head of this block.
        unsafe {
            let x = _mm256_add_ps(a.0, a.1);
            let x = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
            let x = _mm_add_ps(x, _mm_movehl_ps(x, x));
            _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)))
        }
    }
    #[inline(always)]
    unsafe fn largest(a: Self::F) -> f32 {
        // SAFETY: see the head of this block.
        unsafe {
            let x = _mm256_max_ps(a.0, a.1);
            let x = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
            let x = _mm_max_ps(x, _mm_movehl_ps(x, x));
            _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)))
        }
    }
    #[inline(always)]
    unsafe fn above(x: Self::F, limit: f32) -> u16 {
        // SAFETY: see the head of this block.
        unsafe {
            let (x, limit) = (Self::abs(x), _mm256_set1_ps(limit));
            let bits = |x| _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_GT_OQ>(x, limit)) as u16;
            bits(x.0) | bits(x.1) << 8
        }
    }
    #[inline(always)]
    unsafe fn replaced(x: Self::F, bits: u16, value: f32) -> Self::F {
        // SAFETY: see the head of this block.
        unsafe {
            let (of_lanes, value) = (_mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128), _mm256_set1_ps(value));
            let one = |x, bits: u16| {
                let chosen = _mm256_and_si256(_mm256_set1_epi32(i32::from(bits)), of_lanes);
                let chosen = _mm256_castsi256_ps(_mm256_cmpeq_epi32(chosen, of_lanes));
                _mm256_blendv_ps(x, value, chosen)
            };
            (one(x.0, bits), one(x.1, bits >> 8))
        }
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
                let x = _mm256_packs_epi32(_mm256_cvtps_epi32(x.0), _mm256_cvtps_epi32(x.1));
                // Packing works in 128-bit halves: fours go back in order.
                let x = _mm256_permute4x64_epi64::<0b11_01_10_00>(x);
                _mm256_storeu_si256(words.as_mut_ptr().add(8 * i).cast(), pairs(x));
            }
        }
        words
    }

    #[inline(always)]
    unsafe fn zero_i() -> Self::I {
        // SAFETY: see the head of this block.
        unsafe { (_mm256_setzero_si256(), _mm256_setzero_si256()) }
    }
    #[inline(always)]
    unsafe fn splat_i(x: i32) -> Self::I {
        // SAFETY: see the head of this block.
        unsafe { (_mm256_set1_epi32(x), _mm256_set1_epi32(x)) }
    }
    #[inline(always)]
    unsafe fn add_i(a: Self::I, b: Self::I) -> Self::I {
        both!(_mm256_add_epi32, a, b)
    }
    #[inline(always)]
    unsafe fn to_float(x: Self::I) -> Self::F {
        both!(_mm256_cvtepi32_ps, x)
    }

    #[inline(always)]
    unsafe fn load_b(p: *const u8) -> Self::B {
        // SAFETY: see the head of this block.
        unsafe { (_mm256_loadu_si256(p.cast()), _mm256_loadu_si256(p.add(32).cast())) }
    }
    #[inline(always)]
    unsafe fn store_b(p: *mut u8, x: Self::B) {
        // SAFETY: see the head of this block.
        unsafe {
            _mm256_storeu_si256(p.cast(), x.0);
            _mm256_storeu_si256(p.add(32).cast(), x.1);
        }
    }
    #[inline(always)]
    unsafe fn splat_b(x: u8) -> Self::B {
        // SAFETY: see the head of this block.
        unsafe { (_mm256_set1_epi8(x as i8), _mm256_set1_epi8(x as i8)) }
    }
    #[inline(always)]
    unsafe fn and(a: Self::B, b: Self::B) -> Self::B {
        both!(_mm256_and_si256, a, b)
    }
    #[inline(always)]
    unsafe fn or(a: Self::B, b: Self::B) -> Self::B {
        both!(_mm256_or_si256, a, b)
    }
    #[inline(always)]
    unsafe fn shift_right<const N: u32>(a: Self::B) -> Self::B {
        // SAFETY: see the head of this block.
        unsafe {
            let n = _mm_cvtsi32_si128(N as i32);
            (_mm256_srl_epi16(a.0, n), _mm256_srl_epi16(a.1, n))
        }
    }
    #[inline(always)]
    unsafe fn shift_right_signed<const N: u32>(a: Self::B) -> Self::B {
        // SAFETY: see the head of this block.
        unsafe {
            let n = _mm_cvtsi32_si128(N as i32);
            (_mm256_sra_epi16(a.0, n), _mm256_sra_epi16(a.1, n))
        }
    }
    #[inline(always)]
    unsafe fn shift_left<const N: u32>(a: Self::B) -> Self::B {
        // SAFETY: see the head of this block.
        unsafe {
            let n = _mm_cvtsi32_si128(N as i32);
            (_mm256_sll_epi16(a.0, n), _mm256_sll_epi16(a.1, n))
        }
    }
    #[inline(always)]
    unsafe fn look_up(table: &[u8; 16], indices: Self::B) -> Self::B {
        // SAFETY: see the head of this block; the table has 16 bytes.
        unsafe {
            let table = _mm256_broadcastsi128_si256(_mm_loadu_si128(table.as_ptr().cast()));
            (_mm256_shuffle_epi8(table, indices.0), _mm256_shuffle_epi8(table, indices.1))
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
            unsafe {
                let top = _mm256_set1_epi8(i8::MIN);
                *w = (_mm256_xor_si256(w.0, top), _mm256_xor_si256(w.1, top));
            }
        }
        bytes
    }
    #[inline(always)]
    unsafe fn codes_of_nibbles(packed: [Self::B; 4]) -> Self::Codes {
        let mut codes = [packed[0]; 8];
        for (i, packed) in packed.into_iter().enumerate() {
            // SAFETY: see the head of this block.
            unsafe {
                let nibble = Self::splat_b(0x0f);
                codes[i] = Self::and(packed, nibble);
                codes[4 + i] = Self::and(Self::shift_right::<4>(packed), nibble);
            }
        }
        codes
    }
    /// Codes as signed bytes, with AVX-VNNI as unsigned ones.
    #[inline(always)]
    unsafe fn dot(acc: Self::I, w: Self::B, x: i32) -> Self::I {
        // SAFETY: see the head of this block.
        unsafe {
            if VNNI {
                let x = _mm256_set1_epi32(x);
                return (_mm256_dpbusd_avx_epi32(acc.0, w.0, x), _mm256_dpbusd_avx_epi32(acc.1, w.1, x));
            }
            let (x, ones) = (_mm256_set1_epi32(x), _mm256_set1_epi16(1));
            let one = |acc, w| {
                // At most 2 · 128 · 127, which sixteen bits hold.
                let sums = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w));
                _mm256_add_epi32(acc, _mm256_madd_epi16(sums, ones))
            };
            (one(acc.0, w.0), one(acc.1, w.1))
        }
    }
    #[inline(always)]
    unsafe fn dot_words(acc: Self::I, w: Self::B, x: i32) -> Self::I {
        // SAFETY: see the head of this block.
        unsafe {
            let x = _mm256_set1_epi32(x);
            if VNNI {
                return (_mm256_dpwssd_avx_epi32(acc.0, w.0, x), _mm256_dpwssd_avx_epi32(acc.1, w.1, x));
            }
            let one = |acc, w| _mm256_add_epi32(acc, _mm256_madd_epi16(w, x));
            (one(acc.0, w.0), one(acc.1, w.1))
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
    unsafe fn dots<const M: usize>(
        acc: &mut [Self::I; M],
        w: *const u8,
        steps: usize,
        x: *const i32,
        strides: (usize, usize),
        run: usize,
    ) {
        // SAFETY: see the head of this block.
        unsafe {
            if VNNI || run == 1 {
                dots_one_by_one::<Self, false, 1, M>(std::array::from_mut(acc), [w], steps, x, strides);
            } else {
                let begin = [Self::zero_i(); M];
                dots_in_runs::<Self, M>(acc, begin, w, (steps, run), x, strides, Self::ones());
            }
        }
    }
    /// In sixteen bits, two sums to a lane, but with AVX-VNNI.
    #[inline(always)]
    unsafe fn densest(sums: Self::I, w: Self::B, x: i32) -> Self::I {
        // SAFETY: see the head of this block.
        unsafe {
            if VNNI {
                return Self::dot(sums, w, x);
            }
            let x = _mm256_set1_epi32(x);
            let one = |sums, w| _mm256_add_epi16(sums, _mm256_maddubs_epi16(w, x));
            (one(sums.0, w.0), one(sums.1, w.1))
        }
    }
    #[inline(always)]
    unsafe fn widened(sums: Self::I, by: Self::B) -> Self::I {
        if VNNI {
            return sums;
        }
        // SAFETY: see the head of this block.
        unsafe { (_mm256_madd_epi16(sums.0, by.0), _mm256_madd_epi16(sums.1, by.1)) }
    }
    #[inline(always)]
    unsafe fn ones() -> Self::B {
        // SAFETY: see the head of this block.
        unsafe { (_mm256_set1_epi16(1), _mm256_set1_epi16(1)) }
    }
    #[inline(always)]
    unsafe fn load_pairs(p: *const i8) -> Self::B {
        // SAFETY: see the head of this block.
        unsafe {
            let bytes = _mm_loadu_si128(p.cast());
            let order = _mm256_broadcastsi128_si256(_mm_loadu_si128(TWICE.as_ptr().cast()));
            let twice = |x| _mm256_shuffle_epi8(_mm256_cvtepi8_epi32(x), order);
            (twice(bytes), twice(_mm_srli_si128::<8>(bytes)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_of_bytes_are_of_sixteen_in_one_number_or_in_two_words() {
        if !is_x86_feature_detected!("avx2") {
            return;
        }
        for bytes in [[127; 32], [-127; 32], std::array::from_fn(|i| (i as i32 * 37 % 255 - 127) as i8)] {
            let sums = |two: usize| -> [i32; 2] {
                let of = |half: usize| {
                    let fours = bytes[half * 16..][..16].chunks(4);
                    fours.flat_map(|four| &four[two..two + 2]).map(|x| i32::from(*x)).sum()
                };
                [of(0), of(1)]
            };
            // SAFETY: the processor has AVX2.
            let (whole, words) = unsafe {
                let bytes = _mm256_loadu_si256(bytes.as_ptr().cast());
                (sums_of_bytes::<true>(bytes), sums_of_bytes::<false>(bytes))
            };
            for half in 0..2 {
                assert_eq!(whole[half], sums(0)[half] + sums(2)[half]);
                assert_eq!(
                    (i32::from(words[half] as i16), words[half] >> 16),
                    (sums(0)[half], sums(2)[half])
                );
            }
        }
    }
}
