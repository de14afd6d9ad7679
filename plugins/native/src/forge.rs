//! Making GGUF files: what a goal comes to, decided from headers alone, and the one pass that does it.
//!
//! `convert` and `quantize` are the same pass: rows go from the source straight into the goal's types, whatever the source
//! is. What is planned here is also what `probe` reports.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use drophammer_formats::digest::{Digest, source_fingerprint};
use drophammer_formats::layout::Layout;
use drophammer_formats::{DType, Source, TensorDecl, gguf};
use drophammer_models::export::gguf::GgufExport;
use drophammer_quant::pass::{self, Advance, Importance, Item};
use drophammer_quant::presets::{self, Choice, Override, Preset, Tensor};
use drophammer_sdk::{BackendError, ErrorCode, ForgeReport, ForgeRequest, Goal, JobContext, Result};

use crate::{failure, session};

/// A goal, decided.
pub(crate) struct Plan {
    export: GgufExport,
    pub(crate) preset: &'static Preset,
    tensors: Vec<TensorDecl>,
    pub(crate) layout: Layout,
    /// Fallbacks, in words.
    pub(crate) notes: Vec<String>,
}

/// Names of all schemes, largest first.
pub(crate) fn schemes() -> impl Iterator<Item = &'static str> {
    presets::PRESETS.iter().map(|preset| preset.name)
}

/// What a request comes to.
pub(crate) fn plan(request: &ForgeRequest) -> Result<Plan> {
    let preset = preset_of(&request.goal)?;
    let overrides = overrides_of(&request.goal)?;
    let checkpoint = session::open(&request.source, &request.adapters)?;
    let in_model = |error: &drophammer_models::Error| failure::of_model(&request.source, error);
    let export = GgufExport::new(checkpoint).map_err(|error| in_model(&error))?;
    let informed = request.imatrix.is_some();
    let tensors = export.declare(preset, informed, &overrides);
    let metadata = export.metadata(preset, !request.no_tokenizer).map_err(|error| in_model(&error))?;
    let layout = gguf::plan(&request.name, &metadata, &tensors, None).map_err(|fault| {
        BackendError::new(ErrorCode::UnsupportedInput, format!("{}: {fault}", request.source.display()))
            .with_help(fault.help())
    })?;
    let notes = fallbacks(&export, preset, informed, &overrides, &tensors);
    Ok(Plan { export, preset, tensors, layout, notes })
}

/// The preset that a goal names.
pub(crate) fn preset_of(goal: &Goal) -> Result<&'static Preset> {
    let unknown = |what: String, help: String| {
        Err(BackendError::new(ErrorCode::UnsupportedInput, what).with_help(help))
    };
    if goal.format != "gguf" {
        return unknown(
            format!("the native backend makes gguf files, not {}", goal.format),
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
    /// The work, with activation statistics where there are any.
    pub(crate) fn items(&self, importance: &BTreeMap<String, Importance>) -> Result<Vec<Item<'_>>> {
        self.export
            .items(&self.tensors, |name| importance.get(name).cloned())
            .map_err(|error| failure::of_pass(&error))
    }

    /// Parameters of the model: elements of all tensors.
    pub(crate) fn parameters(&self) -> u64 {
        self.tensors.iter().map(|tensor| tensor.shape.iter().product::<u64>()).sum()
    }

    fn types(&self) -> BTreeMap<String, u64> {
        let mut types = BTreeMap::new();
        for tensor in &self.tensors {
            *types.entry(tensor.dtype.name().to_owned()).or_default() += 1;
        }
        types
    }

    fn report(self) -> ForgeReport {
        let (parameters, bytes) = (self.parameters(), self.layout.total_bytes());
        let data: u64 = self.layout.places.iter().map(|place| place.len).sum();
        ForgeReport {
            files: self.layout.files.iter().map(|file| file.name.clone().into()).collect(),
            bytes,
            bits_per_weight: data as f64 * 8.0 / parameters.max(1) as f64,
            parameters,
            types: self.types(),
            notes: self.notes,
        }
    }
}

/// Reports a pass to its job.
struct Heard<'a>(&'a dyn JobContext);

