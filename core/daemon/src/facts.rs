//! What can be read from a path without touching its weights.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use drophammer_client::api::ErrorReport;
use drophammer_engine::identify::{self, Facts, Identity};
use drophammer_formats::{Source, SourceKind, onnx};
use drophammer_models::checkpoint::Checkpoint;
use drophammer_models::description::ModelKind;

use crate::pipeline::report;

/// Graphs that are read whole to be counted: larger ones keep their weights elsewhere, or are told by their size.
const LARGEST_GRAPH: u64 = 64 << 20;

/// Identifies a path. Nothing is mapped: a file that shrinks meanwhile does the daemon no harm.
///
/// # Errors
/// Precisely why nothing can be made of it: which file or tensor, what is wrong with it, what to do.
pub(crate) fn identify(path: &Path) -> Result<Identity, ErrorReport> {
    let source = Source::open_headers(path).map_err(|error| {
        let text = ErrorReport::new(error.code(), error.to_string());
        text.about(error.path().display().to_string()).help(error.help())
    })?;
    if source.kind() == SourceKind::Onnx && source.config().is_none() {
        return identify::identify(&graph_facts(path, &source)?).map_err(report);
    }
    let checkpoint = Checkpoint::new(Arc::new(source)).map_err(|error| {
        let text = ErrorReport::new(error.code(), error.to_string());
        text.about(path.display().to_string()).help(error.help())
    })?;
    identify::identify(&facts(path, &checkpoint)).map_err(report)
}

/// What is known of a plain graph: all of it where it is small enough to be read, its size otherwise.
fn graph_facts(path: &Path, source: &Source) -> Result<Facts, ErrorReport> {
    let files = source.all_files();
    let sizes: Vec<u64> =
        files.iter().filter_map(|file| std::fs::metadata(file).ok()).map(|found| found.len()).collect();
    let bytes = sizes.iter().copied().fold(0, u64::saturating_add);
    let mut facts = Facts {
        path: path.display().to_string(),
        format: source.kind().name().to_owned(),
        architecture: "graph".to_owned(),
        bytes,
        plain: true,
        ..Facts::default()
    };
    let Some(file) = source.files().next().map(Path::to_owned) else { return Ok(facts) };
    if sizes.first().is_none_or(|size| *size > LARGEST_GRAPH) {
        facts.weights.insert("f32".to_owned(), bytes / 4);
        return Ok(facts);
    }
    let failed = |code: &str, problem: String, help: &str| {
        let message = format!("{}: {problem}", file.display());
        ErrorReport::new(code, message).about(file.display().to_string()).help(help)
    };
    let content = std::fs::read(&file)
        .map_err(|error| failed("io", error.to_string(), "Make it readable by this user."))?;
    let model =
        onnx::parse(&content).map_err(|fault| failed(fault.code(), fault.to_string(), fault.help()))?;
    for tensor in model.graph.constants() {
        let Some(dtype) = tensor.element_type.dtype() else { continue };
        let elements = tensor.shape.iter().copied().fold(1, u64::saturating_mul);
        let count = facts.weights.entry(dtype.to_string()).or_default();
        *count = count.saturating_add(elements);
        facts.tensors += 1;
    }
    Ok(facts)
}

fn facts(path: &Path, checkpoint: &Checkpoint) -> Facts {
    let source = checkpoint.source();
    let mut weights: BTreeMap<String, u64> = BTreeMap::new();
    for tensor in source.tensors() {
        let count = weights.entry(tensor.dtype.to_string()).or_default();
        *count = count.saturating_add(tensor.elements());
    }
    let files = source.all_files();
    let sizes = files.iter().filter_map(|file| std::fs::metadata(file).ok());
    let metadata = source.metadata();
    let context_length = match source.config() {
        Some(config) => config.get("max_position_embeddings").and_then(serde_json::Value::as_u64),
        None => metadata
            .str("general.architecture")
            .and_then(|name| metadata.u64(&format!("{name}.context_length"))),
    };
    let tokenizer = match source.kind() {
        SourceKind::Gguf => metadata.array("tokenizer.ggml.tokens").is_some(),
        _ => source.tokenizer().is_complete(),
    };
    Facts {
        path: path.display().to_string(),
        format: source.kind().name().to_owned(),
        architecture: checkpoint.family().name.to_owned(),
        weights,
        tensors: source.tensors().len() as u64,
        bytes: sizes.map(|found| found.len()).fold(0, u64::saturating_add),
        context_length,
        tokenizer,
        encodes: checkpoint.description().kind == ModelKind::Encoder,
        plain: false,
    }
}
