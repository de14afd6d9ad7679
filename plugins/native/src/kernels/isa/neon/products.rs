//! What differs with the instruction that multiplies integers.

#[allow(clippy::wildcard_imports)] // intrinsics carry their own prefix
use std::arch::aarch64::*;
use std::arch::asm;

use super::{B, F, I, each, halves, words};

/// What differs with the instruction that multiplies integers: see [`Isa`], whose functions these are.
///
/// # Safety
/// Every function needs the processor to have the instruction.
#[allow(clippy::large_types_passed_by_value)] // inlined: they stay in registers
pub(crate) trait Products: Copy + 'static {
    type Codes: Copy + AsRef<[B]>;
    const BYTES: bool;
    /// Whether batches are multiplied by `smmla`.
    const MATRICES: bool = false;
    unsafe fn activations(x: [F; 2]) -> [u32; 16];
    unsafe fn codes(bytes: [B; 8]) -> Self::Codes;
    unsafe fn codes_about_128(bytes: [B; 8]) -> Self::Codes;
    unsafe fn codes_of_nibbles(packed: [B; 4]) -> Self::Codes;
    unsafe fn dot(acc: I, w: B, x: i32) -> I;
}

/// Words that are multiplied by the baseline's `smlal`. Codes of a step are [`apart`].
#[derive(Clone, Copy)]
pub(crate) struct Words;

/// The two words of every lane, apart: the first ones of lanes 0–7 and of 8–15, then the second ones.
#[inline(always)]
pub(super) unsafe fn apart(w: B) -> [uint16x8_t; 4] {
    let w = each!(vreinterpretq_u16_u8, w);
    // SAFETY: NEON belongs to the target's baseline.
    unsafe {
        [vuzp1q_u16(w[0], w[1]), vuzp1q_u16(w[2], w[3]), vuzp2q_u16(w[0], w[1]), vuzp2q_u16(w[2], w[3])]
    }
}

/// Adds the products of words that are [`apart`].
#[inline(always)]
pub(super) unsafe fn dot_apart(acc: I, w: [int16x8_t; 4], x: i32) -> I {
    // SAFETY: NEON belongs to the target's baseline.
    unsafe {
        let x = vreinterpret_s16_s32(vdup_n_s32(x));
        let low = |acc, first, second| {
            let acc = vmlal_lane_s16::<0>(acc, vget_low_s16(first), x);
            vmlal_lane_s16::<1>(acc, vget_low_s16(second), x)
        };
        let high =
            |acc, first, second| vmlal_high_lane_s16::<1>(vmlal_high_lane_s16::<0>(acc, first, x), second, x);
        [low(acc[0], w[0], w[2]), high(acc[1], w[0], w[2]), low(acc[2], w[1], w[3]), high(acc[3], w[1], w[3])]
    }
}

// SAFETY of every block below: NEON belongs to the target's baseline.
impl Products for Words {
    type Codes = [B; 16];

    const BYTES: bool = false;

