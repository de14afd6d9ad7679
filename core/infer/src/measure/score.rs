//! What one row says about one token, and what two rows say about each other.

use crate::sampler::log_sum_exp;

/// How many of the most likely tokens are compared besides the first.
pub(super) const SEVERAL: usize = 5;

/// Natural logarithm of a token's probability; `None` where the row is not finite enough to have one.
pub(super) fn log_probability(row: &[f32], token: u32) -> Option<f64> {
    let normalizer = finite_normalizer(row)?;
    let log_probability = f64::from(*row.get(token as usize)?) - normalizer;
    log_probability.is_finite().then_some(log_probability)
}

fn finite_normalizer(row: &[f32]) -> Option<f64> {
    // `max` passes over what is not a number; the sum does not.
    Some(log_sum_exp(row)).filter(|normalizer| normalizer.is_finite())
}

/// A comparison of two distributions.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Comparison {
    /// From the reference, nats, never negative.
    pub(super) kl: f64,
    /// Whether the most likely token is the same.
    pub(super) same_first: bool,
    /// Which share of the reference's most likely tokens are among the measured model's.
    pub(super) shared_several: f64,
}

/// Compares a row with the reference's. Where one row is longer (a padded vocabulary) only the common part counts.
/// `None` where one is not finite.
pub(super) fn compare(reference: &[f32], row: &[f32]) -> Option<Comparison> {
    let width = reference.len().min(row.len());
    let (reference, row) = (&reference[..width], &row[..width]);
    let (reference_normalizer, normalizer) = (finite_normalizer(reference)?, finite_normalizer(row)?);
    let mut kl = 0.0;
    for (&r, &q) in reference.iter().zip(row) {
        let log_p = f64::from(r) - reference_normalizer;
        let p = log_p.exp();
        if p > 0.0 {
            kl += p * (log_p - (f64::from(q) - normalizer));
        }
    }
    if kl.is_nan() {
        return None;
    }
    let (first, second) = (most_likely(reference), most_likely(row));
    let shared = first.iter().filter(|token| second.contains(token)).count();
    Some(Comparison {
        kl: kl.max(0.0),
        same_first: first.first() == second.first(),
        shared_several: shared as f64 / first.len().max(1) as f64,
    })
}

/// The [`SEVERAL`] most likely tokens, most likely first, lower ids first among equals.
fn most_likely(row: &[f32]) -> Vec<u32> {
    let mut best: Vec<(f32, u32)> = Vec::with_capacity(SEVERAL + 1);
    for (token, &logit) in (0u32..).zip(row) {
        if best.len() == SEVERAL && best[SEVERAL - 1].0 >= logit {
            continue;
        }
        let place = best.partition_point(|(other, _)| *other >= logit);
        best.insert(place, (logit, token));
        best.truncate(SEVERAL);
    }
    best.into_iter().map(|(_, token)| token).collect()
}

/// The value below which a fraction `q` of the sorted values lies, interpolated linearly between ranks.
pub(super) fn quantile(sorted: &[f64], q: f64) -> Option<f64> {
    let rank = q * (sorted.len().checked_sub(1)?) as f64;
    let (low, high) = (sorted[rank.floor() as usize], sorted[rank.ceil() as usize]);
    Some(low + (high - low) * rank.fract())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_known_divergence_is_found_and_equal_rows_have_none() {
        let row = |p: [f64; 3]| p.map(|p| p.ln() as f32 + 7.0);
        let (a, b) = (row([0.5, 0.25, 0.25]), row([0.25, 0.25, 0.5]));
        let found = compare(&a, &b).unwrap();
        assert!((found.kl - 0.25 * std::f64::consts::LN_2).abs() < 1e-6, "{found:?}");
        assert!(!found.same_first);
        assert_eq!(found.shared_several, 1.0);
        assert_eq!(compare(&a, &a).unwrap(), Comparison { kl: 0.0, same_first: true, shared_several: 1.0 });
        assert!((log_probability(&a, 0).unwrap() - 0.5f64.ln()).abs() < 1e-6);
    }

    #[test]
    fn a_token_the_reference_excludes_adds_nothing_and_one_the_other_excludes_adds_infinity() {
        let open = [0.0, 0.0];
        let closed = [0.0, f32::NEG_INFINITY];
        assert!((compare(&closed, &open).unwrap().kl - std::f64::consts::LN_2).abs() < 1e-9);
        assert_eq!(compare(&open, &closed).unwrap().kl, f64::INFINITY);
    }

    #[test]
    fn rows_with_no_numbers_have_no_score() {
        for row in [[f32::NAN, 0.0], [f32::INFINITY, 0.0], [f32::NEG_INFINITY, f32::NEG_INFINITY]] {
            assert_eq!(log_probability(&row, 1), None);
            assert_eq!(compare(&[0.0, 1.0], &row), None);
        }
    }

    #[test]
    fn the_five_most_likely_tokens_are_counted_whatever_their_order() {
        let a = [9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.0];
        let b = [5.0, 9.0, 8.0, 7.0, 0.0, 6.0, 1.0];
        let found = compare(&a, &b).unwrap();
        assert_eq!((found.same_first, found.shared_several), (false, 0.8));
    }

    #[test]
    fn quantiles_interpolate_between_ranks() {
        let sorted = [0.0, 1.0, 2.0, 3.0];
        for (q, expected) in [(0.0, 0.0), (0.5, 1.5), (0.99, 2.97), (1.0, 3.0)] {
            assert!((quantile(&sorted, q).unwrap() - expected).abs() < 1e-12);
        }
        assert_eq!(quantile(&[], 0.5), None);
    }
}
