//! Weights of a strip as numbers that have their scales, column by column, for products of many tokens: what unpacking them takes is
//! little beside such a product, and sums need no scale then.

use super::formats::{Format, with_format};
use super::{BLOCK, Place, Tiles, fetch_scales, fixed};
use crate::kernels::LANES;
use crate::kernels::isa::Isa;
#[cfg(target_arch = "x86_64")]
use crate::kernels::isa::amx::{ROW, Tiled};

/// How such numbers are written.
///
/// # Safety
/// Functions need the instructions of `I`, and what they say.
pub(crate) trait Numbers<I: Isa> {
    /// Bytes from four columns to the next four.
    const FOUR_COLUMNS: usize;

    /// Writes four neighbouring columns of sixteen rows, for which there has to be room.
    unsafe fn put(to: *mut u8, columns: [I::F; 4]);
}

/// Floats, `[columns][STRIPS][16 rows]`.
pub(crate) struct Floats<const STRIPS: usize>;

impl<I: Isa, const STRIPS: usize> Numbers<I> for Floats<STRIPS> {
    const FOUR_COLUMNS: usize = 4 * STRIPS * LANES * 4;

    #[inline(always)]
    unsafe fn put(to: *mut u8, columns: [I::F; 4]) {
        for (i, column) in columns.into_iter().enumerate() {
            // SAFETY: the caller's promise.
            unsafe { I::store(to.cast::<f32>().add(i * STRIPS * LANES), column) };
        }
    }
}

/// Tiles of bfloat16, `[columns/32][16 pairs of columns][16 rows]`.
#[cfg(target_arch = "x86_64")]
pub(crate) struct Bfloats;

#[cfg(target_arch = "x86_64")]
impl<I: Tiled> Numbers<I> for Bfloats {
    const FOUR_COLUMNS: usize = 2 * ROW;

    #[inline(always)]
    unsafe fn put(to: *mut u8, [a, b, c, d]: [I::F; 4]) {
        // SAFETY: the caller's promise.
        unsafe {
            I::store_b(to, I::bfloat_pairs(a, b));
            I::store_b(to.add(ROW), I::bfloat_pairs(c, d));
        }
    }
}

/// Lays some columns of a strip out.
///
/// # Safety
/// The strip has the columns, which begin and end with stored blocks; there is room for them; the processor has the instructions.
#[inline(always)]
pub(crate) unsafe fn lay<I: Isa, N: Numbers<I>>(
    tiles: &Tiles,
    strip: usize,
    columns: std::ops::Range<usize>,
    to: *mut u8,
) {
    let strip = tiles.strip(strip).as_ptr();
    // SAFETY: the caller's promise.
    unsafe {
        with_format!(tiles.dtype(), F => lay_codes::<F, I, N>(strip, columns, to), else {
            lay_words::<I, N>(strip, columns, to);
        });
    }
}

/// Of codes and scales.
#[inline(always)]
unsafe fn lay_codes<F: Format, I: Isa, N: Numbers<I>>(
    strip: *const u8,
    columns: std::ops::Range<usize>,
    mut to: *mut u8,
) {
    let parts = F::COLUMNS / BLOCK;
    let steps = 8 / F::GROUPS;
    // SAFETY: the caller's promise.
    unsafe {
        let zero = I::splat(F::ZERO as f32);
        for unit in columns.start / F::COLUMNS..columns.end / F::COLUMNS {
            let place = Place::of::<F>(unit);
            let scales = strip.add(place.scales);
            fetch_scales::<F>(unit, scales);
            for part in 0..parts {
                let w = F::bytes::<I>(strip.add(place.codes + part * F::code_bytes()));
                for (step, w) in w.into_iter().enumerate() {
                    let scale = F::scale::<I>(scales, part, step / steps);
                    let mut columns = I::columns(w);
                    for column in &mut columns {
                        *column = if F::MINIMUMS {
                            let minimum = F::minimum::<I>(scales, part, step / steps);
                            I::sub(I::mul(*column, scale), minimum)
                        } else {
                            I::mul(I::sub(*column, zero), scale)
                        };
                    }
                    N::put(to, columns);
                    to = to.add(N::FOUR_COLUMNS);
                }
            }
        }
    }
}

/// Begins at a cache line.
#[repr(align(64))]
struct Line<const N: usize>([u8; N]);

/// Of words and a scale for each row.
#[inline(always)]
unsafe fn lay_words<I: Isa, N: Numbers<I>>(
    strip: *const u8,
    columns: std::ops::Range<usize>,
    mut to: *mut u8,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let scale = I::load(strip.cast());
        let mut room = Line([0; fixed::UNPACKED_BYTES]);
        for block in columns.start / BLOCK..columns.end / BLOCK {
            fixed::unpack::<I>(strip.add(fixed::SCALES + block * fixed::BLOCK_BYTES), room.0.as_mut_ptr());
            for words in room.0.chunks_exact(128) {
                let words = I::columns_of_words([I::load_b(words.as_ptr()), I::load_b(words[64..].as_ptr())]);
                N::put(to, times::<I>(words, [scale; 4]));
                to = to.add(N::FOUR_COLUMNS);
            }
        }
    }
}

/// Four columns, each times its scale.
#[inline(always)]
pub(crate) unsafe fn times<I: Isa>([a, b, c, d]: [I::F; 4], scale: [I::F; 4]) -> [I::F; 4] {
    // SAFETY: the caller's promise.
    unsafe { [I::mul(a, scale[0]), I::mul(b, scale[1]), I::mul(c, scale[2]), I::mul(d, scale[3])] }
}
