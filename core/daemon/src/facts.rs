//! What can be read from a path without touching its weights.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use drophammer_client::api::ErrorReport;
use drophammer_engine::identify::{self, Facts, Identity};
use drophammer_formats::{Source, SourceKind};
use drophammer_models::checkpoint::Checkpoint;
use drophammer_models::description::ModelKind;

use crate::pipeline::report;

/// Identifies a path. Nothing is mapped: a file that shrinks meanwhile does the daemon no harm.
///
/// # Errors
/// Precisely why nothing can be made of it: which file or tensor, what is wrong with it, what to do.
pub(crate) fn identify(path: &Path) -> Result<Identity, ErrorReport> {
    let source = Source::open_headers(path).map_err(|error| {
        let text = ErrorReport::new(error.code(), error.to_string());
        text.about(error.path().display().to_string()).help(error.help())
    })?;
    let checkpoint = Checkpoint::new(Arc::new(source)).map_err(|error| {
        let text = ErrorReport::new(error.code(), error.to_string());
        text.about(path.display().to_string()).help(error.help())
    })?;
    identify::identify(&facts(path, &checkpoint)).map_err(report)
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
    }
}
