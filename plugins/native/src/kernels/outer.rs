//! Sums over rows of what their numbers multiply to, for statistics of activations.
//!
//! Sixteen columns are a *panel*. Rows are copied panel by panel, `[panel][row][16]`, so that a tile of sixteen by sixteen sums
//! stays in registers while it goes through a block of rows, and reads nothing but what it needs.

use super::isa::{self, Isa, Kernel, LANES, Path};

/// Numbers of a tile of sums.
pub(crate) const TILE: usize = LANES * LANES;

/// Copies the panels of `columns` into `room`. The last one is filled up with zeros.
pub(crate) fn lay_panels(rows: &[f32], width: usize, columns: std::ops::Range<usize>, room: &mut Vec<f32>) {
    let (count, panels) = (rows.len() / width.max(1), columns.len().div_ceil(LANES));
    room.clear();
    room.resize(panels * count * LANES, 0.0);
    for (t, row) in rows.chunks_exact(width.max(1)).enumerate() {
        for (panel, part) in row[columns.clone()].chunks(LANES).enumerate() {
            room[(panel * count + t) * LANES..][..part.len()].copy_from_slice(part);
        }
    }
}

struct Products<'a> {
    left: &'a [f32],
    right: &'a [f32],
    sums: &'a mut [f32],
}

impl Products<'_> {
    /// `M` rows of a tile.
    #[inline(always)]
    unsafe fn rows<I: Isa, const M: usize>(left: &[f32], right: &[f32], sums: &mut [f32], first: usize) {
        // SAFETY: the caller's promise of the instructions.
        let mut acc = [unsafe { I::splat(0.0) }; M];
        for (left, right) in left.chunks_exact(LANES).zip(right.chunks_exact(LANES)) {
            // SAFETY: sixteen numbers each.
            unsafe {
                let right = I::load(right.as_ptr());
                for (acc, x) in acc.iter_mut().zip(&left[first..first + M]) {
                    *acc = I::fma(I::splat(*x), right, *acc);
                }
            }
        }
        for (acc, sums) in acc.into_iter().zip(sums[first * LANES..].chunks_exact_mut(LANES)) {
            // SAFETY: sixteen sums.
            unsafe { I::store(sums.as_mut_ptr(), I::add(I::load(sums.as_ptr()), acc)) }
        }
    }
}

impl Kernel for Products<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<I: Isa>(self) {
        let Self { left, right, sums } = self;
        if left.is_empty() {
            return;
        }
        for (right, sums) in right.chunks_exact(left.len()).zip(sums.chunks_exact_mut(TILE)) {
            // SAFETY: the processor has the instructions. As many rows at once as registers hold.
            unsafe {
                if I::FLOAT_ROWS >= 12 {
                    Self::rows::<I, 16>(left, right, sums, 0);
                } else {
                    for first in (0..LANES).step_by(4) {
                        Self::rows::<I, 4>(left, right, sums, first);
                    }
                }
            }
        }
    }
}

/// Adds to tiles of `sums`, one for each panel of `right`: `sums[p][i][j] += Σₜ left[t][i] · right[p][t][j]`.
///
/// # Panics
/// If `right` is no whole number of panels as long as `left`, or `sums` has another number of tiles.
pub(crate) fn add_products(path: Path, left: &[f32], right: &[f32], sums: &mut [f32]) {
    assert!(left.len().is_multiple_of(LANES) && right.len() * TILE == sums.len() * left.len(), "panels");
    // SAFETY: the kernel stays within slices, and asks nothing else of them.
    unsafe { isa::run(path, Products { left, right, sums }) }
}

struct Squares<'a> {
    rows: &'a [f32],
    width: usize,
    first: usize,
    count: usize,
}

impl Kernel for Squares<'_> {
    type Output = [f32; LANES];

    #[inline(always)]
    unsafe fn run<I: Isa>(self) -> [f32; LANES] {
        let mut out = [0.0; LANES];
        // SAFETY: `squares` has checked that each row holds the columns.
        unsafe {
            let mut acc = I::splat(0.0);
            for row in self.rows.chunks_exact(self.width) {
                let x = I::load_first(row.as_ptr().add(self.first), self.count);
                acc = I::fma(x, x, acc);
            }
            I::store(out.as_mut_ptr(), acc);
        }
        out
    }
}

/// Sums over rows of the squares of up to sixteen columns from `first` on.
///
/// # Panics
/// If rows have no such column.
pub(crate) fn squares(path: Path, rows: &[f32], width: usize, first: usize) -> [f32; LANES] {
    assert!(first < width, "column {first} of {width}");
    let count = LANES.min(width - first);
    // SAFETY: the columns are within rows of `width`.
    unsafe { isa::run(path, Squares { rows, width, first, count }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_and_squares_equal_sums_in_double_precision_on_every_path() {
        let (width, count) = (37, 23);
        let rows: Vec<f32> = (0..width * count).map(|i| (i * 7919 % 1013) as f32 / 507.0 - 1.0).collect();
        let exact = |i: usize, j: usize| -> f64 {
            rows.chunks(width).map(|row| f64::from(row[i]) * f64::from(row[j])).sum()
        };
        for path in Path::all() {
            let mut room = vec![9.0; 3];
            lay_panels(&rows, width, 5..width, &mut room);
            let panels = (width - 5).div_ceil(LANES);
            let mut sums = vec![0.5; panels * TILE];
            let (left, _) = room.split_at(count * LANES);
            add_products(path, left, &room, &mut sums);
            for (p, tile) in sums.chunks(TILE).enumerate() {
                for (at, sum) in tile.iter().enumerate() {
                    let (i, j) = (5 + at / LANES, 5 + p * LANES + at % LANES);
                    let due = if j < width { exact(i, j) } else { 0.0 };
                    assert!((f64::from(*sum) - 0.5 - due).abs() < 1e-4, "{path:?} {i} {j}");
                }
            }
            for first in [0, 16, 32] {
                let found = squares(path, &rows, width, first);
                for (lane, found) in found.iter().enumerate() {
                    let column = first + lane;
                    let due = if column < width { exact(column, column) } else { 0.0 };
                    assert!((f64::from(*found) - due).abs() < 1e-4, "{path:?} {column}");
                }
            }
        }
    }
}
