//! What is known of activations: the native engine runs the float graph over sample text, and sees the least and the largest of every
//! value, how large its numbers are, and how those go together that matrices are multiplied with.
//!
//! It runs the very graph that is to be compiled, not its own steps: codes need a range for every value of that graph, and many are only
//! there, as a rotation's halves, scores before and under their mask, and what a gate is multiplied with.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use drophammer_infer::Tokenizer;
use drophammer_infer::measure::CALIBRATION_TEXT;
use drophammer_models::Checkpoint;
use drophammer_models::export::onnx::{Halves, Inputs, Range, Ranges, Watched};
use drophammer_native::graph::{Evaluator, Extent};
use drophammer_quant::compensate::Products;
use drophammer_sdk::{BackendError, ErrorCode, Goal, JobContext, Result};

use crate::floats::{CHUNK, Floats, float_graph};
use crate::scheme::{Reach, Scheme};

/// Most samples that are run.
const SAMPLES: usize = 32;
/// Tokens of a sample: two chunks, so that the second sees a cache.
const SAMPLE: usize = 2 * CHUNK as usize;
/// Half precision is finer than 16-bit codes where the root mean square spans fewer: its step at 2048 times the codes' is theirs. So sums,
/// which cost nothing else, are halves below.
const CODES_OF_SUMS: f64 = 2048.0;
/// What a matrix is multiplied with is a half below so many codes only: the matrix is then stored in 16 bits.
const CODES_OF_FACTORS: f64 = 256.0;
/// The largest number that half precision is trusted with: sample text may not hold the largest of all.
const LARGEST_HALF: f32 = 32_768.0;

/// Token ids to run, and where they are from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Samples {
    pub(crate) tokens: Vec<Vec<u32>>,
    pub(crate) told: String,
}

impl Samples {
    /// From the text that the goal's option `calibration` names, or the program's own; random ones for a model without a tokenizer.
    ///
    /// # Errors
    /// When the text cannot be read, or the tokenizer fails on it.
    pub(crate) fn of(checkpoint: &Checkpoint, goal: &Goal) -> Result<Self> {
        let vocabulary = checkpoint.description().vocabulary;
        let named = goal.options.get("calibration").and_then(|value| value.as_str());
        if !checkpoint.has_tokenizer() {
            return Ok(Self::random(vocabulary));
        }
        let invalid = |message: String| BackendError::new(ErrorCode::InvalidRequest, message);
        let text = match named {
            Some(path) => std::fs::read_to_string(path).map_err(|error| {
                invalid(format!("option `calibration`: {path}: {error}"))
                    .with_help("Name a file of plain text.")
            })?,
            None => CALIBRATION_TEXT.to_owned(),
        };
        let unusable = |error: drophammer_infer::TokenizerError| {
            BackendError::new(ErrorCode::InvalidInput, error.to_string())
                .with_help("Ask for the model without its tokenizer (--no-tokenizer) if it cannot be mended.")
        };
        let tokenizer = Tokenizer::from_source(checkpoint.source()).map_err(unusable)?;
        let mut ids = tokenizer.encode(&text, false).map_err(unusable)?;
        ids.retain(|id| *id < vocabulary);
        let source = named.map_or("the program's own text", |_| "the given text");
        let tokens = spread(&ids);
        if tokens.is_empty() {
            return Err(invalid(format!(
                "the calibration text has {} tokens; {SAMPLE} are the least",
                ids.len()
            ))
            .with_help("Name a longer text."));
        }
        let told = format!("{} samples of {SAMPLE} tokens from {source}", tokens.len());
        Ok(Self { tokens, told })
    }

