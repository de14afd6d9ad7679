//! Which columns of matrices to scale before they are rounded, so that what they compute loses least.
//!
//! Columns that share a scale share its coarseness. One that meets strong activations suffers less from it when it is multiplied
//! by a number above 1 first, and what it meets is divided by the same number (Lin et al., "AWQ", 2024). Candidates are products
//! of powers of the column's importance and of the size of its weights; the one with the least importance-weighted error of the
//! rounded, unscaled matrix wins, and none if that gains nothing. Where columns can be scaled is the business of who knows the
//! model: `drophammer_models::fold`.

use drophammer_formats::DType;

use crate::grouped::{self, Fit, Format};
use crate::metrics::ErrorSums;
use crate::pass::BoxError;

/// Rounds rows as an encoder will.
pub trait Rounding: Send + Sync {
    /// Replaces whole rows by what they come back as. `importance` has a weight per column.
    ///
    /// # Errors
    /// Rows that cannot be encoded.
    fn round(&self, rows: &mut [f32], importance: &[f32]) -> Result<(), BoxError>;
}

/// A type whose blocks hold their scales.
impl Rounding for DType {
    fn round(&self, rows: &mut [f32], importance: &[f32]) -> Result<(), BoxError> {
        let bytes = self.bytes_for(rows.len() as u64).ok_or("rows are not whole blocks")?;
        let mut blocks = vec![0; usize::try_from(bytes)?];
        crate::quantize(*self, rows, Some(importance), &mut blocks)?;
        Ok(crate::dequantize(*self, &blocks, rows)?)
    }
}

/// A format whose scales lie apart, fitted by search.
impl Rounding for Format {
    fn round(&self, rows: &mut [f32], importance: &[f32]) -> Result<(), BoxError> {
        let columns = importance.len();
        let encoded = grouped::encode(*self, rows, columns, Some(importance), Fit::LeastError)?;
        rows.copy_from_slice(&grouped::decode(*self, &encoded, columns)?);
        Ok(())
    }
}

/// Rows of one of the matrices that read the same columns.
pub struct Reader<'a> {
    /// Some whole rows of it.
    pub rows: Vec<f32>,
    /// How it will be rounded.
    pub rounding: &'a dyn Rounding,
}

/// Powers of importance that are tried. Importance is a power of activations itself: 2/3 of it are one of an activation.
const OF_IMPORTANCE: [f32; 6] = [0.0, 0.1, 0.2, 0.3, 0.45, 0.6];
/// Powers of the inverse of a column's mean magnitude that are tried.
const OF_WEIGHTS: [f32; 3] = [0.0, 0.25, 0.5];
/// The least and the largest scale.
const BOUNDS: (f32, f32) = (1.0 / 64.0, 64.0);
/// What must be gained at least.
const WORTHWHILE: f64 = 0.995;

/// Scales, and what they gain.
#[derive(Debug, Clone, PartialEq)]
pub struct Found {
    /// One per number that is written.
    pub scales: Vec<f32>,
    /// Weighted error with them, over that without.
    pub error: f64,
}

