//! What one row says about one token, and what two rows say about each other.

/// How many of the most likely tokens are compared besides the first.
pub(super) const SEVERAL: usize = 5;

/// A row of logits with what makes probabilities of them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Row<'a> {
    logits: &'a [f32],
    largest: f32,
    /// Natural logarithm of the sum of all eˡ.
    normalizer: f64,
}

impl<'a> Row<'a> {
    /// `None` where the row is not finite enough to have probabilities.
    pub(super) fn of(logits: &'a [f32]) -> Option<Self> {
        // `max` passes over what is not a number.
        let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        if !largest.is_finite() || logits.iter().any(|logit| logit.is_nan()) {
            return None;
        }
        let mut sums = [0f64; 16];
        for chunk in logits.chunks(sums.len()) {
            for (sum, logit) in sums.iter_mut().zip(chunk) {
                *sum += f64::from(exp(logit - largest));
            }
        }
        let normalizer = f64::from(largest) + sums.iter().sum::<f64>().ln();
        Some(Self { logits, largest, normalizer })
    }

    /// Natural logarithm of a token's probability; `None` where it has none.
    pub(super) fn log_probability(&self, token: u32) -> Option<f64> {
        let log_probability = f64::from(*self.logits.get(token as usize)?) - self.normalizer;
        log_probability.is_finite().then_some(log_probability)
    }
}

/// eˣ for x ≤ 0, relative error below 3e-7; 0 where that is below 1e-37. In a form that compilers make vectors of: a
/// vocabulary is long, and each of its numbers is needed for each token that is scored.
fn exp(x: f32) -> f32 {
    /// Adding it rounds to an integer and leaves that in the lowest bits.
    const ROUND: f32 = 12_582_912.0;
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    // Two constants for ln 2, the first exact in few bits, keep the remainder exact.
    let r = (x - n * 0.693_359_4) + n * 2.121_944_4e-4;
    let mut p = 1.987_569_1e-4;
    for c in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5, 1.0, 1.0] {
        p = p * r + c;
    }
    let power = f32::from_bits(shifted.to_bits().wrapping_add(127) << 23);
    if x < -85.0 { 0.0 } else { p * power }
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
pub(super) fn compare(reference: &Row<'_>, row: &Row<'_>) -> Option<Comparison> {
    let width = reference.logits.len().min(row.logits.len());
    let (reference, row) = if reference.logits.len() == row.logits.len() {
        (*reference, *row)
    } else {
        (Row::of(&reference.logits[..width])?, Row::of(&row.logits[..width])?)
    };
    // p · (log p − log q), with what is the same for all tokens taken together.
    let total = reference.normalizer - f64::from(reference.largest);
    let (scale, shift) = ((-total).exp(), row.normalizer - reference.normalizer);
    let mut sums = [0f64; 16];
    for (r, q) in reference.logits.chunks(sums.len()).zip(row.logits.chunks(sums.len())) {
        for ((sum, &r), &q) in sums.iter_mut().zip(r).zip(q) {
            let p = exp(r - reference.largest);
            // A token the reference excludes adds nothing.
            *sum += if p > 0.0 { f64::from(p) * (f64::from(r - q) + shift) } else { 0.0 };
        }
    }
    let kl = sums.iter().sum::<f64>() * scale;
    if kl.is_nan() {
        return None;
    }
    let (first, second) = (most_likely(reference.logits), most_likely(row.logits));
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

    fn compare(reference: &[f32], row: &[f32]) -> Option<Comparison> {
        super::compare(&Row::of(reference)?, &Row::of(row)?)
    }

    fn log_probability(row: &[f32], token: u32) -> Option<f64> {
        Row::of(row)?.log_probability(token)
    }

    #[test]
    fn the_exponential_is_exact_to_seven_digits() {
        for i in 0..8_000_000u32 {
            let x = -(i as f32) * 1e-5;
            let exact = f64::from(x).exp();
            assert!((f64::from(exp(x)) / exact - 1.0).abs() < 3e-7, "{x}");
        }
        assert_eq!((exp(0.0), exp(f32::NEG_INFINITY), exp(-1e30)), (1.0, 0.0, 0.0));
    }

    #[test]
    fn a_padded_vocabulary_is_compared_in_its_common_part() {
        assert_eq!(compare(&[1.0, 2.0, 9.0], &[1.0, 2.0]).unwrap().kl, 0.0);
    }

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
