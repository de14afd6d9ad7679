//! A loaded model: limits, batches cut into chunks, the cache's sequences.

use std::sync::Arc;

use drophammer_forge::failure;
use drophammer_models::description::{Description, ModelKind};
use drophammer_sdk::{
    BackendError, Batch, ErrorCode, Extension, HostInfo, JobContext, Limits, LoadRequest, LogLevel,
    OutputKind, Result, Session, calibration, profile,
};

use crate::cache::Cache;
use crate::calibration::{Asked, Calibration};
use crate::kernels::Path;
use crate::kernels::attention::Stored;
use crate::model::execute::{Engine, Token};
use crate::model::load::{Fast, Loaded, load};
use crate::model::shelf::Shelf;
use crate::profile::Profiler;
use crate::threads::{Pool, within_cores};

/// Context of a session that was not told one, where the model can take as much.
const USUAL_CONTEXT: u32 = 4096;
/// Most tokens that go through the layers together.
const CHUNK: usize = 512;
/// Most bytes of the rows of mixtures, which are as many as the experts that tokens use.
const EXPERT_ROOM: usize = 64 << 20;
/// So many tokens always go together, whatever room they take.
const FEWEST: usize = 16;
/// Most tokens of one call.
const MOST_BATCH: u32 = 2048;

/// A model that runs on the processor.
pub(crate) struct NativeSession {
    engine: Engine,
    calibration: Arc<Calibration>,
    profiler: Arc<Profiler>,
    limits: Limits,
    /// Encoders: all tokens of a call see each other, and nothing is kept.
    encoder: bool,
    vocabulary: u32,
    /// A batch as the engine takes it, and which of a chunk's tokens are wanted.
    tokens: Vec<Token>,
    outputs: Vec<u32>,
}

impl NativeSession {
    /// Loads what lies at the request's path.
    pub(crate) fn load(host: &HostInfo, request: &LoadRequest, job: &dyn JobContext) -> Result<Self> {
        job.check()?;
        let checkpoint = Arc::new(drophammer_forge::open(&request.path, &request.adapters)?);
        let description = checkpoint.description();
        let budgets = job.budgets();
        let sequences = request.max_sequences.max(1);
        let threads = within_cores(budgets.threads);
        let mut pool = Pool::new(threads).map_err(|error| {
            BackendError::new(ErrorCode::OutOfResources, format!("threads cannot be started: {error}"))
                .with_help("Close other programs or allow fewer threads.")
        })?;
        // What is kept is named by the model's own files.
        let shelf = request.adapters.is_empty().then(|| Shelf::of(host, job)).flatten();
        let fast = (!request.reference).then_some(Fast { pool: &mut pool, job, shelf });
        let Loaded { program, layers, references, inputs } =
            load(&checkpoint, fast).map_err(|error| failure::of_model(&request.path, &error))?;
        let context = context_of(description, request.context);
        let stored = stored_of(request)?;
        let cache_bytes = Cache::bytes(&layers, stored, sequences.into(), context.into());
        let out_of_memory = || {
            let message = format!(
                "{}: a cache for {sequences} sequences of {context} tokens takes {cache_bytes} bytes, more than this job may use",
                request.path.display()
            );
            BackendError::new(ErrorCode::OutOfResources, message)
                .with_help("Ask for a shorter context or fewer sequences, or allow more memory.")
        };
        if budgets.memory_bytes != 0 && cache_bytes > budgets.memory_bytes {
            return Err(out_of_memory());
        }
        let cache =
            Cache::new(layers, stored, sequences as usize, context as usize).ok_or_else(out_of_memory)?;
        let (encoder, headless) = (description.kind == ModelKind::Encoder, description.head.is_none());
        let max_batch = request.max_batch.unwrap_or(MOST_BATCH).clamp(1, MOST_BATCH);
        // An encoder's tokens all see each other: a call is one chunk.
        let max_batch = if encoder { max_batch.min(context.saturating_mul(sequences)) } else { max_batch };
        let chunk = chunk_of(description, max_batch as usize);
        let path = Path::chosen();
        job.log(
            LogLevel::Info,
            &format!(
                "{} model on {} thread(s) with {} kernels, {}",
                description.family,
                pool.threads(),
                path.name(),
                if request.reference { "in reference mode" } else { "in fast mode" }
            ),
        );
        let vocabulary = description.vocabulary;
        let profiler = Arc::new(Profiler::new(&program, &references, threads));
        let (place, adapters) = (request.path.clone(), request.adapters.clone());
        let calibration =
            Arc::new(Calibration::new(&checkpoint, place, adapters, (references, inputs), threads));
        let engine = Engine::new(program, cache, pool, path, chunk);
        let limits = Limits {
            context,
            max_sequences: sequences,
            max_batch,
            output_width: engine.output_width() as u32,
            output_kind: if headless { OutputKind::Hidden } else { OutputKind::Logits },
        };
        Ok(Self {
            engine,
            calibration,
            profiler,
            limits,
            encoder,
            vocabulary,
            tokens: Vec::with_capacity(max_batch as usize),
            outputs: Vec::with_capacity(chunk),
        })
    }
}

