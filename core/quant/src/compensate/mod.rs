//! Rounding that makes up for its own errors, as in GPTQ.
//!
//! What a matrix computes suffers less if each weight's rounding error is made up for by the weights after it that meet similar
//! activations. How similar, say the products of activations summed over a calibration text: [`Products`]. They are kept for
//! windows of [`WINDOW`] columns, which is as many as share scales anyway, so memory grows with columns and not with their
//! square. Scales and offsets are those of the plain encoder, found with all weights in sight; only codes are chosen anew, column
//! by column, by the rows of the Cholesky factor of the inverse of a window's products (Frantar et al., 2023, section 3).

mod collected;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::codec::Codec;
use crate::grouped::{self, Encoded, Format};
use crate::lanes::{LANES, Lanes};
use crate::pass::BoxError;
use crate::simd::{self, Kernel};
use crate::weights::Row;

pub(crate) use collected::SUFFIX;
pub use collected::{Collected, Collecting, Rounds};

/// Columns whose errors are made up for among each other.
pub const WINDOW: usize = 256;

/// What is added to the diagonal, of its mean: columns that were never met must not divide by zero.
const DAMPING: f64 = 0.01;

/// Sums over tokens of `x·xᵀ` in windows of [`WINDOW`] columns (the last may be narrower), window after window, each
/// row by row.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Products {
    columns: usize,
    sums: Vec<f32>,
}

/// Widths of the windows of so many columns.
fn windows(columns: usize) -> impl Iterator<Item = usize> {
    (0..columns).step_by(WINDOW).map(move |first| WINDOW.min(columns - first))
}

impl Products {
    /// How many sums so many columns have.
    pub fn len(columns: usize) -> usize {
        windows(columns).map(|width| width * width).sum()
    }

    /// Sums for `columns` columns; `None` if there are not as many as they have, or one is not finite.
    pub fn new(columns: usize, sums: Vec<f32>) -> Option<Self> {
        let whole = sums.len() == Self::len(columns) && sums.iter().all(|sum| sum.is_finite());
        whole.then_some(Self { columns, sums })
    }

    /// Columns of the matrix.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// The sums.
    pub fn sums(&self) -> &[f32] {
        &self.sums
    }

    /// Columns that have so many sums.
    fn columns_of(len: usize) -> Option<usize> {
        let columns = len / (WINDOW * WINDOW) * WINDOW + (len % (WINDOW * WINDOW)).isqrt();
        (Self::len(columns) == len).then_some(columns)
    }

    /// How much of a column's error each later column of its window takes over: row `i` of a window holds those of column `i`.
    fn shares(&self) -> Vec<f32> {
        let mut out = Vec::with_capacity(self.sums.len());
        let mut rest = self.sums.as_slice();
        for n in windows(self.columns) {
            let (window, later) = rest.split_at(n * n);
            out.extend(simd::run(simd::level(), WindowShares { sums: window, n }));
            rest = later;
        }
        out
    }
}

/// Sums that run side by side in an inner product, so that each need not wait for the one before.
const ABREAST: usize = 16;

/// `Σ aᵢ·bᵢ`, in an order that no instruction set changes.
#[inline(always)]
fn inner(a: &[f64], b: &[f64]) -> f64 {
    let ((a, last_a), (b, last_b)) = (a.as_chunks::<ABREAST>(), b.as_chunks::<ABREAST>());
    let mut sums = [0.0; ABREAST];
    for (a, b) in a.iter().zip(b) {
        for lane in 0..ABREAST {
            sums[lane] += a[lane] * b[lane];
        }
    }
    let rest: f64 = last_a.iter().zip(last_b).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f64>() + rest
}

/// [`Products::shares`] of a window of `n` columns. With `H = R·Rᵀ`, `R` upper triangular, the inverse of `H` is `Uᵀ·U` with
/// `U = R⁻¹`, and row `i` of `U` over its diagonal says how column `i`'s error spreads.
struct WindowShares<'a> {
    sums: &'a [f32],
    n: usize,
}

