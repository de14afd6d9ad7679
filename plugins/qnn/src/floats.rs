//! The float graph on the native engine: samples go through it in chunks, and every value is shown.

use std::collections::BTreeMap;
use std::path::Path;

use drophammer_forge::{Recipe, failure};
use drophammer_models::Checkpoint;
use drophammer_models::description::ModelKind;
use drophammer_models::export::onnx::{FixedExport, Halves, Importances, Inputs, Step, Weights};
use drophammer_native::graph::{Evaluator, Tensor};
use drophammer_sdk::{BackendError, ErrorCode, JobContext, Result};

use crate::forge;
use crate::step::{self, Cache, Given, Numbers, Outputs, Runner, Shape};

/// Tokens that the graph takes at a time.
pub(crate) const CHUNK: u32 = 64;
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
        let layout = forge::layout(export, None)?;
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

#[cfg(test)]
mod tests {
    use drophammer_native::Native;
    use drophammer_sdk::{Backend, Batch, HostInfo, LoadRequest, Unwatched};

    use super::*;
    use crate::calibrate::Samples;

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
            assert!(apart <= 3e-5 * largest, "{}: {apart} of {largest}", path.display());
            compared += 1;
        }
        assert!(compared > 40, "{compared} architectures");
    }
}
