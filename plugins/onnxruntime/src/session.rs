//! A loaded model: one cache per sequence, kept as the tensors that the graph gave back.

use std::path::Path;

use drophammer_sdk::{
    BackendError, Batch, ErrorCode, HostInfo, JobContext, Limits, LoadRequest, LogLevel, OutputKind, Result,
    Session,
};
use ort::session::{Session as OrtModel, SessionInputValue};
use ort::value::{DynValue, Tensor, TensorElementType, ValueType};

use crate::model;

/// Context of a session that was not told one, where the model can take as much.
const USUAL_CONTEXT: u32 = 4096;
/// Most tokens of one call.
const MOST_BATCH: u32 = 2048;
/// Most tokens that go through the graph together.
const CHUNK: usize = 256;
/// Floats of outputs that a chunk may make: the graph gives all tokens'.
const CHUNK_OUTPUTS: usize = 16 << 20;

/// A model on ONNX Runtime.
pub(crate) struct OrtSession {
    model: OrtModel,
    limits: Limits,
    /// Whether tokens see each other and nothing is kept.
    encoder: bool,
    takes_positions: bool,
    takes_types: bool,
    output: String,
    vocabulary: Option<u32>,
    /// Names and shapes of what is kept: keys and values of each layer.
    kept: Vec<Kept>,
    sequences: Vec<Sequence>,
}

/// One tensor of the cache.
struct Kept {
    past: String,
    present: String,
    heads: usize,
    width: usize,
}

/// What a sequence has seen.
#[derive(Default)]
struct Sequence {
    length: u32,
    tensors: Vec<DynValue>,
}

fn unsupported(path: &Path, problem: &str) -> BackendError {
    BackendError::new(ErrorCode::UnsupportedInput, format!("{}: {problem}", path.display())).with_help(
        "Only language models and encoders with `input_ids` are run: make one with this program or onnxruntime-genai's builder.",
    )
}

fn invalid(message: String) -> BackendError {
    BackendError::new(ErrorCode::InvalidRequest, message)
}

impl OrtSession {
    /// Loads the graph at the request's path.
    pub(crate) fn load(host: &HostInfo, request: &LoadRequest, job: &dyn JobContext) -> Result<Self> {
        job.check()?;
        if !request.adapters.is_empty() {
            let message = "adapters cannot be attached to an ONNX graph";
            return Err(BackendError::new(ErrorCode::UnsupportedInput, message)
                .with_help("Merge the adapter while the directory is made."));
        }
        let file = model::file(&request.path)?;
        let environment = drophammer_ort::environment(host, "library")?;
        let refused = |error: ort::Error<_>| drophammer_ort::failed("a session cannot be prepared", &error);
        let threads = job.budgets().threads.max(1) as usize;
        let mut builder = OrtModel::builder(environment)
            .map_err(|error| drophammer_ort::failed("a session cannot be prepared", &error))?
            .with_intra_threads(threads)
            .map_err(refused)?
            .with_inter_threads(1)
            .map_err(refused)?;
        let exact = if request.reference { model::exact(&file)? } else { None };
        let loaded = match &exact {
            Some(bytes) => {
                let folder = file.parent().unwrap_or(Path::new("."));
                let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
                let key = "session.model_external_initializers_file_folder_path";
                builder
                    .with_config_entry(key, folder.to_string_lossy())
                    .map_err(refused)?
                    .commit_from_memory(bytes)
            }
            None => builder.commit_from_file(&file),
        };
        let model = loaded.map_err(|error| {
            let message = format!("{}: ONNX Runtime refuses it: {}", file.display(), error.message());
            BackendError::new(ErrorCode::InvalidInput, message)
                .with_help("Check that the file and its external data are complete.")
        })?;
        job.log(
            LogLevel::Info,
            &format!(
                "{} on {threads} thread(s) of ONNX Runtime, {}",
                file.display(),
                if request.reference { "in reference mode" } else { "in fast mode" }
            ),
        );
        let session = Self::describe(model, &file, request)?;
        session.check_memory(&file, job)?;
        Ok(session)
    }

