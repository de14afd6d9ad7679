//! What can be wrong with a chat template.

use super::find::Origin;

/// Why there is no prompt.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// A file could not be read.
    #[error(transparent)]
    File(#[from] drophammer_formats::Error),
    /// A file could not be read.
    #[error("{}: cannot be read: {source}; check its permissions", path.display())]
    Io {
        /// The file.
        path: std::path::PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It does not compile.
    #[error("{origin} does not compile: {message}; replace the template, or send a raw prompt")]
    Syntax {
        /// Which template.
        origin: Origin,
        /// Where and why.
        message: String,
    },
    /// The template does not take this conversation, in its own words.
    #[error("the model's chat template refuses the conversation: {message}")]
    Refused {
        /// The template's words.
        message: String,
    },
    /// It breaks, or does not end.
    #[error("{origin} failed: {message}; replace the template, or send a raw prompt")]
    Failed {
        /// Which template.
        origin: Origin,
        /// Where and why.
        message: String,
    },
}

/// Marks an error as the template's own words.
pub(super) const REFUSAL: &str = "\u{1}refused\u{1}";

impl TemplateError {
    pub(super) fn syntax(origin: &Origin, error: &minijinja::Error) -> Self {
        Self::Syntax { origin: origin.clone(), message: error.to_string() }
    }

    pub(super) fn from_render(origin: &Origin, error: &minijinja::Error) -> Self {
        match error.detail().and_then(|detail| detail.strip_prefix(REFUSAL)) {
            Some(words) => Self::Refused { message: words.to_owned() },
            None => Self::Failed { origin: origin.clone(), message: error.to_string() },
        }
    }
}
