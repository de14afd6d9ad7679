//! Making GGUF files: what a goal comes to, decided from headers alone, and the one pass that does it.
//!
//! Rows go from the source straight into the goal's types, whatever the source is. What is planned here is also what
//! [`estimate`] reports.

use std::collections::BTreeMap;
use std::path::Path;

use drophammer_formats::layout::Layout;
use drophammer_formats::{DType, TensorDecl, gguf};
use drophammer_models::export::gguf::GgufExport;
use drophammer_models::{Checkpoint, WeightId};
use drophammer_quant::compensate::{Collected, Compensator};
use drophammer_quant::equalize::Rounding;
use drophammer_quant::importance::{Importance as Statistics, ImportanceError};
use drophammer_quant::pass::{self, Importance, Item};
use drophammer_quant::presets::{self, Choice, Override, Preset, Tensor};
use drophammer_sdk::{
    BackendError, ErrorCode, Estimate, ForgeReport, ForgeRequest, Goal, JobContext, Result,
};

use crate::equalize::{Scaling, equalize};
use crate::pass::parameters;
use crate::{Recipe, failure};

/// Resident memory of a worker besides buffers: code, maps, tables.
const WORKER_BYTES: u64 = 48 << 20;

/// A goal, decided.
pub struct Plan {
    /// The mixture of types.
    pub preset: &'static Preset,
    /// The file's (or files') bytes and places.
    pub layout: Layout,
    /// Fallbacks, in words.
    pub notes: Vec<String>,
    export: GgufExport,
    tensors: Vec<TensorDecl>,
    /// Whether there are, or will be, statistics of activations.
    informed: bool,
    /// Whether rounding errors are made up for.
    compensate: bool,
    /// Whether columns are scaled first.
    awq: bool,
}

/// Names of all schemes, largest first.
pub fn schemes() -> impl Iterator<Item = &'static str> {
    presets::PRESETS.iter().map(|preset| preset.name)
}

/// What a request comes to.
///
/// # Errors
/// For an unknown format, scheme or override, and for sources that cannot be read, described or told in GGUF.
pub fn plan(request: &ForgeRequest) -> Result<Plan> {
    plan_of(request, crate::open(&request.source, &request.adapters)?)
}

fn plan_of(request: &ForgeRequest, checkpoint: Checkpoint) -> Result<Plan> {
    let preset = preset_of(&request.goal)?;
    let overrides = overrides_of(&request.goal)?;
    let in_model = |error: &drophammer_models::Error| failure::of_model(&request.source, error);
    let export = GgufExport::new(checkpoint).map_err(|error| in_model(&error))?;
    // Before it is made, an artifact may only be promised statistics.
    let informed = request.imatrix.is_some() || crate::flag(&request.goal, "calibrated")?;
    let tensors = export.declare(preset, informed, &overrides);
    let metadata = export.metadata(preset, !request.no_tokenizer).map_err(|error| in_model(&error))?;
    let layout = gguf::plan(&request.name, &metadata, &tensors, crate::max_file_bytes(&request.goal)?)
        .map_err(|fault| {
            BackendError::new(ErrorCode::UnsupportedInput, format!("{}: {fault}", request.source.display()))
                .with_help(fault.help())
        })?;
    let notes = fallbacks(&export, preset, informed, &overrides, &tensors);
    let (compensate, awq) = (crate::flag(&request.goal, "compensate")?, crate::flag(&request.goal, "awq")?);
    Ok(Plan { preset, layout, notes, export, tensors, informed, compensate, awq })
}

