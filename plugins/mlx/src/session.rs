//! A loaded model: limits, steps cut from batches, the sequences' caches.

use drophammer_models::description::{Description, ModelKind};
use drophammer_sdk::{
    BackendError, Batch, ErrorCode, HostInfo, JobContext, Limits, LoadRequest, LogLevel, OutputKind, Result,
    Session,
};

use crate::model::cache::{Kept, Sequence, bytes_per_position, group_of};
use crate::model::step::{Parts, Rotations, Step, Tokens};
use crate::model::weights::{Weights, compute_type};
use crate::runtime::{self, Array, Arrays, Runtime, Stream, Type};

/// Context of a session that was not told one, where the model can take as much.
const USUAL_CONTEXT: u32 = 4096;
/// Most tokens that go through the layers together: attention's scores grow with it.
const CHUNK: usize = 512;
/// Most tokens of one call.
const MOST_BATCH: u32 = 2048;

/// A model that runs on libmlx.
pub(crate) struct MlxSession {
    stream: Stream,
    runtime: Runtime,
    description: Description,
    weights: Weights,
    rotations: Rotations,
    sequences: Vec<Sequence>,
    kept: Kept,
    /// Whether computing begins before a step is built: on a processor, whose other cores build.
    ahead: bool,
    limits: Limits,
}

impl MlxSession {
    /// Loads what lies at the request's path.
    pub(crate) fn load(host: &HostInfo, request: &LoadRequest, job: &dyn JobContext) -> Result<Self> {
        let checkpoint = drophammer_forge::open(&request.path, &request.adapters)?;
        let runtime = runtime::open(host)?;
        let gpu = match request.device.as_deref() {
            Some("cpu") => false,
            Some("gpu") if runtime.has_gpu() => true,
            Some(other) => return Err(no_device(other)),
            None => runtime.has_gpu(),
        };
        let stream = runtime.stream(gpu)?;
        let budgets = job.budgets();
        let description = checkpoint.description().clone();
        let kind = compute_type(&checkpoint, request.reference);
        let kept = kept_of(host, request, &description)?;
        let sequences = request.max_sequences.max(1);
        let context = context_of(&description, request.context);
        let held = cache_bytes(&description, kept, kind)
            .saturating_mul(u64::from(context))
            .saturating_mul(u64::from(sequences));
        let stored = checkpoint.source().tensor_bytes();
        if budgets.memory_bytes != 0 && held.saturating_add(stored) > budgets.memory_bytes {
            let message = format!(
                "{}: weights of {stored} bytes and a cache for {sequences} sequences of {context} tokens of {held} bytes take more than the {} this job may use",
                request.path.display(),
                budgets.memory_bytes
            );
            return Err(BackendError::new(ErrorCode::OutOfResources, message)
                .with_help("Ask for a shorter context, fewer sequences or a packed cache (kv_bits), or allow more memory."));
        }
        job.check()?;
        let turn = stream.enter()?;
        limit(&runtime, budgets.memory_bytes, gpu)?;
        let weights = Weights::load(turn.arrays, &checkpoint, kind, &request.path, job)?;
        let encoder = description.kind == ModelKind::Encoder;
        let max_batch = request.max_batch.unwrap_or(MOST_BATCH).clamp(1, MOST_BATCH);
        let max_batch = if encoder { max_batch.min(context.saturating_mul(sequences)) } else { max_batch };
        let (now, peak) = runtime.memory();
        let device = if gpu { "the GPU" } else { "the CPU" };
        job.log(
            LogLevel::Info,
            &format!(
                "{} model on {device} in {kind:?}; libmlx holds {now} bytes, at most {peak} while loading, and may take {}",
                description.family,
                runtime.memory_allowed()
            ),
        );
        let limits = Limits {
            context,
            max_sequences: sequences,
            max_batch,
            output_width: if encoder { description.hidden } else { description.vocabulary },
            output_kind: if encoder { OutputKind::Hidden } else { OutputKind::Logits },
        };
        Ok(Self {
            stream,
            runtime,
            description,
            weights,
            rotations: Rotations::default(),
            sequences: vec![Sequence::default(); sequences as usize],
            kept,
            ahead: !gpu,
            limits,
        })
    }

    fn is_encoder(&self) -> bool {
        self.limits.output_kind == OutputKind::Hidden
    }

    /// Runs one step; on failure sequences hold what they held.
    fn step(&mut self, arrays: Arrays, tokens: &Tokens<'_>, output: &mut [f32]) -> Result<()> {
        let encoder = self.is_encoder();
        let parts = Parts {
            weights: &self.weights,
            rotations: &mut self.rotations,
            sequences: &mut self.sequences,
            kept: self.kept,
            encoder,
            ahead: self.ahead,
        };
        let mut step = Step::new(arrays, tokens, parts)?;
        if !encoder {
            step.expect()?;
        }
        let out = step.build(&self.description)?;
        let segments = step.into_segments();
        let touched = || segments.iter().map(|segment| &self.sequences[segment.sequence as usize]);
        let wanted = if tokens.outputs.is_empty() { None } else { Some(out.astype(Type::F32)?) };
        drop(out);
        let caches: Vec<&Array> = touched().flat_map(Sequence::arrays).collect();
        arrays.eval(wanted.iter().chain(caches))?;
        if let Some(wanted) = wanted {
            wanted.read(output)?;
        }
        if !encoder {
            for segment in &segments {
                self.sequences[segment.sequence as usize].commit(&segment.positions);
            }
        }
        Ok(())
    }

