//! A loaded model: an infer request per sequence, or one of those that go on together ([`joint`]), and what its state holds.
//!
//! Keys and values are the runtime's variables and belong to a request: that is the form whose attention its plugins fuse,
//! and appending costs nothing. The C interface cannot cut or copy variables, so sequences are edited without touching
//! them. *Removed* entries stay where they are and are masked out (`attention_mask` 0); a request whose entries are
//! mostly dead is replaced. A *copied* or replaced sequence notes the tokens it is to hold, and its next run computes them
//! together with the new ones. Mask values above 1 step over removed positions: windows are counted by summing the mask.

mod fixed;
mod joint;

use std::path::{Path, PathBuf};

use drophammer_formats::digest::Digest;
use drophammer_sdk::{
    BackendError, Batch, ErrorCode, HostInfo, JobContext, Kept, Limits, LoadRequest, LogLevel, OutputKind,
    Result, Session,
};

use crate::forge::MODEL;
use crate::outline::Outline;
use crate::runtime::{Compiled, Numbers, Request, Runtime};
use joint::{Joint, Next};

/// Context of a session that was not told one, where the model can take as much.
const USUAL_CONTEXT: u32 = 4096;
/// Most tokens of one call.
const MOST_BATCH: u32 = 2048;
/// Bytes of compiled models, and of graphs changed for sessions, that are kept where the configuration says nothing: some models of
/// the size that such machines run.
const USUAL_KEPT: u64 = 16 << 30;
/// Dead entries that are always tolerated in a request.
const TOLERATED: usize = 256;

/// A model that OpenVINO runs.
pub(crate) struct OpenVinoSession {
    compiled: Compiled,
    inputs: Vec<String>,
    /// Whether shapes were fixed when the model was compiled.
    fixed: bool,
    limits: Limits,
    vocabulary: u32,
    sequences: Vec<Sequence>,
    joint: Joint,
}

/// One token of a sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Entry {
    token: u32,
    position: u32,
}

/// A sequence: what its request's state holds, and what it is to hold besides.
#[derive(Default)]
struct Sequence {
    request: Option<Request>,
    /// Entries of the state, in order; `None` for those removed.
    held: Vec<Option<Entry>>,
    /// Entries to compute before anything else.
    due: Vec<Entry>,
}

impl Sequence {
    fn entries(&self) -> impl Iterator<Item = Entry> {
        self.held.iter().flatten().chain(&self.due).copied()
    }

    /// Keeps the entries that `stays` names; removed ones may lie among them as far as `tolerated` says.
    fn retain(&mut self, tolerated: Option<usize>, stays: impl Fn(u32) -> bool) {
        for held in &mut self.held {
            *held = held.filter(|entry| stays(entry.position));
        }
        self.due.retain(|entry| stays(entry.position));
        let alive = self.held.iter().flatten().count();
        let dead = self.held.len() - alive;
        if alive == 0 || tolerated.map_or(dead > 0, |tolerated| dead > alive + tolerated) {
            self.compute_again();
        }
    }

    /// Forgets the state; the next run computes all of it again.
    fn compute_again(&mut self) {
        self.refill(self.entries().collect());
    }

    /// Forgets the state; the next run computes `entries`.
    fn refill(&mut self, entries: Vec<Entry>) {
        (self.held, self.due) = (Vec::new(), entries);
    }

    /// The request to run in; emptied if nothing of what it holds is needed.
    fn request(&mut self, compiled: &Compiled) -> Result<&mut Request> {
        let held = !self.held.is_empty();
        let kept = self.request.take().and_then(|mut kept| (held || kept.forget()).then_some(kept));
        let request = match kept {
            Some(request) => request,
            None => compiled.request()?,
        };
        Ok(self.request.insert(request))
    }
}

fn kept(host: &HostInfo) -> Option<Kept> {
    Kept::of(host, "compiled", USUAL_KEPT)
}

fn unsupported(message: String, help: &str) -> BackendError {
    BackendError::new(ErrorCode::UnsupportedInput, message).with_help(help)
}

