//! Rows with one positive scale each and whole numbers around zero: what `DequantizeLinear` along a channel reads.
//!
//! Unlike [`grouped`](crate::grouped)'s signed codes these are as long below zero as above it (-7 to 7, -127 to 127), since accelerators
//! want scales that are positive and codes whose negation exists.

use crate::compensate::Compensator;
use crate::pass::BoxError;

/// Fractions of the largest magnitude that are tried as the last code's value where codes are few.
const STEPS: u32 = 20;
/// The least of these fractions.
const LEAST: f32 = 0.6;

/// Encoded rows.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Encoded {
    /// Two's complement, one code to a byte.
    pub codes: Vec<u8>,
    /// One scale per row, positive.
    pub scales: Vec<f32>,
}

/// Encodes rows of `columns` weights as `bits` (2 to 8) bits. With few bits the scale is searched that loses least, the squares of
/// errors weighed by `importance` (one weight per column) where it is given; with eight the largest weight meets the last code.
pub fn encode(rows: &[f32], columns: usize, bits: u8, importance: Option<&[f32]>) -> Encoded {
    let mut out = Encoded {
        codes: Vec::with_capacity(rows.len()),
        scales: Vec::with_capacity(rows.len() / columns.max(1)),
    };
    let top = ((1u32 << (bits.clamp(2, 8) - 1)) - 1) as f32;
    for row in rows.chunks_exact(columns.max(1)) {
        let largest = row.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
        let plain = (largest / top).max(f32::MIN_POSITIVE);
        let mut best = plain;
        if bits < 8 {
            let mut least = f32::INFINITY;
            for step in 0..=STEPS {
                let scale = plain * (1.0 - (1.0 - LEAST) * step as f32 / STEPS as f32);
                let error = error(row, scale, top, importance);
                if error < least {
                    (best, least) = (scale, error);
                }
            }
        }
        out.codes.extend(row.iter().map(|x| code(*x, 1.0 / best, top) as i8 as u8));
        out.scales.push(best);
    }
    out
}

/// [`encode`]'s scales, with codes that make up for each other's errors.
///
/// # Errors
/// Whatever keeps the compensator from reading its products.
pub fn encode_compensated(
    rows: &[f32],
    columns: usize,
    bits: u8,
    importance: Option<&[f32]>,
    compensator: &Compensator,
) -> Result<Encoded, BoxError> {
    let mut encoded = encode(rows, columns, bits, importance);
    let top = (1u8 << (bits.clamp(2, 8) - 1)) - 1;
    let level = |code: f32| -> Vec<f32> {
        let levels = encoded.scales.iter().map(|scale| scale * (code - f32::from(top)));
        levels.flat_map(|level| std::iter::repeat_n(level, columns)).collect()
    };
    let codes = compensator.codes(rows, [&level(0.0), &level(1.0)], 2 * top)?;
    encoded.codes = codes.into_iter().map(|code| code.wrapping_sub(top)).collect();
    Ok(encoded)
}

/// Adding and taking away rounds small numbers to whole ones, ties to even, in two plain additions.
const ROUNDER: f32 = 12_582_912.0;

fn code(x: f32, inverse: f32, top: f32) -> f32 {
    (x * inverse).clamp(-top, top) + ROUNDER - ROUNDER
}