/// The preset that a goal names.
///
/// # Errors
/// For a format other than gguf and for unknown schemes; the help lists the known ones.
pub fn preset_of(goal: &Goal) -> Result<&'static Preset> {
    let unknown = |what: String, help: String| {
        Err(BackendError::new(ErrorCode::UnsupportedInput, what).with_help(help))
    };
    if goal.format != "gguf" {
        return unknown(
            format!("this backend makes gguf files, not {}", goal.format),
            "Choose the format gguf, or a target of another backend.".into(),
        );
    }
    match presets::preset(&goal.scheme) {
        Some(preset) => Ok(preset),
        None => unknown(
            format!("there is no gguf scheme {:?}", goal.scheme),
            format!("Choose one of: {}.", schemes().collect::<Vec<_>>().join(", ")),
        ),
    }
}

/// `overrides`: a list of `PATTERN=TYPE`.
fn overrides_of(goal: &Goal) -> Result<Vec<Override>> {
    let Some(value) = goal.options.get("overrides") else { return Ok(Vec::new()) };
    let invalid = |problem: String| BackendError::new(ErrorCode::InvalidRequest, problem);
    let list =
        value.as_array().ok_or_else(|| invalid("option `overrides` is not a list of PATTERN=TYPE".into()))?;
    list.iter()
        .map(|item| {
            item.as_str().unwrap_or_default().parse::<Override>().map_err(|error| invalid(error.to_string()))
        })
        .collect()
}

/// Which types took the place of others, and why.
fn fallbacks(
    export: &GgufExport,
    preset: &Preset,
    informed: bool,
    overrides: &[Override],
    tensors: &[TensorDecl],
) -> Vec<String> {
    let named: Vec<Tensor<'_>> = tensors.iter().map(|t| Tensor { name: &t.name, shape: &t.shape }).collect();
    let mut counts: BTreeMap<(&str, &str, u64), u32> = BTreeMap::new();
    let choices = presets::plan(preset, &export.facts(informed), &named, overrides);
    for (tensor, choice) in tensors.iter().zip(choices) {
        if let Choice::Fallback { wanted, used } = choice {
            let width = tensor.shape.last().copied().unwrap_or(1);
            *counts.entry((wanted.name(), used.name(), width)).or_default() += 1;
        }
    }
    let say = |((wanted, used, width), count): (&(&str, &str, u64), &u32)| {
        format!(
            "{count} tensors are stored as {used}, not {wanted}, whose blocks do not divide rows of {width}"
        )
    };
    counts.iter().map(say).collect()
}

impl Plan {
    /// What will have been made.
    pub fn report(&self) -> ForgeReport {
        crate::report(&self.layout, &self.tensors, self.notes.clone())
    }

    /// The work, with activation statistics where there are any.
    ///
    /// # Errors
    /// For importance of another model, and types that weights are not written in.
    pub fn items(&self, importance: &BTreeMap<String, Importance>) -> Result<Vec<Item<'_>>> {
        self.compensated_items(importance, |_| None)
    }

    fn compensated_items(
        &self,
        importance: &BTreeMap<String, Importance>,
        compensator: impl Fn(&TensorDecl) -> Option<Compensator>,
    ) -> Result<Vec<Item<'_>>> {
        self.export
            .compensated_items(&self.tensors, |name| importance.get(name).cloned(), compensator)
            .map_err(|error| failure::of_pass(&error))
    }

    /// The model with its columns scaled for these types.
    fn equalized(
        &self,
        request: &ForgeRequest,
        importance: &BTreeMap<String, Importance>,
        job: &dyn JobContext,
    ) -> Result<(Checkpoint, Scaling)> {
        let checkpoint = crate::open(&request.source, &request.adapters)?;
        let types: BTreeMap<&str, DType> =
            self.tensors.iter().map(|tensor| (tensor.name.as_str(), tensor.dtype)).collect();
        let names: BTreeMap<WeightId, DType> = checkpoint
            .weights()
            .iter()
            .filter_map(|weight| {
                let dtype = types.get(checkpoint.gguf_name(weight.id)?.as_str())?;
                dtype.is_block().then_some((weight.id, *dtype))
            })
            .collect();
        let rounding = |id| Some(Box::new(*names.get(&id)?) as Box<dyn Rounding>);
        equalize(checkpoint, importance, rounding, job)
    }

    /// The work as it is estimated, before there are products: only its size is right.
    fn estimated_items(&self) -> Result<Vec<Item<'_>>> {
        self.compensated_items(&BTreeMap::new(), |tensor| {
            let columns = tensor.shape.last().filter(|_| self.compensate && tensor.shape.len() == 2)?;
            Some(Compensator::new(usize::try_from(*columns).ok()?, || Err("this is an estimate".into())))
        })
    }
}

