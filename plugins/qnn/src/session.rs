//! A loaded model: its contexts, and one cache per sequence.

use drophammer_models::export::onnx::COMMON;
use drophammer_ort::provider as device;
use drophammer_sdk::{
    BackendError, Batch, ErrorCode, HostInfo, JobContext, Limits, LoadRequest, LogLevel, OutputKind, Result,
    Session,
};
use ort::session::Session as OrtModel;

use crate::artifact::Artifact;
use crate::provider::{self, EMULATION, NAME};
use crate::step::{self, Cache, Outputs, Shape};

/// Most tokens of one call.
const MOST_BATCH: u32 = 2048;
/// What the runtime's libraries take besides a model.
const RUNTIME_BYTES: u64 = 160 << 20;

/// A model on the NPU, real or imitated.
pub(crate) struct QnnSession {
    artifact: Artifact,
    /// The graphs, the one of most tokens first.
    steps: Vec<(Shape, OrtModel)>,
    limits: Limits,
    sequences: Vec<Cache>,
}

fn invalid(message: String) -> BackendError {
    BackendError::new(ErrorCode::InvalidRequest, message)
}

fn no_gaps() -> BackendError {
    BackendError::new(ErrorCode::UnsupportedInput, "this cache keeps sequences from their beginning")
        .with_help("Remove the sequence's tail, or all of it, and run the prompt again.")
}

impl QnnSession {
    /// Loads the contexts of the folder at the request's path.
    pub(crate) fn load(host: &HostInfo, request: &LoadRequest, job: &dyn JobContext) -> Result<Self> {
        job.check()?;
        if !request.adapters.is_empty() {
            let message = "adapters cannot be attached to a compiled context";
            return Err(BackendError::new(ErrorCode::UnsupportedInput, message)
                .with_help("Merge the adapter while the artifact is made."));
        }
        let (folder, artifact) = Artifact::read(&request.path)?;
        let sequences = request.max_sequences.max(1);
        let binaries = artifact.steps.iter().flat_map(|step| &step.graph.files);
        let binaries: u64 =
            binaries.filter_map(|(name, _)| std::fs::metadata(folder.join(name)).ok()).map(|m| m.len()).sum();
        check_memory(&artifact, binaries, sequences, job)?;
        let environment = provider::open(host)?;
        let devices = device::devices(environment, NAME);
        let real = devices.iter().any(|device| device::hardware(device) == device::Hardware::Neural);
        let mut steps = Vec::new();
        for step in &artifact.steps {
            let file = folder.join(&step.graph.model);
            let model = provider::open_context(environment, &artifact.target, &file)?;
            let tokens = step.tokens as usize;
            let past = if artifact.interface.encoder { 0 } else { artifact.context as usize };
            let shape = Shape { tokens, past, unseen: artifact.unseen };
            steps.push((shape, model));
        }
        steps.sort_by_key(|(shape, _)| std::cmp::Reverse(shape.tokens));
        let where_ = if real { "on this machine's NPU" } else { EMULATION };
        let told = format!("{}, compiled for {}: {where_}", folder.display(), artifact.target.soc);
        job.log(if real { LogLevel::Info } else { LogLevel::Warning }, &told);
        let limits = Limits {
            context: request.context.unwrap_or(artifact.context).clamp(1, artifact.context),
            max_sequences: sequences,
            max_batch: request.max_batch.unwrap_or(MOST_BATCH).clamp(1, MOST_BATCH),
            output_width: artifact.hidden.unwrap_or(artifact.vocabulary),
            output_kind: if artifact.hidden.is_some() { OutputKind::Hidden } else { OutputKind::Logits },
        };
        let sequences = (0..sequences).map(|_| Cache::default()).collect();
        Ok(Self { artifact, steps, limits, sequences })
    }

    fn sequence(&self, sequence: u32) -> Result<&Cache> {
        self.limits.check_sequence(sequence)?;
        Ok(&self.sequences[sequence as usize])
    }

