//! How far decoded values are from the ones they stand for.

use serde::{Deserialize, Serialize};

/// Differences between values and their approximation, accumulated in double precision. Rows, tensors and models add up with `+`.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct ErrorSums {
    /// Values compared.
    pub count: u64,
    /// `Σ (x - y)²`.
    pub squared: f64,
    /// `Σ w (x - y)²`, with the importance of each column; equal to `squared` without one.
    pub weighted: f64,
    /// `Σ x²`.
    pub signal: f64,
    /// `Σ w x²`.
    pub weighted_signal: f64,
    /// Largest `|x - y|`.
    pub largest: f64,
}

impl ErrorSums {
    /// Compares whole rows with their approximation; `importance`, if given, has one weight per column.
    ///
    /// # Panics
    /// If the lengths do not fit together.
    pub fn between(rows: &[f32], approximation: &[f32], importance: Option<&[f32]>) -> Self {
        assert_eq!(rows.len(), approximation.len(), "values and their approximation");
        let columns = importance.map_or(rows.len().max(1), <[f32]>::len);
        assert!(
            columns > 0 && rows.len().is_multiple_of(columns),
            "importance of {columns} columns for {} values",
            rows.len()
        );
        let mut sums = Self { count: rows.len() as u64, ..Self::default() };
        for (row, approximation) in rows.chunks_exact(columns).zip(approximation.chunks_exact(columns)) {
            for (j, (&x, &y)) in row.iter().zip(approximation).enumerate() {
                let (x, y) = (f64::from(x), f64::from(y));
                let weight = importance.map_or(1.0, |weights| f64::from(weights[j]));
                let squared = (x - y) * (x - y);
                sums.squared += squared;
                sums.weighted += weight * squared;
                sums.signal += x * x;
                sums.weighted_signal += weight * x * x;
                sums.largest = sums.largest.max((x - y).abs());
            }
        }
        sums
    }

    /// Root of the mean squared error; 0 for no values.
    pub fn rmse(&self) -> f64 {
        if self.count == 0 { 0.0 } else { (self.squared / self.count as f64).sqrt() }
    }

    /// Squared error as a fraction of the signal; 0 if both are 0.
    pub fn relative(&self) -> f64 {
        ratio(self.squared, self.signal)
    }

    /// Weighted squared error as a fraction of the weighted signal; 0 if both are 0.
    pub fn weighted_relative(&self) -> f64 {
        ratio(self.weighted, self.weighted_signal)
    }

    /// Signal to noise in decibels; infinite for an exact copy.
    pub fn snr_db(&self) -> f64 {
        -10.0 * self.relative().log10()
    }
}

impl std::ops::Add for ErrorSums {
    type Output = Self;

    /// The sums over both sets of values.
    fn add(self, other: Self) -> Self {
        Self {
            count: self.count + other.count,
            squared: self.squared + other.squared,
            weighted: self.weighted + other.weighted,
            signal: self.signal + other.signal,
            weighted_signal: self.weighted_signal + other.weighted_signal,
            largest: self.largest.max(other.largest),
        }
    }
}

fn ratio(error: f64, signal: f64) -> f64 {
    if error == 0.0 { 0.0 } else { error / signal }
}

#[cfg(test)]
mod tests {
    use super::ErrorSums;

    #[test]
    fn weights_apply_per_column_of_every_row() {
        let sums = ErrorSums::between(&[1.0, 2.0, 3.0, 4.0], &[1.0, 1.0, 1.0, 4.0], Some(&[10.0, 1.0]));
        assert_eq!((sums.squared, sums.weighted, sums.largest), (5.0, 41.0, 2.0));
        assert_eq!(sums.rmse(), (5.0f64 / 4.0).sqrt());
        assert_eq!((sums.signal, sums.weighted_signal), (30.0, 10.0 + 4.0 + 90.0 + 16.0));
    }

    #[test]
    fn parts_add_up_to_the_whole() {
        let (x, y) = ([1.0, -2.0, 0.5, 8.0], [1.5, -2.0, 0.0, 7.0]);
        let whole = ErrorSums::between(&x, &y, None);
        let parts = ErrorSums::between(&x[..2], &y[..2], None) + ErrorSums::between(&x[2..], &y[2..], None);
        assert_eq!(whole, parts);
    }

    #[test]
    fn an_exact_copy_has_no_error_and_infinite_signal_to_noise() {
        let sums = ErrorSums::between(&[0.0, 0.0], &[0.0, 0.0], None);
        assert_eq!((sums.rmse(), sums.relative(), sums.snr_db()), (0.0, 0.0, f64::INFINITY));
    }
}
