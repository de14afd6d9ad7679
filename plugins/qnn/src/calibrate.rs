//! Ranges of activations: the float graph runs on the processor over sample text, and tells the least and the largest of every value.

use std::path::Path;

use drophammer_forge::{Recipe, failure};
use drophammer_infer::Tokenizer;
use drophammer_infer::measure::CALIBRATION_TEXT;
use drophammer_models::Checkpoint;
use drophammer_models::export::onnx::{FixedExport, Importances, Range, Ranges, Step, Weights};
use drophammer_ort::{failed, graph};
use drophammer_sdk::{BackendError, ErrorCode, Goal, HostInfo, JobContext, Result};

use crate::provider;
use crate::step::{self, Cache, Shape};

/// Most samples that are run.
const SAMPLES: usize = 32;
/// Tokens that the graph takes at a time; a sample is two times as long, so that its second half sees a cache.
const CHUNK: u32 = 64;
/// Tokens of a sample.
const SAMPLE: usize = 2 * CHUNK as usize;

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
        let told = format!(
            "activation ranges are those of {} samples of {SAMPLE} tokens from {source}",
            tokens.len()
        );
        Ok(Self { tokens, told })
    }

    /// Numbers that look random and are the same everywhere.
    fn random(vocabulary: u32) -> Self {
        let mut state = 0x9E37_79B9_7F4A_7C15_u64;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 33) as u32 % vocabulary.max(1)
        };
        let tokens = (0..SAMPLES).map(|_| (0..SAMPLE).map(|_| next()).collect()).collect();
        let told = "activation ranges are those of random tokens, since the model has no tokenizer: real text may need others";
        Self { tokens, told: told.into() }
    }
}

/// Samples from all over a text.
fn spread(ids: &[u32]) -> Vec<Vec<u32>> {
    let whole: Vec<&[u32]> = ids.chunks_exact(SAMPLE).collect();
    let count = whole.len().min(SAMPLES);
    (0..count).map(|number| whole[number * whole.len() / count].to_vec()).collect()
}

/// The ranges that samples show. `place` is a directory for the float graph and its weights; it is removed in the end.
///
/// # Errors
/// For models that the form does not express, and when the graph cannot be written or run.
pub(crate) fn ranges(
    host: &HostInfo,
    checkpoint: &Checkpoint,
    samples: &Samples,
    unseen: f32,
    place: &Path,
    job: &dyn JobContext,
) -> Result<Ranges> {
    let in_model = |error: &drophammer_models::Error| failure::of_model(checkpoint.source().root(), error);
    let stem = "calibration";
    let steps = [Step { stem, tokens: CHUNK }];
    let export =
        FixedExport::new(checkpoint, &steps, CHUNK, Weights::Floats).map_err(|error| in_model(&error))?;
    let too_large = |fault: drophammer_formats::Fault| {
        BackendError::new(ErrorCode::UnsupportedInput, fault.to_string()).with_help(fault.help())
    };
    let (layout, values) = export.watched().map_err(too_large)?;
    let items = export.items(&Importances::new()).map_err(|error| failure::of_pass(&error))?;
    let recipe =
        Recipe::new("qnn calibration", env!("CARGO_PKG_VERSION"), "fp32").with_source(checkpoint.source())?;
    let io =
        |error: std::io::Error| BackendError::new(ErrorCode::Failed, format!("{}: {error}", place.display()));
    std::fs::create_dir_all(place).map_err(io)?;
    drophammer_forge::run(place, &layout, &items, &recipe, job)?;
    drop(items);
    let environment = provider::open(host)?;
    let threads = job.budgets().threads.max(1) as usize;
    let mut session = graph::open(environment, &place.join(format!("{stem}.onnx")), threads)?;
    let interface = export.interface();
    let shape = Shape { tokens: CHUNK as usize, past: CHUNK as usize, unseen };
    let mut seen = Ranges::new();
    for (number, sample) in samples.tokens.iter().enumerate() {
        job.check()?;
        job.progress("calibrating", "", number as u64, samples.tokens.len() as u64);
        let mut cache = Cache::new(&interface, shape.past);
        for chunk in sample.chunks_exact(CHUNK as usize) {
            let look = |outputs: &ort::session::SessionOutputs<'_>| {
                let number = |name: String| -> Result<f32> {
                    let value = outputs.get(&name).ok_or_else(|| untold(&name))?;
                    let (_, value) = value
                        .try_extract_tensor::<f32>()
                        .map_err(|error| failed("a range cannot be read", &error))?;
                    value.first().copied().filter(|value| value.is_finite()).ok_or_else(|| untold(&name))
                };
                for value in &values {
                    let range = Range {
                        low: number(format!("{value}/low"))?,
                        high: number(format!("{value}/high"))?,
                    };
                    let known = seen.entry(value.clone()).or_insert(range);
                    *known = known.with(range);
                }
                Ok(())
            };
            if cache.length < shape.past {
                step::run(&mut session, &interface, &shape, &mut cache, chunk, look)?;
            } else {
                // The cache is full: these tokens' own keys need not be kept.
                step::look(&mut session, &interface, &shape, &cache, chunk, look)?;
            }
        }
    }
    drop(session);
    std::fs::remove_dir_all(place).map_err(io)?;
    Ok(seen)
}

fn untold(name: &str) -> BackendError {
    BackendError::new(ErrorCode::Failed, format!("the range {name} is not a number"))
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
    fn random_samples_are_always_the_same_and_within_the_vocabulary() {
        let samples = Samples::random(100);
        assert_eq!(samples, Samples::random(100));
        assert!(samples.tokens.iter().flatten().all(|token| *token < 100));
        assert!(samples.told.contains("random"));
    }
}
