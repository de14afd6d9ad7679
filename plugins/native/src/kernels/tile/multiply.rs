//! Products of quantized activations with tiles.
//!
//! One token has [`One`]. For more, a few strips are unpacked once, to codes and float scales that stay in near caches, and
//! multiplied panel by panel, by outliers and by codes. Integers are summed over a scale's columns, floats over all, and those of
//! outliers by themselves, in the same order in both forms: a batch gives bit for bit what its tokens give one by one.

use std::marker::PhantomData;

use drophammer_formats::DType;

use super::formats::{Format, with_format};
use super::one::One;
use super::outliers::{Outliers, Weights};
use super::{BLOCK, Place, Tiles, fetch_scales, whole};
use crate::kernels::LANES;
use crate::kernels::activation::{Panels, WIDEST_PANEL, strides, with_panel};
use crate::kernels::float::Output;
use crate::kernels::isa::{self, Isa, Kernel, Path};
use crate::memory::Aligned;

/// Strips that are unpacked together: so many lines of a token's output are written one after another, each of which alone would
/// be a page away from the next token's.
pub(super) const TOGETHER: usize = 2;

/// One thread's room for unpacked strips and what belongs to them.
pub(crate) struct Unpacked {
    pub(super) strips: [UnpackedStrip; TOGETHER],
    /// For every 16 or 32 columns of every token: what the zero code or the minimum multiplies.
    pub(super) offsets: Vec<i32>,
    pub(super) outliers: Outliers,
    /// Of all strips, see [`Weights`].
    weights: Aligned<f32>,
    /// What offsets and outliers are of: the type of weights and where the activations lie.
    ready: Option<(DType, usize)>,
}

/// A strip, unpacked.
pub(super) struct UnpackedStrip {
    pub(super) codes: Aligned<u8>,
    /// Floats; words of [`whole`](super::whole) scales.
    pub(super) scales: Aligned<f32>,
    pub(super) minimums: Aligned<f32>,
    /// What whole scales have in common.
    pub(super) common: Aligned<f32>,
}

impl Unpacked {
    /// For matrices of up to `columns` columns and up to `tokens` tokens.
    pub(crate) fn new(columns: usize, tokens: usize) -> Self {
        let (blocks, tokens) = (columns.div_ceil(BLOCK), tokens.next_multiple_of(WIDEST_PANEL));
        let strip = || UnpackedStrip {
            codes: Aligned::zeroed(blocks * BLOCK * LANES * 2),
            scales: Aligned::zeroed(blocks * 2 * LANES),
            minimums: Aligned::zeroed(blocks * 2 * LANES),
            common: Aligned::zeroed(blocks.div_ceil(whole::BLOCKS) * LANES),
        };
        Self {
            strips: std::array::from_fn(|_| strip()),
            offsets: vec![0; blocks * 2 * tokens],
            outliers: Outliers::new(columns, tokens),
            weights: Aligned::zeroed((1 + columns) * TOGETHER * LANES),
            ready: None,
        }
    }

    /// To be called when activations have changed: what is known of them serves all products until then.
    pub(crate) fn forget(&mut self) {
        self.ready = None;
    }

    /// Finds the offsets and outliers of `x` for weights of a type.
    ///
    /// # Safety
    /// `x` was quantized.
    unsafe fn prepare<F: Format>(&mut self, path: Path, dtype: DType, x: Panels, zero: i32) {
        let place = x.codes.addr();
        if self.ready == Some((dtype, place)) {
            return;
        }
        if self.ready.is_none_or(|(_, known)| known != place) {
            self.outliers.find(x);
        }
        // SAFETY: the caller's promise.
        unsafe {
            let to = &mut self.offsets;
            isa::run(path, Offsets::<F> { x, zero, to, format: PhantomData });
        }
        self.ready = Some((dtype, place));
    }
}

