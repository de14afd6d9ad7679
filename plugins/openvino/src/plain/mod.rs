//! Plain ONNX graphs (vision, audio, anything): read by the runtime's own frontend and saved as IR, weights in eight bits where
//! that is asked for.
//!
//! Reading needs the runtime, unlike everything else this backend makes. Its C interface reads any model but saves none, so
//! one function of the C++ interface is called for that: see [`Runtime::save_as_ir`].

mod compress;
mod document;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use drophammer_forge::{Recipe, failure};
use drophammer_formats::Source;
use drophammer_formats::mapped::MappedFile;
use drophammer_sdk::{
    BackendError, ErrorCode, Estimate, ForgeReport, ForgeRequest, Goal, HostInfo, JobContext, Result,
};

use crate::forge::{MODEL, WEIGHTS};
use crate::runtime::Runtime;
use crate::scheme::Scheme;
use compress::Compressed;

/// What the frontend is given.
pub(crate) struct PlainGraph {
    file: PathBuf,
    bytes: u64,
}

impl PlainGraph {
    /// An ONNX file, or a directory whose only model is one.
    pub(crate) fn find(source: &Path) -> Option<Self> {
        let is_onnx = |path: &Path| path.extension().is_some_and(|extension| extension == "onnx");
        if source.is_file() {
            return is_onnx(source).then(|| Self::of(source.to_owned()));
        }
        if source.join("config.json").exists() {
            return None;
        }
        let mut files = std::fs::read_dir(source).ok()?.filter_map(|entry| Some(entry.ok()?.path()));
        let first = files.find(|path| is_onnx(path))?;
        files.all(|path| !is_onnx(&path)).then(|| Self::of(first))
    }

    fn of(file: PathBuf) -> Self {
        // Weights may lie in files beside it.
        let mut bytes = std::fs::metadata(&file).map_or(0, |metadata| metadata.len());
        for extension in ["onnx.data", "onnx_data", "data"] {
            bytes += std::fs::metadata(file.with_extension(extension)).map_or(0, |metadata| metadata.len());
        }
        Self { file, bytes }
    }
}

/// What plain graphs are made as.
fn scheme(goal: &Goal) -> Result<Scheme> {
    let scheme = Scheme::of(goal)?;
    let known = matches!(scheme.name.as_str(), "fp32" | "fp16") || scheme.channels().is_some();
    known.then_some(()).ok_or_else(|| {
        BackendError::new(
            ErrorCode::UnsupportedInput,
            format!("plain graphs are not made as {}", scheme.name),
        )
        .with_help("Choose fp32, fp16, int8_asym or int8_sym.")
    })?;
    Ok(scheme)
}

/// What reaching a goal would take.
pub(crate) fn estimate(host: &HostInfo, graph: &PlainGraph, goal: &Goal) -> Estimate {
    drophammer_forge::estimate_with(goal, |estimate| {
        let scheme = scheme(goal)?;
        Runtime::open(host)?;
        let eight_bits = scheme.quantizes();
        estimate.supported = true;
        estimate.steps = vec!["let OpenVINO's frontend read the graph, and save it as IR".to_owned()];
        if eight_bits {
            estimate.steps.push(format!("store weights of layers as {}", scheme.name));
        }
        estimate.bytes = if eight_bits { graph.bytes / 3 } else { graph.bytes };
        estimate.scheme = scheme.name;
        // The frontend holds the model once, and writes it from there.
        estimate.peak_memory_bytes = 2 * graph.bytes + (128 << 20);
        estimate.seconds = 1.0 + graph.bytes as f64 / 100e6;
        Ok(())
    })
}

/// Makes the artifact.
///
/// # Errors
/// Goals that are not for plain graphs, a missing runtime, graphs that it cannot read, and as for the pass.
pub(crate) fn forge(
    host: &HostInfo,
    graph: &PlainGraph,
    request: &ForgeRequest,
    job: &dyn JobContext,
) -> Result<ForgeReport> {
    job.check()?;
    let scheme = scheme(&request.goal)?;
    let runtime = Runtime::open(host)?;
    job.progress("read", "", 0, 0);
    let Some(levels) = scheme.channels() else {
        runtime.save_as_ir(&graph.file, &request.staging.join(MODEL), scheme.name == "fp16")?;
        return report(request, None);
    };
    let place = request.staging.join(".frontend");
    let failed = |path: &Path, error: &std::io::Error| {
        BackendError::new(ErrorCode::Failed, format!("{}: {error}", path.display()))
            .with_help("Check free space and permissions.")
    };
    std::fs::create_dir_all(&place).map_err(|error| failed(&place, &error))?;
    runtime.save_as_ir(&graph.file, &place.join(MODEL), false)?;
    let path = place.join(MODEL);
    let text = std::fs::read_to_string(&path).map_err(|error| failed(&path, &error))?;
    let weights = MappedFile::open(&place.join(WEIGHTS)).map_err(|error| failure::of_source(&error))?;
    let compressed = compress::compress(&text, weights.bytes(), levels).map_err(|why| {
        BackendError::new(ErrorCode::Failed, format!("{}: {why}", path.display()))
            .with_help("This is a defect of the program or of the runtime's version.")
    })?;
    let items = compressed.items(weights.bytes())?;
    let source = Source::open(&graph.file);
    let mut recipe = Recipe::new("openvino plain", env!("CARGO_PKG_VERSION"), &scheme.name)
        .with_option("runtime", runtime.version());
    if let Ok(source) = &source {
        recipe = recipe.with_source(source)?;
    }
    drophammer_forge::run(&request.staging, &compressed.layout, &items, &recipe, job)?;
    drop(items);
    std::fs::remove_dir_all(&place).map_err(|error| failed(&place, &error))?;
    report(request, Some(compressed))
}

/// What lies in the staging directory.
fn report(request: &ForgeRequest, compressed: Option<Compressed>) -> Result<ForgeReport> {
    let size = |name: &str| {
        let path = request.staging.join(name);
        std::fs::metadata(&path)
            .map(|metadata| metadata.len())
            .map_err(|error| BackendError::new(ErrorCode::Failed, format!("{}: {error}", path.display())))
    };
    let bytes = size(WEIGHTS)?;
    let mut report = ForgeReport {
        files: [MODEL, WEIGHTS].map(PathBuf::from).to_vec(),
        bytes: bytes + size(MODEL)?,
        ..ForgeReport::default()
    };
    if let Some(compressed) = compressed {
        report.parameters = compressed.parameters;
        report.bits_per_weight = bytes as f64 * 8.0 / compressed.parameters.max(1) as f64;
        report.types = BTreeMap::from([("8 bits".to_owned(), compressed.matrices)]);
        report.notes = compressed.notes;
    }
    Ok(report)
}