    /// Refuses a cache that could grow beyond what the job may use.
    fn check_memory(&self, file: &Path, job: &dyn JobContext) -> Result<()> {
        let token: u64 =
            self.kept.iter().map(|kept| (kept.heads * kept.width * size_of::<f32>()) as u64).sum();
        let (sequences, context) = (self.limits.max_sequences, self.limits.context);
        let bytes = token.saturating_mul(u64::from(context)).saturating_mul(u64::from(sequences));
        let allowed = job.budgets().memory_bytes;
        if allowed == 0 || bytes <= allowed {
            return Ok(());
        }
        let message = format!(
            "{}: a cache for {sequences} sequences of {context} tokens takes {bytes} bytes, more than the {allowed} this job may use",
            file.display()
        );
        Err(BackendError::new(ErrorCode::OutOfResources, message)
            .with_help("Ask for a shorter context or fewer sequences, or allow more memory."))
    }

    /// Sees from inputs and outputs what kind of model it is.
    fn describe(model: OrtModel, file: &Path, request: &LoadRequest) -> Result<Self> {
        let (mut kept, told) = (Vec::new(), model::told_heads(file));
        let (mut takes_positions, mut takes_types) = (false, false);
        for input in model.inputs() {
            match input.name() {
                "input_ids" | "attention_mask" => {}
                "position_ids" => takes_positions = true,
                "token_type_ids" => takes_types = true,
                name => kept.push(Kept::of(name, input.dtype(), told, file)?),
            }
        }
        let outputs = model.outputs();
        let named = |names: &[&str]| {
            names.iter().find_map(|name| outputs.iter().find(|output| output.name() == *name))
        };
        let output = named(&["logits", "last_hidden_state", "hidden_states"])
            .ok_or_else(|| unsupported(file, "it gives neither logits nor hidden states"))?;
        let width = match output.dtype() {
            ValueType::Tensor { ty: TensorElementType::Float32, shape, .. } => {
                shape.last().copied().and_then(|width| u32::try_from(width).ok()).filter(|&width| width > 0)
            }
            _ => None,
        };
        let width = width.ok_or_else(|| unsupported(file, "its output is no float32 of a known width"))?;
        let logits = output.name() == "logits";
        let output = output.name().to_owned();
        let (told, most, vocabulary) = {
            let metadata = model
                .metadata()
                .map_err(|error| drophammer_ort::failed("metadata cannot be read", &error))?;
            let number = |key: &str| metadata.custom(key).and_then(|value| value.parse::<u32>().ok());
            let context = number("drophammer.context");
            // Of a foreign graph nothing beyond its word is known.
            let most = number("drophammer.most_context").or(context.map(|_| u32::MAX));
            (context, most, number("drophammer.vocabulary"))
        };
        let told = told.or_else(|| model::told_context(file)).unwrap_or(2048);
        let sequences = request.max_sequences.max(1);
        let context = request.context.unwrap_or(told.min(USUAL_CONTEXT)).min(most.unwrap_or(told)).max(1);
        let encoder = kept.is_empty();
        let max_batch = request.max_batch.unwrap_or(MOST_BATCH).clamp(1, MOST_BATCH);
        let max_batch = if encoder { max_batch.min(context.saturating_mul(sequences)) } else { max_batch };
        let limits = Limits {
            context,
            max_sequences: sequences,
            max_batch,
            output_width: width,
            output_kind: if logits { OutputKind::Logits } else { OutputKind::Hidden },
        };
        Ok(Self {
            model,
            limits,
            encoder,
            takes_positions,
            takes_types,
            output,
            vocabulary,
            kept,
            sequences: (0..sequences).map(|_| Sequence::default()).collect(),
        })
    }

    fn sequence(&self, sequence: u32) -> Result<&Sequence> {
        self.limits.check_sequence(sequence)?;
        Ok(&self.sequences[sequence as usize])
    }