/// Multiplies strips of a matrix: all tokens of `x`, rows of `strips`.
///
/// # Safety
/// `x` was quantized with as many columns as the tiles have, and `room` forgot what was there before; `out` has room for each token's
/// rows of these strips, which no other thread uses meanwhile.
pub(crate) unsafe fn multiply(
    path: Path,
    tiles: &Tiles,
    x: Panels,
    strips: std::ops::Range<usize>,
    out: Output,
    room: &mut Unpacked,
) {
    if strips.is_empty() || x.tokens == 0 {
        return;
    }
    assert_eq!(tiles.columns(), x.columns);
    with_format!(tiles.dtype(), F => {
        // SAFETY: the caller's promise.
        unsafe { multiply_as::<F>(path, tiles, x, strips, out, room) }
    }, else ());
}

unsafe fn multiply_as<F: Format>(
    path: Path,
    tiles: &Tiles,
    x: Panels,
    strips: std::ops::Range<usize>,
    out: Output,
    room: &mut Unpacked,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let zero = F::zero(path);
        if x.panel == 1 {
            room.forget();
            return isa::run(path, One::<F> { tiles, x, strips, out, room, zero, format: PhantomData });
        }
        room.prepare::<F>(path, tiles.dtype(), x, zero);
        for first in strips.clone().step_by(TOGETHER) {
            let count = TOGETHER.min(strips.end - first);
            for (strip, room) in (first..first + count).zip(&mut room.strips) {
                isa::run(path, Unpack::<F> { tiles, strip, room, format: PhantomData });
            }
            let rows = (count * LANES).min(tiles.rows() - first * LANES);
            let out = out.at_row(first * LANES);
            macro_rules! shapes {
                ($($groups:literal $minimums:literal $whole:literal $run:literal)*) => {
                    match (F::GROUPS, F::MINIMUMS, whole::of::<F>(), F::RUN) {
                        $(($groups, $minimums, $whole, $run) => {
                            unpacked::<Shape<$groups, $minimums, $whole>, $run>(path, room, x, zero, rows, out);
                        })*
                        _ => unreachable!("no format has this shape"),
                    }
                };
            }
            shapes! {
                1 false false 1
                1 false false 4
                1 false false 8
                1 false true 4
                1 true false 4
                1 true false 8
                1 true true 4
                1 true true 8
                2 false false 1
                2 false false 4
                2 false true 2
                2 false true 4
                2 true true 4
            }
        }
    }
}

/// Multiplies the unpacked strips: `rows` rows in all.
unsafe fn unpacked<S, const RUN: usize>(
    path: Path,
    room: &mut Unpacked,
    x: Panels,
    zero: i32,
    rows: usize,
    out: Output,
) where
    for<'a> Strips<'a, S, RUN>: Kernel<Output = ()>,
    for<'a> Weights<'a, S>: Kernel<Output = ()>,
{
    let shape = PhantomData;
    // SAFETY: the caller's promise.
    unsafe {
        for (number, strip) in room.strips[..rows.div_ceil(LANES)].iter().enumerate() {
            let to = &mut room.weights[number * LANES..];
            isa::run(path, Weights::<S> { strip, to, outliers: &room.outliers, zero, shape });
        }
        isa::run(path, Strips::<S, RUN> { room, x, rows, out, shape });
    }
}

/// Prepares the offset for every scale's columns of every token: where their products' sum begins (−zero · sum; in two words where
/// [`whole::begins_in_words`]) or, as a float's bits, what the minimum is multiplied by (−scale · sum).
pub(super) struct Offsets<'a, F> {
    pub(super) x: Panels,
    /// The code that means nothing.
    pub(super) zero: i32,
    pub(super) to: &'a mut [i32],
    pub(super) format: PhantomData<F>,
}