impl OpenVinoSession {
    /// Loads what lies at the request's path: a directory or the graph's file.
    pub(crate) fn load(host: &HostInfo, request: &LoadRequest, job: &dyn JobContext) -> Result<Self> {
        job.check()?;
        if let Some(adapter) = request.adapters.first() {
            return Err(unsupported(
                format!("{}: OpenVINO models take no adapters when they are loaded", adapter.display()),
                "Merge the adapter while converting.",
            ));
        }
        let runtime = Runtime::open(host)?;
        let graph = if request.path.is_dir() { request.path.join(MODEL) } else { request.path.clone() };
        let weights = graph.with_extension("bin");
        let outline = Outline::read(&graph)?;
        job.progress("compile", "", 0, 0);
        let device = device(host, request);
        let threads = job.budgets().threads;
        let compiled_bytes = std::fs::metadata(&weights).map_or(0, |metadata| metadata.len());
        let context =
            request.context.unwrap_or(outline.context.unwrap_or(USUAL_CONTEXT).min(USUAL_CONTEXT)).max(1);
        let fixed = fixed::is_for(&device);
        if fixed && outline.cached_per_token() == 0 {
            return Err(unsupported(
                format!("{}: only language models have fixed shapes, which {device} needs", graph.display()),
                "Use device=CPU or device=GPU.",
            ));
        }
        let properties = properties(host, request, &device, threads, compiled_bytes, context);
        let sequences = request.max_sequences.max(1);
        let tokens = u64::from(context) * u64::from(sequences);
        let bits = outline.cached_per_token().saturating_mul(tokens).saturating_mul(cache_bits(&properties));
        let bytes = bits / 8;
        let allowed = job.budgets().memory_bytes;
        if allowed > 0 && bytes > allowed {
            let message = format!(
                "{}: a cache for {sequences} sequences of {context} tokens takes {bytes} bytes, more than the {allowed} this job may use",
                graph.display()
            );
            return Err(BackendError::new(ErrorCode::OutOfResources, message)
                .with_help("Ask for a shorter context or fewer sequences, or allow more memory."));
        }
        check_device(&runtime, &device, &properties)?;
        // With fixed shapes the plugin leaves rows out itself.
        let shortened = if fixed { graph.clone() } else { shortened(host, &graph, &weights, &outline)? };
        let compiled = runtime.compile(&shortened, &weights, &device, &properties)?;
        let inputs = compiled.inputs()?;
        let known = ["input_ids", "attention_mask", "position_ids", "beam_idx", "token_type_ids", WANTED];
        if let Some(other) = inputs.iter().find(|name| !known.contains(&name.as_str())) {
            return Err(unsupported(
                format!(
                    "{}: the model has an input {other:?}, which only its own program knows",
                    graph.display()
                ),
                "Language models and text encoders can be run; others are made and checked here only.",
            ));
        }
        let width = compiled.output_width()?.ok_or_else(|| {
            unsupported(
                format!("{}: the output's width is not fixed", graph.display()),
                "Export it with a fixed one.",
            )
        })?;
        let decoder = inputs.iter().any(|name| name == "beam_idx");
        job.log(
            LogLevel::Info,
            &format!(
                "OpenVINO {} on {device}, {threads} thread(s){}",
                runtime.version(),
                if request.reference { ", in reference mode" } else { "" }
            ),
        );
        let limits = Limits {
            context,
            max_sequences: sequences,
            max_batch: request.max_batch.unwrap_or(MOST_BATCH).clamp(1, MOST_BATCH),
            output_width: width,
            output_kind: if decoder { OutputKind::Logits } else { OutputKind::Hidden },
        };
        Ok(Self {
            compiled,
            inputs,
            fixed,
            limits,
            vocabulary: outline.vocabulary.unwrap_or(if decoder { width } else { u32::MAX }),
            sequences: (0..sequences).map(|_| Sequence::default()).collect(),
            joint: Joint::default(),
        })
    }

    fn sequence(&mut self, sequence: u32) -> Result<&mut Sequence> {
        self.limits.check_sequence(sequence)?;
        Ok(&mut self.sequences[sequence as usize])
    }

    /// Changes what a sequence holds.
    fn edit(&mut self, sequence: u32, how: impl FnOnce(&mut Sequence)) -> Result<()> {
        let edited = self.sequence(sequence)?;
        how(edited);
        if edited.held.is_empty() {
            self.joint.leave(sequence as usize);
        }
        Ok(())
    }

