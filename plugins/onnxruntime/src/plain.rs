//! Plain graphs: made smaller, run on samples for their ranges, and compared with the original.

use std::path::PathBuf;

use drophammer_forge::Recipe;
use drophammer_forge::plain::{Draft, Pick, PlainGraph, Reach, Samples};
use drophammer_ort::{accuracy, graph, placement};
use drophammer_sdk::{
    BackendError, ErrorCode, Estimate, ForgeReport, ForgeRequest, Goal, HostInfo, JobContext, LogLevel,
    Result,
};

/// The graph's file, without its extension.
const STEM: &str = "model";
/// Resident memory of a worker with the library in it and values of a network for images, besides graphs.
const WORKER_BYTES: u64 = 360 << 20;

/// What becomes of a plain graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scheme {
    Single,
    Half,
    /// Whole numbers by the value.
    Dynamic,
    /// Whole numbers by ranges: activations of so many bits.
    Static(u8),
}

/// All schemes by name.
pub(crate) const SCHEMES: [&str; 5] = ["fp32", "fp16", "dynamic_int8", "qdq_int8", "qdq_int16"];

/// What is offered where the host names no goal.
pub(crate) const OFFERED: [&str; 3] = ["dynamic_int8", "qdq_int8", "fp16"];

fn scheme(goal: &Goal) -> Result<Scheme> {
    let unknown = |message: String| {
        let help = format!("Choose the format onnx and one of: {}.", SCHEMES.join(", "));
        Err(BackendError::new(ErrorCode::UnsupportedInput, message).with_help(help))
    };
    if goal.format != "onnx" {
        return unknown(format!("this backend makes onnx, not {}", goal.format));
    }
    Ok(match goal.scheme.as_str() {
        "fp32" => Scheme::Single,
        "fp16" => Scheme::Half,
        "dynamic_int8" => Scheme::Dynamic,
        "qdq_int8" => Scheme::Static(8),
        "qdq_int16" => Scheme::Static(16),
        other => return unknown(format!("plain graphs are not made as {other:?}")),
    })
}

impl Scheme {
    /// Bits of a weight, about.
    fn bits(self) -> u64 {
        match self {
            Self::Single => 32,
            Self::Half => 16,
            Self::Dynamic | Self::Static(_) => 8,
        }
    }
}

/// What reaching a goal would take; a goal that cannot be reached says why.
pub(crate) fn estimate(host: &HostInfo, file: &std::path::Path, goal: &Goal) -> Estimate {
    drophammer_forge::estimate_with(goal, |estimate| fill(host, file, goal, estimate))
}

fn fill(host: &HostInfo, file: &std::path::Path, goal: &Goal, estimate: &mut Estimate) -> Result<()> {
    let scheme = scheme(goal)?;
    let plain = PlainGraph::open(file)?;
    Pick::of(goal, &plain.model().graph)?;
    drophammer_forge::flag(goal, "portable")?;
    let runtime = drophammer_ort::find(host, "onnxruntime", "library");
    let mut told = None;
    if let Scheme::Static(_) = scheme {
        runtime.as_ref().map_err(Clone::clone)?;
        if let Some(place) = Samples::place(goal, file) {
            estimate.steps.push(format!("run the graph on the samples of {}", place.display()));
        } else {
            told = Some(Samples::of(goal, &plain)?.told);
            estimate.steps.push("run the graph on random samples for the ranges of values".into());
        }
    }
    let verb = match scheme {
        Scheme::Single => "write the graph and its weights as they are",
        Scheme::Half => "write weights as float16",
        Scheme::Dynamic => {
            "write weights of products and convolutions in eight bits, to multiply with values in eight bits"
        }
        Scheme::Static(_) => "fold norms, and write weights and values in whole numbers",
    };
    estimate.steps.push(verb.into());
    let mut told: Vec<String> = told.into_iter().collect();
    if runtime.is_ok() {
        told.extend(placement::by_provider(drophammer_ort::environment(host, "library")?, file)?);
        estimate.steps.push("compare its outputs with the original's".into());
    } else {
        told.push("ONNX Runtime is not installed: the result is not compared with the original".into());
    }
    estimate.supported = true;
    estimate.reason = (!told.is_empty()).then(|| told.join("; "));
    let weights = plain.parameters();
    estimate.bytes =
        (plain.file_bytes().saturating_sub(4 * weights)).saturating_add(weights * scheme.bits() / 8);
    // Original and artifact are open side by side, each with its values.
    estimate.peak_memory_bytes = WORKER_BYTES + 5 * plain.file_bytes();
    estimate.seconds = 1.0 + weights as f64 / 5e6;
    Ok(())
}

