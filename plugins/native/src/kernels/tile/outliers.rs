//! Products with the activations that were set apart: see [`activation`](crate::kernels::activation).

use super::multiply::{Shape, TOGETHER, UnpackedStrip};
use super::{BLOCK, whole};
use crate::kernels::LANES;
use crate::kernels::activation::{Outlier, Panels, most_outliers};
use crate::kernels::isa::{Isa, Kernel};

/// Columns of a step, where activations have outliers: those whose codes are bytes.
const COLUMNS: usize = 4;

impl Outlier {
    /// Which vector of a block's codes its column is in.
    #[inline(always)]
    pub(super) fn step(self) -> usize {
        self.column as usize % BLOCK / COLUMNS
    }

    /// Which of a block's groups of columns with a common scale.
    #[inline(always)]
    pub(super) fn group(self, groups: usize) -> usize {
        self.column as usize % BLOCK * groups / BLOCK
    }
}

/// Weights of sixteen rows in the outlier's column, from the vector of codes that holds them, and their scales and minimums.
///
/// # Safety
/// The processor has the instructions.
#[inline(always)]
pub(super) unsafe fn weight<I: Isa>(
    codes: I::B,
    outlier: Outlier,
    zero: i32,
    scale: I::F,
    minimum: Option<I::F>,
) -> I::F {
    // SAFETY: the caller's promise.
    unsafe {
        // A product with 1 for its column and 0 for its neighbours takes the code out of the vector.
        let column = 1 << (8 * (outlier.column % COLUMNS as u32));
        match minimum {
            None => I::mul(I::to_float(I::dot(I::splat_i(-zero), codes, column)), scale),
            Some(minimum) => I::sub(I::mul(I::to_float(I::dot(I::zero_i(), codes, column)), scale), minimum),
        }
    }
}

/// The outliers of a batch, panel by panel.
pub(super) struct Outliers {
    /// Columns that have any, in order.
    columns: Vec<u32>,
    /// Of every panel as many rows as its token with most outliers has: `[rows][tokens of a panel]`.
    entries: Vec<Entry>,
    /// Where the rows of each panel end.
    ends: Vec<usize>,
    /// For all columns that have any, their place among these, from 1.
    places: Vec<u32>,
}

/// One token's outlier.
#[derive(Clone, Copy)]
struct Entry {
    /// Of its column's weights in [`Weights`].
    place: u32,
    value: f32,
}

/// What a token has that has fewer outliers than others of its panel: nothing times zero.
const NONE: Entry = Entry { place: 0, value: 0.0 };

impl Outliers {
    /// For up to so many columns and tokens.
    pub(super) fn new(columns: usize, tokens: usize) -> Self {
        Self {
            columns: Vec::with_capacity(columns),
            entries: Vec::with_capacity(most_outliers(columns) * tokens),
            ends: Vec::with_capacity(tokens),
            places: vec![0; columns],
        }
    }

    /// Collects those of `x`.
    pub(super) fn find(&mut self, x: Panels) {
        let places = &mut self.places[..x.columns];
        places.fill(0);
        self.ends.clear();
        let mut end = 0;
        for index in 0..x.count() {
            let mut rows = 0;
            each(x, index, |_, row, outlier| {
                places[outlier.column as usize] = 1;
                rows = rows.max(row + 1);
            });
            end += rows * x.panel;
            self.ends.push(end);
        }
        self.columns.clear();
        for (column, place) in places.iter_mut().enumerate().filter(|(_, place)| **place > 0) {
            self.columns.push(column as u32);
            *place = self.columns.len() as u32;
        }
        self.entries.clear();
        self.entries.resize(end, NONE);
        for index in 0..x.count() {
            let of_panel = &mut self.entries[begin(&self.ends, index)..];
            each(x, index, |token, row, outlier| {
                let place = places[outlier.column as usize];
                of_panel[row * x.panel + token] = Entry { place, value: outlier.value };
            });
        }
    }

    /// Products of `M` tokens' outliers, those of the `index`th panel, with the weights of [`TOGETHER`] strips.
    ///
    /// # Safety
    /// The weights are those of these outliers' columns, and panels have `M` tokens.
    #[inline(always)]
    pub(super) unsafe fn products<I: Isa, const M: usize>(
        &self,
        index: usize,
        weights: *const f32,
    ) -> [[I::F; M]; TOGETHER] {
        // SAFETY: the caller's promise.
        unsafe {
            let mut sums = [[I::splat(0.0); M]; TOGETHER];
            for row in (begin(&self.ends, index)..*self.ends.get_unchecked(index)).step_by(M) {
                for m in 0..M {
                    let entry = *self.entries.get_unchecked(row + m);
                    let value = I::splat(entry.value);
                    let weights = weights.add(entry.place as usize * TOGETHER * LANES);
                    for (s, sums) in sums.iter_mut().enumerate() {
                        let w = I::load(weights.add(s * LANES));
                        sums[m] = I::fma(value, w, sums[m]);
                    }
                }
            }
            sums
        }
    }
}

/// Where what ends at each of `ends` begins.
fn begin(ends: &[usize], index: usize) -> usize {
    index.checked_sub(1).map_or(0, |before| ends[before])
}

/// Calls `f` with every outlier of a panel, its token and its number among that token's.
fn each(x: Panels, index: usize, mut f: impl FnMut(usize, usize, Outlier)) {
    let panel = x.at(index);
    for token in 0..panel.tokens {
        let outliers = panel.outliers(token).cast_const();
        for row in 0.. {
            // SAFETY: behind the last is one of no block.
            let outlier = unsafe { *outliers.add(row) };
            if outlier.block() >= x.columns / BLOCK {
                break;
            }
            f(token, row, outlier);
        }
    }
}

/// Unpacks an unpacked strip's weights in the columns that have outliers to floats, behind zeros: sixteen of each of [`TOGETHER`] strips
/// side by side.
pub(super) struct Weights<'a, S> {
    pub(super) strip: &'a UnpackedStrip,
    /// Where the strip's begin.
    pub(super) to: &'a mut [f32],
    pub(super) outliers: &'a Outliers,
    /// The code that means nothing.
    pub(super) zero: i32,
    pub(super) shape: std::marker::PhantomData<S>,
}

impl<const GROUPS: usize, const MINIMUMS: bool, const WHOLE: bool> Kernel
    for Weights<'_, Shape<GROUPS, MINIMUMS, WHOLE>>
{
    type Output = ();

    #[inline(always)]
    unsafe fn run<I: Isa>(self) {
        let UnpackedStrip { codes, scales, minimums, common } = self.strip;
        // SAFETY: the strip has all columns of the list, and room for their weights.
        unsafe {
            let mut to = self.to.as_mut_ptr();
            I::store(to, I::splat(0.0));
            for &column in &self.outliers.columns {
                let outlier = Outlier { column, value: 0.0 };
                let block = outlier.block();
                let at = (block * GROUPS + outlier.group(GROUPS)) * LANES;
                let codes = I::load_codes(codes.as_ptr().add(block * I::STEPS * 64), outlier.step());
                let minimum = MINIMUMS.then(|| I::load(minimums.as_ptr().add(at)));
                let scale = if WHOLE && I::SUMS_WORDS {
                    let common = I::load(common.as_ptr().add(block / whole::BLOCKS * LANES));
                    whole::scale::<I>(common, I::load_b(scales.as_ptr().add(at).cast()))
                } else {
                    I::load(scales.as_ptr().add(at))
                };
                let w = weight::<I>(codes, outlier, self.zero, scale, minimum);
                to = to.add(TOGETHER * LANES);
                I::store(to, w);
            }
        }
    }
}