    /// Runs `new` entries of a sequence; writes the rows of those in `wanted` (ascending).
    fn run(&mut self, sequence: usize, new: &[Entry], wanted: &[usize], out: &mut [f32]) -> Result<()> {
        if self.fixed {
            return self.run_fixed(sequence, new, wanted, out);
        }
        let decoder = self.limits.output_kind == OutputKind::Logits;
        self.part(sequence)?;
        let state = &mut self.sequences[sequence];
        if !decoder {
            // All its tokens see each other in one run, and nothing is kept.
            (state.held, state.due) = (Vec::new(), Vec::new());
        }
        let due = std::mem::take(&mut state.due);
        let skipped = due.len();
        let entries: Vec<Entry> = due.into_iter().chain(new.iter().copied()).collect();
        let ids: Vec<i64> = entries.iter().map(|entry| entry.token.into()).collect();
        let positions: Vec<i64> = entries.iter().map(|entry| entry.position.into()).collect();
        let rows: Vec<i64> = wanted.iter().map(|&row| (skipped + row) as i64).collect();
        let mask = mask_of(state.held.iter().copied().chain(entries.iter().copied().map(Some)));
        let request = state.request(&self.compiled)?;
        let given = Given { ids: &ids, mask: &mask, positions: &positions, beams: &[0], rows: &rows };
        given.to(request, &self.inputs)?;
        if let Err(error) = request.infer() {
            // What the state holds now is unknown.
            let before = state.held.iter().flatten().chain(&entries[..skipped]).copied().collect();
            state.request = None;
            state.refill(before);
            return Err(error);
        }
        let width = self.limits.output_width as usize;
        let shortened = self.inputs.iter().any(|name| name == WANTED);
        let all_rows = entries.len();
        request.output(|values| {
            let given = if shortened { rows.len() } else { all_rows };
            if values.len() != given * width {
                let message =
                    format!("OpenVINO gave {} numbers where {given} rows of {width} are due", values.len());
                return Err(BackendError::new(ErrorCode::Failed, message));
            }
            for (number, (out, &row)) in out.chunks_exact_mut(width).zip(&rows).enumerate() {
                let row = if shortened { number } else { row as usize };
                out.copy_from_slice(&values[row * width..][..width]);
            }
            Ok(())
        })?;
        if decoder {
            state.held.extend(entries.into_iter().map(Some));
        }
        Ok(())
    }
}

/// What a run is given: a batch of as many rows as beams.
struct Given<'a> {
    ids: &'a [i64],
    mask: &'a [i64],
    positions: &'a [i64],
    /// The rows of the state that go on.
    beams: &'a [i32],
    /// The tokens of each row whose outputs are wanted.
    rows: &'a [i64],
}

impl Given<'_> {
    fn to(&self, request: &mut Request, inputs: &[String]) -> Result<()> {
        let count = self.beams.len();
        let shape = |numbers: &[i64]| [count as i64, (numbers.len() / count.max(1)) as i64];
        for name in inputs {
            match name.as_str() {
                "input_ids" => request.set(name, &shape(self.ids), Numbers::I64(self.ids))?,
                "attention_mask" => request.set(name, &shape(self.mask), Numbers::I64(self.mask))?,
                "position_ids" => request.set(name, &shape(self.positions), Numbers::I64(self.positions))?,
                "beam_idx" => request.set(name, &[count as i64], Numbers::I32(self.beams))?,
                "token_type_ids" => {
                    request.set(name, &shape(self.ids), Numbers::I64(&vec![0; self.ids.len()]))?;
                }
                _ => request.set(name, &[self.rows.len() as i64], Numbers::I64(self.rows))?,
            }
        }
        Ok(())
    }
}

/// How each entry counts: not at all if it was removed, otherwise as many as it is positions after the one before.
fn mask_of(entries: impl Iterator<Item = Option<Entry>>) -> Vec<i64> {
    let mut last = None;
    let mut count = |entry: Entry| {
        let step = last.map_or(1, |last| i64::from(entry.position) - i64::from(last));
        last = Some(entry.position);
        step.max(1)
    };
    entries.map(|entry| entry.map_or(0, &mut count)).collect()
}

impl Session for OpenVinoSession {
    fn limits(&self) -> Limits {
        self.limits
    }

