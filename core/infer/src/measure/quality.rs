//! Perplexity, and the distance from a reference.

use std::slice::ChunksExact;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::score::{Comparison, Row, compare, quantile};
use super::source::{LogitSource, MeasureError};

/// Logits held at once, per model, in bytes: rows are read until this is full.
const ROW_BYTES: usize = 64 << 20;

/// How a text is read. See the module's documentation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Protocol {
    /// Tokens per chunk, two at least.
    pub chunk: usize,
    /// Chunks beyond this many tokens are not read.
    pub most_tokens: usize,
}

impl Default for Protocol {
    fn default() -> Self {
        Self { chunk: 256, most_tokens: 1 << 20 }
    }
}

impl Protocol {
    /// The chunks of a tokenized text that are read.
    ///
    /// # Errors
    /// [`MeasureError::TooShort`] without one whole chunk, [`MeasureError::Chunk`] for chunks in which nothing is
    /// scored.
    pub fn chunks<'t>(&self, tokens: &'t [u32]) -> Result<ChunksExact<'t, u32>, MeasureError> {
        if self.chunk < 2 {
            return Err(MeasureError::Chunk { chunk: self.chunk, limit: "the protocol".to_owned() });
        }
        let read = &tokens[..tokens.len().min(self.most_tokens)];
        if read.len() < self.chunk {
            return Err(MeasureError::TooShort { tokens: read.len(), chunk: self.chunk });
        }
        Ok(read.chunks_exact(self.chunk))
    }

    /// Rows of `width` floats that are read at once.
    pub fn rows_at_once(&self, width: usize) -> usize {
        (ROW_BYTES / (4 * width.max(1))).clamp(1, self.chunk.max(2) - 1)
    }
}

/// One scored token.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scored {
    /// Its chunk, counted from 0.
    pub chunk: usize,
    /// Its position in the chunk, from 1.
    pub position: usize,
    /// The token.
    pub token: u32,
    /// Negative log-likelihood, nats.
    pub nll: f64,
    /// The reference's.
    pub reference_nll: Option<f64>,
    /// Divergence from the reference, nats.
    pub kl: Option<f64>,
    /// Whether the most likely token is the reference's.
    pub same_first: Option<bool>,
}

/// Means over all chunks at one position.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct PositionMean {
    /// Position in the chunk, from 1.
    pub position: usize,
    /// Negative log-likelihood, nats.
    pub nll: f64,
    /// Divergence from the reference, nats.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub kl: Option<f64>,
}

/// What a measurement found. Divergences are in nats, agreements are fractions from 0 to 1; they are there where a
/// reference was.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Measurement {
    /// Of the measured model.
    pub perplexity: f64,
    /// Of the reference.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub reference_perplexity: Option<f64>,
    /// Mean divergence.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub kl_mean: Option<f64>,
    /// Its median.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub kl_median: Option<f64>,
    /// Its 99th percentile.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub kl_p99: Option<f64>,
    /// Its largest value.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub kl_max: Option<f64>,
    /// How often the most likely token is the reference's.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub top1: Option<f64>,
    /// Which share of the reference's five most likely tokens are among the model's five.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub top5: Option<f64>,
    /// Tokens scored.
    pub tokens: u64,
    /// Tokens per chunk.
    pub chunk: usize,
    /// How the model does early and late in a chunk.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub by_position: Vec<PositionMean>,
}

/// Measures a model on a tokenized text, in lockstep with a reference where there is one. `watch` sees every scored
/// token in order, and ends the measurement by returning `false`.
///
/// # Errors
/// [`MeasureError`].
pub fn measure(
    model: &mut dyn LogitSource,
    mut reference: Option<&mut dyn LogitSource>,
    tokens: &[u32],
    protocol: &Protocol,
    watch: &mut dyn FnMut(&Scored) -> bool,
) -> Result<Measurement, MeasureError> {
    let chunks = protocol.chunks(tokens)?;
    let reference_width = reference.as_ref().map(|reference| reference.width());
    let common = reference_width.map_or(model.width(), |other| other.min(model.width()));
    let read = &tokens[..chunks.len() * protocol.chunk];
    if let Some(&token) = read.iter().find(|&&token| token as usize >= common) {
        return Err(MeasureError::TokenOutside { token, width: common });
    }
    let at_once = protocol.rows_at_once(model.width().max(reference_width.unwrap_or(0)));
    let mut rows = vec![0.0; at_once * model.width()];
    let mut reference_rows = vec![0.0; at_once * reference_width.unwrap_or(0)];
    let mut tally = Tally::new(protocol.chunk, chunks.len(), reference.is_some());
    for (number, chunk) in chunks.enumerate() {
        model.begin(chunk)?;
        if let Some(reference) = &mut reference {
            reference.begin(chunk)?;
        }
        let targets = &chunk[1..];
        for (group, targets) in targets.chunks(at_once).enumerate() {
            let rows = &mut rows[..targets.len() * model.width()];
            model.next_rows(rows)?;
            let reference_rows = match &mut reference {
                None => None,
                Some(reference) => {
                    let rows = &mut reference_rows[..targets.len() * reference.width()];
                    reference.next_rows(rows)?;
                    Some(&*rows)
                }
            };
            let at = Place { chunk: number, first: 1 + group * at_once };
            for (scored, shared) in score_rows(rows, reference_rows, targets, at)? {
                tally.add(&scored, shared);
                if !watch(&scored) {
                    return Err(MeasureError::Cancelled);
                }
            }
        }
    }
    Ok(tally.finish())
}

