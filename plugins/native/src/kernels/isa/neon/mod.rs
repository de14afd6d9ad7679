//! 64-bit Arm: four registers are sixteen lanes.
//!
//! Every such processor multiplies words ([`Words`]). Those with the `dotprod` extension (Cortex-A76, Neoverse N1, Apple M1 and
//! what came after them) also sum the products of four *signed* bytes ([`SignedBytes`]). That does for unsigned codes too: those
//! that reach 128 have 128 as their zero, and are moved there. Those with `i8mm` (Neoverse V1 and N2, Apple M2 and what came after
//! them) multiply small [`matrices`] of bytes, which batches of tokens take.

#[allow(clippy::wildcard_imports)] // intrinsics carry their own prefix
use std::arch::aarch64::*;
use std::marker::PhantomData;

use super::{Isa, dots_one_by_one};

mod matrices;
mod products;

use products::{Products, apart, dot_apart};
pub(crate) use products::{SignedBytes, Words};

type F = [float32x4_t; 4];
type I = [int32x4_t; 4];
type B = [uint8x16_t; 4];

/// The baseline's 128-bit vectors, and a way to multiply integers.
#[derive(Clone, Copy)]
pub(crate) struct Neon<P>(PhantomData<P>);

/// A function of each of the four registers.
macro_rules! each {
    ($f:path, $a:expr) => {{
        let a = $a;
        // SAFETY: see the head of the implementation.
        unsafe { [$f(a[0]), $f(a[1]), $f(a[2]), $f(a[3])] }
    }};
    ($f:path, $a:expr, $b:expr) => {{
        let (a, b) = ($a, $b);
        // SAFETY: as above.
        unsafe { [$f(a[0], b[0]), $f(a[1], b[1]), $f(a[2], b[2]), $f(a[3], b[3])] }
    }};
    ($f:path, $a:expr, $b:expr, $c:expr) => {{
        let (a, b, c) = ($a, $b, $c);
        // SAFETY: as above.
        unsafe { [$f(a[0], b[0], c[0]), $f(a[1], b[1], c[1]), $f(a[2], b[2], c[2]), $f(a[3], b[3], c[3])] }
    }};
}
use each;

/// Sixteen integers as words.
#[inline(always)]
unsafe fn halves(x: F) -> [int16x8_t; 2] {
    let x = each!(vcvtnq_s32_f32, x);
    // SAFETY: NEON belongs to the target's baseline.
    unsafe {
        [vcombine_s16(vmovn_s32(x[0]), vmovn_s32(x[1])), vcombine_s16(vmovn_s32(x[2]), vmovn_s32(x[3]))]
    }
}

/// [`Isa::words`].
#[inline(always)]
unsafe fn words(x: [F; 2]) -> [u32; 16] {
    /// The middle two of every four words change places.
    const ORDER: [u8; 16] = [0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15];
    let mut words = [0; 16];
    // SAFETY: NEON belongs to the target's baseline; eight numbers of 16 bits are 4 words.
    unsafe {
        let ([a, b], [c, d]) = (halves(x[0]), halves(x[1]));
        let order = vld1q_u8(ORDER.as_ptr());
        for (i, x) in [a, b, c, d].into_iter().enumerate() {
            let x = vqtbl1q_s8(vreinterpretq_s8_s16(x), order);
            vst1q_s8(words.as_mut_ptr().add(4 * i).cast(), x);
        }
    }
    words
}

/// Sixteen words as integers.
#[inline(always)]
unsafe fn widen(x: [uint16x8_t; 2]) -> [uint32x4_t; 4] {
    // SAFETY: NEON belongs to the target's baseline.
    unsafe {
        [
            vmovl_u16(vget_low_u16(x[0])),
            vmovl_high_u16(x[0]),
            vmovl_u16(vget_low_u16(x[1])),
            vmovl_high_u16(x[1]),
        ]
    }
}

// SAFETY of every block below: the caller promises the instruction set and the elements that are loaded or stored.
impl<P: Products> Isa for Neon<P> {
    type F = F;
    type I = I;
    type B = B;
    type Codes = P::Codes;