    fn forward(&mut self, batch: Batch<'_>, output: &mut [f32]) -> Result<()> {
        batch.validate(&self.limits, output.len())?;
        batch.check_vocabulary(self.vocabulary)?;
        let width = self.limits.output_width as usize;
        let of = |sequence: u32| -> Vec<usize> {
            (0..batch.tokens.len()).filter(|&i| batch.sequences[i] == sequence).collect()
        };
        let entry = |i: usize| Entry { token: batch.tokens[i], position: batch.positions[i] };
        let place = |i: usize| batch.outputs.binary_search(&(i as u32)).ok();
        let parts = (0..self.limits.max_sequences).map(|sequence| (sequence as usize, of(sequence)));
        let (single, longer): (Vec<_>, Vec<_>) =
            parts.filter(|(_, mine)| !mine.is_empty()).partition(|(_, mine)| mine.len() == 1);
        let next: Vec<Next> = single
            .iter()
            .map(|(sequence, mine)| Next {
                sequence: *sequence,
                entry: entry(mine[0]),
                place: place(mine[0]),
            })
            .collect();
        let together = self.can_join(&next);
        if together {
            self.run_joint(&next, output)?;
        }
        for (sequence, mine) in longer.into_iter().chain(single.into_iter().filter(|_| !together)) {
            let entries: Vec<Entry> = mine.iter().map(|&i| entry(i)).collect();
            let (wanted, places): (Vec<usize>, Vec<usize>) =
                (0..mine.len()).filter_map(|row| Some((row, place(mine[row])?))).unzip();
            let contiguous = places.windows(2).all(|pair| pair[1] == pair[0] + 1);
            match places.first() {
                Some(&first) if contiguous => {
                    let out = &mut output[first * width..(first + places.len()) * width];
                    self.run(sequence, &entries, &wanted, out)?;
                }
                _ => {
                    let mut rows = vec![0.0; wanted.len() * width];
                    self.run(sequence, &entries, &wanted, &mut rows)?;
                    for (row, place) in rows.chunks_exact(width).zip(places) {
                        output[place * width..][..width].copy_from_slice(row);
                    }
                }
            }
        }
        Ok(())
    }

    fn keep(&mut self, sequence: u32, from: u32, to: u32) -> Result<()> {
        let tolerated = (!self.fixed).then_some(TOLERATED);
        self.edit(sequence, |held| held.retain(tolerated, |position| (from..to).contains(&position)))
    }

    fn remove(&mut self, sequence: u32, from: u32, to: u32) -> Result<()> {
        let tolerated = (!self.fixed).then_some(TOLERATED);
        self.edit(sequence, |held| held.retain(tolerated, |position| !(from..to).contains(&position)))
    }

    fn copy(&mut self, source: u32, target: u32, from: u32, to: u32) -> Result<()> {
        let entries: Vec<Entry> =
            self.sequence(source)?.entries().filter(|entry| (from..to).contains(&entry.position)).collect();
        self.edit(target, |target| {
            if !target.entries().eq(entries.iter().copied()) {
                target.refill(entries);
            }
        })
    }
}

/// The extra input that names the wanted rows.
const WANTED: &str = "wanted";

/// The graph to read: with rows left out that nobody wants, where it says how. It lies in the cache, because the artifact's
/// own graph is for everybody.
fn shortened(host: &HostInfo, graph: &Path, weights: &Path, outline: &Outline) -> Result<PathBuf> {
    let weights = std::fs::metadata(weights).map_or(0, |metadata| metadata.len());
    let Some(text) = outline.with_wanted_rows(WANTED, weights) else { return Ok(graph.to_path_buf()) };
    let kept = kept(host).map(|kept| kept.directory().to_path_buf());
    let cache = kept.unwrap_or_else(std::env::temp_dir);
    let digest = Digest::of(text.as_bytes()).to_string();
    let name: String = digest.chars().filter(char::is_ascii_alphanumeric).take(40).collect();
    let path = cache.join(format!("{name}.xml"));
    let failed = |error: std::io::Error| {
        BackendError::new(ErrorCode::Failed, format!("{}: {error}", path.display()))
            .with_help("Check the cache directory's permissions and free space.")
    };
    if std::fs::metadata(&path).is_ok_and(|metadata| metadata.len() == text.len() as u64) {
        return Ok(path);
    }
    std::fs::create_dir_all(&cache).map_err(failed)?;
    let staged = cache.join(format!(".{name}.{}", std::process::id()));
    std::fs::write(&staged, text).map_err(failed)?;
    std::fs::rename(&staged, &path).map_err(failed)?;
    Ok(path)
}

/// Bits that the runtime takes for a cached number: eight unless a property says otherwise.
fn cache_bits(properties: &[(String, String)]) -> u64 {
    let told = properties.iter().find(|(key, _)| key == "KV_CACHE_PRECISION");
    match told.map(|(_, value)| value.to_lowercase()).as_deref() {
        Some("f32") => 32,
        Some("f16" | "bf16") => 16,
        Some("u4") => 4,
        _ => 8,
    }
}

