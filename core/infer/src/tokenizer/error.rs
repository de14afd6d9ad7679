//! What can be wrong with a tokenizer.

use std::path::{Path, PathBuf};

/// Why there is no tokenizer, or why a text could not be encoded.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// The model has none.
    #[error(
        "{}: no tokenizer; put the model's tokenizer.json beside its weights (Hugging Face models have one in \
         their repository)", path.display()
    )]
    Missing {
        /// The model.
        path: PathBuf,
    },
    /// There is only a form that is not read.
    #[error(
        "{}: the tokenizer is there only as {found}; save it as tokenizer.json (in Python: \
         `transformers.AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)`) and try again", path.display()
    )]
    OtherForm {
        /// The model.
        path: PathBuf,
        /// The files found.
        found: String,
    },
    /// A file could not be read.
    #[error(transparent)]
    File(#[from] drophammer_formats::Error),
    /// A file could not be read.
    #[error("{}: cannot be read: {source}; check that the file exists and its permissions", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The tokenizer contradicts itself or its format.
    #[error("{}: the tokenizer is broken: {message}; download the file again", path.display())]
    Broken {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
    /// The tokenizer is of a kind that is not built in.
    #[error(
        "{}: {message}; a tokenizer.json in a Hugging Face directory of the same model is read whatever its rules",
        path.display()
    )]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// What is not supported, and what is.
        message: String,
    },
    /// The tokenizer's rules failed on a text.
    #[error("the text cannot be tokenized: {0}; look for unusual characters in it")]
    Encode(String),
}

/// A [`TokenizerError`] that does not know its file yet.
#[derive(Debug)]
pub(super) enum Problem {
    Missing,
    Broken(String),
    Unsupported(String),
}

impl Problem {
    pub(super) fn broken(message: impl Into<String>) -> Self {
        Self::Broken(message.into())
    }

    pub(super) fn at(self, path: &Path) -> TokenizerError {
        let path = path.to_owned();
        match self {
            Self::Missing => TokenizerError::Missing { path },
            Self::Broken(message) => TokenizerError::Broken { path, message },
            Self::Unsupported(message) => TokenizerError::Unsupported { path, message },
        }
    }
}