/// Makes an artifact at plain precision.
///
/// # Errors
/// As for [`quantize`]; a scheme that quantizes is refused.
pub fn convert(request: &ForgeRequest, job: &dyn JobContext) -> Result<ForgeReport> {
    let preset = preset_of(&request.goal)?;
    if preset.base.is_block() {
        let message = format!("{} quantizes: it is not a conversion", preset.name);
        return Err(
            BackendError::new(ErrorCode::InvalidRequest, message).with_help("Ask for it to be quantized.")
        );
    }
    quantize(request, job)
}

/// Makes an artifact of any scheme in one pass, without an intermediate file.
///
/// # Errors
/// As for [`plan`], of the importance matrix, and as for [`crate::run`].
pub fn quantize(request: &ForgeRequest, job: &dyn JobContext) -> Result<ForgeReport> {
    job.check()?;
    let mut plan = plan(request)?;
    let mut importance = match &request.imatrix {
        Some(path) => importance_of(path, &plan.export)?,
        None => BTreeMap::new(),
    };
    let matrices = plan.export.plain_matrices().map(|(name, columns)| (name, columns as u64));
    let collected = plan.compensate.then(|| collected(request, matrices)).transpose()?;
    let mut scaling = Scaling::default();
    if plan.awq {
        let (checkpoint, found) = plan.equalized(request, &importance, job)?;
        plan = plan_of(request, checkpoint)?;
        plan.notes.push(found.note());
        importance = found.importance(&importance);
        scaling = found;
    }
    let items = plan.compensated_items(&importance, |tensor| {
        // Experts would need products of their own.
        let columns = tensor.shape.last().filter(|_| tensor.shape.len() == 2)?;
        Some(scaling.compensator(&tensor.name, collected.as_ref()?.of(&tensor.name, *columns)?))
    })?;
    let recipe = Recipe::new("gguf", env!("CARGO_PKG_VERSION"), plan.preset.name)
        .with_option("compensate", if plan.compensate { "yes" } else { "no" })
        .with_option("awq", if plan.awq { "yes" } else { "no" })
        .with_source(plan.export.checkpoint().source())?
        .with_files(request.adapters.iter().chain(&request.imatrix))?;
    crate::run(&request.staging, &plan.layout, &items, &recipe, job)?;
    drop(items);
    Ok(plan.report())
}

/// What reaching a goal would take; a goal that cannot be reached says why.
///
/// # Errors
/// When the source cannot be read.
pub fn estimate(source: &Path, goal: &Goal) -> Result<Estimate> {
    crate::estimate(source, goal, plan, fill)
}

fn fill(estimate: &mut Estimate, plan: &Plan) -> Result<()> {
    let items = plan.estimated_items()?;
    let options = pass::Options::default();
    let work = pass::estimate(&items, &options).map_err(|error| failure::of_pass(&error))?;
    let mut notes = plan.notes.clone();
    if plan.preset.wants_importance && !plan.informed {
        notes.push("this scheme gives poor results without an importance matrix".into());
    }
    estimate.supported = true;
    estimate.reason = (!notes.is_empty()).then(|| notes.join("; "));
    let how = if plan.preset.base.is_block() { "as" } else { "in" };
    estimate.steps = vec![format!("read each tensor and write it {how} {} in one pass", plan.preset.name)];
    if plan.awq {
        estimate
            .steps
            .insert(0, "find scales of columns that lose least, and fold them into what comes before".into());
    }
    if plan.informed {
        estimate.steps.insert(0, "collect statistics of the model's activations".into());
    }
    if plan.compensate {
        estimate.steps.push("choose codes column by column, so that later ones make up for errors".into());
    }
    estimate.bytes = plan.layout.total_bytes();
    estimate.peak_memory_bytes = work.peak_bytes + WORKER_BYTES;
    let rate = weights_per_second(plan.preset.base) * work.threads as f64;
    estimate.seconds = 0.2 + parameters(&plan.tensors) as f64 / rate;
    Ok(())
}

