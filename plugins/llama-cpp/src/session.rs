//! A loaded model: limits, options, batches.

use std::path::Path;
use std::sync::Arc;

use drophammer_models::description::ModelKind;
use drophammer_sdk::{
    BackendError, Batch, ErrorCode, JobContext, Limits, LoadRequest, LogLevel, Options, OutputKind, Result,
    Session,
};
use serde_json::Value;

use crate::check::{self, Checked};
use crate::ffi::context::{Context, Flash, Pooling, Settings, Stored};
use crate::ffi::log;
use crate::ffi::model::{Adapter, LoadOptions, Model};
use crate::{adapter, ffi, fit};

/// Context of a session that was not told one, where the model can take as much.
const USUAL_CONTEXT: u32 = 4096;
/// Most tokens that go through the layers together.
const CHUNK: u32 = 512;
/// Most tokens of one call.
const MOST_BATCH: u32 = 2048;
/// Most sequences that libllama holds.
const MOST_SEQUENCES: u32 = 256;

/// What reference mode cannot change: ggml has no other products with quantized weights.
const ROUNDED: &str = "llama.cpp rounds activations to eight bits where weights are quantized, in reference mode too; \
                       the native backend does not";

/// A model that libllama runs.
pub(crate) struct LlamaSession {
    context: Context,
    limits: Limits,
    vocabulary: u32,
}

impl LlamaSession {
    /// Loads what lies at the request's path.
    pub(crate) fn load(request: &LoadRequest, job: Arc<dyn JobContext>, cache: &Path) -> Result<Self> {
        job.check()?;
        listen(&job);
        let checked = check::model(&request.path)?;
        let wishes = Wishes::read(request)?;
        let settings = wishes.settings(request, &checked, job.as_ref());
        let per_token = fit::cache_per_token(&checked, settings.keys, settings.values);
        let tokens = u64::from(settings.context) * u64::from(settings.sequences);
        let kept = if is_encoder(&checked) { 0 } else { tokens };
        let per_layer: Vec<u64> = per_token.iter().map(|bytes| bytes.saturating_mul(kept)).collect();
        let placement = fit::place(&checked.source, &per_layer, wishes.device.as_deref(), wishes.gpu_layers)?;
        let what = format!("{} sequences of {} tokens", settings.sequences, settings.context);
        let what = format!("{what} of {}", request.path.display());
        fit::check_cache(placement.host_cache, placement.host_free, &what, job.as_ref())?;
        job.log(LogLevel::Info, &format!("{}, {}", ffi::version(), placement.told));
        if request.reference && checked.source.tensors().iter().any(|tensor| tensor.dtype.is_block()) {
            job.log(LogLevel::Warning, ROUNDED);
        }
        let total = checked.source.tensor_bytes();
        let mut progress = |share: f32| {
            job.progress("loading", "", (f64::from(share) * total as f64) as u64, total);
            !job.cancelled()
        };
        let model = Arc::new(Model::load(
            checked.source.files().next().unwrap_or(&request.path),
            LoadOptions {
                gpu_layers: placement.gpu_layers,
                device: placement.device.as_ref(),
                repack: !request.reference,
                progress: &mut progress,
            },
        )?);
        let adapters = attach(request, &checked, &model, cache)?;
        let context = Context::new(&model, settings, adapters, &job)?;
        let limits = Limits {
            context: settings.context,
            max_sequences: settings.sequences,
            max_batch: settings.batch,
            output_width: context.width() as u32,
            output_kind: if settings.pooling.is_some() { OutputKind::Hidden } else { OutputKind::Logits },
        };
        Ok(Self { vocabulary: context.model().vocabulary(), context, limits })
    }
}

/// Sends the library's messages to the job's log for as long as somebody holds the job.
fn listen(job: &Arc<dyn JobContext>) {
    let job = Arc::downgrade(job);
    log::listen(Arc::new(move |level, line| {
        if let Some(job) = job.upgrade() {
            job.log(level, line);
        }
    }));
}

/// Adapters of the request: GGUF ones as they are, Hugging Face ones converted.
fn attach(request: &LoadRequest, model: &Checked, loaded: &Arc<Model>, cache: &Path) -> Result<Vec<Adapter>> {
    let attach = |path: &std::path::PathBuf| {
        let file = adapter::as_gguf(path, model, cache)?;
        Adapter::load(loaded, file.path())
    };
    request.adapters.iter().map(attach).collect()
}

fn is_encoder(model: &Checked) -> bool {
    if let Some(checkpoint) = &model.checkpoint {
        return checkpoint.description().kind == ModelKind::Encoder;
    }
    let causal = format!("{}.attention.causal", model.architecture);
    model.source.metadata().bool(&causal) == Some(false)
}

/// Options of a request, read.
struct Wishes {
    keys: Stored,
    values: Stored,
    flash: Flash,
    pooling: Option<Pooling>,
    device: Option<String>,
    gpu_layers: Option<u32>,
}