/// Makes the artifact: the graph, its data where they are large, and how near it comes to the original.
///
/// # Errors
/// For unknown goals, graphs and calibration data that cannot be read, and where ranges are to be found, a missing runtime.
pub(crate) fn forge(
    host: &HostInfo,
    file: &std::path::Path,
    request: &ForgeRequest,
    job: &dyn JobContext,
) -> Result<ForgeReport> {
    job.check()?;
    let goal = &request.goal;
    let scheme = scheme(goal)?;
    let plain = PlainGraph::open(file)?;
    let pick = Pick::of(goal, &plain.model().graph)?;
    let samples = match Samples::of(goal, &plain) {
        Ok(samples) => Some(samples),
        // Nobody needs some: what cannot be compared is told.
        Err(error) if !matches!(scheme, Scheme::Static(_)) && Samples::place(goal, file).is_none() => {
            job.log(LogLevel::Warning, &format!("not compared with the original: {}", error.message));
            None
        }
        Err(error) => return Err(error),
    };
    let mut draft = Draft::new(&plain).for_processors(goal)?;
    let mut told = Vec::new();
    draft = match scheme {
        Scheme::Single => draft,
        Scheme::Half => draft.halves(),
        Scheme::Dynamic => draft.dynamic_int(&pick)?,
        Scheme::Static(bits) => {
            let draft = draft.folded();
            let environment = drophammer_ort::environment(host, "library")?;
            let samples = samples.as_ref().ok_or_else(|| {
                BackendError::new(ErrorCode::InvalidRequest, "ranges need samples")
                    .with_help("Give --calibration.")
            })?;
            let place = request.staging.join(".calibration");
            let ranges = graph::ranges(environment, &draft, samples, &place, job)?;
            told.push(format!("ranges of values are those of {}", samples.told));
            if bits == 16 {
                told.push("values of 16 bits are for accelerators: ONNX Runtime's own kernels compute between them in floats".into());
            }
            draft.static_int(bits, &ranges, &pick, Reach::Kernels)
        }
    };
    let mut recipe = Recipe::new("onnx plain", env!("CARGO_PKG_VERSION"), &goal.scheme);
    for (name, value) in &goal.options {
        recipe = recipe.with_option(name, &value.to_string());
    }
    graph::write(&draft, STEM, &request.staging, &recipe, job)?;
    let mut files = vec![PathBuf::from(format!("{STEM}.onnx"))];
    let data = PathBuf::from(format!("{STEM}.onnx.data"));
    if request.staging.join(&data).exists() {
        files.push(data);
    }
    told.splice(0..0, draft.notes.iter().cloned());
    match (&samples, drophammer_ort::environment(host, "library")) {
        (Some(samples), Ok(environment)) => {
            let threads = job.budgets().threads.max(1) as usize;
            let made = request.staging.join(&files[0]);
            // Before the two that are compared are open: its sessions are as large.
            told.extend(placement::by_provider(environment, &made)?);
            let mut original = graph::open(environment, file, threads)?;
            let mut artifact = graph::open(environment, &made, threads)?;
            let both = [&mut original, &mut artifact];
            told.extend(accuracy::report(both, &plain, samples, &request.staging, job)?);
            files.push(accuracy::FILE.into());
        }
        (_, Err(error)) => told.push(format!("not compared with the original: {}", error.message)),
        (None, Ok(_)) => {
            told.push("not compared with the original: nobody gave samples, and sizes are open".into());
        }
    }
    report(request, &plain, &draft, files, told)
}

fn report(
    request: &ForgeRequest,
    plain: &PlainGraph,
    draft: &Draft<'_>,
    files: Vec<PathBuf>,
    notes: Vec<String>,
) -> Result<ForgeReport> {
    let mut bytes = 0;
    for file in &files {
        let path = request.staging.join(file);
        let found = std::fs::metadata(&path)
            .map_err(|error| BackendError::new(ErrorCode::Failed, format!("{}: {error}", path.display())))?;
        bytes += found.len();
    }
    let parameters = plain.parameters();
    Ok(ForgeReport {
        files,
        bytes,
        bits_per_weight: draft.bytes() as f64 * 8.0 / parameters.max(1) as f64,
        parameters,
        notes,
        types: draft.types(),
    })
}
