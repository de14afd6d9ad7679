//! Which artifact answers for its model.

use serde::{Deserialize, Serialize};

/// What was measured of an artifact, as far as the choice cares.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Measured {
    /// Mean KL divergence from the source, nats.
    pub kl_mean: Option<f64>,
    /// Share of positions at which the most likely token is the source's.
    pub top1: Option<f64>,
    /// Generated tokens per second.
    pub decode_tps: Option<f64>,
    /// Size.
    pub bytes: u64,
}

/// The least quality an artifact must have to be preferred for its speed.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Floor {
    /// The most mean KL divergence, nats.
    pub kl_mean: f64,
    /// The least top-1 agreement.
    pub top1: f64,
}

impl Floor {
    /// Whether an artifact was measured and is good enough.
    pub fn admits(&self, measured: &Measured) -> bool {
        measured.kl_mean.is_some_and(|kl| kl <= self.kl_mean)
            && measured.top1.is_none_or(|top1| top1 >= self.top1)
    }
}

/// The index of the artifact to serve: the fastest of those that meet the floor; if none does, the one nearest to
/// the source. Ties go to the smaller one, then to the earlier one.
pub fn best(artifacts: &[Measured], floor: &Floor) -> Option<usize> {
    // Smaller is better in every place of the key; not measured is worst.
    let key = |measured: &Measured| {
        let kl = measured.kl_mean.unwrap_or(f64::INFINITY);
        let slowness = -measured.decode_tps.unwrap_or(0.0);
        if floor.admits(measured) { (0u8, slowness, kl) } else { (1, kl, slowness) }
    };
    let order = |a: &Measured, b: &Measured| {
        let (a_key, b_key) = (key(a), key(b));
        a_key
            .0
            .cmp(&b_key.0)
            .then(a_key.1.total_cmp(&b_key.1))
            .then(a_key.2.total_cmp(&b_key.2))
            .then(a.bytes.cmp(&b.bytes))
    };
    (0..artifacts.len()).min_by(|&a, &b| order(&artifacts[a], &artifacts[b]))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLOOR: Floor = Floor { kl_mean: 0.05, top1: 0.9 };

    fn measured(kl: f64, top1: f64, tps: f64, bytes: u64) -> Measured {
        Measured { kl_mean: Some(kl), top1: Some(top1), decode_tps: Some(tps), bytes }
    }

    #[test]
    fn the_choice_weighs_quality_before_speed_and_speed_before_size() {
        let (f16, q8, q4, q2) = (
            measured(0.0, 1.0, 10.0, 16),
            measured(0.001, 0.99, 20.0, 8),
            measured(0.02, 0.95, 30.0, 4),
            measured(0.3, 0.8, 50.0, 2),
        );
        let unmeasured = Measured { bytes: 1, ..Measured::default() };
        let nan = Measured { kl_mean: Some(f64::NAN), ..q4 };
        for (artifacts, expected) in [
            (vec![], None),
            (vec![unmeasured], Some(0)),
            (vec![f16, q8, q4, q2], Some(2)),
            (vec![f16, q2], Some(0)),
            (vec![q2, unmeasured], Some(0)),
            (vec![unmeasured, q2], Some(1)),
            (vec![nan, q2], Some(1)),
            (vec![q4, Measured { bytes: 3, ..q4 }], Some(1)),
            (vec![Measured { top1: Some(0.5), ..q4 }, f16], Some(1)),
        ] {
            assert_eq!(best(&artifacts, &FLOOR), expected, "{artifacts:?}");
        }
    }
}
