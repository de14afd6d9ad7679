//! From any source to an ONNX directory: graph, weights, `genai_config.json`, tokenizer files.

use std::path::{Path, PathBuf};

use drophammer_forge::{Recipe, failure};
use drophammer_formats::layout::Layout;
use drophammer_models::export::onnx::{Importances, OnnxExport, SCHEMES, Scheme, Storage, scheme};
use drophammer_ort::placement;
use drophammer_quant::pass;
use drophammer_sdk::{
    BackendError, ErrorCode, Estimate, ForgeReport, ForgeRequest, Goal, HostInfo, JobContext, LogLevel,
    Result,
};

/// Resident memory of a worker besides buffers: code, maps, tables.
const WORKER_BYTES: u64 = 48 << 20;

/// A goal, decided.
struct Plan {
    export: OnnxExport,
    layout: Layout,
}

/// The scheme that a goal names.
///
/// # Errors
/// For a format other than onnx and for unknown schemes; the help lists the known ones.
pub(crate) fn scheme_of(goal: &Goal) -> Result<Scheme> {
    let unknown = |what: String, help: String| {
        Err(BackendError::new(ErrorCode::UnsupportedInput, what).with_help(help))
    };
    if goal.format != "onnx" {
        return unknown(
            format!("this backend makes onnx directories, not {}", goal.format),
            "Choose the format onnx, or a target of another backend.".into(),
        );
    }
    match scheme(&goal.scheme) {
        Some(scheme) => Ok(scheme),
        None => unknown(
            format!("there is no onnx scheme {:?}", goal.scheme),
            format!("Choose one of: {}; blocks of 16 to 256 by a suffix like _b64.", SCHEMES.join(", ")),
        ),
    }
}

fn plan(request: &ForgeRequest) -> Result<Plan> {
    let scheme = scheme_of(&request.goal)?;
    let checkpoint = drophammer_forge::open(&request.source, &request.adapters)?;
    drophammer_forge::need_tokenizer(request, &checkpoint)?;
    let in_model = |error: &drophammer_models::Error| failure::of_model(&request.source, error);
    let export = OnnxExport::new(checkpoint, scheme).map_err(|error| in_model(&error))?;
    let mut layout = export.layout().map_err(|fault| {
        BackendError::new(ErrorCode::UnsupportedInput, format!("{}: {fault}", request.source.display()))
            .with_help(fault.help())
    })?;
    layout.side_files.extend(drophammer_forge::beside::files(export.checkpoint(), request.no_tokenizer)?);
    Ok(Plan { export, layout })
}

impl Plan {
    fn report(self, placed: Vec<String>) -> ForgeReport {
        let side = self.layout.side_files.iter().map(|(name, _)| PathBuf::from(name));
        let data = self.layout.files.iter().map(|file| PathBuf::from(&file.name));
        let weights: u64 = self.layout.places.iter().map(|place| place.len).sum();
        let parameters = self.export.checkpoint().parameters();
        ForgeReport {
            files: side.chain(data).collect(),
            bytes: self.layout.total_bytes(),
            bits_per_weight: weights as f64 * 8.0 / parameters.max(1) as f64,
            parameters,
            notes: self.export.notes().iter().cloned().chain(placed).collect(),
            types: self.export.types(),
        }
    }
}

/// Makes a directory in one pass over the source, without an intermediate file.
///
/// # Errors
/// For unknown goals, sources that cannot be read, described or expressed, a wrong importance matrix, and as for
/// [`drophammer_forge::run`].
pub(crate) fn forge(host: &HostInfo, request: &ForgeRequest, job: &dyn JobContext) -> Result<ForgeReport> {
    job.check()?;
    let plan = plan(request)?;
    let placed = placed(host, &plan, &request.source);
    for told in &placed {
        job.log(LogLevel::Info, told);
    }
    let importances = match &request.imatrix {
        Some(path) => drophammer_forge::gguf::read_importance(path)?,
        None => Importances::new(),
    };
    let items = plan.export.items(&importances).map_err(|error| failure::of_pass(&error))?;
    let recipe = Recipe::new("onnx", env!("CARGO_PKG_VERSION"), &request.goal.scheme)
        .with_source(plan.export.checkpoint().source())?
        .with_files(request.adapters.iter().chain(&request.imatrix))?;
    drophammer_forge::run(&request.staging, &plan.layout, &items, &recipe, job)?;
    drop(items);
    Ok(plan.report(placed))
}

/// What each provider of the library takes of the graph, where there is a library to ask. Making a directory needs none: what is in the way
/// is told.
fn placed(host: &HostInfo, plan: &Plan, source: &Path) -> Vec<String> {
    if drophammer_ort::find(host, "onnxruntime", "library").is_err() {
        return vec![
            "ONNX Runtime is not installed: nobody was asked which operations providers take".into(),
        ];
    }
    let asked = || {
        let bare = plan.export.bare().map_err(|fault| {
            BackendError::new(ErrorCode::UnsupportedInput, fault.to_string()).with_help(fault.help())
        })?;
        placement::by_provider_of(drophammer_ort::environment(host, "library")?, &bare, source)
    };
    asked().unwrap_or_else(|error| {
        vec![format!("which operations providers take is not known: {}", error.message)]
    })
}

/// What reaching a goal would take; a goal that cannot be reached says why.
///
/// # Errors
/// When the source cannot be read.
pub(crate) fn estimate(host: &HostInfo, source: &Path, goal: &Goal) -> Result<Estimate> {
    drophammer_forge::estimate(source, goal, plan, |estimate, plan| {
        fill(estimate, plan, placed(host, plan, source))
    })
}

fn fill(estimate: &mut Estimate, plan: &Plan, placed: Vec<String>) -> Result<()> {
    let items = plan.export.items(&Importances::new()).map_err(|error| failure::of_pass(&error))?;
    let work = pass::estimate(&items, &pass::Options::default()).map_err(|error| failure::of_pass(&error))?;
    let notes: Vec<String> = plan.export.notes().iter().cloned().chain(placed).collect();
    estimate.supported = true;
    estimate.reason = (!notes.is_empty()).then(|| notes.join("; "));
    estimate.steps = vec![
        "write the graph".into(),
        format!("read each matrix and write it as {} in one pass", estimate.scheme),
    ];
    estimate.bytes = plan.layout.total_bytes();
    estimate.peak_memory_bytes = work.peak_bytes + WORKER_BYTES;
    // Weights that one thread encodes in a second, rounded down.
    let rate = match plan.export.scheme().storage {
        Storage::Float(_) => 400e6,
        _ => 30e6,
    };
    estimate.seconds = 0.2 + plan.export.checkpoint().parameters() as f64 / (rate * work.threads as f64);
    Ok(())
}