    /// Runs tokens of one sequence; gives every token's output row to `take`.
    fn run(&mut self, sequence: usize, tokens: &[u32], mut take: impl FnMut(usize, &[f32])) -> Result<()> {
        let Some(state) = self.sequences.get_mut(sequence) else { return Ok(()) };
        let past = if self.encoder { 0 } else { state.length };
        let count = tokens.len();
        let refused = |error: ort::Error| drophammer_ort::failed("a tensor cannot be made", &error);
        let row = |values: Vec<i64>| Tensor::from_array(([1, values.len()], values)).map_err(refused);
        let ids = row(tokens.iter().map(|&token| token.into()).collect())?;
        let mask = row(vec![1; past as usize + count])?;
        let mut inputs: Vec<(&str, SessionInputValue<'_>)> =
            vec![("input_ids", ids.into()), ("attention_mask", mask.into())];
        if self.takes_positions {
            inputs.push(("position_ids", row((i64::from(past)..).take(count).collect())?.into()));
        }
        if self.takes_types {
            inputs.push(("token_type_ids", row(vec![0; count])?.into()));
        }
        if state.tensors.is_empty() {
            state.tensors = self.kept.iter().map(Kept::empty).collect::<Result<_>>()?;
        }
        for (kept, tensor) in self.kept.iter().zip(&state.tensors) {
            inputs.push((&kept.past, tensor.into()));
        }
        let mut outputs = self
            .model
            .run(inputs)
            .map_err(|error| drophammer_ort::failed("the model cannot be run", &error))?;
        let lost = || BackendError::new(ErrorCode::Failed, "the model gave back less than it declares");
        let values = outputs.remove(&self.output).ok_or_else(lost)?;
        let (_, rows) = values.try_extract_tensor::<f32>().map_err(refused)?;
        let width = self.limits.output_width as usize;
        if rows.len() != count * width {
            return Err(lost());
        }
        rows.chunks_exact(width).enumerate().for_each(|(token, row)| take(token, row));
        let present = self.kept.iter().map(|kept| outputs.remove(&kept.present).ok_or_else(lost));
        state.tensors = present.collect::<Result<_>>()?;
        state.length = if self.encoder { 0 } else { past + count as u32 };
        Ok(())
    }

    /// The first `length` positions of a sequence's tensors.
    fn prefix(&self, sequence: u32, length: u32) -> Result<Sequence> {
        let state = self.sequence(sequence)?;
        let length = length.min(state.length);
        if length == 0 {
            return Ok(Sequence::default());
        }
        let tensors = self.kept.iter().zip(&state.tensors);
        let tensors = tensors.map(|(kept, tensor)| kept.prefix(tensor, state.length, length));
        Ok(Sequence { length, tensors: tensors.collect::<Result<_>>()? })
    }

    fn set(&mut self, sequence: u32, state: Sequence) {
        if let Some(place) = self.sequences.get_mut(sequence as usize) {
            *place = state;
        }
    }
}

impl Kept {
    /// The cache tensor behind an input.
    fn of(name: &str, dtype: &ValueType, told: [Option<usize>; 2], file: &Path) -> Result<Self> {
        let foreign = || unsupported(file, &format!("it takes an input `{name}`, which is not known"));
        let rest = name.strip_prefix("past_key_values.").ok_or_else(foreign)?;
        let ValueType::Tensor { ty, shape, .. } = dtype else { return Err(foreign()) };
        if *ty != TensorElementType::Float32 {
            return Err(unsupported(file, &format!("its cache `{name}` is {ty:?}, not float32")));
        }
        let size = |index: usize| {
            shape.get(index).and_then(|&size| usize::try_from(size).ok()).filter(|&size| size > 0)
        };
        match (shape.len(), size(1).or(told[0]), size(3).or(told[1])) {
            (4, Some(heads), Some(width)) => {
                Ok(Self { past: name.to_owned(), present: format!("present.{rest}"), heads, width })
            }
            _ => {
                Err(unsupported(file, &format!("its cache `{name}` has no known numbers of heads and width")))
            }
        }
    }

    fn empty(&self) -> Result<DynValue> {
        let shape = [1, self.heads, 0, self.width];
        let tensor = Tensor::<f32>::from_array((shape, Vec::new()));
        Ok(tensor
            .map_err(|error| drophammer_ort::failed("an empty cache cannot be made", &error))?
            .into_dyn())
    }

