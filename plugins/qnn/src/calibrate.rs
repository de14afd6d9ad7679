//! What is known of activations: the native engine runs the float graph over sample text, and sees the least and the largest of every
//! value, how large its numbers are, and how those go together that matrices are multiplied with.
//!
//! It runs the very graph that is to be compiled, not its own steps: codes need a range for every value of that graph, and many are only
//! there, as a rotation's halves, scores before and under their mask, and what a gate is multiplied with.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use drophammer_forge::{Recipe, failure};
use drophammer_infer::Tokenizer;
use drophammer_infer::measure::CALIBRATION_TEXT;
use drophammer_models::Checkpoint;
use drophammer_models::description::ModelKind;
use drophammer_models::export::onnx::{
    FixedExport, Halves, Importances, Inputs, Range, Ranges, Step, Watched, Weights,
};
use drophammer_native::graph::{Evaluator, Tensor};
use drophammer_quant::compensate::Products;
use drophammer_sdk::{BackendError, ErrorCode, Goal, JobContext, Result};

use crate::scheme::{Reach, Scheme};
use crate::step::{self, Cache, Given, Numbers, Outputs, Runner, Shape};

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
    /// Of a chunk's numbers: their range, and the mean of their squares.
    fn of(numbers: &[f32]) -> (Range, f32) {
        let mut range = Range { low: f32::INFINITY, high: f32::NEG_INFINITY };
        let mut squares = 0.0;
        for part in numbers.chunks(1 << 12) {
            let mut sum = 0.0;
            for &x in part {
                range = Range { low: range.low.min(x), high: range.high.max(x) };
                sum += x * x;
            }
            squares += f64::from(sum);
        }
        (range, (squares / numbers.len().max(1) as f64) as f32)
    }

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
        let (range, square) = Ends::of(numbers);
        if square.is_finite() && range.low.is_finite() {
            *known = Some(Ends::add(*known, range, square));
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

/// A float graph that is to be run over samples.
pub(crate) struct Floats<'a> {
    pub(crate) checkpoint: &'a Checkpoint,
    /// [`float_graph`]'s.
    pub(crate) export: &'a FixedExport<'a>,
    /// See [`Scheme::unseen`].
    pub(crate) unseen: f32,
    /// A directory for the graph and its weights; it is removed in the end.
    pub(crate) place: &'a Path,
}

/// The native engine, and who is to see values.
struct Shown<'a, S> {
    evaluator: &'a mut Evaluator,
    see: S,
}

impl<S: FnMut(&str, &[f32])> Runner for Shown<'_, S> {
    fn run<R>(&mut self, inputs: Vec<Given<'_>>, take: impl FnOnce(&dyn Outputs) -> Result<R>) -> Result<R> {
        let tensor = |Given { name, shape, numbers }: Given<'_>| {
            let tensor = match numbers {
                Numbers::Floats(numbers) => Tensor::floats(shape, numbers.into_owned()),
                Numbers::Integers(numbers) => {
                    Tensor::integers(shape, numbers.into_iter().map(i64::from).collect())
                }
            };
            let tensor = tensor
                .ok_or_else(|| BackendError::new(ErrorCode::Failed, format!("{name} is of another shape")));
            Ok((name, tensor?))
        };
        let inputs = inputs.into_iter().map(tensor).collect::<Result<Vec<_>>>()?;
        take(&self.evaluator.run(inputs, &mut self.see)?)
    }
}

impl Outputs for BTreeMap<String, Tensor> {
    fn floats(&self, name: &str) -> Result<&[f32]> {
        self.get(name).and_then(Tensor::as_floats).ok_or_else(|| step::lacks(name))
    }
}