    /// Numbers that look random and are the same everywhere.
    pub(crate) fn random(vocabulary: u32) -> Self {
        let mut state = 0x9E37_79B9_7F4A_7C15_u64;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 33) as u32 % vocabulary.max(1)
        };
        let tokens = (0..SAMPLES).map(|_| (0..SAMPLE).map(|_| next()).collect()).collect();
        let told = "random tokens, since the model has no tokenizer: real text may need others";
        Self { tokens, told: told.into() }
    }

    /// At most so many of them.
    pub(crate) fn some(mut self, count: usize) -> Self {
        let every = self.tokens.len().div_ceil(count).max(1);
        self.tokens = self.tokens.into_iter().step_by(every).collect();
        self.told = format!("{} of {}", self.tokens.len(), self.told);
        self
    }
}

/// Samples from all over a text.
fn spread(ids: &[u32]) -> Vec<Vec<u32>> {
    let whole: Vec<&[u32]> = ids.chunks_exact(SAMPLE).collect();
    let count = whole.len().min(SAMPLES);
    (0..count).map(|number| whole[number * whole.len() / count].to_vec()).collect()
}

/// What running samples told.
#[derive(Debug, Default)]
pub(crate) struct Calibration {
    pub(crate) ranges: Ranges,
    /// Values that are finer in half precision than in codes.
    pub(crate) halves: Halves,
    /// Products of what matrices are multiplied with.
    pub(crate) inputs: Inputs,
}

/// The ends of a value's range, chunk after chunk.
#[derive(Debug, Clone, Copy)]
struct Ends {
    outermost: Range,
    sums: [f64; 2],
    squares: f64,
    chunks: u32,
}

impl Ends {
    fn add(known: Option<Self>, range: Range, square: f32) -> Self {
        let (sums, squares) = ([range.low.into(), range.high.into()], square.into());
        let Some(mut ends) = known else { return Self { outermost: range, sums, squares, chunks: 1 } };
        ends.outermost = ends.outermost.with(range);
        ends.sums[0] += f64::from(range.low);
        ends.sums[1] += f64::from(range.high);
        ends.squares += f64::from(square);
        ends.chunks += 1;
        ends
    }

    fn range(self, reach: Reach) -> Range {
        let [low, high] = self.sums.map(|sum| (sum / f64::from(self.chunks)) as f32);
        match reach {
            Reach::Outermost => self.outermost,
            Reach::Usual => Range { low, high },
        }
    }

    /// How many 16-bit codes the root mean square spans, where half precision holds all numbers.
    fn codes(self) -> Option<f64> {
        let Range { low, high } = self.outermost;
        let held = high.max(-low) <= LARGEST_HALF;
        let scale = self.outermost.encoding(16).scale;
        held.then(|| (self.squares / f64::from(self.chunks)).sqrt() / f64::from(scale))
    }
}

/// Everything seen so far.
struct Seen {
    ends: BTreeMap<String, Option<Ends>>,
    /// A value that is not finite.
    unfit: Option<String>,
}

impl Seen {
    fn new(watched: &Watched) -> Self {
        Self { ends: watched.values.iter().map(|value| (value.clone(), None)).collect(), unfit: None }
    }

    /// Takes a value's numbers in a chunk.
    fn take(&mut self, value: &str, numbers: &[f32]) {
        let Some(known) = self.ends.get_mut(value) else { return };
        let Extent { low, high, mean_square } = Extent::of(numbers);
        if mean_square.is_finite() {
            *known = Some(Ends::add(*known, Range { low, high }, mean_square));
        } else if self.unfit.is_none() {
            self.unfit = Some(value.to_owned());
        }
    }

    /// The evaluator has counted what values' rows multiply to.
    fn done(self, watched: &Watched, scheme: &Scheme, evaluator: &Evaluator) -> Result<Calibration> {
        if let Some(value) = self.unfit {
            return Err(untold(&value));
        }
        let halves = if scheme.mixes() { self.halves(watched) } else { Halves::new() };
        let range = |(value, ends): (String, Option<Ends>)| {
            let ends = ends.ok_or_else(|| untold(&value))?;
            Ok((value, ends.range(scheme.reach)))
        };
        let ranges = self.ends.into_iter().map(range).collect::<Result<_>>()?;
        let inputs = watched.multiplied.iter().map(|(value, columns)| {
            let products = Products::new(*columns, evaluator.products(value)).ok_or_else(|| untold(value))?;
            Ok((value.clone(), Arc::new(products)))
        });
        Ok(Calibration { ranges, halves, inputs: inputs.collect::<Result<_>>()? })
    }

