//! How one row becomes what products multiply by.

use super::{Outlier, Panels, WORD_BLOCKS, most_outliers, strides};
use crate::kernels::LANES;
#[cfg(test)]
use crate::kernels::Path;
#[cfg(target_arch = "x86_64")]
use crate::kernels::isa;
use crate::kernels::isa::{Isa, Kernel};
use crate::kernels::tile::BLOCK;

/// A number is set apart if its magnitude is more than so many times the largest of a usual block of its row.
const OUTLYING: f32 = 1.5;

/// Largest magnitude of a code of thirteen bits.
const WORD_LIMIT: f32 = 4095.0;

/// Blocks without a larger magnitude count as zeros: the inverse of their scale would overflow.
const NOTHING: f32 = 1e-30;

/// A row's place in its panel. `WORDS`: codes of thirteen bits in words of sixteen, whatever the path; otherwise what
/// [`Isa::activations`] makes.
pub(super) struct Row<'a, const WORDS: bool> {
    pub(super) panel: Panels,
    pub(super) token: usize,
    pub(super) x: Option<&'a [f32]>,
}

impl Kernel for Row<'_, true> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<I: Isa>(self) {
        let Panels { scales, panel, columns, .. } = self.panel;
        // SAFETY: this token's places inside the panel; `x` holds `columns` floats, a multiple of 32.
        unsafe {
            let blocks = columns / BLOCK;
            for first in (0..blocks).step_by(4 * WORD_BLOCKS) {
                let together = first..(first + 4 * WORD_BLOCKS).min(blocks);
                let mut most = [I::splat(0.0); 4];
                for block in together.clone() {
                    let most = &mut most[(block - first) / WORD_BLOCKS];
                    *most = I::max(*most, magnitudes::<I>(self.block::<I>(block)));
                }
                let most = I::largest_of_four(most);
                let mut inverses = [0.0; 4];
                for (inverse, most) in inverses.iter_mut().zip(most) {
                    *inverse = if most > NOTHING { WORD_LIMIT / most } else { 0.0 };
                }
                for block in together {
                    let number = (block - first) / WORD_BLOCKS;
                    *scales.add(block * panel + self.token) = most[number] / WORD_LIMIT;
                    let ([low, high], inverse) = (self.block::<I>(block), I::splat(inverses[number]));
                    let x = [I::round(I::mul(low, inverse)), I::round(I::mul(high, inverse))];
                    self.put::<I>(block, &I::words(x));
                }
            }
        }
    }
}

/// A row's place in a panel for tiles.
#[cfg(target_arch = "x86_64")]
pub(super) struct Rounded<'a>(pub(super) Row<'a, false>);

#[cfg(target_arch = "x86_64")]
impl isa::TileKernel for Rounded<'_> {
    #[inline(always)]
    unsafe fn run<I: isa::amx::Tiled>(self) {
        let Self(row) = self;
        // SAFETY: this token's places inside the panel; `x` holds `columns` floats, a multiple of 32.
        unsafe {
            let to = row.panel.codes.cast::<u8>().add(row.token * isa::amx::ROW);
            for block in 0..row.panel.columns / BLOCK {
                I::store_b(to.add(block * isa::amx::TILE), I::bfloats(row.block::<I>(block)));
            }
        }
    }
}

impl Kernel for Row<'_, false> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<I: Isa>(self) {
        let Panels { scales, panel, columns, .. } = self.panel;
        let blocks = columns / BLOCK;
        // SAFETY: this token's places inside the panel; `x` holds `columns` floats, a multiple of 32.
        unsafe {
            let scales = scales.add(self.token);
            let mut limit = None;
            loop {
                for first in (0..blocks).step_by(4) {
                    let together = first..(first + 4).min(blocks);
                    let mut most = [I::splat(0.0); 4];
                    for block in together.clone() {
                        most[block - first] = magnitudes::<I>(self.block::<I>(block));
                    }
                    for (block, most) in together.zip(I::largest_of_four(most)) {
                        *scales.add(block * panel) = most;
                    }
                }
                let limit =
                    limit.get_or_insert_with(|| outlying::<I>((0..blocks).map(|b| *scales.add(b * panel))));
                if self.codes::<I>(*limit) {
                    break;
                }
                *limit *= 2.0;
            }
        }
    }
}

/// Numbers of larger magnitude are set apart, by the largest magnitudes of a row's blocks.
#[inline(always)]
fn outlying<I: Isa>(largest: impl Iterator<Item = f32> + Clone) -> f32 {
    if !I::BYTES {
        return f32::INFINITY;
    }
    // Even if hardly anything is usual, doubling comes to an end.
    let top = largest.clone().fold(0.0, |top, x| if x > top { x } else { top });
    let least = (top / 65536.0).max(NOTHING);
    (OUTLYING * usual(largest)).max(least)
}