impl Wishes {
    fn read(request: &LoadRequest) -> Result<Self> {
        let options = &request.options;
        if request.max_sequences > MOST_SEQUENCES {
            return Err(invalid(
                format!("{} sequences; llama.cpp holds {MOST_SEQUENCES} at most", request.max_sequences),
                "Ask for fewer sequences.",
            ));
        }
        let exact = if request.reference { Stored::F32 } else { Stored::F16 };
        let both = word(options, "kv_type", &Stored::NAMES)?.unwrap_or(exact);
        let keys = word(options, "kv_type_k", &Stored::NAMES)?.unwrap_or(both);
        let values = word(options, "kv_type_v", &Stored::NAMES)?.unwrap_or(both);
        let usual = if request.reference { Flash::Off } else { Flash::Auto };
        let known = [("auto", Flash::Auto), ("on", Flash::On), ("off", Flash::Off)];
        let mut flash = word(options, "flash_attention", &known)?;
        if matches!(values, Stored::Q8_0 | Stored::Q4_0) {
            if flash == Some(Flash::Off) {
                return Err(invalid(
                    "quantized values in the cache need flash attention, which is off".into(),
                    "Leave `flash_attention` at auto, or quantize only the keys (`kv_type_k`).",
                ));
            }
            flash = flash.or(Some(Flash::On));
        }
        let known = [
            ("none", Pooling::None),
            ("mean", Pooling::Mean),
            ("cls", Pooling::First),
            ("last", Pooling::Last),
        ];
        let embeddings = options.get("embeddings").and_then(Value::as_bool) == Some(true);
        let pooling = word(options, "pooling", &known)?.or(embeddings.then_some(Pooling::None));
        let gpu_layers = match options.get("gpu_layers") {
            None => None,
            Some(value) if value.as_str() == Some("auto") => None,
            Some(value) => {
                let number = value.as_u64().and_then(|number| u32::try_from(number).ok());
                Some(number.ok_or_else(|| {
                    invalid(
                        format!("option `gpu_layers` is {value}"),
                        "Write a number of layers, or \"auto\".",
                    )
                })?)
            }
        };
        let device = request.device.clone().or(text(options, "device")?);
        // Accelerators round to sixteen bits, or to TF32's ten, what the processor does not.
        let device = device.or_else(|| (request.reference && gpu_layers.is_none()).then(|| "cpu".into()));
        Ok(Self { keys, values, flash: flash.unwrap_or(usual), pooling, device, gpu_layers })
    }

    fn settings(&self, request: &LoadRequest, model: &Checked, job: &dyn JobContext) -> Settings {
        let trained =
            model.number("context_length").and_then(|n| u32::try_from(n).ok()).unwrap_or(USUAL_CONTEXT);
        let mut context = request.context.unwrap_or(trained.min(USUAL_CONTEXT)).max(1);
        if let Some(table) =
            model.checkpoint.as_ref().and_then(|checkpoint| checkpoint.description().embedding.positions)
        {
            // Learned positions end with their table.
            context = context.min(table.rows.saturating_sub(table.offset).max(1));
        }
        let sequences = request.max_sequences.max(1);
        let encoder = is_encoder(model);
        let batch =
            request.max_batch.unwrap_or(if encoder { MOST_BATCH } else { CHUNK }).clamp(1, MOST_BATCH);
        let batch = if encoder { batch.min(context.saturating_mul(sequences)) } else { batch };
        Settings {
            context,
            sequences,
            batch,
            // All tokens of an encoder see each other: a call is one chunk.
            chunk: if encoder { batch } else { batch.min(CHUNK) },
            threads: job.budgets().threads.max(1),
            keys: self.keys,
            values: self.values,
            flash: self.flash,
            pooling: self.pooling.or(encoder.then_some(Pooling::None)),
        }
    }
}

fn invalid(message: String, help: &str) -> BackendError {
    BackendError::new(ErrorCode::InvalidRequest, message).with_help(help)
}

/// An option that is any text.
fn text(options: &Options, name: &str) -> Result<Option<String>> {
    let Some(value) = options.get(name) else { return Ok(None) };
    let found = value.as_str().map(str::to_owned);
    found.map(Some).ok_or_else(|| invalid(format!("option `{name}` is {value}"), "Write a device's name."))
}

/// An option that is one of some words.
fn word<T: Copy>(options: &Options, name: &str, known: &[(&str, T)]) -> Result<Option<T>> {
    let Some(value) = options.get(name) else { return Ok(None) };
    let found = known.iter().find(|(word, _)| value.as_str() == Some(word));
    found.map(|(_, value)| Some(*value)).ok_or_else(|| {
        let words: Vec<_> = known.iter().map(|(word, _)| *word).collect();
        invalid(format!("option `{name}` is {value}"), &format!("Choose one of: {}.", words.join(", ")))
    })
}

impl Session for LlamaSession {
    fn limits(&self) -> Limits {
        self.limits
    }

    fn forward(&mut self, batch: Batch<'_>, output: &mut [f32]) -> Result<()> {
        batch.validate(&self.limits, output.len())?;
        batch.check_vocabulary(self.vocabulary)?;
        self.context.run(batch, output)
    }

    fn keep(&mut self, sequence: u32, from: u32, to: u32) -> Result<()> {
        self.limits.check_sequence(sequence)?;
        self.context.remove(sequence, to, u32::MAX)?;
        self.context.remove(sequence, 0, from)
    }

    fn remove(&mut self, sequence: u32, from: u32, to: u32) -> Result<()> {
        self.limits.check_sequence(sequence)?;
        self.context.remove(sequence, from, to)
    }

    fn copy(&mut self, source: u32, target: u32, from: u32, to: u32) -> Result<()> {
        self.limits.check_sequence(source)?;
        self.limits.check_sequence(target)?;
        self.context.copy(source, target, from, to)
    }
}