impl Kernel for WindowShares<'_> {
    type Output = Vec<f32>;

    #[inline(always)]
    fn run<L: Lanes>(self) -> Vec<f32> {
        let Self { sums, n } = self;
        let mean = (0..n).map(|i| f64::from(sums[i * n + i])).sum::<f64>() / n as f64;
        let damping = if mean > 0.0 { mean * DAMPING } else { 1.0 };
        let mut r = vec![0.0f64; n * n];
        for j in (0..n).rev() {
            for i in (0..=j).rev() {
                let (upper, lower) = (&r[i * n..(i + 1) * n], &r[j * n..(j + 1) * n]);
                let value = f64::from(sums[i * n + j]) - inner(&upper[j + 1..], &lower[j + 1..]);
                // Rounding of the sums may leave less than nothing: damping is the least a diagonal can be.
                r[i * n + j] =
                    if i == j { (value + damping).max(damping).sqrt() } else { value / r[j * n + j] };
            }
        }
        let mut u = vec![0.0f64; n * n];
        for i in (0..n).rev() {
            let inverse = 1.0 / r[i * n + i];
            u[i * n + i] = inverse;
            // Row i of U is minus row i of R times the rows of U below.
            let (above, below) = u.split_at_mut((i + 1) * n);
            let row = &mut above[i * n..];
            for k in i + 1..n {
                let factor = r[i * n + k] * inverse;
                for (out, below) in row[k..].iter_mut().zip(&below[(k - i - 1) * n + k..(k - i) * n]) {
                    *out -= factor * below;
                }
            }
        }
        let mut out = Vec::with_capacity(n * n);
        for i in 0..n {
            out.extend(u[i * n..(i + 1) * n].iter().map(|value| (value / u[i * n + i]) as f32));
        }
        out
    }
}

type Load = Box<dyn Fn() -> Result<Products, BoxError> + Send + Sync>;

/// Encodes rows of one matrix so that errors are made up for. Holds shares as large as the products while it is at work.
pub struct Compensator {
    columns: usize,
    load: Load,
    shares: Mutex<Option<Arc<Vec<f32>>>>,
    /// Rows that have not come yet.
    left: AtomicU64,
}

impl Compensator {
    /// A compensator for a matrix of so many columns, whose products are asked for when work begins.
    pub fn new(
        columns: usize,
        load: impl Fn() -> Result<Products, BoxError> + Send + Sync + 'static,
    ) -> Self {
        let left = AtomicU64::new(u64::MAX);
        Self { columns, load: Box::new(load), shares: Mutex::new(None), left }
    }

    /// The same for a matrix of so many rows: what it holds is let go after the last.
    #[must_use]
    pub fn of_rows(self, rows: u64) -> Self {
        Self { left: AtomicU64::new(rows), ..self }
    }

    /// The same for a matrix whose columns are multiplied by `scales`: what they meet is divided by them.
    #[must_use]
    pub fn scaled(self, scales: Vec<f32>) -> Self {
        let Self { columns, load, .. } = self;
        Self::new(columns, move || {
            let Products { columns, mut sums } = load()?;
            let mut rest = sums.as_mut_slice();
            for (first, n) in (0..columns).step_by(WINDOW).zip(windows(columns)) {
                let own = scales.get(first..first + n).ok_or("scales of another matrix")?;
                let (window, later) = rest.split_at_mut(n * n);
                rest = later;
                for (row, s) in window.chunks_exact_mut(n).zip(own) {
                    row.iter_mut().zip(own).for_each(|(sum, other)| *sum /= s * other);
                }
            }
            Ok(Products { columns, sums })
        })
    }

    /// Columns of the matrix.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// The most bytes that it holds: the products, and the shares made of them.
    pub fn memory(&self) -> u64 {
        Products::len(self.columns) as u64 * 8
    }