    /// Runs tokens of one sequence; gives every token's output row to `take`.
    fn run(&mut self, sequence: usize, tokens: &[u32], mut take: impl FnMut(usize, &[f32])) -> Result<()> {
        let width = self.limits.output_width as usize;
        let name = if self.artifact.hidden.is_some() { "last_hidden_state" } else { "logits" };
        let Some(cache) = self.sequences.get_mut(sequence) else { return Ok(()) };
        if cache.is_unmade() {
            *cache = Cache::new(&self.artifact.interface, self.artifact.context as usize);
        }
        let mut done = 0;
        while done < tokens.len() {
            let left = tokens.len() - done;
            // A graph that is more than filled up; failing that the smallest.
            let fitting = self.steps.iter().rposition(|(shape, _)| shape.tokens >= left).unwrap_or(0);
            let Some((shape, model)) = self.steps.get_mut(fitting) else { break };
            let part = &tokens[done..done + left.min(shape.tokens)];
            let give = |outputs: &dyn Outputs| {
                let rows = outputs.floats(name)?;
                if rows.len() != shape.tokens * width {
                    return Err(step::lacks(name));
                }
                let rows = rows.chunks_exact(width).take(part.len()).enumerate();
                if !self.artifact.interface.common {
                    rows.for_each(|(token, row)| take(done + token, row));
                    return Ok(());
                }
                for ((token, row), common) in rows.zip(outputs.floats(COMMON)?) {
                    let whole: Vec<f32> = row.iter().map(|x| x + common).collect();
                    take(done + token, &whole);
                }
                Ok(())
            };
            let interface = &self.artifact.interface;
            if interface.encoder {
                step::look(model, interface, shape, cache, part, give)?;
            } else {
                step::run(model, interface, shape, cache, part, give)?;
            }
            done += part.len();
        }
        Ok(())
    }
}

/// Refuses what would take more than the job may use.
fn check_memory(artifact: &Artifact, binaries: u64, sequences: u32, job: &dyn JobContext) -> Result<()> {
    let caches = artifact.cache_floats().saturating_mul(4).saturating_mul(sequences.into());
    let bytes = RUNTIME_BYTES.saturating_add(2 * binaries).saturating_add(caches);
    let allowed = job.budgets().memory_bytes;
    if allowed == 0 || bytes <= allowed {
        return Ok(());
    }
    let message = format!(
        "the contexts and caches of {sequences} sequences of {} tokens take about {bytes} bytes, more than the {allowed} this job may use",
        artifact.context
    );
    Err(BackendError::new(ErrorCode::OutOfResources, message)
        .with_help("Ask for fewer sequences, make the artifact for a shorter context, or allow more memory."))
}

impl Session for QnnSession {
    fn limits(&self) -> Limits {
        self.limits
    }

    fn forward(&mut self, batch: Batch<'_>, output: &mut [f32]) -> Result<()> {
        batch.validate(&self.limits, output.len())?;
        batch.check_vocabulary(self.artifact.vocabulary)?;
        let width = self.limits.output_width as usize;
        let mut places = vec![None; batch.tokens.len()];
        for (row, &token) in batch.outputs.iter().enumerate() {
            places[token as usize] = Some(row);
        }
        let mut by_sequence: Vec<Vec<usize>> = vec![Vec::new(); self.sequences.len()];
        for (token, &sequence) in batch.sequences.iter().enumerate() {
            by_sequence[sequence as usize].push(token);
        }
        // Everything is checked before anything changes.
        for (cache, tokens) in self.sequences.iter().zip(&by_sequence) {
            let mut due = cache.length as u32..;
            if let Some((&token, due)) =
                tokens.iter().zip(&mut due).find(|(token, due)| batch.positions[**token] != *due)
            {
                let position = batch.positions[token];
                return Err(invalid(format!("position {position} where {due} continues the sequence")));
            }
        }
        for (sequence, tokens) in by_sequence.iter().enumerate() {
            let ids: Vec<u32> = tokens.iter().map(|&token| batch.tokens[token]).collect();
            self.run(sequence, &ids, |token, row| {
                if let Some(place) = places[tokens[token]] {
                    output[place * width..(place + 1) * width].copy_from_slice(row);
                }
            })?;
        }
        Ok(())
    }

    fn keep(&mut self, sequence: u32, from: u32, to: u32) -> Result<()> {
        let length = self.sequence(sequence)?.length;
        let nothing = from >= to.min(length as u32);
        if from > 0 && !nothing {
            return Err(no_gaps());
        }
        self.sequences[sequence as usize].length = if nothing { 0 } else { length.min(to as usize) };
        Ok(())
    }

    fn remove(&mut self, sequence: u32, from: u32, to: u32) -> Result<()> {
        let length = self.sequence(sequence)?.length as u32;
        if from >= length || from >= to {
            return Ok(());
        }
        if to < length {
            return Err(no_gaps());
        }
        // What lies behind the length is masked and written over.
        self.sequences[sequence as usize].length = from as usize;
        Ok(())
    }

    fn copy(&mut self, source: u32, target: u32, from: u32, to: u32) -> Result<()> {
        self.sequence(target)?;
        let mut copied = self.sequence(source)?.clone();
        if from > 0 {
            return Err(no_gaps());
        }
        if source != target {
            copied.length = copied.length.min(to as usize);
            self.sequences[target as usize] = copied;
        }
        Ok(())
    }
}
