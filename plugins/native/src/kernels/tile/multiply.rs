//! Products of quantized activations with tiles.
//!
//! One token has [`One`]. For more, a few strips are unpacked once, to codes and float scales that stay in near caches, and
//! multiplied panel by panel, by outliers and by codes. Integers are summed over a scale's columns, floats over all, and those of
//! outliers by themselves, in the same order in both forms: a batch gives bit for bit what its tokens give one by one.

use drophammer_formats::DType;

use super::formats::{Format, with_format};
use super::one::One;
use super::outliers::{Outliers, Weights};
use super::{BLOCK, Place, Tiles, fetch_scales};
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
    pub(super) scales: Aligned<f32>,
    pub(super) minimums: Aligned<f32>,
}

impl Unpacked {
    /// For matrices of up to `columns` columns and up to `tokens` tokens.
    pub(crate) fn new(columns: usize, tokens: usize) -> Self {
        let (blocks, tokens) = (columns.div_ceil(BLOCK), tokens.next_multiple_of(WIDEST_PANEL));
        let strip = || UnpackedStrip {
            codes: Aligned::zeroed(blocks * BLOCK * LANES * 2),
            scales: Aligned::zeroed(blocks * 2 * LANES),
            minimums: Aligned::zeroed(blocks * 2 * LANES),
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
    unsafe fn prepare<F: Format>(&mut self, dtype: DType, x: Panels, zero: i32) {
        let place = x.codes.addr();
        if self.ready == Some((dtype, place)) {
            return;
        }
        if self.ready.is_none_or(|(_, known)| known != place) {
            self.outliers.find(x);
        }
        // SAFETY: the caller's promise.
        unsafe { offsets::<F>(x, zero, self) };
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
            let format = std::marker::PhantomData;
            return isa::run(path, One::<F> { tiles, x, strips, out, room, zero, format });
        }
        room.prepare::<F>(tiles.dtype(), x, zero);
        for first in strips.clone().step_by(TOGETHER) {
            let count = TOGETHER.min(strips.end - first);
            for (strip, room) in (first..first + count).zip(&mut room.strips) {
                isa::run(path, Unpack::<F> { tiles, strip, room, format: std::marker::PhantomData });
            }
            let rows = (count * LANES).min(tiles.rows() - first * LANES);
            let out = out.at_row(first * LANES);
            match (F::GROUPS, F::MINIMUMS, F::RUN) {
                (1, false, 1) => unpacked::<Shape<1, false>, 1>(path, room, x, zero, rows, out),
                (1, false, 4) => unpacked::<Shape<1, false>, 4>(path, room, x, zero, rows, out),
                (1, false, 8) => unpacked::<Shape<1, false>, 8>(path, room, x, zero, rows, out),
                (1, true, 4) => unpacked::<Shape<1, true>, 4>(path, room, x, zero, rows, out),
                (1, true, 8) => unpacked::<Shape<1, true>, 8>(path, room, x, zero, rows, out),
                (2, false, 1) => unpacked::<Shape<2, false>, 1>(path, room, x, zero, rows, out),
                (2, false, 2) => unpacked::<Shape<2, false>, 2>(path, room, x, zero, rows, out),
                (2, false, 4) => unpacked::<Shape<2, false>, 4>(path, room, x, zero, rows, out),
                (2, true, 4) => unpacked::<Shape<2, true>, 4>(path, room, x, zero, rows, out),
                _ => unreachable!("no format has this shape"),
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
    let shape = std::marker::PhantomData;
    // SAFETY: the caller's promise.
    unsafe {
        for (number, strip) in room.strips[..rows.div_ceil(LANES)].iter().enumerate() {
            let to = &mut room.weights[number * LANES..];
            isa::run(path, Weights::<S> { strip, to, outliers: &room.outliers, zero, shape });
        }
        isa::run(path, Strips::<S, RUN> { room, x, rows, out, shape });
    }
}

/// Sum of the codes that a scale is for, the `at`th of `groups` for 32 columns, from the sums of one token.
///
/// # Safety
/// There are as many sums, `panel` apart.
#[inline(always)]
pub(super) unsafe fn sum(sums: *const i32, panel: usize, at: usize, groups: usize) -> i32 {
    // SAFETY: the caller's promise.
    unsafe {
        if groups == 2 {
            *sums.add(at * panel)
        } else {
            *sums.add(2 * at * panel) + *sums.add((2 * at + 1) * panel)
        }
    }
}

/// Where an integer sum begins (−zero · sum) or, as a float's bits, what the minimum is multiplied by (−scale · sum).
#[inline(always)]
pub(super) fn offset(minimums: bool, zero: i32, sum: i32, scale: f32) -> i32 {
    if minimums { (-(sum as f32) * scale).to_bits() as i32 } else { -zero * sum }
}

/// Prepares the offset for every scale's columns of every token.
pub(super) unsafe fn offsets<F: Format>(x: Panels, zero: i32, room: &mut Unpacked) {
    let groups = x.columns / BLOCK * F::GROUPS;
    for index in 0..x.count() {
        let one = x.at(index);
        let out = &mut room.offsets[index * x.panel * groups..][..x.panel * groups];
        for (group, out) in out.chunks_exact_mut(x.panel).enumerate() {
            for (m, out) in out.iter_mut().enumerate() {
                // SAFETY: the panel holds a sum for every 16 columns and a scale for every 32.
                unsafe {
                    let sum = sum(one.sums.add(m), x.panel, group, F::GROUPS);
                    *out = offset(F::MINIMUMS, zero, sum, *one.scales.add(group / F::GROUPS * x.panel + m));
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
    format: std::marker::PhantomData<F>,
}

impl<F: Format> Kernel for Unpack<'_, F> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<I: Isa>(self) {
        let tile = self.tiles.strip(self.strip).as_ptr();
        let parts = F::COLUMNS / BLOCK;
        // SAFETY: the strip holds `columns` columns; the room is for as many.
        unsafe {
            for unit in 0..self.tiles.columns() / F::COLUMNS {
                let place = Place::of::<F>(unit);
                let scales = tile.add(place.scales);
                fetch_scales::<F>(unit, scales);
                for part in 0..parts {
                    let block = unit * parts + part;
                    let w = F::unpack::<I>(tile.add(place.codes + part * F::code_bytes()));
                    I::store_codes(self.room.codes.as_mut_ptr().add(block * I::STEPS * 64), w);
                    for group in 0..F::GROUPS {
                        let at = (block * F::GROUPS + group) * LANES;
                        I::store(self.room.scales.as_mut_ptr().add(at), F::scale::<I>(scales, part, group));
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
pub(super) struct Shape<const GROUPS: usize, const MINIMUMS: bool>;

/// Unpacked strips times all panels. `RUN` is [`Format::RUN`], which products with outliers need not know.
struct Strips<'a, S, const RUN: usize> {
    room: &'a Unpacked,
    x: Panels,
    /// Of all strips.
    rows: usize,
    out: Output,
    shape: std::marker::PhantomData<S>,
}

impl<const GROUPS: usize, const MINIMUMS: bool, const RUN: usize> Kernel
    for Strips<'_, Shape<GROUPS, MINIMUMS>, RUN>
{
    type Output = ();

    #[inline(always)]
    unsafe fn run<I: Isa>(self) {
        // SAFETY: the caller's promise; the panel's width is what `panel_of` gives on this path.
        unsafe {
            let strips = self.rows.div_ceil(LANES);
            let (outliers, weights) = (&self.room.outliers, self.room.weights.as_ptr());
            for index in 0..self.x.count() {
                with_panel!(self.x.panel, M => {
                    // Of a lone strip too: nobody reads what its neighbour of before would give.
                    let apart = outliers.products::<I, M>(index, weights);
                    if I::STRIPS_OF_CODES == 2 && strips == 2 {
                        self.panel::<I, 2, M>(index, 0, apart);
                    } else {
                        for (strip, apart) in apart.into_iter().enumerate().take(strips) {
                            self.panel::<I, 1, M>(index, strip, [apart]);
                        }
                    }
                });
            }
        }
    }
}

impl<const GROUPS: usize, const MINIMUMS: bool, const RUN: usize> Strips<'_, Shape<GROUPS, MINIMUMS>, RUN> {
    /// A panel of `M` tokens times `S` strips from `first`; what outliers give is added.
    #[inline(always)]
    unsafe fn panel<I: Isa, const S: usize, const M: usize>(
        &self,
        index: usize,
        first: usize,
        apart: [[I::F; M]; S],
    ) {
        let (x, steps) = (self.x.at(index), I::STEPS / GROUPS);
        // SAFETY: the room holds the strips, the panel `M` tokens; `out` has room for the panel's tokens.
        unsafe {
            let strips = self.room.strips.as_ptr().add(first);
            let offsets = self.room.offsets.as_ptr().add(index * M * x.columns / BLOCK * GROUPS);
            let strides = strides::<I>(I::STEPS, M);
            let out = self.out.at_row(first * LANES);
            out.fetch(index * M..index * M + x.tokens);
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
                    I::dots_of_strips(&mut acc, codes, steps, x_codes, strides, RUN);
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
            for (s, sums) in sums.into_iter().enumerate() {
                let rows = LANES.min(self.rows - (first + s) * LANES);
                let out = out.at_row(s * LANES);
                for (m, sum) in sums.into_iter().enumerate().take(x.tokens) {
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