impl<F: Format> Kernel for Offsets<'_, F> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<I: Isa>(self) {
        let Self { x, zero, to, .. } = self;
        let groups = x.columns / BLOCK * F::GROUPS;
        for index in 0..x.count() {
            let one = x.at(index);
            let out = &mut to[index * x.panel * groups..][..x.panel * groups];
            for (group, out) in out.chunks_exact_mut(x.panel).enumerate() {
                for (m, out) in out.iter_mut().enumerate() {
                    // SAFETY: the panel holds a sum for every 16 columns and a scale for every 32.
                    let (mut sums, scale) = unsafe {
                        let sums = one.sums.add(2 / F::GROUPS * group * x.panel + m);
                        (isa::halves::<I>(*sums), *one.scales.add(group / F::GROUPS * x.panel + m))
                    };
                    if F::GROUPS == 1 {
                        // SAFETY: as above.
                        let more = isa::halves::<I>(unsafe { *one.sums.add((2 * group + 1) * x.panel + m) });
                        sums = [sums[0] + more[0], sums[1] + more[1]];
                    }
                    let sum = sums[0] + sums[1];
                    *out = if F::MINIMUMS {
                        (-(sum as f32) * scale).to_bits() as i32
                    } else if whole::begins_in_words::<I>(F::GROUPS, F::MINIMUMS, whole::of::<F>(), F::RUN) {
                        ((-zero * sums[0]) & 0xffff) | (-zero * sums[1]) << 16
                    } else {
                        -zero * sum
                    };
                }
            }
        }
    }
}

/// Unpacks a strip.
struct Unpack<'a, F> {
    tiles: &'a Tiles,
    strip: usize,
    room: &'a mut UnpackedStrip,
    format: PhantomData<F>,
}

impl<F: Format> Kernel for Unpack<'_, F> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<I: Isa>(self) {
        let tile = self.tiles.strip(self.strip).as_ptr();
        let parts = F::COLUMNS / BLOCK;
        let whole = I::SUMS_WORDS && whole::of::<F>();
        // SAFETY: the strip holds `columns` columns; the room is for as many.
        unsafe {
            for unit in 0..self.tiles.columns() / F::COLUMNS {
                let place = Place::of::<F>(unit);
                let scales = tile.add(place.scales);
                fetch_scales::<F>(unit, scales);
                if whole {
                    I::store(self.room.common.as_mut_ptr().add(unit * LANES), F::common::<I>(scales));
                }
                for part in 0..parts {
                    let block = unit * parts + part;
                    let w = F::unpack::<I>(tile.add(place.codes + part * F::code_bytes()));
                    I::store_codes(self.room.codes.as_mut_ptr().add(block * I::STEPS * 64), w);
                    for group in 0..F::GROUPS {
                        let at = (block * F::GROUPS + group) * LANES;
                        let to = self.room.scales.as_mut_ptr().add(at);
                        if whole {
                            I::store_b(to.cast(), whole::words::<I, F>(scales, part, group));
                        } else {
                            I::store(to, F::scale::<I>(scales, part, group));
                        }
                        if F::MINIMUMS {
                            let minimum = F::minimum::<I>(scales, part, group);
                            I::store(self.room.minimums.as_mut_ptr().add(at), minimum);
                        }
                    }
                }
            }
        }
    }
}

/// What a product needs to know of a format: formats that agree in it share their code.
pub(super) struct Shape<const GROUPS: usize, const MINIMUMS: bool, const WHOLE: bool>;

/// Unpacked strips times all panels. `RUN` is [`Format::RUN`], which products with outliers need not know.
pub(super) struct Strips<'a, S, const RUN: usize> {
    pub(super) room: &'a Unpacked,
    pub(super) x: Panels,
    /// Of all strips.
    rows: usize,
    out: Output,
    shape: PhantomData<S>,
}

