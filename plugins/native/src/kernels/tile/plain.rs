//! Plain weights (F16, BF16, F32) as strips: sixteen rows side by side, column by column, at the width of the file.
//!
//! ```text
//! strip:  k=0: row 0 row 1 … row 15 | k=1: row 0 … row 15 | …
//! ```
//!
//! Products are chains `acc += x[k] · w[k]` in float32, one per output, the same for one token as for many: a batch gives
//! bit for bit what its tokens give one by one.

use drophammer_formats::DType;

use super::Tiles;
use crate::kernels::LANES;
use crate::kernels::float::{Output, Rows};
use crate::kernels::isa::{self, Isa, Kernel, Path};

/// Bytes of a plain number; `None` for other types.
pub(super) fn width(dtype: DType) -> Option<usize> {
    match dtype {
        DType::F16 | DType::BF16 => Some(2),
        DType::F32 => Some(4),
        _ => None,
    }
}

/// Fills a strip from up to sixteen rows.
pub(super) fn lay_strip<'a>(width: usize, rows: impl Iterator<Item = &'a [u8]>, strip: &mut [u8]) {
    for (r, row) in rows.enumerate() {
        for (out, number) in strip.chunks_exact_mut(LANES * width).zip(row.chunks_exact(width)) {
            out[r * width..][..width].copy_from_slice(number);
        }
    }
}

/// Multiplies strips of a matrix by `tokens` rows of floats.
///
/// # Safety
/// `x` holds `tokens` rows of as many floats as the tiles have columns; `out` has room for each token's rows of these
/// strips, which no other thread uses meanwhile.
pub(crate) unsafe fn multiply(
    path: Path,
    tiles: &Tiles,
    x: Rows,
    tokens: usize,
    strips: std::ops::Range<usize>,
    out: Output,
) {
    // SAFETY: the caller's promise.
    unsafe {
        match tiles.dtype() {
            DType::F16 => isa::run(path, Plain::<HALF> { tiles, x, tokens, strips, out }),
            DType::BF16 => isa::run(path, Plain::<BFLOAT> { tiles, x, tokens, strips, out }),
            _ => isa::run(path, Plain::<FLOAT> { tiles, x, tokens, strips, out }),
        }
    }
}

const HALF: u8 = 0;
const BFLOAT: u8 = 1;
const FLOAT: u8 = 2;

#[inline(always)]
unsafe fn load<I: Isa, const STORED: u8>(strip: *const u8, k: usize) -> I::F {
    // SAFETY: the caller promises column `k` of the strip.
    unsafe {
        match STORED {
            HALF => I::load_half(strip.cast::<u16>().add(k * LANES)),
            BFLOAT => I::load_bfloat(strip.cast::<u16>().add(k * LANES)),
            _ => I::load(strip.cast::<f32>().add(k * LANES)),
        }
    }
}

struct Plain<'a, const STORED: u8> {
    tiles: &'a Tiles,
    x: Rows,
    tokens: usize,
    strips: std::ops::Range<usize>,
    out: Output,
}

impl<const STORED: u8> Kernel for Plain<'_, STORED> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<I: Isa>(self) {
        // SAFETY: strips and tokens stay below their numbers.
        unsafe {
            // One strip at a time, for one token too: from memory one stream comes in faster than several.
            for strip in self.strips.clone() {
                let mut token = 0;
                while I::FLOAT_ROWS >= 12 && token + 12 <= self.tokens {
                    self.block::<I, 12>(strip, token);
                    token += 12;
                }
                while I::FLOAT_ROWS >= 6 && token + 6 <= self.tokens {
                    self.block::<I, 6>(strip, token);
                    token += 6;
                }
                while token + 2 <= self.tokens {
                    self.block::<I, 2>(strip, token);
                    token += 2;
                }
                if token < self.tokens {
                    self.block::<I, 1>(strip, token);
                }
            }
        }
    }
}

impl<const STORED: u8> Plain<'_, STORED> {
    /// A strip times `M` tokens from `token`.
    #[inline(always)]
    unsafe fn block<I: Isa, const M: usize>(&self, strip: usize, token: usize) {
        // SAFETY: the caller promises the strip and these tokens.
        unsafe {
            let x = self.x.begin.add(token * self.x.stride);
            let numbers = self.tiles.strip(strip).as_ptr();
            let mut acc = [I::splat(0.0); M];
            for k in 0..self.tiles.columns() {
                let w = load::<I, STORED>(numbers, k);
                for (m, acc) in acc.iter_mut().enumerate() {
                    *acc = I::fma(I::splat(*x.add(m * self.x.stride + k)), w, *acc);
                }
            }
            let rows = LANES.min(self.tiles.rows() - strip * LANES);
            let out = self.out.at_row(strip * LANES);
            for (m, sum) in acc.into_iter().enumerate() {
                out.put::<I>(token + m, rows, sum);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{stored_plainly, tiles_of};
    use super::*;

    #[test]
    fn plain_strips_on_every_path_equal_the_sums_and_a_batch_equals_its_tokens_bit_for_bit() {
        let mut state = 5u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / 8_388_608.0 - 1.0
        };
        for dtype in [DType::F16, DType::BF16, DType::F32] {
            // Halves in a multiple of 32 columns would be laid out in fixed point.
            for (rows, columns, tokens) in [(16, 65, 1), (100, 33, 1), (23, 577, 13), (80, 100, 7)] {
                // Numbers that all three types hold exactly.
                let mut numbers = |n: usize| -> Vec<f32> {
                    (0..n).map(|_| half::bf16::from_f32(next()).to_f32()).collect()
                };
                let (w, x) = (numbers(rows * columns), numbers(tokens * columns));
                let tiles = tiles_of(dtype, columns, &stored_plainly(dtype, columns, &w));
                for path in Path::all() {
                    let mut out = vec![f32::NAN; tokens * rows];
                    let mut single = vec![f32::NAN; tokens * rows];
                    let strips = 0..rows.div_ceil(LANES);
                    let to = Output { begin: out.as_mut_ptr(), stride: rows, accumulate: false };
                    // SAFETY: the sizes above.
                    unsafe {
                        let x = Rows { begin: x.as_ptr(), stride: columns };
                        multiply(path, &tiles, x, tokens, strips.clone(), to);
                        for t in 0..tokens {
                            let x = Rows { begin: x.begin.add(t * columns), stride: columns };
                            let to = Output { begin: single.as_mut_ptr().add(t * rows), ..to };
                            multiply(path, &tiles, x, 1, strips.clone(), to);
                        }
                    }
                    assert_eq!(out, single, "{dtype} {path:?}");
                    for t in 0..tokens {
                        for r in 0..rows {
                            let terms = x[t * columns..].iter().zip(&w[r * columns..][..columns]);
                            let exact: f64 = terms.map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
                            let got = f64::from(out[t * rows + r]);
                            assert!((got - exact).abs() < 1e-4, "{dtype} {path:?} {t} {r}: {got} {exact}");
                        }
                    }
                }
            }
        }
    }
}