impl Floats<'_> {
    /// Writes the graph, and runs it: `see` is shown every value of every chunk. Gives the engine, which has summed what the rows of
    /// `multiplied` multiply to.
    ///
    /// # Errors
    /// When it cannot be written or run.
    pub(crate) fn run(
        &self,
        multiplied: &[(String, usize)],
        samples: &[Vec<u32>],
        job: &dyn JobContext,
        see: impl FnMut(&str, &[f32]),
    ) -> Result<Evaluator> {
        let Self { checkpoint, export, unseen, place } = self;
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
        let layout = export.layout(None).map_err(|fault| {
            BackendError::new(ErrorCode::UnsupportedInput, fault.to_string()).with_help(fault.help())
        })?;
        std::fs::create_dir_all(place).map_err(io)?;
        drophammer_forge::run(place, &layout, &items, &recipe, job)?;
        drop(items);
        let threads = job.budgets().threads.max(1) as usize;
        let mut evaluator = Evaluator::open(&place.join(format!("{STEM}.onnx")), threads)?;
        evaluator.count(multiplied);
        let mut runner = Shown { evaluator: &mut evaluator, see };
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
                    step::run(&mut runner, &interface, &shape, &mut cache, chunk, |_| Ok(()))?;
                } else {
                    // The cache is full, or there is none: these tokens' own keys need not be kept.
                    step::look(&mut runner, &interface, &shape, &cache, chunk, |_| Ok(()))?;
                }
            }
        }
        // What is mapped may be removed.
        std::fs::remove_dir_all(place).map_err(io)?;
        Ok(evaluator)
    }
}

fn untold(name: &str) -> BackendError {
    BackendError::new(ErrorCode::Failed, format!("{name} of the float graph is not a finite number"))
        .with_help("The model overflows float32 on the calibration text: check its weights.")
}

#[cfg(test)]
mod tests {
    use drophammer_native::Native;
    use drophammer_sdk::{Backend, Batch, HostInfo, LoadRequest, Unwatched};

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

    /// What the native engine's own session makes of the tokens of one sequence.
    fn session_outputs(path: &Path, tokens: &[u32]) -> Vec<f32> {
        let request = LoadRequest { path: path.to_owned(), reference: true, ..LoadRequest::default() };
        let mut session = Native::open(HostInfo::default())
            .unwrap()
            .load(&request, Box::new(Unwatched { threads: 2 }))
            .unwrap();
        let positions: Vec<u32> = (0..tokens.len() as u32).collect();
        let sequences = vec![0; tokens.len()];
        let mut output = vec![0.0; tokens.len() * session.limits().output_width as usize];
        let batch = Batch { tokens, positions: &positions, sequences: &sequences, outputs: &positions };
        session.forward(batch, &mut output).unwrap();
        output
    }

    #[test]
    fn the_float_graph_of_every_architecture_gives_what_the_engines_own_session_gives() {
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/arch");
        let mut compared = 0;
        for entry in std::fs::read_dir(fixtures).unwrap() {
            let path = entry.unwrap().path();
            if !path.is_dir() {
                continue;
            }
            let checkpoint = drophammer_forge::open(&path, &[]).unwrap();
            let description = checkpoint.description();
            // Not in graphs of fixed shapes: rotations that change within the cache, more experts than are computed at once.
            let Ok(export) = float_graph(&checkpoint) else { continue };
            let tokens = Samples::random(description.vocabulary).some(1).tokens;
            let encoder = description.kind == ModelKind::Encoder;
            let piece = CHUNK.min(description.context) as usize - usize::from(encoder);
            let all = tokens[0].len();
            let all = if encoder { all } else { all.min(description.context as usize) };
            let count = all / piece * piece;
            let due: Vec<f32> = if encoder {
                tokens[0][..count].chunks(piece).flat_map(|piece| session_outputs(&path, piece)).collect()
            } else {
                session_outputs(&path, &tokens[0][..count])
            };
            let place = tempfile::tempdir().unwrap();
            let floats = Floats {
                checkpoint: &checkpoint,
                export: &export,
                unseen: -1e4,
                place: &place.path().join("x"),
            };
            let mut given = Vec::new();
            let name = if description.head.is_some() { "logits" } else { "last_hidden_state" };
            let run = floats.run(&[], &tokens, &Unwatched { threads: 2 }, |value, numbers| {
                if value == name {
                    given.extend_from_slice(&numbers[..due.len() / count * piece]);
                }
            });
            run.unwrap();
            assert_eq!(given.len(), due.len(), "{}", path.display());
            let largest = due.iter().fold(1f32, |largest, x| largest.max(x.abs()));
            let apart = given.iter().zip(&due).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
            println!("{:<24} {:.1e} of {largest:.1}", path.file_name().unwrap().display(), apart);
            assert!(apart <= 1e-4 * largest, "{}: {apart} of {largest}", path.display());
            compared += 1;
        }
        assert!(compared > 40, "{compared} architectures");
    }
}
