//! Half-precision weights (F16, BF16) as fixed-point numbers of fourteen bits: as words of sixteen processors multiply them twice as fast as
//! floats, and from memory, which limits products with few tokens, they come in seven eighths of the time.
//!
//! Each row has one scale, its largest magnitude / 8191, so that a weight keeps fourteen bits of the largest of its row: where
//! rows have no extreme outliers that is finer than the eleven (eight) bits of the stored number for all that matter in a sum.
//! Activations have thirteen bits per 64 columns ([`Panels::quantize_words`]); 64 products of both still fit into 32 bits.
//!
//! ```text
//! strip:  scales of row 0 … row 15 | step 0: row 0: k=0 2 | row 1: k=0 2 | … | step 1: row 0: k=1 3 | … | step 2: row 0: k=4 6 …
//! ```
//!
//! Columns go in pairs as [`Isa::words`] orders those of activations. Eight steps are stored as seven vectors: a code of each of seven is
//! the upper fourteen bits of a word, whose lower two are the next ones of the eighth's code, the first vector's its uppermost.

use drophammer_formats::DType;

use super::{BLOCK, Tiles};
use crate::kernels::activation::{Panels, WIDE_PANEL, WORD_BLOCKS, strides, with_panel};
use crate::kernels::float::Output;
use crate::kernels::isa::{self, Isa, Kernel, Path};
use crate::kernels::rows::{self, nearest};
use crate::kernels::{LANES, fetch_ahead};
use crate::memory::Aligned;

/// Largest magnitude of a code.
const LIMIT: f32 = 8191.0;
/// Bytes of a strip's scales.
pub(super) const SCALES: usize = LANES * 4;
/// Steps of a block: two columns each.
const STEPS: usize = BLOCK / 2;
/// Bytes of a vector.
const VECTOR: usize = LANES * 4;
/// Steps that are stored together, and the vectors that hold them.
const TOGETHER: usize = 8;
const STORED: usize = 7;
/// Bytes of a block, as it is stored and as it is multiplied.
pub(super) const BLOCK_BYTES: usize = STEPS / TOGETHER * STORED * VECTOR;
pub(super) const UNPACKED_BYTES: usize = STEPS * VECTOR;
/// Strips that products take at once, at most.
const STRIPS: usize = 2;

/// Bytes of a strip; `None` for what is not laid out so.
pub(super) fn strip_bytes(dtype: DType, columns: usize) -> Option<usize> {
    let fits = matches!(dtype, DType::F16 | DType::BF16) && columns.is_multiple_of(BLOCK);
    fits.then_some(SCALES + columns / BLOCK * BLOCK_BYTES)
}

/// Fills a strip from up to sixteen rows.
pub(super) fn lay_strip<'a>(
    dtype: DType,
    columns: usize,
    rows: impl Iterator<Item = &'a [u8]>,
    strip: &mut [u8],
) {
    let path = Path::chosen();
    lay_floats(
        columns,
        rows,
        |row, floats| match dtype {
            DType::F16 => rows::widen_half(path, row, floats),
            _ => rows::widen_bfloat(path, row, floats),
        },
        strip,
    );
}

