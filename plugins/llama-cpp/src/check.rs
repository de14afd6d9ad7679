//! What our own parsers say of a file before the library sees it.

use std::path::Path;
use std::sync::Arc;

use drophammer_forge::failure;
use drophammer_formats::{Source, SourceKind};
use drophammer_models::{Checkpoint, Error};
use drophammer_sdk::{BackendError, ErrorCode, Result};

use crate::ffi;

/// A GGUF model that is sound, and that libllama has an architecture for.
#[derive(Debug)]
pub(crate) struct Checked {
    pub(crate) source: Arc<Source>,
    pub(crate) architecture: String,
    /// The model as we describe it; `None` for architectures that only libllama knows.
    pub(crate) checkpoint: Option<Checkpoint>,
}

/// Opens a model file.
///
/// # Errors
/// For damaged files, files of other kinds, and architectures that libllama lacks.
pub(crate) fn model(path: &Path) -> Result<Checked> {
    let source = Arc::new(Source::open(path).map_err(|error| failure::of_source(&error))?);
    if source.kind() != SourceKind::Gguf {
        let message =
            format!("{}: llama.cpp runs GGUF files, and this is {}", path.display(), source.kind().name());
        return Err(BackendError::new(ErrorCode::UnsupportedInput, message)
            .with_help("Convert it to gguf first, or load it with the native backend."));
    }
    let metadata = source.metadata();
    let kind = metadata.str("general.type").unwrap_or("model");
    let architecture = metadata.str("general.architecture").unwrap_or_default().to_owned();
    if kind != "model" || architecture.is_empty() {
        let message = format!("{}: not a model but {kind:?}", path.display());
        return Err(
            BackendError::new(ErrorCode::InvalidInput, message).with_help("Choose the model's own file.")
        );
    }
    if !ffi::model::knows(&architecture) {
        let message = format!("{}: {} has no architecture {architecture:?}", path.display(), ffi::version());
        return Err(BackendError::new(ErrorCode::UnsupportedInput, message)
            .with_help("Load it with the native backend, or with a newer build of this plugin."));
    }
    let checkpoint = match Checkpoint::new(Arc::clone(&source)) {
        Ok(checkpoint) => Some(checkpoint),
        // Libllama runs more than we describe; the file's structure was checked all the same.
        Err(Error::UnknownArchitecture { .. } | Error::Unsupported { .. }) => None,
        Err(error) => return Err(failure::of_model(path, &error)),
    };
    Ok(Checked { source, architecture, checkpoint })
}

impl Checked {
    /// A number under `<architecture>.<key>`.
    pub(crate) fn number(&self, key: &str) -> Option<u64> {
        self.source.metadata().u64(&format!("{}.{key}", self.architecture))
    }
}