impl<const WORDS: bool> Row<'_, WORDS> {
    /// 32 columns; zeros for a row that fills a panel up.
    ///
    /// # Safety
    /// The block is inside the row.
    #[inline(always)]
    unsafe fn block<I: Isa>(&self, block: usize) -> [I::F; 2] {
        // SAFETY: the caller's promise.
        unsafe {
            match self.x {
                Some(x) => {
                    let x = x.as_ptr().add(block * BLOCK);
                    [I::load(x), I::load(x.add(LANES))]
                }
                None => [I::splat(0.0); 2],
            }
        }
    }

    /// Writes the words of a block, one for each step.
    ///
    /// # Safety
    /// The block is inside the row.
    #[inline(always)]
    unsafe fn put<I: Isa>(&self, block: usize, words: &[u32]) {
        let (to_token, to_step) = strides::<I>(words.len(), self.panel.panel);
        // SAFETY: the caller's promise.
        unsafe {
            let to = self.panel.codes.add(block * self.panel.panel * words.len() + self.token * to_token);
            for (step, word) in words.iter().enumerate() {
                *to.add(step * to_step) = *word;
            }
        }
    }

    /// Sets numbers above `limit` apart and quantizes the others; where scales will be, there are the largest magnitudes of
    /// blocks. False if too many would be set apart.
    ///
    /// # Safety
    /// This token's places are inside the panel, and the row has as many columns.
    #[inline(always)]
    unsafe fn codes<I: Isa>(&self, limit: f32) -> bool {
        let Panels { scales, sums, panel, columns, .. } = self.panel;
        // SAFETY: the caller's promise.
        unsafe {
            let mut outliers = self.panel.outliers(self.token);
            let full = outliers.add(most_outliers(columns));
            for block in 0..columns / BLOCK {
                let at = block * panel + self.token;
                let mut x = self.block::<I>(block);
                let mut most = *scales.add(at);
                if most > limit {
                    for (half, x) in x.iter_mut().enumerate() {
                        let above = I::above(*x, limit);
                        let mut bits = above;
                        while bits != 0 {
                            if outliers == full {
                                return false;
                            }
                            let column = block * BLOCK + half * LANES + bits.trailing_zeros() as usize;
                            let value = self.x.map_or(0.0, |x| *x.get_unchecked(column));
                            *outliers = Outlier { column: column as u32, value };
                            outliers = outliers.add(1);
                            bits &= bits - 1;
                        }
                        *x = I::replaced(*x, above, 0.0);
                    }
                    most = I::largest(magnitudes::<I>(x));
                }
                *scales.add(at) = most / I::LIMIT;
                let inverse = I::splat(if most > NOTHING { I::LIMIT / most } else { 0.0 });
                // (Closures that arrays are mapped by are not compiled for the instruction set: they are called, through memory.)
                let x = [I::round(I::mul(x[0], inverse)), I::round(I::mul(x[1], inverse))];
                for (half, sum) in I::sums(x).into_iter().enumerate() {
                    *sums.add((2 * block + half) * panel + self.token) = sum;
                }
                self.put::<I>(block, &I::activations(x)[..I::STEPS]);
            }
            *outliers = Outlier::NONE;
            true
        }
    }
}

/// The larger magnitudes of 32 numbers, lane by lane.
///
/// # Safety
/// The processor has the instructions.
#[inline(always)]
unsafe fn magnitudes<I: Isa>([low, high]: [I::F; 2]) -> I::F {
    // SAFETY: the caller's promise.
    unsafe { I::max(I::abs(low), I::abs(high)) }
}

/// The largest magnitude of a usual block: the mean, when those above the mean of all are left out.
#[inline(always)]
fn usual(largest: impl Iterator<Item = f32> + Clone) -> f32 {
    let mean = mean_up_to(largest.clone(), f32::INFINITY);
    mean_up_to(largest, mean)
}

/// The mean of those that are not above `limit`. Nothing branches on them: about half are, in no order.
#[inline(always)]
fn mean_up_to(numbers: impl Iterator<Item = f32>, limit: f32) -> f32 {
    let (mut sum, mut count) = (0.0, 0u32);
    for x in numbers {
        sum += if x <= limit { x } else { 0.0 };
        count += u32::from(x <= limit);
    }
    sum / count.max(1) as f32
}

/// What codes and outliers of a row stand for.
#[cfg(test)]
pub(crate) fn rounded(path: Path, x: &[f32]) -> Vec<f64> {
    let largest = |x: &[f32]| x.iter().fold(0f32, |m, x| m.max(x.abs()));
    let mut limit = f32::INFINITY;
    if path.takes_bytes() {
        limit = (OUTLYING * usual(x.chunks(BLOCK).map(largest))).max(largest(x) / 65536.0).max(NOTHING);
        while x.iter().filter(|x| x.abs() > limit).count() > most_outliers(x.len()) {
            limit *= 2.0;
        }
    }
    let block = |x: &[f32]| {
        let most = if path.takes_bytes() { 127.0 } else { 32767.0 };
        let kept: Vec<f32> = x.iter().copied().filter(|x| x.abs() <= limit).collect();
        let largest = largest(&kept).max(NOTHING);
        let one = move |x: f32| {
            let code = (x * (most / largest)).round_ties_even();
            if x.abs() > limit { f64::from(x) } else { f64::from(code) * f64::from(largest / most) }
        };
        x.iter().map(|x| one(*x)).collect::<Vec<_>>()
    };
    x.chunks(BLOCK).flat_map(block).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outlier_costs_its_neighbours_no_precision() {
        let mut x: Vec<f32> = (0..320).map(|i| ((i * 37 % 101) as f32 - 50.0) / 50.0).collect();
        x[40] = 200.0;
        for path in Path::all() {
            for (x, rounded) in x.iter().zip(rounded(path, &x)) {
                let error = (f64::from(*x) - rounded).abs();
                assert!(error <= 1.0 / 254.0 + 1e-6, "{path:?}: {x} became {rounded}");
            }
        }
    }

    #[test]
    fn outliers_do_not_make_a_block_usual() {
        assert_eq!(usual([1.0, 1.0, 1.0, 1000.0].into_iter()), 1.0);
        assert_eq!(usual([2.0; 5].into_iter()), 2.0);
        assert_eq!(usual(std::iter::empty()), 0.0);
    }
}