    const BYTES: bool = P::BYTES;

    // Of 32 registers 24 for sums, 4 for weights.
    const FLOAT_ROWS: usize = 6;

    #[inline(always)]
    unsafe fn splat(x: f32) -> F {
        // SAFETY: see the head of this block.
        [unsafe { vdupq_n_f32(x) }; 4]
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> F {
        // SAFETY: see the head of this block.
        unsafe { [vld1q_f32(p), vld1q_f32(p.add(4)), vld1q_f32(p.add(8)), vld1q_f32(p.add(12))] }
    }
    #[inline(always)]
    unsafe fn load_first(p: *const f32, n: usize) -> F {
        let mut all = [0f32; 16];
        // SAFETY: see the head of this block; bytes, since elements need no alignment.
        unsafe {
            all.as_mut_ptr().cast::<u8>().copy_from_nonoverlapping(p.cast(), n.min(16) * 4);
            Self::load(all.as_ptr())
        }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, x: F) {
        for (i, x) in x.into_iter().enumerate() {
            // SAFETY: see the head of this block.
            unsafe { vst1q_f32(p.add(4 * i), x) }
        }
    }
    #[inline(always)]
    unsafe fn store_first(p: *mut f32, n: usize, x: F) {
        let mut all = [0f32; 16];
        // SAFETY: see the head of this block; bytes, since elements need no alignment.
        unsafe {
            Self::store(all.as_mut_ptr(), x);
            p.cast::<u8>().copy_from_nonoverlapping(all.as_ptr().cast(), n.min(16) * 4);
        }
    }
    #[inline(always)]
    unsafe fn load_half(p: *const u16) -> F {
        // SAFETY: see the head of this block.
        unsafe {
            let (low, high) = (vld1q_u16(p), vld1q_u16(p.add(8)));
            [
                vcvt_f32_f16(vreinterpret_f16_u16(vget_low_u16(low))),
                vcvt_high_f32_f16(vreinterpretq_f16_u16(low)),
                vcvt_f32_f16(vreinterpret_f16_u16(vget_low_u16(high))),
                vcvt_high_f32_f16(vreinterpretq_f16_u16(high)),
            ]
        }
    }
    #[inline(always)]
    unsafe fn load_bfloat(p: *const u16) -> F {
        // SAFETY: see the head of this block.
        let x = unsafe { widen([vld1q_u16(p), vld1q_u16(p.add(8))]) };
        each!(vreinterpretq_f32_u32, each!(vshlq_n_u32::<16>, x))
    }
    #[inline(always)]
    unsafe fn store_half(p: *mut u16, x: F) {
        for (i, x) in x.into_iter().enumerate() {
            // SAFETY: see the head of this block.
            unsafe { vst1_u16(p.add(4 * i), vreinterpret_u16_f16(vcvt_f16_f32(x))) }
        }
    }
    #[inline(always)]
    unsafe fn load_bytes(p: *const u8) -> F {
        // SAFETY: see the head of this block.
        let x = unsafe {
            let x = vld1q_u8(p);
            widen([vmovl_u8(vget_low_u8(x)), vmovl_high_u8(x)])
        };
        each!(vcvtq_f32_u32, x)
    }
    #[inline(always)]
    unsafe fn load_signed_bytes(p: *const i8) -> F {
        // SAFETY: see the head of this block.
        let x = unsafe {
            let x = vld1q_s8(p);
            let (low, high) = (vmovl_s8(vget_low_s8(x)), vmovl_high_s8(x));
            [
                vmovl_s16(vget_low_s16(low)),
                vmovl_high_s16(low),
                vmovl_s16(vget_low_s16(high)),
                vmovl_high_s16(high),
            ]
        };
        each!(vcvtq_f32_s32, x)
    }
    #[inline(always)]
    unsafe fn add(a: F, b: F) -> F {
        each!(vaddq_f32, a, b)
    }
    #[inline(always)]
    unsafe fn sub(a: F, b: F) -> F {
        each!(vsubq_f32, a, b)
    }
    #[inline(always)]
    unsafe fn mul(a: F, b: F) -> F {
        each!(vmulq_f32, a, b)
    }
    #[inline(always)]
    unsafe fn div(a: F, b: F) -> F {
        each!(vdivq_f32, a, b)
    }
    // Of a number and what is none the number, as elsewhere.
    #[inline(always)]
    unsafe fn max(a: F, b: F) -> F {
        each!(vmaxnmq_f32, a, b)
    }
    #[inline(always)]
    unsafe fn min(a: F, b: F) -> F {
        each!(vminnmq_f32, a, b)
    }
    #[inline(always)]
    unsafe fn fma(a: F, b: F, c: F) -> F {
        each!(vfmaq_f32, c, a, b)
    }
    #[inline(always)]
    unsafe fn abs(a: F) -> F {
        each!(vabsq_f32, a)
    }
    #[inline(always)]
    unsafe fn round(a: F) -> F {
        each!(vrndnq_f32, a)
    }
    #[inline(always)]
    unsafe fn power_of_two(n: F) -> F {
        // SAFETY: see the head of this block.
        let bias = [unsafe { vdupq_n_s32(127) }; 4];
        let exponent = each!(vaddq_s32, each!(vcvtnq_s32_f32, n), bias);
        each!(vreinterpretq_f32_s32, each!(vshlq_n_s32::<23>, exponent))
    }
    #[inline(always)]
    unsafe fn sum(a: F) -> f32 {
        // SAFETY: see the head of this block.
        unsafe { vaddvq_f32(vaddq_f32(vaddq_f32(a[0], a[2]), vaddq_f32(a[1], a[3]))) }
    }
    #[inline(always)]
    unsafe fn largest(a: F) -> f32 {
        // SAFETY: see the head of this block.
        unsafe { vmaxnmvq_f32(vmaxnmq_f32(vmaxnmq_f32(a[0], a[2]), vmaxnmq_f32(a[1], a[3]))) }
    }
    #[inline(always)]
    unsafe fn activations(x: [F; 2]) -> [u32; 16] {
        // SAFETY: see the head of this block.
        unsafe { P::activations(x) }
    }
    #[inline(always)]
    unsafe fn words(x: [F; 2]) -> [u32; 16] {
        // SAFETY: see the head of this block.
        unsafe { words(x) }
    }

    #[inline(always)]
    unsafe fn zero_i() -> I {
        // SAFETY: see the head of this block.
        unsafe { Self::splat_i(0) }
    }
    #[inline(always)]
    unsafe fn splat_i(x: i32) -> I {
        // SAFETY: see the head of this block.
        [unsafe { vdupq_n_s32(x) }; 4]
    }
    #[inline(always)]
    unsafe fn add_i(a: I, b: I) -> I {
        each!(vaddq_s32, a, b)
    }
    #[inline(always)]
    unsafe fn to_float(x: I) -> F {
        each!(vcvtq_f32_s32, x)
    }

    #[inline(always)]
    unsafe fn load_b(p: *const u8) -> B {
        // SAFETY: see the head of this block.
        unsafe { [vld1q_u8(p), vld1q_u8(p.add(16)), vld1q_u8(p.add(32)), vld1q_u8(p.add(48))] }
    }
    #[inline(always)]
    unsafe fn store_b(p: *mut u8, x: B) {
        for (i, x) in x.into_iter().enumerate() {
            // SAFETY: see the head of this block.
            unsafe { vst1q_u8(p.add(16 * i), x) }
        }
    }
    #[inline(always)]
    unsafe fn splat_b(x: u8) -> B {
        // SAFETY: see the head of this block.
        [unsafe { vdupq_n_u8(x) }; 4]
    }
    #[inline(always)]
    unsafe fn and(a: B, b: B) -> B {
        each!(vandq_u8, a, b)
    }
    #[inline(always)]
    unsafe fn or(a: B, b: B) -> B {
        each!(vorrq_u8, a, b)
    }
    #[inline(always)]
    unsafe fn shift_right<const N: u32>(a: B) -> B {
        // SAFETY: see the head of this block. (By a vector, since the amount is no constant that Rust converts; the compiler
        // makes an immediate of it.)
        let n = [unsafe { vdupq_n_s16(-(N as i16)) }; 4];
        each!(vreinterpretq_u8_u16, each!(vshlq_u16, each!(vreinterpretq_u16_u8, a), n))
    }
    #[inline(always)]
    unsafe fn shift_right_signed<const N: u32>(a: B) -> B {
        // SAFETY: see the head of this block; as above.
        let n = [unsafe { vdupq_n_s16(-(N as i16)) }; 4];
        each!(vreinterpretq_u8_s16, each!(vshlq_s16, each!(vreinterpretq_s16_u8, a), n))
    }
    #[inline(always)]
    unsafe fn shift_left<const N: u32>(a: B) -> B {
        // SAFETY: see the head of this block.
        let n = [unsafe { vdupq_n_s16(N as i16) }; 4];
        each!(vreinterpretq_u8_u16, each!(vshlq_u16, each!(vreinterpretq_u16_u8, a), n))
    }
    #[inline(always)]
    unsafe fn look_up(table: &[u8; 16], indices: B) -> B {
        // SAFETY: see the head of this block; the table has 16 bytes.
        let table = [unsafe { vld1q_u8(table.as_ptr()) }; 4];
        each!(vqtbl1q_u8, table, indices)
    }
    #[inline(always)]
    unsafe fn codes(bytes: [B; 8]) -> P::Codes {
        // SAFETY: see the head of this block.
        unsafe { P::codes(bytes) }
    }
    #[inline(always)]
    unsafe fn codes_about_128(bytes: [B; 8]) -> P::Codes {
        // SAFETY: see the head of this block.
        unsafe { P::codes_about_128(bytes) }
    }
    #[inline(always)]
    unsafe fn codes_of_nibbles(packed: [B; 4]) -> P::Codes {
        // SAFETY: see the head of this block.
        unsafe { P::codes_of_nibbles(packed) }
    }
    #[inline(always)]
    unsafe fn dot(acc: I, w: B, x: i32) -> I {
        // SAFETY: see the head of this block.
        unsafe { P::dot(acc, w, x) }
    }
    #[inline(always)]
    unsafe fn dot_words(acc: I, w: B, x: i32) -> I {
        // SAFETY: see the head of this block.
        let w = each!(vreinterpretq_s16_u16, unsafe { apart(w) });
        // SAFETY: as above.
        unsafe { dot_apart(acc, w, x) }
    }

    #[inline(always)]
    unsafe fn store_codes(p: *mut u8, codes: P::Codes) {
        for (step, w) in codes.as_ref().chunks_exact(2).enumerate() {
            // SAFETY: see the head of this block.
            unsafe {
                let [first, second] = if P::MATRICES { matrices::paired(w[0], w[1]) } else { [w[0], w[1]] };
                Self::store_b(p.add(step * 128), first);
                Self::store_b(p.add(step * 128 + 64), second);
            }
        }
    }
    #[inline(always)]
    unsafe fn load_codes(p: *const u8, step: usize) -> B {
        // SAFETY: see the head of this block.
        unsafe {
            if !P::MATRICES {
                return Self::load_b(p.add(step * 64));
            }
            let pair = p.add(step / 2 * 128);
            matrices::unpaired(Self::load_b(pair), Self::load_b(pair.add(64)))[step % 2]
        }
    }
    #[inline(always)]
    unsafe fn dots<const M: usize>(
        acc: &mut [I; M],
        w: *const u8,
        steps: usize,
        x: *const i32,
        strides: (usize, usize),
        _run: usize,
    ) {
        // SAFETY: see the head of this block.
        unsafe {
            if P::MATRICES {
                matrices::dots(acc, w, steps, x, strides.0);
            } else {
                dots_one_by_one::<Self, false, 1, M>(std::array::from_mut(acc), [w], steps, x, strides);
            }
        }
    }
    #[inline(always)]
    unsafe fn densest(acc: I, w: B, x: i32) -> I {
        // SAFETY: see the head of this block.
        unsafe { if P::MATRICES { matrices::product(acc, w, vdupq_n_s32(x)) } else { P::dot(acc, w, x) } }
    }
}
