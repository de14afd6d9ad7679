//! How good and how fast a model is.
//!
//! # Protocol of the quality measurement
//! A text is tokenized whole, without added special tokens, and cut into consecutive chunks of
//! [`Protocol::chunk`] tokens; a last partial chunk is dropped. Each chunk starts from an empty cache, and the tokens at
//! positions 1 to N−1 are scored, each by the logits at the position before it. Perplexity is the exponential of the
//! mean negative log-likelihood over all scored tokens. (llama.cpp's tool scores the second half of each chunk only:
//! its figures are lower, and comparable only with its own.)
//!
//! Against a reference, both models read the same tokens in lockstep, a few rows at a time, so that memory does not
//! depend on the text and nothing is written to disk. KL is the divergence *from the reference*, in nats:
//! Σ p_ref · (ln p_ref − ln p). Softmax is computed in `f64`. The 99th percentile and the median are exact, linearly
//! interpolated between ranks (as numpy does it): one `f64` per scored token is kept, [`Protocol::most_tokens`] at most.

mod bench;
mod channel;
mod quality;
mod score;
mod session;
mod source;

pub use bench::{Bench, BenchPlan, Roofline, Speed, bench, roofline};
pub use channel::{ChannelSource, RowSender, rows_over_channel, send_rows};
pub use quality::{Measurement, PositionMean, Protocol, Scored, measure};
pub use session::SessionSource;
pub use source::{LogitSource, MeasureError};

/// Public-domain text (held-out Shakespeare) for models whose user gives none.
pub const EVALUATION_TEXT: &str = include_str!("../../data/evaluation.txt");

/// Public-domain text of many kinds for whoever calibrates without one; none of it is in [`EVALUATION_TEXT`].
pub const CALIBRATION_TEXT: &str = include_str!("../../data/calibration.txt");

#[cfg(test)]
mod tests;