impl pass::Progress for Heard<'_> {
    fn advanced(&self, advance: Advance<'_>) {
        let stage = if advance.verifying { "verifying" } else { "forging" };
        self.0.progress(stage, advance.tensor, advance.done_bytes, advance.total_bytes);
    }

    fn cancelled(&self) -> bool {
        self.0.cancelled()
    }
}

/// Makes the artifact.
pub(crate) fn forge(request: &ForgeRequest, job: &dyn JobContext) -> Result<ForgeReport> {
    job.check()?;
    let plan = plan(request)?;
    let budgets = job.budgets();
    let needed = plan.layout.total_bytes();
    if budgets.disk_bytes != 0 && needed > budgets.disk_bytes {
        let message = format!(
            "the artifact takes {needed} bytes, more than the {} this job may write",
            budgets.disk_bytes
        );
        return Err(BackendError::new(ErrorCode::OutOfResources, message)
            .with_help("Free some disk space or choose a smaller scheme."));
    }
    let importance = request.imatrix.as_deref().map(read_importance).transpose()?.unwrap_or_default();
    let items = plan.items(&importance)?;
    let options = pass::Options {
        threads: budgets.threads.max(1) as usize,
        // The process itself and mapped pages in use take some of the job's memory.
        memory_budget: (budgets.memory_bytes != 0)
            .then(|| budgets.memory_bytes.saturating_sub(64 << 20).max(16 << 20)),
        ..pass::Options::default()
    };
    let recipe = recipe(&plan, request)?;
    pass::forge(&request.staging, plan.layout.clone(), &items, recipe, &options, &Heard(job))
        .map_err(|error| failure::of_pass(&error))?;
    drop(items);
    Ok(plan.report())
}

/// Everything the bytes depend on besides the plan.
fn recipe(plan: &Plan, request: &ForgeRequest) -> Result<Digest> {
    let mut text = format!("native {} {}\n", env!("CARGO_PKG_VERSION"), plan.preset.name);
    let mut add = |source: &Source| -> Result<()> {
        let digest = source_fingerprint(source).map_err(|error| failure::of_source(&error))?;
        text += &digest.to_string();
        Ok(())
    };
    add(plan.export.checkpoint().source())?;
    for path in request.adapters.iter().chain(&request.imatrix) {
        add(&Source::open(path).map_err(|error| failure::of_source(&error))?)?;
    }
    Ok(Digest::of(text.as_bytes()))
}

/// Activation statistics in llama.cpp's form: `<tensor>.in_sum2` (sums of squares per column) and `<tensor>.counts`.
fn read_importance(path: &Path) -> Result<BTreeMap<String, Importance>> {
    let source = Source::open(path).map_err(|error| failure::of_source(&error))?;
    let floats = |name: &str| -> Option<Vec<f32>> {
        let tensor = source.tensor(name).filter(|tensor| tensor.dtype == DType::F32)?;
        Some(
            source
                .bytes(tensor)
                .chunks_exact(4)
                .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
                .collect(),
        )
    };
    let mut importance = BTreeMap::new();
    for tensor in source.tensors() {
        let Some(name) = tensor.name.strip_suffix(".in_sum2") else { continue };
        let (Some(sums), Some(counts)) = (floats(&tensor.name), floats(&format!("{name}.counts"))) else {
            continue;
        };
        let columns = sums.len() / counts.len().max(1);
        let means = sums.iter().enumerate().map(|(i, sum)| {
            // A matrix that saw no activation (an expert never chosen) gets equal weights.
            let count = counts.get(i / columns.max(1)).copied().unwrap_or(0.0);
            if count > 0.0 { sum / count } else { 1.0 }
        });
        importance.insert(name.to_owned(), Importance(Arc::from(means.collect::<Vec<_>>())));
    }
    if importance.is_empty() {
        let message = format!("{}: holds no activation statistics", path.display());
        return Err(BackendError::new(ErrorCode::InvalidInput, message)
            .with_help("Use a file that llama-imatrix wrote in GGUF form."));
    }
    Ok(importance)
}
