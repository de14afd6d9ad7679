//! From any source to compiled contexts: graphs and weights, ranges of activations, the compiler, the folder.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use drophammer_forge::{Recipe, failure};
use drophammer_formats::digest::Digest;
use drophammer_formats::layout::Layout;
use drophammer_models::Checkpoint;
use drophammer_models::description::ModelKind;
use drophammer_models::export::onnx::{FixedExport, Halves, Importances, Question, Ranges, Step, Weights};
use drophammer_ort::placement::{self, Placement};
use drophammer_sdk::{
    BackendError, ErrorCode, Estimate, ForgeReport, ForgeRequest, Goal, HostInfo, JobContext, LogLevel,
    Result,
};
use serde::Serialize;

use crate::artifact::{self, Artifact, Target};
use crate::calibrate::{self, Calibration, Samples};
use crate::scheme::{self, Scheme};
use crate::soc::{self, Soc};
use crate::{common, compile, provider};

/// Tokens of a decoder's prompt that go through a graph together, and of an encoder's short texts.
const CHUNK: u32 = 64;
/// The longest sequence where the goal names none.
const USUAL_CONTEXT: u32 = 512;
/// The longest sequence that is compiled.
const MOST_CONTEXT: u32 = 8192;
/// Resident memory of a worker with the compiler in it, besides a model.
const WORKER_BYTES: u64 = 400 << 20;
/// What the compiler holds for each byte of float weights.
const COMPILER_FACTOR: u64 = 4;

/// A goal, decided.
struct Plan {
    checkpoint: Checkpoint,
    scheme: Scheme,
    soc: &'static Soc,
    context: u32,
    steps: Vec<Step>,
}

/// The graphs that are compiled: a decoder's for a chunk of a prompt and for one token, an encoder's for the longest texts and for short
/// ones.
fn steps(kind: ModelKind, context: u32) -> Vec<Step> {
    match kind {
        ModelKind::Decoder => {
            vec![Step { stem: "prefill", tokens: CHUNK }, Step { stem: "decode", tokens: 1 }]
        }
        ModelKind::Encoder if context <= CHUNK => vec![Step { stem: "encode", tokens: context }],
        ModelKind::Encoder => {
            vec![Step { stem: "encode", tokens: context }, Step { stem: "short", tokens: CHUNK }]
        }
    }
}

impl Plan {
    fn of(request: &ForgeRequest) -> Result<Self> {
        let scheme = scheme::of(&request.goal)?;
        let soc = soc::of(&request.goal)?;
        let mut checkpoint = drophammer_forge::open(&request.source, &request.adapters)?;
        drophammer_forge::need_tokenizer(request, &checkpoint)?;
        let context = context_of(&request.goal, checkpoint.description().context)?;
        if scheme.calibrated() {
            checkpoint = spread(checkpoint)?;
        }
        let steps = steps(checkpoint.description().kind, context);
        Ok(Self { checkpoint, scheme, soc, context, steps })
    }

    fn export(&self, halves: &Halves) -> Result<FixedExport<'_>> {
        FixedExport::new(&self.checkpoint, &self.steps, self.context, self.scheme.weights, halves)
            .map_err(|error| failure::of_model(self.checkpoint.source().root(), &error))
    }

    fn bits_per_weight(&self, layout: &Layout) -> f64 {
        let bytes: u64 = layout.places.iter().map(|place| place.len).sum();
        // Floats are written in single precision and compiled in half.
        let bytes = if self.scheme.calibrated() { bytes } else { bytes / 2 };
        bytes as f64 * 8.0 / self.checkpoint.parameters().max(1) as f64
    }
}

/// The model with its residual stream spread out, so that activations' codes need not reach for a few outliers; where it has no such
/// form, as it is.
fn spread(checkpoint: Checkpoint) -> Result<Checkpoint> {
    let source = Arc::clone(checkpoint.source());
    checkpoint.spread().map_err(|error| failure::of_model(source.root(), &error))
}

/// The longest sequence: the goal's option `context`, or the usual one; never longer than the model's.
fn context_of(goal: &Goal, most: u32) -> Result<u32> {
    let most = most.min(MOST_CONTEXT);
    let Some(value) = goal.options.get("context") else { return Ok(USUAL_CONTEXT.min(most)) };
    let asked = value.as_u64().filter(|context| (1..=u64::from(most)).contains(context));
    asked.map(|context| context as u32).ok_or_else(|| {
        let message = format!("option `context`: {value} is no length from 1 to {most}");
        BackendError::new(ErrorCode::InvalidRequest, message)
            .with_help("A longer context makes every step slower: its length is compiled in.")
    })
}

/// The layout with activations as they are, or by ranges.
///
/// # Errors
/// Sizes that no file holds; a value whose range is not told.
pub(crate) fn layout(export: &FixedExport<'_>, ranges: Option<&Ranges>) -> Result<Layout> {
    export.layout(ranges).map_err(|fault| {
        BackendError::new(ErrorCode::UnsupportedInput, fault.to_string()).with_help(fault.help())
    })
}