impl<const GROUPS: usize, const MINIMUMS: bool, const WHOLE: bool, const RUN: usize> Kernel
    for Strips<'_, Shape<GROUPS, MINIMUMS, WHOLE>, RUN>
{
    type Output = ();

    #[inline(always)]
    unsafe fn run<I: Isa>(self) {
        // SAFETY: the caller's promise; the panel's width is what `panel_of` gives on this path.
        unsafe {
            let strips = self.rows.div_ceil(LANES);
            let (outliers, weights) = (&self.room.outliers, self.room.weights.as_ptr());
            for index in 0..self.x.count() {
                let tokens = self.x.at(index).tokens;
                with_panel!(self.x.panel, M => {
                    // Of a lone strip too: nobody reads what its neighbour of before would give.
                    let apart = outliers.products::<I, M>(index, weights);
                    if I::STRIPS_OF_CODES == 2 && strips == 2 {
                        self.out.fetch(index * M..index * M + tokens);
                        let sums = self.sums::<I, 2, M>(index, 0);
                        self.put::<I, 2, M>(index, 0, sums, apart);
                    } else {
                        for (strip, apart) in apart.into_iter().enumerate().take(strips) {
                            self.out.at_row(strip * LANES).fetch(index * M..index * M + tokens);
                            let sums = if WHOLE && I::SUMS_WORDS {
                                self.whole_sums::<I, M>(index, strip)
                            } else {
                                self.sums::<I, 1, M>(index, strip)
                            };
                            self.put::<I, 1, M>(index, strip, sums, [apart]);
                        }
                    }
                });
            }
        }
    }
}