/// The sum of squared errors that a scale leaves. Eight sums side by side, in an order that never changes.
fn error(row: &[f32], scale: f32, top: f32, importance: Option<&[f32]>) -> f32 {
    const LANES: usize = 8;
    let inverse = 1.0 / scale;
    let miss = |x: f32| {
        let miss = x - code(x, inverse, top) * scale;
        miss * miss
    };
    let mut sums = [0.0f32; LANES];
    let weight = |index: usize| importance.and_then(|weights| weights.get(index)).copied().unwrap_or(1.0);
    for (number, part) in row.chunks(LANES).enumerate() {
        for (lane, (sum, x)) in sums.iter_mut().zip(part).enumerate() {
            *sum += if importance.is_some() { weight(number * LANES + lane) * miss(*x) } else { miss(*x) };
        }
    }
    sums.iter().sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(encoded: &Encoded, columns: usize) -> Vec<f32> {
        let rows = encoded.codes.chunks(columns).zip(&encoded.scales);
        rows.flat_map(|(row, scale)| row.iter().map(move |code| f32::from(*code as i8) * scale)).collect()
    }

    fn sample(count: usize) -> Vec<f32> {
        (0..count).map(|i| ((i * 37 % 101) as f32 / 50.0 - 1.0).powi(3)).collect()
    }

    #[test]
    fn eight_bits_are_within_half_a_step_and_meet_the_largest() {
        let rows = sample(96);
        let encoded = encode(&rows, 48, 8, None);
        for (row, (x, y)) in rows.iter().zip(decode(&encoded, 48)).enumerate() {
            assert!((x - y).abs() <= encoded.scales[row / 48] * 0.5001, "{x} {y}");
        }
        assert!(encoded.codes.iter().any(|code| (*code as i8).unsigned_abs() == 127));
    }

    #[test]
    fn four_bits_lose_no_more_than_the_plain_scale_and_stay_symmetric() {
        let mut rows = sample(64);
        // One weight far out: clipping it pays.
        rows[5] = 4.0;
        let encoded = encode(&rows, 64, 4, None);
        assert!(encoded.codes.iter().all(|code| (*code as i8).abs() <= 7));
        assert!(encoded.scales.iter().all(|scale| *scale > 0.0));
        let lost: f32 = rows.iter().zip(decode(&encoded, 64)).map(|(x, y)| (x - y) * (x - y)).sum();
        assert!(lost <= error(&rows, 4.0 / 7.0, 7.0, None) * 1.0001);
    }

    #[test]
    fn what_matters_more_is_kept_better() {
        let mut rows = sample(64);
        rows[5] = 4.0;
        let mut importance = vec![1.0; 64];
        importance[5] = 1e4;
        let miss = |encoded: &Encoded| (rows[5] - decode(encoded, 64)[5]).abs();
        let (with, without) = (encode(&rows, 64, 4, Some(&importance)), encode(&rows, 64, 4, None));
        assert!(miss(&with) < miss(&without), "{} {}", miss(&with), miss(&without));
    }

    #[test]
    fn codes_make_up_for_each_other_where_columns_go_together() {
        use crate::compensate::{Compensator, Products};
        let (rows, columns) = (sample(96), 48);
        // Columns that are nearly always alike: what a row computes is nearly the sum of its weights.
        let sums = (0..columns * columns).map(|i| if i % (columns + 1) == 0 { 1.01 } else { 1.0 }).collect();
        let products = Products::new(columns, sums).unwrap();
        let compensator = Compensator::new(columns, move || Ok(products.clone()));
        let total = |row: &[f32]| row.iter().sum::<f32>();
        for bits in [4, 8] {
            let plain = encode(&rows, columns, bits, None);
            let better = encode_compensated(&rows, columns, bits, None, &compensator).unwrap();
            assert_eq!(plain.scales, better.scales);
            let top = (1i8 << (bits - 2)) - 1 + (1 << (bits - 2));
            assert!(better.codes.iter().all(|code| (-top..=top).contains(&(*code as i8))));
            let decoded = decode(&better, columns);
            let rows = rows.chunks(columns).zip(decoded.chunks(columns)).zip(&better.scales);
            for ((row, back), scale) in rows {
                assert!((total(row) - total(back)).abs() < *scale, "{bits}: {} {}", total(row), total(back));
            }
        }
    }

    #[test]
    fn zeros_stay_zeros() {
        let encoded = encode(&[0.0; 8], 4, 4, None);
        assert!(
            encoded.codes.iter().all(|code| *code == 0) && encoded.scales.iter().all(|scale| *scale > 0.0)
        );
    }
}