/// Makes a folder of compiled contexts.
///
/// # Errors
/// For unknown goals, sources that cannot be read or expressed, a missing runtime, and graphs that the compiler refuses.
pub(crate) fn forge(host: &HostInfo, request: &ForgeRequest, job: &dyn JobContext) -> Result<ForgeReport> {
    job.check()?;
    let mut plan = Plan::of(request)?;
    let compiler = provider::look(host).map_err(first)?;
    let importances = match &request.imatrix {
        Some(path) => drophammer_forge::gguf::read_importance(path)?,
        None => Importances::new(),
    };
    let mut notes = Vec::new();
    let mut recipe = Recipe::new("qnn", env!("CARGO_PKG_VERSION"), plan.scheme.name)
        .with_source(plan.checkpoint.source())?
        .with_files(request.adapters.iter().chain(&request.imatrix))?
        .with_option("context", &plan.context.to_string());
    let mut calibration = Calibration::default();
    let told_apart = common::is_told_apart(&plan.checkpoint, &plan.scheme);
    if plan.scheme.calibrated() || told_apart {
        let mut samples = Samples::of(&plan.checkpoint, &request.goal)?;
        if told_apart {
            samples = samples.some(common::SAMPLES);
        }
        let bytes: Vec<u8> = samples.tokens.iter().flatten().flat_map(|token| token.to_le_bytes()).collect();
        recipe = recipe.with_option("samples", &Digest::of(&bytes).to_string());
        let place = request.staging.join("calibration");
        if told_apart {
            let (common, told) = common::of_logits(&plan.checkpoint, &samples, &plan.scheme, &place, job)?;
            notes.push(told);
            let source = Arc::clone(plan.checkpoint.source());
            let apart = plan.checkpoint.without_common(common);
            plan.checkpoint = apart.map_err(|error| failure::of_model(source.root(), &error))?;
        } else {
            notes.push(format!("activation ranges are those of {}", samples.told));
            calibration = calibrate::calibrate(&plan.checkpoint, &samples, &plan.scheme, &place, job)?;
        }
    }
    let Calibration { ranges, halves, inputs } = calibration;
    if !halves.is_empty() {
        notes.push(format!(
            "{} values stay in half precision, and matrices they are multiplied with: their codes would be coarser ({} names them)",
            halves.len(),
            artifact::FILE
        ));
    }
    let export = plan.export(&halves)?;
    let ranges = plan.scheme.calibrated().then_some(ranges);
    let layout = layout(&export, ranges.as_ref())?;
    let graphs = request.staging.join("graphs");
    std::fs::create_dir_all(&graphs).map_err(|error| unwritten(&graphs, &error))?;
    let items = export.items(&importances, &inputs).map_err(|error| failure::of_pass(&error))?;
    drophammer_forge::run(&graphs, &layout, &items, &recipe, job)?;
    drop((items, inputs));
    let environment = provider::open(host)?;
    let mut compiled_steps = Vec::new();
    for (number, step) in plan.steps.iter().enumerate() {
        job.check()?;
        job.progress("compiling", step.stem, number as u64, plan.steps.len() as u64);
        let graph = graphs.join(format!("{}.onnx", step.stem));
        let compiled = compile::compile(environment, &graph, &request.staging, step.stem, plan.soc)?;
        let told =
            format!("{}: {}", step.stem, placement::told(&compiled.placement, provider::NAME, "the NPU"));
        job.log(LogLevel::Info, &told);
        notes.push(told);
        compiled_steps.push(artifact::Step { tokens: step.tokens, graph: compiled });
    }
    notes.extend(told_of(plan.soc));
    let artifact = Artifact {
        version: artifact::VERSION,
        target: Target::new(plan.scheme.name, plan.soc, &compiler),
        vocabulary: plan.checkpoint.description().vocabulary,
        context: plan.context,
        unseen: plan.scheme.unseen,
        hidden: export.interface().encoder.then_some(plan.checkpoint.description().hidden),
        interface: export.interface(),
        steps: compiled_steps,
        halves,
    };
    let compiled = artifact.steps.iter().flat_map(|step| &step.graph.files);
    let mut files = vec![PathBuf::from(artifact::FILE)];
    files.extend(compiled.map(|(name, _)| PathBuf::from(name)));
    describe(&request.staging, artifact::FILE, &artifact)?;
    for (name, contents) in drophammer_forge::beside::files(&plan.checkpoint, request.no_tokenizer)? {
        let target = request.staging.join(&name);
        std::fs::write(&target, contents).map_err(|error| unwritten(&target, &error))?;
        files.push(name.into());
    }
    std::fs::remove_dir_all(&graphs).map_err(|error| unwritten(&graphs, &error))?;
    Ok(ForgeReport {
        bytes: bytes_of(&request.staging, &files)?,
        files,
        bits_per_weight: plan.bits_per_weight(&layout),
        parameters: plan.checkpoint.parameters(),
        notes,
        types: export.types(),
    })
}

