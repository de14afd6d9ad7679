//! What is known of activations: the float graph runs on the processor over sample text, and tells the least and the largest of every
//! value, how large its numbers are, and how those go together that matrices are multiplied with.
//!
//! ONNX Runtime runs it, not the native engine. Codes need a range for every value of the graph that is compiled, and most of them are
//! that graph's alone: a rotation's halves, scores before and under their mask, what a norm divides by. The native engine never has
//! them (it keeps scores of one page, and norms, gates and rotations within one step); from what it does have, the rest could only be
//! bounded, and a bound twice too wide costs a bit. Where both have a value, as logits, conformance holds them equal within 2e-3.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use drophammer_forge::{Recipe, failure};
use drophammer_formats::layout::Layout;
use drophammer_infer::Tokenizer;
use drophammer_infer::measure::CALIBRATION_TEXT;
use drophammer_models::Checkpoint;
use drophammer_models::description::ModelKind;
use drophammer_models::export::onnx::{
    FixedExport, Halves, Importances, Inputs, Range, Ranges, Step, WATCH_HIGH, WATCH_LOW, WATCH_SQUARE,
    Watched, Weights,
};
use drophammer_ort::{failed, graph};
use drophammer_quant::compensate::Products;
use drophammer_sdk::{BackendError, ErrorCode, Goal, HostInfo, JobContext, Result};

use ort::session::SessionOutputs;

use crate::provider;
use crate::scheme::{Reach, Scheme};
use crate::step::{self, Cache, Shape};