#[derive(Clone, Copy)]
struct Place {
    chunk: usize,
    /// Position of the first target in its chunk.
    first: usize,
}

/// Scores some rows on all cores; the order stays.
fn score_rows(
    rows: &[f32],
    reference: Option<&[f32]>,
    targets: &[u32],
    at: Place,
) -> Result<Vec<(Scored, f64)>, MeasureError> {
    let count = targets.len();
    let score = |index: usize| {
        let row = &rows[index * rows.len() / count..(index + 1) * rows.len() / count];
        let other = reference.map(|rows| &rows[index * rows.len() / count..(index + 1) * rows.len() / count]);
        score_row(row, other, targets[index], Place { first: at.first + index, ..at })
    };
    (0..count).into_par_iter().map(score).collect()
}

fn score_row(
    row: &[f32],
    reference: Option<&[f32]>,
    token: u32,
    at: Place,
) -> Result<(Scored, f64), MeasureError> {
    let bad = |which| MeasureError::NotFinite { which, chunk: at.chunk, position: at.first - 1 };
    let row = Row::of(row).ok_or_else(|| bad("measured"))?;
    let nll = -row.log_probability(token).ok_or_else(|| bad("measured"))?;
    let mut scored = Scored {
        chunk: at.chunk,
        position: at.first,
        token,
        nll,
        reference_nll: None,
        kl: None,
        same_first: None,
    };
    let mut shared = 0.0;
    if let Some(reference) = reference {
        let reference = Row::of(reference).ok_or_else(|| bad("reference"))?;
        scored.reference_nll = Some(-reference.log_probability(token).ok_or_else(|| bad("reference"))?);
        let Comparison { kl, same_first, shared_several } =
            compare(&reference, &row).ok_or_else(|| bad("measured"))?;
        scored.kl = Some(kl);
        scored.same_first = Some(same_first);
        shared = shared_several;
    }
    Ok((scored, shared))
}

/// Sums while the text is read.
struct Tally {
    compared: bool,
    chunk: usize,
    chunks: usize,
    nll: f64,
    reference_nll: f64,
    divergences: Vec<f64>,
    same_first: u64,
    shared_several: f64,
    tokens: u64,
    by_position: Vec<PositionMean>,
}

impl Tally {
    fn new(chunk: usize, chunks: usize, compared: bool) -> Self {
        let mean = |position| PositionMean { position, nll: 0.0, kl: compared.then_some(0.0) };
        Self {
            compared,
            chunk,
            chunks,
            nll: 0.0,
            reference_nll: 0.0,
            divergences: Vec::with_capacity(if compared { chunks * (chunk - 1) } else { 0 }),
            same_first: 0,
            shared_several: 0.0,
            tokens: 0,
            by_position: (1..chunk).map(mean).collect(),
        }
    }

    fn add(&mut self, scored: &Scored, shared_several: f64) {
        self.tokens += 1;
        self.nll += scored.nll;
        self.reference_nll += scored.reference_nll.unwrap_or(0.0);
        self.divergences.extend(scored.kl);
        self.same_first += u64::from(scored.same_first == Some(true));
        self.shared_several += shared_several;
        let mean = &mut self.by_position[scored.position - 1];
        mean.nll += scored.nll / self.chunks as f64;
        mean.kl = mean.kl.zip(scored.kl).map(|(sum, kl)| sum + kl / self.chunks as f64);
    }

    fn finish(mut self) -> Measurement {
        let count = self.tokens as f64;
        self.divergences.sort_unstable_by(f64::total_cmp);
        let sorted = &self.divergences;
        let compared = |value: f64| self.compared.then_some(value);
        Measurement {
            perplexity: (self.nll / count).exp(),
            reference_perplexity: compared((self.reference_nll / count).exp()),
            kl_mean: compared(sorted.iter().sum::<f64>() / count),
            kl_median: quantile(sorted, 0.5),
            kl_p99: quantile(sorted, 0.99),
            kl_max: sorted.last().copied(),
            top1: compared(self.same_first as f64 / count),
            top5: compared(self.shared_several / count),
            tokens: self.tokens,
            chunk: self.chunk,
            by_position: self.by_position,
        }
    }
}