/// For which chip something is compiled, and that it is imitated where it is.
pub(crate) fn told_of(soc: &Soc) -> Vec<String> {
    let mut told = vec![format!("compiled for {} ({})", soc.name, soc.sold_as)];
    told.extend(provider::EMULATED.then(|| provider::EMULATION.to_owned()));
    told
}

/// Writes what describes a folder.
///
/// # Errors
/// When it cannot be written.
pub(crate) fn describe(folder: &Path, name: &str, description: &impl Serialize) -> Result<()> {
    let document = serde_json::to_vec_pretty(description)
        .map_err(|error| BackendError::new(ErrorCode::Failed, format!("{name}: {error}")))?;
    let path = folder.join(name);
    std::fs::write(&path, document).map_err(|error| unwritten(&path, &error))
}

/// Bytes of some files of a folder.
///
/// # Errors
/// When one cannot be found.
pub(crate) fn bytes_of(folder: &Path, files: &[PathBuf]) -> Result<u64> {
    let sizes = files.iter().map(|file| std::fs::metadata(folder.join(file)).map(|found| found.len()));
    sizes.sum::<std::io::Result<u64>>().map_err(|error| unwritten(folder, &error))
}

/// A file that cannot be written or copied.
pub(crate) fn unwritten(path: &Path, error: &std::io::Error) -> BackendError {
    BackendError::new(ErrorCode::Failed, format!("{}: {error}", path.display()))
        .with_help("Check the path, its permissions and the free space.")
}

/// The first of some errors, with the remedies of all.
pub(crate) fn first(errors: Vec<BackendError>) -> BackendError {
    let helps: Vec<String> = errors.iter().map(|error| error.help.clone()).collect();
    let mut errors = errors.into_iter();
    let error = errors.next().unwrap_or_else(|| BackendError::new(ErrorCode::Failed, "no runtime was found"));
    error.with_help(helps.join(" and "))
}

/// What reaching a goal would take; a goal that cannot be reached says why.
///
/// # Errors
/// When the source cannot be read.
pub(crate) fn estimate(host: &HostInfo, source: &Path, goal: &Goal) -> Result<Estimate> {
    let plan = |request: &ForgeRequest| {
        let plan = Plan::of(request)?;
        // Emitting the graphs reads little and finds everything that the form does not express.
        let question =
            FixedExport::question(&plan.checkpoint, &plan.steps, plan.context, plan.scheme.weights)
                .map_err(|error| failure::of_model(source, &error))?;
        provider::look(host).map_err(first)?;
        let placed = compile::ask(provider::open(host)?, &question.layout, plan.soc)?;
        let placed = placed_in_words(&question, placed);
        Ok((plan, placed))
    };
    drophammer_forge::estimate(source, goal, plan, |estimate, (plan, placed)| {
        fill(estimate, plan, placed);
        Ok(())
    })
}

/// What the compiler was asked, and where it would put what.
fn placed_in_words(question: &Question, placed: Option<Vec<(String, Placement)>>) -> Vec<String> {
    let Question { layers, of, .. } = question;
    let whole = if layers == of { String::new() } else { format!(" of its first {layers} of {of} layers") };
    let Some(placed) = placed else {
        return vec!["its layers are too large to ask the compiler beforehand what it takes".into()];
    };
    let told = |(graph, placement): &(String, Placement)| {
        let graph = graph.trim_end_matches(".onnx");
        format!("{graph}{whole}: {}", placement::told(placement, provider::NAME, "the NPU"))
    };
    placed.iter().map(told).collect()
}

fn fill(estimate: &mut Estimate, plan: &Plan, placed: &[String]) {
    let parameters = plan.checkpoint.parameters();
    let bits = match plan.scheme.weights {
        Weights::Floats => 16,
        Weights::Whole { bits, .. } => u64::from(bits),
    };
    estimate.supported = true;
    estimate.reason = Some([&told_of(plan.soc)[..], placed].concat().join("; "));
    if plan.scheme.calibrated() {
        estimate.steps.push("run the float graph over sample text for the ranges of activations".into());
    }
    if common::is_told_apart(&plan.checkpoint, &plan.scheme) {
        estimate.steps.push("run the float graph over sample text for what logits have in common".into());
    }
    estimate.steps.push(format!(
        "write the weights as {} and {} graphs over them",
        plan.scheme.name,
        plan.steps.len()
    ));
    estimate.steps.push(format!("compile them for {}; say what goes to its NPU", plan.soc.name));
    // Every context holds all weights.
    estimate.bytes = plan.steps.len() as u64 * parameters * bits / 8;
    estimate.peak_memory_bytes = WORKER_BYTES + COMPILER_FACTOR * 4 * parameters;
    estimate.seconds = 5.0 + parameters as f64 / if plan.scheme.calibrated() { 1.5e6 } else { 5e6 };
}
