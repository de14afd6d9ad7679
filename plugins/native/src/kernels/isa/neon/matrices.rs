//! Products of matrices: `smmla` multiplies two rows of weights by two tokens, eight columns deep.
//!
//! That is twice as much as `sdot` does in one instruction. A batch takes it; a single token would leave half of it unused.
//! Tiles in memory are the same for both: codes change places when a batch unpacks them.
//!
//! ```text
//! a pair of steps:  row 0: k=0..8 | row 1: 0..8 ‖ row 4: 0..8 | row 5 ‖ …      then  row 2: 0..8 | row 3 ‖ row 6 | row 7 ‖ …
//! a pair of sums:   token 0: rows 0 1 | token 1: rows 0 1 ‖ … rows 4 5 ‖ …     then  token 0: rows 2 3 | token 1: rows 2 3 ‖ …
//! ```

#[allow(clippy::wildcard_imports)] // intrinsics carry their own prefix
use std::arch::aarch64::*;
use std::arch::asm;

use super::{B, I, Neon, Words, each};
use crate::kernels::isa::Isa;

/// Adds the products of two rows of eight bytes with two others: of the first with both, then of the second with both.
/// (Rust has the instruction's intrinsic only in nightly compilers.)
#[inline]
#[target_feature(enable = "i8mm")]
fn smmla(mut acc: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
    // SAFETY: the caller's processor has the instruction, which reads and writes these registers alone.
    unsafe {
        asm!(
            "smmla {acc:v}.4s, {a:v}.16b, {b:v}.16b",
            acc = inout(vreg) acc, a = in(vreg) a, b = in(vreg) b,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    acc
}

/// Codes of two steps in pairs of rows.
#[inline(always)]
pub(super) unsafe fn paired(even: B, odd: B) -> [B; 2] {
    let (even, odd) = (each!(vreinterpretq_u32_u8, even), each!(vreinterpretq_u32_u8, odd));
    let pairs = [each!(vzip1q_u32, even, odd), each!(vzip2q_u32, even, odd)];
    [each!(vreinterpretq_u8_u32, pairs[0]), each!(vreinterpretq_u8_u32, pairs[1])]
}

/// Codes of two steps from those in pairs of rows.
#[inline(always)]
pub(super) unsafe fn unpaired(first: B, second: B) -> [B; 2] {
    let (first, second) = (each!(vreinterpretq_u32_u8, first), each!(vreinterpretq_u32_u8, second));
    let steps = [each!(vuzp1q_u32, first, second), each!(vuzp2q_u32, first, second)];
    [each!(vreinterpretq_u8_u32, steps[0]), each!(vreinterpretq_u8_u32, steps[1])]
}

/// Sums of two tokens, one after the other, in pairs; or the other way round, which is the same exchange.
#[inline(always)]
unsafe fn exchanged(sums: [I; 2]) -> [I; 2] {
    let (a, b) = (each!(vreinterpretq_s64_s32, sums[0]), each!(vreinterpretq_s64_s32, sums[1]));
    let other = [each!(vzip1q_s64, a, b), each!(vzip2q_s64, a, b)];
    [each!(vreinterpretq_s32_s64, other[0]), each!(vreinterpretq_s32_s64, other[1])]
}

/// Adds to sums in pairs what codes in pairs and eight columns of two tokens give.
#[inline(always)]
pub(super) unsafe fn product(sums: I, w: B, x: int32x4_t) -> I {
    // SAFETY: the caller promises the instruction.
    let x = [unsafe { vreinterpretq_s8_s32(x) }; 4];
    each!(smmla, sums, x, each!(vreinterpretq_s8_u8, w))
}

/// [`Isa::dots`] with codes in pairs.
///
/// # Safety
/// As for that, with the instruction; a token's words lie together.
#[inline(always)]
pub(super) unsafe fn dots<const M: usize>(
    sums: &mut [I; M],
    w: *const u8,
    steps: usize,
    x: *const i32,
    to_token: usize,
) {
    // SAFETY: the caller's promise.
    unsafe {
        for m in (0..M).step_by(2) {
            [sums[m], sums[m + 1]] = exchanged([sums[m], sums[m + 1]]);
        }
        for step in (0..steps).step_by(2) {
            // Activations of all tokens first, weights by halves: with the sums of six tokens that fills 31 of 32 registers.
            let mut pairs = [vdupq_n_s32(0); M];
            for m in (0..M).step_by(2) {
                let x = x.add(m * to_token + step);
                pairs[m] = vcombine_s32(vld1_s32(x), vld1_s32(x.add(to_token)));
            }
            for half in 0..2 {
                let w = <Neon<Words>>::load_b(w.add((step + half) * 64));
                for m in (0..M).step_by(2) {
                    sums[m + half] = product(sums[m + half], w, pairs[m]);
                }
            }
        }
        for m in (0..M).step_by(2) {
            [sums[m], sums[m + 1]] = exchanged([sums[m], sums[m + 1]]);
        }
    }
}
