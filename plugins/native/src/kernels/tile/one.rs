//! One token's product with quantized weights: codes are unpacked in registers and used at once, so that reading them is all the
//! work.

use super::formats::Format;
use super::multiply::{Offsets, Unpacked};
use super::outliers::weight;
use super::{BLOCK, Place, Tiles, fetch_scales, whole};
use crate::kernels::activation::{Outlier, Panels};
use crate::kernels::float::Output;
use crate::kernels::isa::{self, Isa, Kernel};
use crate::kernels::{LANES, fetch_ahead};

/// Some strips times one token.
pub(super) struct One<'a, F> {
    pub(super) tiles: &'a Tiles,
    pub(super) x: Panels,
    pub(super) strips: std::ops::Range<usize>,
    pub(super) out: Output,
    pub(super) room: &'a mut Unpacked,
    /// The code that means nothing.
    pub(super) zero: i32,
    pub(super) format: std::marker::PhantomData<F>,
}

impl<F: Format> Kernel for One<'_, F> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<I: Isa>(self) {
        // SAFETY: the caller's promise.
        unsafe {
            let to = &mut self.room.offsets;
            Offsets::<F> { x: self.x, zero: self.zero, to, format: self.format }.run::<I>();
            for strip in self.strips.clone() {
                let rows = LANES.min(self.tiles.rows() - strip * LANES);
                let out = self.out.at_row(strip * LANES);
                self.strip::<I>(strip, rows, out);
            }
        }
    }
}

impl<F: Format> One<'_, F> {
    #[inline(always)]
    unsafe fn strip<I: Isa>(&self, strip: usize, rows: usize, out: Output) {
        let tile = self.tiles.strip(strip).as_ptr();
        let parts = F::COLUMNS / BLOCK;
        let steps = I::STEPS / F::GROUPS;
        let whole = I::SUMS_WORDS && whole::of::<F>();
        let in_words = whole::begins_in_words::<I>(F::GROUPS, F::MINIMUMS, whole::of::<F>(), F::RUN);
        // SAFETY: the strip holds `columns` columns of codes and scales, the panel as many of activations.
        unsafe {
            let (mut sum, mut apart) = (I::splat(0.0), I::splat(0.0));
            let x = self.x.codes.cast::<i32>();
            let mut outlier = self.x.outliers(0).cast_const();
            for unit in 0..self.x.columns / F::COLUMNS {
                let place = Place::of::<F>(unit);
                let scales = tile.add(place.scales);
                fetch_scales::<F>(unit, scales);
                let mut of_unit = I::splat(0.0);
                for part in 0..parts {
                    let block = unit * parts + part;
                    let bytes = F::SCALE_BYTES / parts + F::code_bytes();
                    fetch_ahead(tile.wrapping_add(block * bytes), bytes);
                    let w = F::unpack::<I>(tile.add(place.codes + part * F::code_bytes()));
                    let factor = I::splat(*self.x.scales.add(block));
                    let mut of_block = I::zero_i();
                    for group in 0..F::GROUPS {
                        let at = block * F::GROUPS + group;
                        let w = w.as_ref().get_unchecked(group * steps..(group + 1) * steps);
                        let offset = *self.room.offsets.as_ptr().add(at);
                        let x = x.add(at * steps);
                        let begin = if F::MINIMUMS { I::zero_i() } else { I::splat_i(offset) };
                        let run = if in_words { steps } else { F::RUN };
                        if whole {
                            let by = whole::words::<I, F>(scales, part, group);
                            of_block = isa::dots_of_one_in_runs::<I>(of_block, begin, w, x, run, by);
                        } else {
                            let dots = if in_words {
                                isa::dots_of_one_in_runs::<I>(I::zero_i(), begin, w, x, run, I::ones())
                            } else {
                                I::dots_of_one(begin, w, x, run)
                            };
                            let scale = I::mul(F::scale::<I>(scales, part, group), factor);
                            sum = I::fma(I::to_float(dots), scale, sum);
                        }
                        if F::MINIMUMS {
                            let minimum = F::minimum::<I>(scales, part, group);
                            sum = I::fma(minimum, I::splat(f32::from_bits(offset as u32)), sum);
                        }
                    }
                    if whole {
                        of_unit = I::fma(I::to_float(of_block), factor, of_unit);
                    }
                    if I::BYTES {
                        while (*outlier).block() == block {
                            // Again, rather than have all blocks' codes in memory because some are looked at one by one.
                            let codes = tile.add(place.codes + part * F::code_bytes());
                            let codes = F::unpack_step::<I>(codes, (*outlier).step());
                            let w = self.weight::<I>(codes, scales, part, *outlier);
                            apart = I::fma(I::splat((*outlier).value), w, apart);
                            outlier = outlier.add(1);
                        }
                    }
                }
                if whole {
                    sum = I::fma(F::common::<I>(scales), of_unit, sum);
                }
            }
            out.put::<I>(0, rows, I::add(sum, apart));
        }
    }

    /// What an outlier of the unit's block `part` is multiplied by.
    #[inline(always)]
    unsafe fn weight<I: Isa>(&self, codes: I::B, scales: *const u8, part: usize, outlier: Outlier) -> I::F {
        let group = outlier.group(F::GROUPS);
        // SAFETY: the caller promises the block's codes and scales.
        unsafe {
            let minimum = F::MINIMUMS.then(|| F::minimum::<I>(scales, part, group));
            weight::<I>(codes, outlier, self.zero, F::scale::<I>(scales, part, group), minimum)
        }
    }
}
