//! Scales that are integers, times a float that those of 256 columns have in common, where products are summed in sixteen bits.
//!
//! The instruction that widens such sums multiplies them by words: by scales in place of ones, which costs nothing. What it gives
//! is summed over both scales of 32 columns as integers, then over 256 columns as floats, each times its activations' scale; only that
//! is multiplied by what scales have in common.

use super::BLOCK;
use super::formats::Format;
use super::multiply::{Shape, Strips};
use crate::kernels::LANES;
use crate::kernels::activation::strides;
use crate::kernels::isa::{self, Isa};

/// Blocks of 32 columns whose scales have a float in common.
pub(super) const BLOCKS: usize = 8;

/// Whether a format has such scales, and products that are summed in sixteen bits where the path does.
pub(super) const fn of<F: Format>() -> bool {
    assert!(!F::WHOLE || F::COLUMNS == BLOCKS * BLOCK);
    let zero = F::ZERO as usize;
    let largest = if F::LARGEST > 2 * zero { F::LARGEST - zero } else { zero };
    // What `begins_in_words` needs.
    assert!(F::MINIMUMS || F::RUN == 1 || 2 * 127 * largest * 8 / F::GROUPS <= i16::MAX as usize);
    F::WHOLE && F::RUN > 1
}

/// Whether the sums of codes that have a zero begin with it, in sixteen bits. These hold the sum of all steps then, whatever
/// [`Format::RUN`] says of codes without a zero, since what wraps around comes back.
pub(super) const fn begins_in_words<I: Isa>(groups: usize, minimums: bool, whole: bool, run: usize) -> bool {
    I::SUMS_WORDS && !minimums && run > 1 && (whole || run < I::STEPS / groups || I::BEGINS_WORDS)
}

/// The integers that the scales of a group are, each twice in its lane.
///
/// # Safety
/// As for [`Format::scale`].
#[inline(always)]
pub(super) unsafe fn words<I: Isa, F: Format>(unit: *const u8, part: usize, group: usize) -> I::B {
    // SAFETY: the caller's promise.
    unsafe { I::load_pairs(unit.add(F::whole(part, group)).cast()) }
}

/// Scales as floats.
///
/// # Safety
/// The processor has the instructions.
#[inline(always)]
pub(super) unsafe fn scale<I: Isa>(common: I::F, words: I::B) -> I::F {
    // SAFETY: the caller's promise.
    unsafe { I::mul(common, I::to_float(I::dot_words(I::zero_i(), words, 1))) }
}

impl<const GROUPS: usize, const MINIMUMS: bool, const WHOLE: bool, const RUN: usize>
    Strips<'_, Shape<GROUPS, MINIMUMS, WHOLE>, RUN>
{
    /// The codes of a panel of `M` tokens times those of a strip.
    #[inline(always)]
    pub(super) unsafe fn whole_sums<I: Isa, const M: usize>(
        &self,
        index: usize,
        strip: usize,
    ) -> [[I::F; M]; 1] {
        let (x, steps) = (self.x.at(index), I::STEPS / GROUPS);
        // SAFETY: the room holds the strip, the panel `M` tokens.
        unsafe {
            let strip = self.room.strips.get_unchecked(strip);
            let (mut codes, mut scales) = (strip.codes.as_ptr(), strip.scales.as_ptr().cast::<u8>());
            let mut minimums = strip.minimums.as_ptr();
            let mut offsets = self.room.offsets.as_ptr().add(index * M * x.columns / BLOCK * GROUPS);
            let strides = strides::<I>(I::STEPS, M);
            let mut sums = [I::splat(0.0); M];
            for unit in 0..x.columns / BLOCK / BLOCKS {
                let mut parts = [I::splat(0.0); M];
                for block in unit * BLOCKS..(unit + 1) * BLOCKS {
                    let mut whole = [I::zero_i(); M];
                    for group in 0..GROUPS {
                        let mut begin = [I::zero_i(); M];
                        if !MINIMUMS {
                            for (m, begin) in begin.iter_mut().enumerate() {
                                *begin = I::splat_i(*offsets.add(m));
                            }
                        }
                        let run = if MINIMUMS { RUN } else { steps };
                        let x = x.codes.cast::<i32>().add(block * M * I::STEPS + group * steps * strides.1);
                        let by = I::load_b(scales);
                        isa::dots_in_runs::<I, M>(&mut whole, begin, codes, (steps, run), x, strides, by);
                        if MINIMUMS {
                            let minimum = I::load(minimums);
                            for (m, sum) in sums.iter_mut().enumerate() {
                                let offset = f32::from_bits(*offsets.add(m) as u32);
                                *sum = I::fma(minimum, I::splat(offset), *sum);
                            }
                            minimums = minimums.add(LANES);
                        }
                        codes = codes.add(steps * 64);
                        scales = scales.add(64);
                        offsets = offsets.add(M);
                    }
                    for (m, (part, whole)) in parts.iter_mut().zip(whole).enumerate() {
                        let factor = I::splat(*x.scales.add(block * M + m));
                        *part = I::fma(I::to_float(whole), factor, *part);
                    }
                }
                let common = I::load(strip.common.as_ptr().add(unit * LANES));
                for (sum, part) in sums.iter_mut().zip(parts) {
                    *sum = I::fma(common, part, *sum);
                }
            }
            [sums]
        }
    }
}
