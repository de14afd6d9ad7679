//! Live API traffic.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::words;

/// Answer of `requests`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Requests {
    /// Requests queued or answered now, oldest first.
    pub live: Vec<LiveRequest>,
    /// How full each served model's batch is.
    pub batches: Vec<BatchUse>,
    /// Answered in full since the daemon started.
    pub succeeded: u64,
    /// Ended with an error.
    pub failed: u64,
    /// The client went away.
    pub cancelled: u64,
    /// Refused because the queue was full (429).
    pub refused: u64,
    /// Tokens generated.
    pub generated_tokens: u64,
    /// Prompt tokens read.
    pub prompt_tokens: u64,
    /// Time to first token.
    pub first_token: Histogram,
    /// Time per generated token after the first.
    pub token: Histogram,
    /// Whole request.
    pub total: Histogram,
}

words! {
    /// What is being done about a request.
    RequestPhase {
        /// Waits for its model to load.
        Loading = "loading",
        /// Waits for a place in the batch.
        Queued = "queued",
        /// Its prompt is being read.
        Prefill = "prefill",
        /// Tokens are being generated.
        Decode = "decode",
    }
}

/// One request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct LiveRequest {
    /// Its id, as in the answer.
    pub id: String,
    /// The model it asked for.
    pub model: String,
    /// Such as `/v1/chat/completions`.
    pub route: String,
    /// What is being done about it.
    pub phase: RequestPhase,
    /// Tokens of its prompt.
    pub prompt_tokens: u64,
    /// Tokens generated so far.
    pub generated_tokens: u64,
    /// Since it arrived.
    pub seconds: f64,
    /// From arrival to the first token.
    pub first_token_seconds: Option<f64>,
    /// Generated tokens per second.
    pub tps: Option<f64>,
}

/// How full a served model's batch is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BatchUse {
    /// The served model's name.
    pub model: String,
    /// Sequences in the batch.
    pub running: u32,
    /// The most it takes.
    pub capacity: u32,
    /// Requests waiting.
    pub queued: u32,
    /// The most that may wait.
    pub queue_capacity: u32,
}

/// How many times fell where.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Histogram {
    /// Upper bounds of the buckets, ascending, seconds.
    pub bounds_seconds: Vec<f64>,
    /// One count per bound and one last for everything above.
    pub counts: Vec<u64>,
    /// All of them added up.
    #[serde(default)]
    pub sum_seconds: f64,
}

impl Histogram {
    /// How many in all.
    pub fn count(&self) -> u64 {
        self.counts.iter().fold(0, |sum, count| sum.saturating_add(*count))
    }

    /// The upper bound of the bucket below which a fraction `q` (0 to 1) lies; `None` when nothing was
    /// counted or when it lies above the last bound.
    pub fn quantile_seconds(&self, q: f64) -> Option<f64> {
        let wanted = (q.clamp(0.0, 1.0) * self.count() as f64).ceil().max(1.0) as u64;
        let mut seen = 0u64;
        for (bound, count) in self.bounds_seconds.iter().zip(&self.counts) {
            seen = seen.saturating_add(*count);
            if seen >= wanted {
                return Some(*bound);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantile_is_the_bound_of_the_bucket_it_falls_in() {
        let histogram =
            Histogram { bounds_seconds: vec![0.1, 1.0, 10.0], counts: vec![5, 4, 0, 1], sum_seconds: 0.0 };
        for (q, expected) in [(0.0, Some(0.1)), (0.5, Some(0.1)), (0.9, Some(1.0)), (1.0, None)] {
            assert_eq!(histogram.quantile_seconds(q), expected, "q = {q}");
        }
        assert_eq!(Histogram::default().quantile_seconds(0.5), None);
    }
}