    fn shares(&self) -> Result<Arc<Vec<f32>>, BoxError> {
        let mut shares = self.shares.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(shares) = shares.as_ref() {
            return Ok(Arc::clone(shares));
        }
        let products = (self.load)()?;
        if products.columns != self.columns {
            return Err(format!("products of {} columns, not {}", products.columns, self.columns).into());
        }
        Ok(Arc::clone(shares.insert(Arc::new(products.shares()))))
    }

    /// Lets the shares go when the last of the matrix's rows is done.
    fn count(&self, weights: usize) {
        let rows = (weights / self.columns.max(1)) as u64;
        if self.left.fetch_sub(rows, Ordering::Relaxed) == rows {
            self.shares.lock().unwrap_or_else(PoisonError::into_inner).take();
        }
    }

    /// Chooses the codes of encoded `rows` anew. Types whose codes are no steps of one size stay as they are.
    ///
    /// # Errors
    /// Whatever keeps the products from being read.
    pub fn improve(&self, codec: &dyn Codec, rows: &[f32], out: &mut [u8]) -> Result<(), BoxError> {
        let (columns, top) = (self.columns, codec.top_code());
        if top == 0 || columns == 0 || rows.is_empty() || !rows.len().is_multiple_of(columns) {
            return Ok(());
        }
        let shares = self.shares()?;
        let row_bytes = out.len() / (rows.len() / columns);
        let mut room = Room::new(columns);
        for (rows, out) in rows.chunks(LANES * columns).zip(out.chunks_mut(LANES * row_bytes)) {
            // The levels of a block are those it decodes to with all codes 0, and with all codes 1.
            let mut blocks = out.to_vec();
            let [low, next] = [0, 1].map(|code| {
                let mut level = vec![0.0; rows.len()];
                codec.recode(&mut blocks, &vec![code; rows.len()]);
                codec.decode(&blocks, &mut level);
                level
            });
            codec.recode(out, &room.choose(rows, [&low, &next], &shares, f32::from(top)));
        }
        self.count(rows.len());
        Ok(())
    }

    /// [`Compensator::improve`] for rows encoded in a format whose scales lie apart.
    ///
    /// # Errors
    /// As [`Compensator::improve`], and where the parts do not fit together.
    pub fn improve_grouped(
        &self,
        format: Format,
        rows: &[f32],
        encoded: &mut Encoded,
    ) -> Result<(), BoxError> {
        let (columns, top) = (self.columns, format.levels.top_code());
        if top == 0 || columns == 0 || rows.is_empty() || !rows.len().is_multiple_of(columns) {
            return Ok(());
        }
        let level = |code| {
            let codes = vec![code; rows.len()];
            grouped::decode(format, &Encoded { codes, ..encoded.clone() }, columns)
        };
        encoded.codes = self.codes(rows, [&level(0)?, &level(1)?], top)?;
        Ok(())
    }

    /// Codes from 0 to `top` of whole rows, whose weights' levels for codes 0 and 1 are given.
    ///
    /// # Errors
    /// As [`Compensator::improve`].
    pub(crate) fn codes(&self, rows: &[f32], [low, next]: [&[f32]; 2], top: u8) -> Result<Vec<u8>, BoxError> {
        let shares = self.shares()?;
        let mut room = Room::new(self.columns);
        let mut codes = Vec::with_capacity(rows.len());
        for first in (0..rows.len()).step_by(LANES * self.columns.max(1)) {
            let of = first..(first + LANES * self.columns).min(rows.len());
            let levels = [&low[of.clone()], &next[of.clone()]];
            codes.extend(room.choose(&rows[of], levels, &shares, f32::from(top)));
        }
        self.count(rows.len());
        Ok(codes)
    }
}

/// Room for up to sixteen rows, one per lane.
struct Room {
    columns: usize,
    x: Vec<Row>,
    low: Vec<Row>,
    step: Vec<Row>,
    codes: Vec<[u8; LANES]>,
}

impl Room {
    fn new(columns: usize) -> Self {
        let rows = || vec![[0.0; LANES]; columns];
        Self { columns, x: rows(), low: rows(), step: rows(), codes: vec![[0; LANES]; columns] }
    }