    /// Values of which the codes would leave too little.
    fn halves(&self, watched: &Watched) -> Halves {
        let below = |value: &&String, least: f64| {
            let ends = self.ends.get(*value).copied().flatten();
            ends.and_then(Ends::codes).is_some_and(|codes| codes < least)
        };
        let sums = watched.sums.iter().filter(|value| below(value, CODES_OF_SUMS));
        let factors = watched.factors.iter().filter(|value| below(value, CODES_OF_FACTORS));
        sums.chain(factors).cloned().collect()
    }
}

/// What samples show. `place` is a directory for the float graph and its weights; it is removed in the end.
///
/// # Errors
/// For models that the form does not express, and when the graph cannot be written or run.
pub(crate) fn calibrate(
    checkpoint: &Checkpoint,
    samples: &Samples,
    scheme: &Scheme,
    place: &Path,
    job: &dyn JobContext,
) -> Result<Calibration> {
    let export = float_graph(checkpoint)?;
    let watched = export.watched(scheme.weights);
    let mut seen = Seen::new(&watched);
    let floats = Floats { checkpoint, export: &export, unseen: scheme.unseen, place };
    let evaluator = floats.run(&watched.multiplied, &samples.tokens, job, |value, numbers| {
        seen.take(value, numbers);
    })?;
    seen.done(&watched, scheme, &evaluator)
}

fn untold(name: &str) -> BackendError {
    BackendError::new(ErrorCode::Failed, format!("{name} of the float graph is not a finite number"))
        .with_help("The model overflows float32 on the calibration text: check its weights.")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_whole_and_come_from_all_over() {
        assert!(spread(&[0; SAMPLE - 1]).is_empty());
        let ids: Vec<u32> = (0..(SAMPLE * 64) as u32).collect();
        let samples = spread(&ids);
        assert_eq!(samples.len(), SAMPLES);
        assert_eq!(samples[0][0], 0);
        assert_eq!(samples[SAMPLES - 1][0] as usize, 62 * SAMPLE);
        assert!(samples.iter().all(|sample| sample.len() == SAMPLE));
    }

    #[test]
    fn usual_ends_are_the_mean_of_chunks_and_outermost_ones_the_widest() {
        let ranges = [(-1.0, 2.0), (-3.0, 2.0), (-2.0, 8.0)].map(|(low, high)| Range { low, high });
        let ends = ranges.iter().fold(None, |ends, range| Some(Ends::add(ends, *range, 1.0))).unwrap();
        assert_eq!(ends.range(Reach::Outermost), Range { low: -3.0, high: 8.0 });
        assert_eq!(ends.range(Reach::Usual), Range { low: -2.0, high: 4.0 });
    }

    #[test]
    fn halves_are_what_spans_few_codes_and_half_precision_holds() {
        let codes = |high: f32, square: f32| Ends::add(None, Range { low: 0.0, high }, square).codes();
        // A root mean square of 1 under a largest of 655.35 is a hundred codes.
        assert!(codes(655.35, 1.0).is_some_and(|codes| (codes - 100.0).abs() < 0.1));
        assert_eq!(codes(70_000.0, 1.0), None);
    }

    #[test]
    fn random_samples_are_always_the_same_and_within_the_vocabulary() {
        let samples = Samples::random(100);
        assert_eq!(samples, Samples::random(100));
        assert!(samples.tokens.iter().flatten().all(|token| *token < 100));
        assert!(samples.told.contains("random"));
    }
}