    fn prefix(&self, tensor: &DynValue, length: u32, wanted: u32) -> Result<DynValue> {
        let failed = |error: ort::Error| drophammer_ort::failed("a cache cannot be cut", &error);
        let (_, values) = tensor.try_extract_tensor::<f32>().map_err(failed)?;
        let (row, part) = (length as usize * self.width, wanted as usize * self.width);
        let heads = values.chunks_exact(row.max(1)).flat_map(|head| &head[..part.min(head.len())]);
        let values: Vec<f32> = heads.copied().collect();
        let shape = [1, self.heads, wanted as usize, self.width];
        Ok(Tensor::from_array((shape, values)).map_err(failed)?.into_dyn())
    }
}

impl Session for OrtSession {
    fn limits(&self) -> Limits {
        self.limits
    }

    fn forward(&mut self, batch: Batch<'_>, output: &mut [f32]) -> Result<()> {
        batch.validate(&self.limits, output.len())?;
        if let Some(vocabulary) = self.vocabulary {
            batch.check_vocabulary(vocabulary)?;
        }
        let width = self.limits.output_width as usize;
        let chunk = if self.encoder { usize::MAX } else { (CHUNK_OUTPUTS / width).clamp(1, CHUNK) };
        let mut places = vec![None; batch.tokens.len()];
        for (row, &token) in batch.outputs.iter().enumerate() {
            places[token as usize] = Some(row);
        }
        let mut by_sequence: Vec<Vec<usize>> = vec![Vec::new(); self.sequences.len()];
        for (token, &sequence) in batch.sequences.iter().enumerate() {
            by_sequence[sequence as usize].push(token);
        }
        // Everything is checked before anything changes.
        for (state, tokens) in self.sequences.iter().zip(&by_sequence) {
            let first = if self.encoder { 0 } else { state.length };
            let mut due = first..;
            if let Some((&token, due)) =
                tokens.iter().zip(&mut due).find(|(token, due)| batch.positions[**token] != *due)
            {
                let position = batch.positions[token];
                return Err(invalid(format!("position {position} where {due} continues the sequence")));
            }
        }
        for (sequence, tokens) in by_sequence.iter().enumerate() {
            for tokens in tokens.chunks(chunk.min(tokens.len().max(1))) {
                let ids: Vec<u32> = tokens.iter().map(|&token| batch.tokens[token]).collect();
                self.run(sequence, &ids, |token, row| {
                    if let Some(place) = places[tokens[token]] {
                        output[place * width..(place + 1) * width].copy_from_slice(row);
                    }
                })?;
            }
        }
        Ok(())
    }

    fn keep(&mut self, sequence: u32, from: u32, to: u32) -> Result<()> {
        let nothing = from >= to.min(self.sequence(sequence)?.length);
        if from > 0 && !nothing {
            return Err(no_gaps());
        }
        let kept = if nothing { Sequence::default() } else { self.prefix(sequence, to)? };
        self.set(sequence, kept);
        Ok(())
    }

    fn remove(&mut self, sequence: u32, from: u32, to: u32) -> Result<()> {
        let length = self.sequence(sequence)?.length;
        if from >= length || from >= to {
            return Ok(());
        }
        if to < length {
            return Err(no_gaps());
        }
        let kept = self.prefix(sequence, from)?;
        self.set(sequence, kept);
        Ok(())
    }

    fn copy(&mut self, source: u32, target: u32, from: u32, to: u32) -> Result<()> {
        self.sequence(target)?;
        if from > 0 {
            return Err(no_gaps());
        }
        if source != target {
            let copied = self.prefix(source, to)?;
            self.set(target, copied);
        }
        Ok(())
    }
}

fn no_gaps() -> BackendError {
    BackendError::new(ErrorCode::UnsupportedInput, "this cache keeps sequences from their beginning")
        .with_help("Remove the sequence's tail, or all of it, and run the prompt again.")
}
