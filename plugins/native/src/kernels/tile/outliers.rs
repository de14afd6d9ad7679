//! Products with the activations that were set apart: see [`activation`](crate::kernels::activation).

use super::BLOCK;
use super::multiply::{Shape, UnpackedStrip};
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

/// The outliers of a batch, column by column.
pub(super) struct Outliers {
    list: Vec<Entry>,
    /// Columns that have any, and where those of each end in the list.
    columns: Vec<(u32, usize)>,
    /// For all columns, where the next of theirs goes.
    next: Vec<usize>,
}

/// One token's outlier in a column.
#[derive(Clone, Copy)]
struct Entry {
    token: u32,
    value: f32,
}

impl Outliers {
    /// For up to so many columns and tokens.
    pub(super) fn new(columns: usize, tokens: usize) -> Self {
        let most = most_outliers(columns) * tokens;
        Self { list: Vec::with_capacity(most), columns: Vec::with_capacity(columns), next: vec![0; columns] }
    }

    /// Collects those of `x`.
    pub(super) fn find(&mut self, x: Panels) {
        let next = &mut self.next[..x.columns];
        next.fill(0);
        each(x, |_, outlier| next[outlier.column as usize] += 1);
        self.columns.clear();
        let mut end = 0;
        for (column, next) in next.iter_mut().enumerate().filter(|(_, count)| **count > 0) {
            (*next, end) = (end, end + *next);
            self.columns.push((column as u32, end));
        }
        self.list.clear();
        self.list.resize(end, Entry { token: 0, value: 0.0 });
        each(x, |token, outlier| {
            let next = &mut next[outlier.column as usize];
            self.list[*next] = Entry { token, value: outlier.value };
            *next += 1;
        });
    }
}

/// Calls `f` with every outlier and its token.
fn each(x: Panels, mut f: impl FnMut(u32, Outlier)) {
    for index in 0..x.count() {
        let panel = x.at(index);
        for token in 0..panel.tokens {
            let mut at = panel.outliers(token).cast_const();
            // SAFETY: behind the last is one of no block.
            unsafe {
                while (*at).block() < x.columns / BLOCK {
                    f((index * x.panel + token) as u32, *at);
                    at = at.add(1);
                }
            }
        }
    }
}

/// An unpacked strip times all outliers, column by column, so that a weight is unpacked once for all tokens.
pub(super) struct Products<'a, S> {
    pub(super) strip: &'a mut UnpackedStrip,
    pub(super) outliers: &'a Outliers,
    pub(super) tokens: usize,
    /// The code that means nothing.
    pub(super) zero: i32,
    pub(super) shape: std::marker::PhantomData<S>,
}

impl<const GROUPS: usize, const MINIMUMS: bool> Kernel for Products<'_, Shape<GROUPS, MINIMUMS>> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<I: Isa>(self) {
        let UnpackedStrip { codes, scales, minimums, sums } = self.strip;
        let Outliers { list, columns, .. } = self.outliers;
        sums[..self.tokens * LANES].fill(0.0);
        let mut begin = 0;
        // SAFETY: the strip has all columns of the list, and sums for all tokens.
        unsafe {
            for &(column, end) in columns {
                let outlier = Outlier { column, value: 0.0 };
                let block = outlier.block();
                let at = (block * GROUPS + outlier.group(GROUPS)) * LANES;
                let codes = I::load_codes(codes.as_ptr().add(block * I::STEPS * 64), outlier.step());
                let minimum = MINIMUMS.then(|| I::load(minimums.as_ptr().add(at)));
                let w = weight::<I>(codes, outlier, self.zero, I::load(scales.as_ptr().add(at)), minimum);
                for entry in list.get_unchecked(begin..end) {
                    let sum = sums.as_mut_ptr().add(entry.token as usize * LANES);
                    I::store(sum, I::fma(I::splat(entry.value), w, I::load(sum)));
                }
                begin = end;
            }
        }
    }
}