/// Weights that one thread encodes in a second: measured on a 2.6 GHz server core, rounded down.
fn weights_per_second(dtype: DType) -> f64 {
    match dtype {
        DType::F32 | DType::F16 | DType::BF16 => 400e6,
        DType::Q8_0 => 250e6,
        DType::Q4_0 | DType::Q4_1 | DType::Q5_0 | DType::Q5_1 => 150e6,
        DType::Q2K | DType::Q3K | DType::Q4K | DType::Q5K | DType::Q6K => 40e6,
        _ => 6e6,
    }
}

/// The products of activations that a request brings, for matrices with these GGUF names and columns.
///
/// # Errors
/// [`ErrorCode::InvalidRequest`] where it brings none, or those of another model.
pub fn collected(
    request: &ForgeRequest,
    mut matrices: impl Iterator<Item = (impl AsRef<str>, u64)>,
) -> Result<Collected> {
    let missing = |what: String| {
        BackendError::new(ErrorCode::InvalidRequest, what).with_help(
            "Give an importance matrix with products of activations (`drophammer imatrix SOURCE --products -o FILE`), or --auto-imatrix.",
        )
    };
    let path = request.imatrix.as_ref().ok_or_else(|| {
        missing("making up for rounding errors needs products of activations, and there is no imatrix".into())
    })?;
    let collected = Collected::open(path).map_err(|error| missing(format!("{}: {error}", path.display())))?;
    if matrices.any(|(name, columns)| collected.of(name.as_ref(), columns).is_some()) {
        return Ok(collected);
    }
    let problem = "its products of activations are of another model: none fits a matrix of this one";
    Err(missing(format!("{}: {problem}", path.display())))
}

/// Activation statistics in llama.cpp's form, whatever model they are of.
///
/// # Errors
/// When the file cannot be read or holds none.
pub fn read_importance(path: &Path) -> Result<BTreeMap<String, Importance>> {
    Ok(Statistics::read(path).map_err(|error| refused(path, error))?.weights())
}

/// Activation statistics of this very model.
fn importance_of(path: &Path, export: &GgufExport) -> Result<BTreeMap<String, Importance>> {
    let statistics = Statistics::read(path).map_err(|error| refused(path, error))?;
    // Stacked matrices have statistics for each expert.
    let columns = |shape: &[u64]| {
        let stacked = if shape.len() > 2 { shape[..shape.len() - 2].iter().product() } else { 1 };
        usize::try_from(shape.last().map_or(1, |columns| columns * stacked)).unwrap_or(usize::MAX)
    };
    statistics
        .check(export.matrices().map(|(name, shape, _)| (name, columns(shape))))
        .map_err(|error| refused(path, error))?;
    Ok(statistics.weights())
}

fn refused(path: &Path, error: ImportanceError) -> BackendError {
    let code = match &error {
        ImportanceError::File(error) => return failure::of_source(error),
        ImportanceError::OtherShape { .. } | ImportanceError::OtherModel { .. } => ErrorCode::InvalidRequest,
        _ => ErrorCode::InvalidInput,
    };
    BackendError::new(code, format!("{}: {error}", path.display()))
        .with_help("Collect one from this model with `drophammer imatrix`, or go without.")
}
