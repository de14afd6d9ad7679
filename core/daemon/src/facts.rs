//! What can be read from a path without touching its weights.

use std::collections::BTreeMap;
use std::path::Path;

use drophammer_client::api::ErrorReport;
use drophammer_engine::identify::{self, Facts, Identity};
use drophammer_formats::{Source, SourceKind};
use drophammer_models::families::FAMILIES;

use crate::pipeline::report;

/// Identifies a path.
///
/// # Errors
/// Precisely why nothing can be made of it: which file, what is wrong with it, what to do.
pub(crate) fn identify(path: &Path) -> Result<Identity, ErrorReport> {
    let source = Source::open(path).map_err(|error| {
        let text = ErrorReport::new(error.code(), error.to_string());
        text.about(error.path().display().to_string()).help(error.help())
    })?;
    let facts = facts(path, &source);
    let known: Vec<&str> = FAMILIES.iter().flat_map(|family| family.model_types.iter().copied()).collect();
    let identity = identify::identify(&facts, &known).map_err(report)?;
    if let Some(config) = source.config() {
        drophammer_models::describe(config).map_err(|error| {
            let subject = path.join("config.json").display().to_string();
            ErrorReport::new(error.code(), error.to_string()).about(subject).help(error.help())
        })?;
    }
    Ok(identity)
}

fn facts(path: &Path, source: &Source) -> Facts {
    let mut weights: BTreeMap<String, u64> = BTreeMap::new();
    for tensor in source.tensors() {
        let count = weights.entry(tensor.dtype.to_string()).or_default();
        *count = count.saturating_add(tensor.elements());
    }
    let files = source.all_files();
    let sizes = files.iter().filter_map(|file| std::fs::metadata(file).ok());
    let metadata = source.metadata();
    let config = source.config();
    let architecture = match config {
        Some(config) => config.get("model_type").and_then(|value| value.as_str()).map(str::to_owned),
        None => metadata.str("general.architecture").map(str::to_owned),
    };
    let context_length = match config {
        Some(config) => config.get("max_position_embeddings").and_then(serde_json::Value::as_u64),
        None => architecture.as_ref().and_then(|name| metadata.u64(&format!("{name}.context_length"))),
    };
    let tokenizer = match source.kind() {
        SourceKind::Gguf => metadata.array("tokenizer.ggml.tokens").is_some(),
        _ => source.tokenizer().is_complete(),
    };
    Facts {
        path: path.display().to_string(),
        format: source.kind().name().to_owned(),
        architecture,
        weights,
        tensors: source.tensors().len() as u64,
        bytes: sizes.map(|found| found.len()).fold(0, u64::saturating_add),
        context_length,
        tokenizer,
    }
}