/// The same from rows that `read` gives as floats.
pub(crate) fn lay_floats<R>(
    columns: usize,
    rows: impl Iterator<Item = R>,
    read: impl Fn(R, &mut [f32]),
    strip: &mut [u8],
) {
    let mut floats = vec![0.0; columns];
    let (scales, codes) = strip.split_at_mut(SCALES);
    for (r, row) in rows.enumerate() {
        read(row, &mut floats);
        let largest = floats.iter().fold(0f32, |largest, x| largest.max(x.abs()));
        let inverse = if largest > 0.0 { LIMIT / largest } else { 0.0 };
        scales[r * 4..][..4].copy_from_slice(&(largest / LIMIT).to_le_bytes());
        for (block, x) in codes.chunks_exact_mut(BLOCK_BYTES).zip(floats.as_chunks::<BLOCK>().0) {
            // Steps as lanes of 32 bits, of which each half is a code.
            let mut steps = [0u32; STEPS];
            for (steps, x) in steps.as_chunks_mut::<2>().0.iter_mut().zip(x.as_chunks::<4>().0) {
                let code = |i: usize| u32::from(nearest(x[i] * inverse) as u16);
                *steps = [code(0) | code(2) << 16, code(1) | code(3) << 16];
            }
            let stored = block.chunks_exact_mut(STORED * VECTOR);
            for (stored, steps) in stored.zip(steps.as_chunks::<TOGETHER>().0) {
                for (i, vector) in stored.chunks_exact_mut(VECTOR).enumerate() {
                    let bits = steps[STORED] >> (2 * (STORED - 1 - i)) & 0x0003_0003;
                    let lane = steps[i] << 2 & 0xfffc_fffc | bits;
                    vector[r * 4..][..4].copy_from_slice(&lane.to_le_bytes());
                }
            }
        }
    }
}

/// Brings a block into the form that products take. (By memory: so many vectors would take the registers of sums.)
///
/// # Safety
/// The block is there, and room for [`UNPACKED_BYTES`]; the processor has the instructions.
#[inline(always)]
pub(super) unsafe fn unpack<I: Isa>(block: *const u8, to: *mut u8) {
    // SAFETY: the caller's promise.
    unsafe {
        let low = I::shift_right::<8>(I::splat_b(3));
        for group in 0..STEPS / TOGETHER {
            let (from, to) = (block.add(group * STORED * VECTOR), to.add(group * TOGETHER * VECTOR));
            let mut last = I::splat_b(0);
            for i in 0..STORED {
                let word = I::load_b(from.add(i * VECTOR));
                I::store_b(to.add(i * VECTOR), I::shift_right_signed::<2>(word));
                last = I::or(I::shift_left::<2>(last), I::and(word, low));
            }
            I::store_b(to.add(STORED * VECTOR), I::shift_right_signed::<2>(I::shift_left::<2>(last)));
        }
    }
}

/// One thread's room for unpacked strips.
pub(crate) struct Room(Aligned<u8>);

impl Room {
    /// For matrices of up to `columns` columns.
    pub(crate) fn new(columns: usize) -> Self {
        Self(Aligned::zeroed(STRIPS * columns.div_ceil(BLOCK) * UNPACKED_BYTES))
    }
}

/// Multiplies strips of a matrix: all tokens of `x`, rows of `strips`.
///
/// # Safety
/// `x` holds words of as many columns as the tiles have; `out` has room for each token's rows of these strips, which no other
/// thread uses meanwhile.
pub(crate) unsafe fn multiply(
    path: Path,
    tiles: &Tiles,
    x: Panels,
    strips: std::ops::Range<usize>,
    out: Output,
    room: &mut Room,
) {
    assert_eq!(tiles.columns(), x.columns);
    assert!(room.0.len() >= STRIPS * x.columns / BLOCK * UNPACKED_BYTES);
    // SAFETY: the caller's promise.
    unsafe { isa::run(path, Fixed { tiles, x, strips, out, room: room.0.as_mut_ptr() }) }
}

struct Fixed<'a> {
    tiles: &'a Tiles,
    x: Panels,
    strips: std::ops::Range<usize>,
    out: Output,
    /// For [`STRIPS`] strips.
    room: *mut u8,
}