    /// Codes of up to sixteen rows, whose weights' levels for codes 0 and 1 are given.
    fn choose(&mut self, rows: &[f32], [low, next]: [&[f32]; 2], shares: &[f32], top: f32) -> Vec<u8> {
        for lane in 0..rows.len() / self.columns {
            let of = lane * self.columns..(lane + 1) * self.columns;
            let values = rows[of.clone()].iter().zip(&low[of.clone()]).zip(&next[of]);
            for (j, ((x, low), next)) in values.enumerate() {
                self.x[j][lane] = *x;
                self.low[j][lane] = *low;
                self.step[j][lane] = next - low;
            }
        }
        let mut rest = shares;
        for first in (0..self.columns).step_by(WINDOW) {
            let window = first..(first + WINDOW).min(self.columns);
            let (shares, later) = rest.split_at(window.len() * window.len());
            rest = later;
            let kernel = Window {
                x: &mut self.x[window.clone()],
                low: &self.low[window.clone()],
                step: &self.step[window.clone()],
                codes: &mut self.codes[window],
                shares,
                top,
            };
            simd::run(simd::level(), kernel);
        }
        let lanes = 0..rows.len() / self.columns;
        lanes.flat_map(|lane| self.codes.iter().map(move |codes| codes[lane])).collect()
    }
}

/// Chooses the codes of a window, column by column; what a column misses goes to the later ones.
struct Window<'a> {
    x: &'a mut [Row],
    low: &'a [Row],
    step: &'a [Row],
    codes: &'a mut [[u8; LANES]],
    shares: &'a [f32],
    top: f32,
}