    #[inline(always)]
    unsafe fn activations(x: [F; 2]) -> [u32; 16] {
        // SAFETY: see the head of this block.
        unsafe { words(x) }
    }
    #[inline(always)]
    unsafe fn codes(bytes: [B; 8]) -> Self::Codes {
        let mut wide = [bytes[0]; 16];
        for (i, w) in bytes.into_iter().enumerate() {
            // SAFETY: see the head of this block.
            let (w, byte) = unsafe { (apart(w), [vdupq_n_u16(0xff); 4]) };
            wide[2 * i] = each!(vreinterpretq_u8_u16, each!(vandq_u16, w, byte));
            wide[2 * i + 1] = each!(vreinterpretq_u8_u16, each!(vshrq_n_u16::<8>, w));
        }
        wide
    }
    #[inline(always)]
    unsafe fn codes_about_128(bytes: [B; 8]) -> Self::Codes {
        // SAFETY: see the head of this block; words hold any byte.
        unsafe { Self::codes(bytes) }
    }
    #[inline(always)]
    unsafe fn codes_of_nibbles(packed: [B; 4]) -> Self::Codes {
        // Straight to 16 bits, as every other operation would be one on bytes.
        let mut wide = [packed[0]; 16];
        for (i, w) in packed.into_iter().enumerate() {
            // SAFETY: see the head of this block.
            let (w, nibble) = unsafe { (apart(w), [vdupq_n_u16(0x0f); 4]) };
            let low = |w: [uint16x8_t; 4]| each!(vreinterpretq_u8_u16, each!(vandq_u16, w, nibble));
            wide[2 * i] = low(w);
            wide[2 * i + 1] = low(each!(vshrq_n_u16::<8>, w));
            wide[8 + 2 * i] = low(each!(vshrq_n_u16::<4>, w));
            wide[8 + 2 * i + 1] = each!(vreinterpretq_u8_u16, each!(vshrq_n_u16::<12>, w));
        }
        wide
    }
    #[inline(always)]
    unsafe fn dot(acc: I, w: B, x: i32) -> I {
        let w = each!(vreinterpretq_s16_u8, w);
        // SAFETY: see the head of this block.
        unsafe { dot_apart(acc, w, x) }
    }
}

/// Bytes that are multiplied by `sdot`, and in batches by `smmla` if there are `MATRICES`; weights as signed as activations.
#[derive(Clone, Copy)]
pub(crate) struct SignedBytes<const MATRICES: bool>;

/// Adds to each lane the products of its four bytes. (Rust has the instruction's intrinsic only in nightly compilers.)
#[inline]
#[target_feature(enable = "dotprod")]
fn sdot(mut acc: int32x4_t, w: int8x16_t, x: int8x16_t) -> int32x4_t {
    // SAFETY: the caller's processor has the instruction, which reads and writes these registers alone.
    unsafe {
        asm!(
            "sdot {acc:v}.4s, {w:v}.16b, {x:v}.16b",
            acc = inout(vreg) acc, w = in(vreg) w, x = in(vreg) x,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    acc
}

// SAFETY of every block below: the caller promises the instruction.
impl<const MATRICES: bool> Products for SignedBytes<MATRICES> {
    type Codes = [B; 8];

    const BYTES: bool = true;
    const MATRICES: bool = MATRICES;

    #[inline(always)]
    unsafe fn activations(x: [F; 2]) -> [u32; 16] {
        let mut words = [0; 16];
        for (i, x) in x.into_iter().enumerate() {
            // SAFETY: see the head of this block; 16 bytes are 4 words.
            unsafe {
                let [low, high] = halves(x);
                let bytes = vcombine_s8(vmovn_s16(low), vmovn_s16(high));
                vst1q_s8(words.as_mut_ptr().add(4 * i).cast(), bytes);
            }
        }
        words
    }
    #[inline(always)]
    unsafe fn codes(bytes: [B; 8]) -> Self::Codes {
        bytes
    }
    #[inline(always)]
    unsafe fn codes_about_128(mut bytes: [B; 8]) -> Self::Codes {
        for w in &mut bytes {
            // SAFETY: see the head of this block.
            let top = [unsafe { vdupq_n_u8(0x80) }; 4];
            *w = each!(veorq_u8, *w, top);
        }
        bytes
    }
    #[inline(always)]
    unsafe fn codes_of_nibbles(packed: [B; 4]) -> Self::Codes {
        let mut codes = [packed[0]; 8];
        for (i, packed) in packed.into_iter().enumerate() {
            // SAFETY: see the head of this block.
            let nibble = [unsafe { vdupq_n_u8(0x0f) }; 4];
            codes[i] = each!(vandq_u8, packed, nibble);
            codes[4 + i] = each!(vshrq_n_u8::<4>, packed);
        }
        codes
    }
    #[inline(always)]
    unsafe fn dot(acc: I, w: B, x: i32) -> I {
        // SAFETY: see the head of this block.
        let x = [unsafe { vreinterpretq_s8_s32(vdupq_n_s32(x)) }; 4];
        each!(sdot, acc, each!(vreinterpretq_s8_u8, w), x)
    }
}