    fn sequence(&mut self, number: u32) -> Result<&mut Sequence> {
        self.limits.check_sequence(number)?;
        Ok(&mut self.sequences[number as usize])
    }
}

/// Tells libmlx what it may use; 0 leaves it at its own limits.
fn limit(runtime: &Runtime, bytes: u64, gpu: bool) -> Result<()> {
    if bytes != 0 {
        runtime.limit_memory(bytes)?;
    }
    if gpu {
        let recommended = runtime.device(true)?.recommended;
        runtime.limit_wired(if bytes == 0 { recommended } else { bytes.min(recommended) });
    }
    Ok(())
}

fn no_device(name: &str) -> BackendError {
    BackendError::new(ErrorCode::InvalidRequest, format!("libmlx has no device {name:?} here"))
        .with_help("`drophammer devices` lists what there is.")
}

/// The cache's form: `kv_bits` of the request's options, or of the plugin's settings where exactness is not asked for: 4 or 8.
fn kept_of(host: &HostInfo, request: &LoadRequest, description: &Description) -> Result<Kept> {
    let setting = || host.config.get("kv_bits").filter(|_| !request.reference);
    let Some(value) = request.options.get("kv_bits").or_else(setting) else { return Ok(Kept::Plain) };
    let invalid = |message: String| {
        Err(BackendError::new(ErrorCode::InvalidRequest, message).with_help("Use 8 or 4, or leave it out."))
    };
    let bits = match value.as_i64() {
        Some(16) => return Ok(Kept::Plain),
        Some(bits @ (4 | 8)) => bits as i32,
        _ => return invalid(format!("`kv_bits` is {value}, not 4 or 8")),
    };
    let mut widths =
        description.layers.iter().flat_map(|layer| [layer.attention.key_width, layer.attention.value_width]);
    if let Some(width) = widths.find(|width| group_of(*width).is_none()) {
        return invalid(format!(
            "heads of {width} numbers are no whole groups of 32, so the cache cannot be packed"
        ));
    }
    Ok(Kept::Packed(bits))
}

/// Bytes of a cache per position of one sequence.
fn cache_bytes(description: &Description, kept: Kept, kind: Type) -> u64 {
    let of = |layer: &drophammer_models::description::Layer| {
        let attention = &layer.attention;
        bytes_per_position(attention.kv_heads, [attention.key_width, attention.value_width], kept, kind)
    };
    description.layers.iter().map(of).sum()
}

/// The longest sequence of a session. A wish beyond what the model was made for is granted where positions are computed, not
/// where they are rows of a table.
fn context_of(description: &Description, wish: Option<u32>) -> u32 {
    let context = wish.unwrap_or(description.context.min(USUAL_CONTEXT));
    let table = description.embedding.positions;
    context.min(table.map_or(u32::MAX, |table| table.rows.saturating_sub(table.offset))).max(1)
}

impl Session for MlxSession {
    fn limits(&self) -> Limits {
        self.limits
    }

    fn forward(&mut self, batch: Batch<'_>, output: &mut [f32]) -> Result<()> {
        batch.validate(&self.limits, output.len())?;
        batch.check_vocabulary(self.description.vocabulary)?;
        let turn = self.stream.enter()?;
        // An encoder's tokens all see each other: a call is one step.
        let chunk = if self.is_encoder() { batch.tokens.len() } else { CHUNK };
        let (mut done, mut wanted, mut output) = (0, batch.outputs, output);
        while done < batch.tokens.len() {
            let mut end = (done + chunk).min(batch.tokens.len());
            // Rows before the first whose output is wanted go by themselves: of them the last layer needs keys and values only,
            // and what nobody asks libmlx for is not computed.
            if let Some(&first) = wanted.first()
                && !self.is_encoder()
                && first as usize > done
            {
                end = end.min(first as usize);
            }
            let here = wanted.partition_point(|&row| (row as usize) < end);
            let rows: Vec<u32> = wanted[..here].iter().map(|row| row - done as u32).collect();
            let (now, rest) = output.split_at_mut(here * self.limits.output_width as usize);
            let tokens = Tokens {
                ids: &batch.tokens[done..end],
                positions: &batch.positions[done..end],
                sequences: &batch.sequences[done..end],
                outputs: &rows,
            };
            self.step(turn.arrays, &tokens, now)?;
            (done, wanted, output) = (end, &wanted[here..], rest);
        }
        Ok(())
    }

    fn keep(&mut self, sequence: u32, from: u32, to: u32) -> Result<()> {
        let turn = self.stream.enter()?;
        self.sequence(sequence)?.keep(turn.arrays, from, to)
    }

    fn remove(&mut self, sequence: u32, from: u32, to: u32) -> Result<()> {
        let turn = self.stream.enter()?;
        self.sequence(sequence)?.remove(turn.arrays, from, to)
    }

    fn copy(&mut self, source: u32, target: u32, from: u32, to: u32) -> Result<()> {
        let turn = self.stream.enter()?;
        self.sequence(target)?;
        let mut copied = self.sequence(source)?.clone();
        copied.keep(turn.arrays, from, to)?;
        *self.sequence(target)? = copied;
        Ok(())
    }
}

impl Drop for MlxSession {
    fn drop(&mut self) {
        let _turn = self.stream.enter();
        self.sequences.clear();
        self.weights.clear();
        self.runtime.clear_cache();
    }
}