impl Kernel for Fixed<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<I: Isa>(self) {
        // SAFETY: the caller's promise; the panel's width is what `panel_of` gives on this path.
        unsafe {
            // (Loops: of closures only small ones are inlined, and compiled for the instruction set.)
            if self.x.panel == 1 {
                for strip in self.strips.clone() {
                    self.panel::<I, 1, 1>(strip, 0);
                }
                return;
            }
            if I::STRIPS == 2 && self.x.panel == WIDE_PANEL {
                for strip in self.strips.clone() {
                    self.panel::<I, 1, WIDE_PANEL>(strip, 0);
                }
                return;
            }
            for first in self.strips.clone().step_by(I::STRIPS) {
                for index in 0..self.x.count() {
                    with_panel!(self.x.panel, M => if I::STRIPS == 2 && first + 1 < self.strips.end {
                        self.panel::<I, 2, M>(first, index);
                    } else {
                        self.panel::<I, 1, M>(first, index);
                    });
                }
            }
        }
    }
}

impl Fixed<'_> {
    /// `S` strips from `first` times a panel of `M` tokens. The first panel unpacks them.
    #[inline(always)]
    unsafe fn panel<I: Isa, const S: usize, const M: usize>(&self, first: usize, index: usize) {
        let (x, only) = (self.x.at(index), self.x.count() == 1);
        let mut tiles = [std::ptr::null(); S];
        for (s, tile) in tiles.iter_mut().enumerate() {
            *tile = self.tiles.strip(first + s).as_ptr();
        }
        // SAFETY: the strips hold `columns` columns, the panel `M` tokens of as many; `out` has room for the panel's tokens.
        unsafe {
            let strides = strides::<I>(STEPS, M);
            let out = self.out.at_row(first * LANES);
            out.fetch(index * M..index * M + x.tokens);
            let mut sums = [[I::splat(0.0); M]; S];
            let blocks = x.columns / BLOCK;
            for first in (0..blocks).step_by(WORD_BLOCKS) {
                let mut acc = [[I::zero_i(); M]; S];
                for block in first..(first + WORD_BLOCKS).min(blocks) {
                    let x = x.codes.cast::<i32>().add(block * M * STEPS);
                    let mut words = [std::ptr::null(); S];
                    for (s, words) in words.iter_mut().enumerate() {
                        // For the panels that follow, or in one place for the only one.
                        let place = if only { 0 } else { block };
                        let room = self.room.add((s * blocks + place) * UNPACKED_BYTES);
                        if index == 0 {
                            let stored = tiles[s].wrapping_add(SCALES + block * BLOCK_BYTES);
                            fetch_ahead(stored, BLOCK_BYTES);
                            unpack::<I>(stored, room);
                        }
                        *words = room.cast_const();
                    }
                    isa::dots_one_by_one::<I, true, S, M>(&mut acc, words, STEPS, x, strides);
                }
                for (sums, acc) in sums.iter_mut().zip(acc) {
                    for (m, (sum, acc)) in sums.iter_mut().zip(acc).enumerate() {
                        let factor = I::splat(*x.scales.add(first * M + m));
                        *sum = I::fma(I::to_float(acc), factor, *sum);
                    }
                }
            }
            for (s, sums) in sums.into_iter().enumerate() {
                let scales = I::load(tiles[s].cast());
                let rows = LANES.min(self.tiles.rows() - (first + s) * LANES);
                let out = out.at_row(s * LANES);
                for (m, sum) in sums.into_iter().enumerate().take(x.tokens) {
                    out.put::<I>(index * M + m, rows, I::mul(sum, scales));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{product, stored_plainly, tiles_of};
    use super::*;
    use crate::kernels::activation::{Quantized, word_panel_of};

    struct Unpacked {
        strip: *const u8,
        block: usize,
    }

    impl Kernel for Unpacked {
        type Output = [i16; UNPACKED_BYTES / 2];

        unsafe fn run<I: Isa>(self) -> Self::Output {
            let mut words = [0; UNPACKED_BYTES / 2];
            // SAFETY: the strip holds the block.
            unsafe {
                let stored = self.strip.add(SCALES + self.block * BLOCK_BYTES);
                unpack::<I>(stored, words.as_mut_ptr().cast());
            }
            words
        }
    }

    #[test]
    fn codes_of_fourteen_bits_come_out_on_every_path_as_they_went_in() {
        const COLUMNS: usize = 2 * BLOCK;
        let code = |row: usize, column: usize| match (row + column) % 7 {
            0 => 8191,
            1 => -8191,
            _ => ((row * COLUMNS + column) * 7919 % 16383) as i16 - 8191,
        };
        let rows = 13;
        let mut strip = vec![0; strip_bytes(DType::F16, COLUMNS).unwrap()];
        lay_floats(
            COLUMNS,
            0..rows,
            |row, floats| {
                for (column, x) in floats.iter_mut().enumerate() {
                    *x = f32::from(code(row, column)) / 64.0;
                }
            },
            &mut strip,
        );
        for path in Path::all() {
            for block in 0..COLUMNS / BLOCK {
                // SAFETY: the strip holds the block, and the path is one that the processor has.
                let words = unsafe { isa::run(path, Unpacked { strip: strip.as_ptr(), block }) };
                for (row, column) in (0..LANES).flat_map(|row| (0..BLOCK).map(move |column| (row, column))) {
                    let (step, half) = (column / 4 * 2 + column % 2, column / 2 % 2);
                    let due = if row < rows { code(row, block * BLOCK + column) } else { 0 };
                    assert_eq!(
                        words[(step * LANES + row) * 2 + half],
                        due,
                        "{path:?} {row} {block} {column}"
                    );
                }
            }
        }
    }

    #[test]
    fn products_on_every_path_are_those_of_the_rounded_numbers_and_a_batch_gives_what_its_tokens_give() {
        let mut state = 5u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / 8_388_608.0 - 1.0
        };
        for dtype in [DType::F16, DType::BF16] {
            for (rows, columns, tokens) in [
                (16, 64, 1),
                (100, 32, 2),
                (23, 576, 13),
                (80, 96, 7),
                (33, 96, 20),
                (16, 2048, 31),
                (40, 64, 48),
            ] {
                let w: Vec<f32> =
                    (0..rows * columns).map(|_| half::bf16::from_f32(next().powi(3)).to_f32()).collect();
                let x: Vec<f32> = (0..tokens * columns).map(|_| next().powi(3) * 9.0).collect();
                let tiles = tiles_of(dtype, columns, &stored_plainly(dtype, columns, &w));
                for path in Path::all() {
                    let product = |x: &[f32]| {
                        let mut room = Room::new(columns);
                        // SAFETY (of both): one thread; `product` has the sizes.
                        product(
                            Quantized::new(x.len() / columns, columns),
                            word_panel_of(path, x.len() / columns),
                            &tiles,
                            x,
                            |panels, row, x| unsafe { panels.quantize_words(path, row, x) },
                            |panels, strips, to| unsafe {
                                multiply(path, &tiles, panels, strips, to, &mut room);
                            },
                        )
                    };
                    let out = product(&x);
                    let single: Vec<f32> = x.chunks(columns).flat_map(product).collect();
                    assert_eq!(out, single, "{dtype} {path:?}");
                    for t in 0..tokens {
                        for r in 0..rows {
                            let terms = x[t * columns..].iter().zip(&w[r * columns..][..columns]);
                            let terms = terms.map(|(x, w)| f64::from(*x) * f64::from(*w));
                            let (exact, squares) = terms.fold((0.0, 0.0), |(s, q), x| (s + x, q + x * x));
                            let got = f64::from(out[t * rows + r]);
                            // Every term is off by up to half a step of both codes; errors of many add up like a walk.
                            let step = 9.0 / 4095.0 + 1.0 / 8191.0;
                            let allowed = 4.0 * (step * step * columns as f64 + 1e-6 * squares).sqrt();
                            assert!((got - exact).abs() < allowed, "{dtype} {path:?} {t} {r}: {got} {exact}");
                        }
                    }
                }
            }
        }
    }
}