/// Where the model runs, in the runtime's words: `CPU`, `GPU.1`, `AUTO:GPU,CPU`, `HETERO:NPU,CPU`. The request says it, or the option
/// or setting `device`.
fn device(host: &HostInfo, request: &LoadRequest) -> String {
    let told = || request.options.get("device").or_else(|| host.config.get("device"))?.as_str();
    request.device.as_deref().or_else(told).unwrap_or("CPU").to_owned()
}

/// Names what is missing where a device is asked for that the runtime does not see.
fn check_device(runtime: &Runtime, device: &str, properties: &[(String, String)]) -> Result<()> {
    // The NPU's plugin compiles in parts for other devices where it is told to, which needs no NPU.
    if properties.iter().any(|(key, _)| key == "NPUW_DEVICES") {
        return Ok(());
    }
    let seen: Vec<String> = runtime.devices().into_iter().map(|(id, _)| id).collect();
    let kind =
        |name: &str| name.split(['.', '(']).next().unwrap_or_default().trim_start_matches('-').to_owned();
    let (chooser, named) = device.split_once(':').unwrap_or(("", device));
    let named = named.split(',').map(|name| kind(name.trim()));
    let missing = named.filter(|name| ["CPU", "GPU", "NPU"].contains(&name.as_str()));
    let missing: Vec<String> = missing.filter(|name| !seen.iter().any(|id| kind(id) == *name)).collect();
    // AUTO takes what is there.
    let Some(first) = missing.first().filter(|_| chooser != "AUTO") else { return Ok(()) };
    let lacks = match first.as_str() {
        "NPU" if !Path::new("/dev/accel").exists() => {
            "The system has no /dev/accel: its kernel lacks the driver intel_vpu, or the machine has no NPU."
        }
        "NPU" => {
            "Install Intel's user-space NPU driver (libze_intel_npu) and the Level Zero loader, and allow /dev/accel/accel0."
        }
        _ if !Path::new("/dev/dri").exists() => {
            "The system has no /dev/dri: it has no GPU, or no driver for it."
        }
        _ => {
            "Install Intel's OpenCL driver for GPUs (libOpenCL.so.1, intel-opencl-icd), and allow /dev/dri/renderD128."
        }
    };
    let message = format!("OpenVINO sees no {first} here, only {}", seen.join(", "));
    Err(BackendError::new(ErrorCode::MissingRuntime, message).with_help(lacks))
}

/// How the runtime is to work. Options in capitals are properties of the runtime and have the last word, so `PERFORMANCE_HINT` and
/// `NUM_STREAMS` are only what is usual for one model that answers as soon as it can.
fn properties(
    host: &HostInfo,
    request: &LoadRequest,
    device: &str,
    threads: u32,
    compiled_bytes: u64,
    context: u32,
) -> Vec<(String, String)> {
    let mut properties = vec![("PERFORMANCE_HINT", "LATENCY".to_owned())];
    if !device.contains(':') && device != "AUTO" {
        // Who chooses among devices makes its own of these.
        properties.push(("NUM_STREAMS", "1".to_owned()));
    }
    if threads > 0 && device == "CPU" {
        properties.push(("INFERENCE_NUM_THREADS", threads.to_string()));
    }
    let fixed = fixed::is_for(device);
    if fixed {
        properties.extend(fixed::properties(context));
    }
    if request.reference {
        properties.push(("INFERENCE_PRECISION_HINT", "f32".to_owned()));
    }
    if request.reference && !fixed {
        properties.push(("DYNAMIC_QUANTIZATION_GROUP_SIZE", "0".to_owned()));
        properties.push(("KV_CACHE_PRECISION", "f32".to_owned()));
    } else if !request.reference
        && let Some(kept) = kept(host)
        && let Some(directory) = kept.room_for(compiled_bytes)
    {
        properties.push(("CACHE_DIR", directory.to_string_lossy().into_owned()));
    }
    let mut properties: Vec<(String, String)> =
        properties.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
    let is_property =
        |key: &str| key.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_');
    for (key, value) in host.config.iter().chain(&request.options).filter(|(key, _)| is_property(key)) {
        let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        properties.retain(|(known, _)| known != key);
        properties.push((key.clone(), value));
    }
    properties
}