/// The longest sequence of a session. A wish beyond what the model was made for is granted where positions are computed
/// (rotations may be stretched for that), not where they are rows of a table.
fn context_of(description: &Description, wish: Option<u32>) -> u32 {
    let context = wish.unwrap_or(description.context.min(USUAL_CONTEXT));
    let most =
        description.embedding.positions.map_or(u32::MAX, |table| table.rows.saturating_sub(table.offset));
    context.min(most).max(1)
}

/// How keys and values are kept: as option `kv_type` says, otherwise in sixteen bits, in reference mode exactly. Fast mode makes
/// fixed-point numbers of halves, here as in weights.
fn stored_of(request: &LoadRequest) -> Result<Stored> {
    let half = if request.reference { Stored::Half } else { Stored::Word };
    let usual = if request.reference { Stored::Float } else { half };
    let Some(wish) = request.options.get("kv_type") else { return Ok(usual) };
    match wish.as_str() {
        Some("f32") => Ok(Stored::Float),
        Some("f16") => Ok(half),
        Some("q8_0") => Ok(Stored::Byte),
        _ => {
            let message = format!("option `kv_type` is {wish}");
            Err(BackendError::new(ErrorCode::InvalidRequest, message).with_help("Give f32, f16 or q8_0."))
        }
    }
}

fn chunk_of(description: &Description, max_batch: usize) -> usize {
    match description.kind {
        ModelKind::Encoder => max_batch,
        ModelKind::Decoder => {
            let room = description.experts().map_or(CHUNK, |experts| {
                let row = description.hidden as usize + 2 * experts.width as usize;
                EXPERT_ROOM / (experts.used as usize * row * size_of::<f32>()).max(1)
            });
            max_batch.min(room.clamp(FEWEST, CHUNK))
        }
    }
}

impl Session for NativeSession {
    fn limits(&self) -> Limits {
        self.limits
    }

    fn forward(&mut self, batch: Batch<'_>, output: &mut [f32]) -> Result<()> {
        batch.validate(&self.limits, output.len())?;
        batch.check_vocabulary(self.vocabulary)?;
        self.calibration.prepare(&mut self.engine);
        self.profiler.prepare(&mut self.engine);
        self.tokens.clear();
        self.tokens.extend(
            batch
                .tokens
                .iter()
                .zip(batch.positions)
                .zip(batch.sequences)
                .map(|((&id, &position), &sequence)| Token { id, position, sequence }),
        );
        if self.encoder {
            (0..self.limits.max_sequences)
                .for_each(|sequence| self.engine.cache.remove(sequence, 0, u32::MAX));
        }
        let (mut done, mut wanted, mut output) = (0, batch.outputs, output);
        for chunk in self.tokens.chunks(self.engine.chunk()) {
            let here = wanted.partition_point(|&i| (i as usize) < done + chunk.len());
            self.outputs.clear();
            self.outputs.extend(wanted[..here].iter().map(|&i| i - done as u32));
            let (now, rest) = output.split_at_mut(here * self.limits.output_width as usize);
            self.engine.run(chunk, &self.outputs, now);
            (done, wanted, output) = (done + chunk.len(), &wanted[here..], rest);
        }
        Ok(())
    }

    fn keep(&mut self, sequence: u32, from: u32, to: u32) -> Result<()> {
        self.limits.check_sequence(sequence)?;
        self.engine.cache.keep(sequence, from, to);
        Ok(())
    }

    fn remove(&mut self, sequence: u32, from: u32, to: u32) -> Result<()> {
        self.limits.check_sequence(sequence)?;
        self.engine.cache.remove(sequence, from, to);
        Ok(())
    }

    fn copy(&mut self, source: u32, target: u32, from: u32, to: u32) -> Result<()> {
        self.limits.check_sequence(source)?;
        self.limits.check_sequence(target)?;
        self.engine.cache.copy(source, target, from, to);
        Ok(())
    }

    fn extension(&self, id: &str) -> Option<Box<dyn Extension>> {
        match id {
            calibration::ID => Some(calibration::export(Asked(Arc::clone(&self.calibration)))),
            profile::ID => Some(profile::export(crate::profile::Asked(Arc::clone(&self.profiler)))),
            _ => None,
        }
    }
}