/// The best scales for matrices that read the same columns; `None` where none are worth it. `importance` has a weight per column,
/// `scale_of` the number of its scale (columns may share one), and scales are numbered from 0 without gaps.
///
/// # Errors
/// Rows that cannot be encoded.
pub fn search(
    readers: &[Reader<'_>],
    importance: &[f32],
    scale_of: &[usize],
    threads: usize,
) -> Result<Option<Found>, BoxError> {
    let columns = importance.len();
    if columns == 0 || scale_of.len() != columns || readers.iter().any(|r| r.rows.len() % columns != 0) {
        return Err("importance, scales and rows are of different widths".into());
    }
    let (strength, size) = (means(importance, scale_of), means(&magnitudes(readers, columns), scale_of));
    let powers = OF_IMPORTANCE.iter().flat_map(|&a| OF_WEIGHTS.map(|b| (a, b)));
    let candidates: Vec<Vec<f32>> = powers.map(|(a, b)| scales(&strength, &size, a, b)).collect();
    let mut errors = vec![Ok(0.0); candidates.len()];
    let each = candidates.len().div_ceil(threads.max(1));
    std::thread::scope(|scope| {
        for (candidates, errors) in candidates.chunks(each).zip(errors.chunks_mut(each)) {
            scope.spawn(move || {
                for (scales, out) in candidates.iter().zip(errors) {
                    *out = error(readers, importance, scale_of, scales).map_err(|error| error.to_string());
                }
            });
        }
    });
    let errors = errors.into_iter().collect::<Result<Vec<f64>, String>>()?;
    // The first candidate scales nothing; of equal ones the earlier is chosen.
    let plain = errors[0];
    let best = (0..errors.len()).min_by(|&a, &b| errors[a].total_cmp(&errors[b])).unwrap_or(0);
    if plain <= 0.0 || errors[best] > plain * WORTHWHILE {
        return Ok(None);
    }
    Ok(Some(Found { scales: candidates[best].clone(), error: errors[best] / plain }))
}

/// Mean magnitude of each column, matrices alike whatever their sizes.
fn magnitudes(readers: &[Reader<'_>], columns: usize) -> Vec<f32> {
    let mut sums = vec![0.0; columns];
    for reader in readers {
        let whole: f32 = reader.rows.iter().map(|x| x.abs()).sum();
        let unit = if whole > 0.0 { columns as f32 / whole } else { 0.0 };
        for row in reader.rows.chunks_exact(columns) {
            sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += x.abs() * unit);
        }
    }
    sums
}

/// Means over the columns of each scale.
fn means(values: &[f32], scale_of: &[usize]) -> Vec<f32> {
    let mut sums = vec![(0.0f32, 0u32); scale_of.iter().max().map_or(0, |last| last + 1)];
    for (value, &scale) in values.iter().zip(scale_of) {
        sums[scale] = (sums[scale].0 + value, sums[scale].1 + 1);
    }
    sums.into_iter().map(|(sum, count)| if count == 0 { 0.0 } else { sum / count as f32 }).collect()
}

/// One candidate: powers, with a geometric mean of 1. Rounded to eight bits, so that bfloat16 weights stay exact in float32.
fn scales(strength: &[f32], size: &[f32], of_importance: f32, of_weights: f32) -> Vec<f32> {
    let logarithm = |values: &[f32], power: f32| -> Vec<f32> {
        // What is never met or always zero counts as the least of the others.
        let least = values.iter().copied().filter(|x| *x > 0.0).fold(f32::MAX, f32::min);
        values.iter().map(|x| power * x.max(least).log2()).collect()
    };
    let (a, b) = (logarithm(strength, of_importance), logarithm(size, -of_weights));
    let sums: Vec<f32> = a.iter().zip(&b).map(|(a, b)| a + b).collect();
    let mean = sums.iter().sum::<f32>() / sums.len().max(1) as f32;
    let rounded = |x: f32| f32::from_bits((x.to_bits() + 0x8000) & 0xffff_0000);
    sums.iter().map(|sum| rounded((sum - mean).exp2().clamp(BOUNDS.0, BOUNDS.1))).collect()
}

/// Weighted squared error of all matrices when rounded with these scales.
fn error(
    readers: &[Reader<'_>],
    importance: &[f32],
    scale_of: &[usize],
    scales: &[f32],
) -> Result<f64, BoxError> {
    let columns: Vec<f32> = scale_of.iter().map(|&scale| scales[scale]).collect();
    let scaled: Vec<f32> = importance.iter().zip(&columns).map(|(weight, s)| weight / (s * s)).collect();
    let mut sum = 0.0;
    for reader in readers {
        let mut rows = reader.rows.clone();
        let each = |rows: &mut [f32], change: fn(f32, f32) -> f32| {
            for row in rows.chunks_exact_mut(columns.len()) {
                row.iter_mut().zip(&columns).for_each(|(x, s)| *x = change(*x, *s));
            }
        };
        each(&mut rows, |x, s| x * s);
        reader.rounding.round(&mut rows, &scaled)?;
        each(&mut rows, |x, s| x / s);
        sum += ErrorSums::between(&reader.rows, &rows, Some(importance)).weighted;
    }
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grouped::{Levels, ScaleType};
    use crate::testing::bell;

    fn strong(columns: usize) -> Vec<f32> {
        (0..columns).map(|j| if j % 37 == 5 { 400.0 } else { 1.0 }).collect()
    }

    #[test]
    fn strong_columns_are_scaled_up_and_grouped_formats_lose_less() {
        let (columns, rows) = (256, bell(3, 256 * 24));
        let format = Format { levels: Levels::Signed { bits: 4 }, group: Some(128), scale: ScaleType::F16 };
        let readers = [Reader { rows, rounding: &format }];
        let scale_of: Vec<usize> = (0..columns).collect();
        let found = search(&readers, &strong(columns), &scale_of, 3).unwrap().unwrap();
        assert!(found.error < 0.8, "{}", found.error);
        assert!(found.scales[5] > 2.0 * found.scales[6], "{:?}", &found.scales[..8]);
        assert_eq!(search(&readers, &strong(columns), &scale_of, 1).unwrap(), Some(found), "any threads");
    }

    #[test]
    fn heads_that_share_a_scale_are_scaled_together() {
        let (columns, rows) = (128, bell(9, 128 * 16));
        // Two readers of each block of 32.
        let scale_of: Vec<usize> = (0..columns).map(|c| c / 64 * 32 + c % 32).collect();
        let importance: Vec<f32> = scale_of.iter().map(|s| if s % 16 == 3 { 300.0 } else { 1.0 }).collect();
        let readers = [Reader { rows, rounding: &DType::Q4_0 }];
        let found = search(&readers, &importance, &scale_of, 2).unwrap().unwrap();
        assert_eq!(found.scales.len(), 64);
        assert!(found.error < 1.0 && found.scales[3] > found.scales[4]);
    }

    #[test]
    fn what_gains_nothing_is_left_alone_and_what_does_not_fit_is_refused() {
        let readers = [Reader { rows: vec![0.0; 64], rounding: &DType::Q4_0 }];
        let scale_of: Vec<usize> = (0..32).collect();
        assert_eq!(search(&readers, &[1.0; 32], &scale_of, 1).unwrap(), None);
        assert!(search(&readers, &[1.0; 31], &scale_of, 1).is_err());
        assert!(search(&readers, &[1.0; 0], &[], 1).is_err());
    }
}