impl Kernel for Window<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let Self { x, low, step, codes, shares, top } = self;
        let n = x.len();
        for i in 0..n {
            let (value, low, step) = (L::load(&x[i]), L::load(&low[i]), L::load(&step[i]));
            let code = ((value - low) * step.recip_or_zero()).clamp(-1.0, 256.0).round().clamp(0.0, top);
            codes[i] = code.to_bytes();
            let miss = value - (low + step * code);
            for (x, share) in x[i + 1..].iter_mut().zip(&shares[i * n + i + 1..(i + 1) * n]) {
                (L::load(x) - miss * L::splat(*share)).store(x);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use drophammer_formats::DType;

    use super::*;
    use crate::grouped::{Fit, Levels, ScaleType};
    use crate::testing::bell;

    /// Activations in which neighbouring columns are alike.
    fn activations(columns: usize, rows: usize) -> Vec<f32> {
        let noise = bell(11, columns * rows);
        let mut out = noise.clone();
        for row in out.chunks_exact_mut(columns) {
            for j in 1..columns {
                row[j] = 0.9 * row[j - 1] + 0.3 * row[j];
            }
        }
        out
    }

    /// Products of rows of activations.
    fn products(activations: &[f32], columns: usize) -> Products {
        let mut sums = Vec::new();
        for first in (0..columns).step_by(WINDOW) {
            let window = first..(first + WINDOW).min(columns);
            for i in window.clone() {
                let row = window
                    .clone()
                    .map(|j| activations.chunks_exact(columns).map(|a| a[i] * a[j]).sum::<f32>());
                sums.extend(row);
            }
        }
        Products::new(columns, sums).unwrap()
    }

    /// Squared error of what a matrix computes.
    fn output_error(x: &[f32], back: &[f32], activations: &[f32], columns: usize) -> f64 {
        let mut sum = 0.0;
        for a in activations.chunks_exact(columns) {
            for (x, back) in x.chunks_exact(columns).zip(back.chunks_exact(columns)) {
                let miss: f64 =
                    x.iter().zip(back).zip(a).map(|((x, y), a)| f64::from(x - y) * f64::from(*a)).sum();
                sum += miss * miss;
            }
        }
        sum
    }

    #[test]
    fn what_a_matrix_computes_is_nearer_for_every_type_of_steps() {
        for columns in [256, 576 - 64] {
            let (a, x) = (activations(columns, 600), bell(3, columns * 19));
            let products = products(&a, columns);
            let compensator = Compensator::new(columns, move || Ok(products.clone()));
            for dtype in DType::ALL.iter().copied().filter(|dtype| dtype.is_block()) {
                let codec = crate::codec(dtype).unwrap();
                let mut bytes = vec![0; dtype.bytes_for(x.len() as u64).unwrap() as usize];
                codec.encode(&x, None, &mut bytes);
                let (mut plain, mut better) = (vec![0.0; x.len()], vec![0.0; x.len()]);
                codec.decode(&bytes, &mut plain);
                let before = bytes.clone();
                compensator.improve(codec, &x, &mut bytes).unwrap();
                codec.decode(&bytes, &mut better);
                let [before_error, after_error] =
                    [&plain, &better].map(|back| output_error(&x, back, &a, columns));
                if codec.top_code() == 0 {
                    assert!(bytes == before, "{dtype}");
                } else {
                    assert!(after_error < 0.5 * before_error, "{dtype}: {after_error} of {before_error}");
                }
            }
        }
    }

    #[test]
    fn grouped_formats_come_nearer_too_where_their_codes_are_steps() {
        let columns = 320;
        let (a, x) = (activations(columns, 600), bell(3, columns * 19));
        let products = products(&a, columns);
        let compensator = Compensator::new(columns, move || Ok(products.clone()));
        for (levels, scale) in [
            (Levels::Signed { bits: 4 }, ScaleType::F16),
            (Levels::ZeroPoint { bits: 4 }, ScaleType::F32),
            (Levels::Affine { bits: 3 }, ScaleType::BF16),
            (Levels::Nf4, ScaleType::F16),
        ] {
            let format = Format { levels, group: Some(64), scale };
            let mut encoded = grouped::encode(format, &x, columns, None, Fit::LeastError).unwrap();
            let plain = encoded.clone();
            compensator.improve_grouped(format, &x, &mut encoded).unwrap();
            let error =
                |e: &Encoded| output_error(&x, &grouped::decode(format, e, columns).unwrap(), &a, columns);
            if levels == Levels::Nf4 {
                assert_eq!(encoded, plain);
            } else {
                let (after, before) = (error(&encoded), error(&plain));
                assert!(after < 0.5 * before, "{format:?}: {after} of {before}");
            }
        }
    }

    #[test]
    fn rows_do_not_depend_on_their_neighbours_and_columns_never_met_do_no_harm() {
        let columns = 320;
        let mut a = activations(columns, 50);
        for row in a.chunks_exact_mut(columns) {
            row[7] = 0.0;
            row[300..].fill(0.0);
        }
        let products = products(&a, columns);
        let compensator = Compensator::new(columns, move || Ok(products.clone()));
        let codec = crate::codec(DType::Q4_0).unwrap();
        let x = bell(5, columns * 21);
        let mut together = vec![0; x.len() / 32 * 18];
        codec.encode(&x, None, &mut together);
        let mut apart = together.clone();
        compensator.improve(codec, &x, &mut together).unwrap();
        for (x, out) in x.chunks_exact(columns).zip(apart.chunks_exact_mut(columns / 32 * 18)) {
            compensator.improve(codec, x, out).unwrap();
        }
        assert!(together == apart);
        let mut back = vec![0.0; x.len()];
        codec.decode(&together, &mut back);
        assert!(back.iter().all(|x| x.is_finite()));
    }

    #[test]
    fn sums_of_another_width_or_not_finite_are_no_products() {
        assert_eq!(Products::len(300), 256 * 256 + 44 * 44);
        assert!(Products::new(300, vec![0.0; Products::len(300)]).is_some());
        assert!(Products::new(300, vec![0.0; 5]).is_none());
        assert!(Products::new(2, vec![f32::NAN; 4]).is_none());
        for columns in [1, 32, 256, 300, 576, 1536] {
            assert_eq!(Products::columns_of(Products::len(columns)), Some(columns));
        }
        assert_eq!(Products::columns_of(3), None);
    }
}