impl<const GROUPS: usize, const MINIMUMS: bool, const WHOLE: bool, const RUN: usize>
    Strips<'_, Shape<GROUPS, MINIMUMS, WHOLE>, RUN>
{
    /// The codes of a panel of `M` tokens times those of `S` strips from `first`.
    #[inline(always)]
    unsafe fn sums<I: Isa, const S: usize, const M: usize>(
        &self,
        index: usize,
        first: usize,
    ) -> [[I::F; M]; S] {
        let (x, steps) = (self.x.at(index), I::STEPS / GROUPS);
        // SAFETY: the room holds the strips, the panel `M` tokens.
        unsafe {
            let strips = self.room.strips.as_ptr().add(first);
            let offsets = self.room.offsets.as_ptr().add(index * M * x.columns / BLOCK * GROUPS);
            let strides = strides::<I>(I::STEPS, M);
            let mut codes = [std::ptr::null(); S];
            for (s, codes) in codes.iter_mut().enumerate() {
                *codes = (*strips.add(s)).codes.as_ptr();
            }
            let mut sums = [[I::splat(0.0); M]; S];
            for block in 0..x.columns / BLOCK {
                for group in 0..GROUPS {
                    let at = block * GROUPS + group;
                    let mut acc = [[I::zero_i(); M]; S];
                    if !MINIMUMS {
                        for m in 0..M {
                            let offset = I::splat_i(*offsets.add(at * M + m));
                            for acc in &mut acc {
                                acc[m] = offset;
                            }
                        }
                    }
                    let x_codes = x.codes.cast::<i32>().add(block * M * I::STEPS + group * steps * strides.1);
                    if whole::begins_in_words::<I>(GROUPS, MINIMUMS, WHOLE, RUN) {
                        for (acc, codes) in acc.iter_mut().zip(codes) {
                            let begin = std::mem::replace(acc, [I::zero_i(); M]);
                            isa::dots_in_runs::<I, M>(
                                acc,
                                begin,
                                codes,
                                (steps, steps),
                                x_codes,
                                strides,
                                I::ones(),
                            );
                        }
                    } else {
                        I::dots_of_strips(&mut acc, codes, steps, x_codes, strides, RUN);
                    }
                    for codes in &mut codes {
                        *codes = codes.add(steps * 64);
                    }
                    for (s, (sums, acc)) in sums.iter_mut().zip(acc).enumerate() {
                        let scale = I::load((*strips.add(s)).scales.as_ptr().add(at * LANES));
                        for (m, (sum, acc)) in sums.iter_mut().zip(acc).enumerate() {
                            let factor = I::splat(*x.scales.add(block * M + m));
                            *sum = I::fma(I::to_float(acc), I::mul(scale, factor), *sum);
                        }
                        if MINIMUMS {
                            let minimum = I::load((*strips.add(s)).minimums.as_ptr().add(at * LANES));
                            for (m, sum) in sums.iter_mut().enumerate() {
                                let offset = f32::from_bits(*offsets.add(at * M + m) as u32);
                                *sum = I::fma(minimum, I::splat(offset), *sum);
                            }
                        }
                    }
                }
            }
            sums
        }
    }

    /// Writes what a panel of `M` tokens times `S` strips from `first` gives: by codes, and by outliers.
    #[inline(always)]
    unsafe fn put<I: Isa, const S: usize, const M: usize>(
        &self,
        index: usize,
        first: usize,
        sums: [[I::F; M]; S],
        apart: [[I::F; M]; S],
    ) {
        let tokens = self.x.at(index).tokens;
        // SAFETY: `out` has room for the panel's tokens.
        unsafe {
            for (s, sums) in sums.into_iter().enumerate() {
                let rows = LANES.min(self.rows - (first + s) * LANES);
                let out = self.out.at_row((first + s) * LANES);
                for (m, sum) in sums.into_iter().enumerate().take(tokens) {
                    out.put::<I>(index * M + m, rows, I::add(sum, apart[s][m]));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{TYPES, blocks, product, tiles_of};
    use super::*;
    use crate::kernels::activation::{Quantized, panel_of, rounded};

    #[test]
    fn every_format_on_every_path_equals_its_decoded_weights_times_the_quantized_activations() {
        let mut state = 99;
        for &dtype in TYPES {
            let Some(codec) = drophammer_quant::codec(dtype) else { continue };
            for (rows, columns, tokens) in [
                (16, 256, 1),
                (20, 96, 1),
                (20, 96, 3),
                (40, 512, 2),
                (16, 256, 5),
                (32, 768, 12),
                (23, 256, 31),
            ] {
                if columns % dtype.block_elements() != 0 {
                    continue;
                }
                let stored: Vec<Vec<u8>> = (0..rows).map(|_| blocks(dtype, columns, &mut state)).collect();
                let weights: Vec<Vec<f32>> = stored
                    .iter()
                    .map(|row| {
                        let mut floats = vec![0.0; columns];
                        codec.decode(row, &mut floats);
                        floats
                    })
                    .collect();
                // Some numbers stand out; in every fourth token more than are set apart, since most blocks are empty; in others all
                // have the largest codes.
                let x: Vec<f32> = (0..tokens * columns)
                    .map(|i| {
                        let x = ((i * 7919 % 2003) as f32 / 1001.0 - 1.0).powi(3);
                        match i / columns % 8 {
                            1 => 1.0,
                            5 => -1.0,
                            3 | 7 if i / 32 % 3 > 0 => 0.0,
                            _ => x * if i % 311 < 5 { 9.0 } else { 1.0 },
                        }
                    })
                    .collect();
                let tiles = tiles_of(dtype, columns, &stored);
                for path in Path::all() {
                    let product = |x: &[f32]| {
                        let mut room = Unpacked::new(columns, x.len() / columns);
                        // SAFETY (of both): one thread; `product` has the sizes.
                        product(
                            Quantized::new(x.len() / columns, columns),
                            panel_of(x.len() / columns),
                            &tiles,
                            x,
                            |panels, row, x| unsafe { panels.quantize(path, row, x) },
                            |panels, strips, to| unsafe {
                                multiply(path, &tiles, panels, strips, to, &mut room);
                            },
                        )
                    };
                    let out = product(&x);
                    let single: Vec<f32> = x.chunks(columns).flat_map(product).collect();
                    assert_eq!(out, single, "{dtype} {path:?}");
                    for t in 0..tokens {
                        let x = &x[t * columns..][..columns];
                        // The product of these is exact up to float sums.
                        let rounded = rounded(path, x);
                        for r in 0..rows {
                            let terms = rounded.iter().zip(&weights[r]).map(|(x, w)| x * f64::from(*w));
                            let (exact, size) = terms.fold((0.0, 0.0), |(s, a), x| (s + x, a + x.abs()));
                            let got = f64::from(out[t * rows + r]);
                            assert!(
                                (got - exact).abs() <= 2e-5 * size + 1e-9,
                                "{dtype} {path:?} token {t} row {r}: {got}, exactly {exact}"
                            );
                        }
                    }
                }
            }
        }
    }
}