/// Most samples that are run.
const SAMPLES: usize = 32;
/// Tokens that the graph takes at a time; a sample is two times as long, so that its second half sees a cache.
const CHUNK: u32 = 64;
/// Tokens of a sample.
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
    fn random(vocabulary: u32) -> Self {
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
#[derive(Default)]
struct Seen {
    ends: BTreeMap<String, Ends>,
    sums: BTreeMap<String, Vec<f32>>,
}

impl Seen {
    /// Takes what the graph told of a chunk.
    fn take(&mut self, watched: &Watched, outputs: &SessionOutputs<'_>) -> Result<()> {
        let numbers = |name: &str| -> Result<&[f32]> {
            let value = outputs.get(name).ok_or_else(|| untold(name))?;
            let told = value.try_extract_tensor::<f32>();
            Ok(told.map_err(|error| failed("what a value is cannot be read", &error))?.1)
        };
        for value in &watched.values {
            let end = |name: String| {
                let number = numbers(&name)?.first().copied();
                number.filter(|number| number.is_finite()).ok_or_else(|| untold(&name))
            };
            let range = Range {
                low: end(format!("{value}{WATCH_LOW}"))?,
                high: end(format!("{value}{WATCH_HIGH}"))?,
            };
            let square = end(format!("{value}{WATCH_SQUARE}"))?;
            let ends = Ends::add(self.ends.get(value).copied(), range, square);
            self.ends.insert(value.clone(), ends);
        }
        for multiplied in &watched.multiplied {
            let sums = self.sums.entry(multiplied.value.clone()).or_default();
            sums.resize(Products::len(multiplied.columns), 0.0);
            let mut rest = sums.as_mut_slice();
            for output in multiplied.outputs() {
                let window = numbers(&output)?;
                let (own, later) = rest.split_at_mut_checked(window.len()).ok_or_else(|| untold(&output))?;
                own.iter_mut().zip(window).for_each(|(sum, x)| *sum += x);
                rest = later;
            }
        }
        Ok(())
    }

    fn done(self, watched: &Watched, scheme: &Scheme) -> Result<Calibration> {
        let halves = if scheme.mixes() { self.halves(watched) } else { Halves::new() };
        let reach = scheme.reach;
        let ranges = self.ends.into_iter().map(|(value, ends)| (value, ends.range(reach))).collect();
        let columns = |value: &str| watched.multiplied.iter().find(|m| m.value == value).map(|m| m.columns);
        let products = self.sums.into_iter().map(|(value, sums)| {
            let products = columns(&value).and_then(|columns| Products::new(columns, sums));
            Ok((value.clone(), Arc::new(products.ok_or_else(|| untold(&value))?)))
        });
        Ok(Calibration { ranges, halves, inputs: products.collect::<Result<_>>()? })
    }

    /// Values of which the codes would leave too little.
    fn halves(&self, watched: &Watched) -> Halves {
        let below = |value: &&String, least: f64| {
            self.ends.get(*value).and_then(|ends| ends.codes()).is_some_and(|codes| codes < least)
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
    host: &HostInfo,
    checkpoint: &Checkpoint,
    samples: &Samples,
    scheme: &Scheme,
    place: &Path,
    job: &dyn JobContext,
) -> Result<Calibration> {
    let export = float_graph(checkpoint)?;
    let watched = export.watched(scheme.weights).map_err(|fault| too_large(&fault))?;
    let mut seen = Seen::default();
    let floats = Floats { host, checkpoint, export: &export, unseen: scheme.unseen, place };
    floats.run(&watched.layout, &samples.tokens, job, |outputs| seen.take(&watched, outputs))?;
    seen.done(&watched, scheme)
}

/// The file of the float graph, without `.onnx`.
const STEM: &str = "calibration";

/// The graph that tells about a model.
///
/// # Errors
/// For models that the form does not express.
pub(crate) fn float_graph(checkpoint: &Checkpoint) -> Result<FixedExport<'_>> {
    let description = checkpoint.description();
    let steps = [Step { stem: STEM, tokens: CHUNK.min(description.context) }];
    FixedExport::new(checkpoint, &steps, CHUNK, Weights::Floats, &Halves::new())
        .map_err(|error| failure::of_model(checkpoint.source().root(), &error))
}

/// A graph that no file holds.
pub(crate) fn too_large(fault: &drophammer_formats::Fault) -> BackendError {
    BackendError::new(ErrorCode::UnsupportedInput, fault.to_string()).with_help(fault.help())
}

/// A float graph that is to be run over samples.
pub(crate) struct Floats<'a> {
    pub(crate) host: &'a HostInfo,
    pub(crate) checkpoint: &'a Checkpoint,
    /// [`float_graph`]'s.
    pub(crate) export: &'a FixedExport<'a>,
    /// See [`Scheme::unseen`].
    pub(crate) unseen: f32,
    /// A directory for the graph and its weights; it is removed in the end.
    pub(crate) place: &'a Path,
}

impl Floats<'_> {
    /// Writes the graph as `layout` has it, runs it, and gives every chunk's outputs to `take`.
    ///
    /// # Errors
    /// When it cannot be written or run, and those of `take`.
    pub(crate) fn run(
        &self,
        layout: &Layout,
        samples: &[Vec<u32>],
        job: &dyn JobContext,
        mut take: impl FnMut(&SessionOutputs<'_>) -> Result<()>,
    ) -> Result<()> {
        let Self { host, checkpoint, export, unseen, place } = self;
        let description = checkpoint.description();
        let encoder = description.kind == ModelKind::Encoder;
        let chunk = CHUNK.min(description.context);
        let none = (Importances::new(), Inputs::new());
        let items = export.items(&none.0, &none.1).map_err(|error| failure::of_pass(&error))?;
        let recipe = Recipe::new("qnn calibration", env!("CARGO_PKG_VERSION"), "fp32")
            .with_source(checkpoint.source())?;
        let io = |error: std::io::Error| {
            BackendError::new(ErrorCode::Failed, format!("{}: {error}", place.display()))
        };
        std::fs::create_dir_all(place).map_err(io)?;
        drophammer_forge::run(place, layout, &items, &recipe, job)?;
        drop(items);
        let environment = provider::open(host)?;
        let threads = job.budgets().threads.max(1) as usize;
        let mut session = graph::open(environment, &place.join(format!("{STEM}.onnx")), threads)?;
        let interface = export.interface();
        let past = if encoder { 0 } else { CHUNK as usize };
        let shape = Shape { tokens: chunk as usize, past, unseen: *unseen };
        // Samples are no longer than positions reach. An encoder's are pieces of text, each for itself, shorter by one than the graph,
        // which then shows what its mask adds where nothing is to be seen.
        let piece = if encoder { shape.tokens.saturating_sub(1).max(1) } else { shape.tokens };
        let count = samples.len();
        for (number, sample) in samples.iter().enumerate() {
            job.check()?;
            job.progress("calibrating", "", number as u64, count as u64);
            let mut cache = Cache::new(&interface, shape.past);
            let sample =
                if encoder { sample } else { &sample[..sample.len().min(description.context as usize)] };
            for chunk in sample.chunks_exact(piece) {
                if cache.length < shape.past {
                    step::run(&mut session, &interface, &shape, &mut cache, chunk, &mut take)?;
                } else {
                    // The cache is full, or there is none: these tokens' own keys need not be kept.
                    step::look(&mut session, &interface, &shape, &cache, chunk, &mut take)?;
                }
            }
        }
        drop(session);
        std::fs::remove_dir_all(place).map_err(io)
    }
}

fn untold(name: &str) -> BackendError {
    BackendError::new(ErrorCode::Failed, format!("what the graph tells as {name} is not a number"))
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
