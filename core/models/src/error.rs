//! Why a model cannot be described or read, said with the key or tensor and the way out.

use thiserror::Error;

use crate::weight::WeightId;

/// The result of describing or reading a model.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failure. [`Error::help`] says what the user can do next.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// The file or directory could not be read.
    #[error(transparent)]
    Source(#[from] drophammer_formats::Error),
    /// Nobody has described this architecture yet.
    #[error("architecture `{name}` is not supported; supported are: {}", supported.join(", "))]
    UnknownArchitecture {
        /// What the configuration calls it.
        name: String,
        /// What is supported.
        supported: Vec<&'static str>,
    },
    /// The architecture is known, but not this variant of it.
    #[error("{family}: {what} is not supported")]
    Unsupported {
        /// The family.
        family: String,
        /// What is not.
        what: String,
    },
    /// There is no configuration to describe the model from.
    #[error("{path}: has no config.json beside it, so its architecture is unknown")]
    NoConfig {
        /// The source.
        path: String,
    },
    /// A key is absent.
    #[error("config: `{key}` is missing")]
    MissingKey {
        /// Its name.
        key: String,
    },
    /// A key's value makes no sense.
    #[error("config: `{key}` is {value}: {problem}")]
    BadValue {
        /// Its name.
        key: String,
        /// Its value, shortened.
        value: String,
        /// What is wrong.
        problem: String,
    },
    /// A weight that the architecture needs is not in the source.
    #[error("tensor `{name}` ({id}) is missing")]
    MissingTensor {
        /// Which weight.
        id: WeightId,
        /// What the source would call it.
        name: String,
    },
    /// A tensor's shape contradicts the configuration.
    #[error("tensor `{name}` has shape {found:?}, but the configuration asks for {expected:?}")]
    Shape {
        /// The tensor.
        name: String,
        /// Its shape.
        found: Vec<u64>,
        /// What it should be.
        expected: Vec<u64>,
    },
    /// A tensor cannot be decoded.
    #[error("tensor `{name}`: {problem}")]
    Tensor {
        /// The tensor.
        name: String,
        /// What is wrong.
        problem: String,
    },
    /// The tokenizer is missing or cannot be told in the target's terms.
    #[error("{path}: {problem}")]
    Tokenizer {
        /// The file or directory.
        path: String,
        /// What is wrong.
        problem: String,
    },
    /// The description has no such weight, or not so many rows.
    #[error("{id}: {problem}")]
    Weight {
        /// Which weight.
        id: WeightId,
        /// What is wrong.
        problem: String,
    },
}

impl Error {
    /// A short stable name of the kind of failure, for scripts.
    pub fn code(&self) -> &'static str {
        match self {
            Error::Source(error) => error.code(),
            Error::UnknownArchitecture { .. } => "unknown_architecture",
            Error::Unsupported { .. } => "unsupported",
            Error::NoConfig { .. } => "no_config",
            Error::MissingKey { .. } | Error::BadValue { .. } => "bad_config",
            Error::MissingTensor { .. } => "missing_tensor",
            Error::Shape { .. } => "wrong_shape",
            Error::Tensor { .. } | Error::Weight { .. } => "bad_tensor",
            Error::Tokenizer { .. } => "tokenizer",
        }
    }

    /// What the user can do next.
    pub fn help(&self) -> String {
        match self {
            Error::Source(error) => error.help(),
            Error::UnknownArchitecture { .. } | Error::Unsupported { .. } => {
                "Use a supported model, or add the architecture: core/models/README.md tells how.".into()
            }
            Error::NoConfig { .. } => "Put the model's config.json into the same directory.".into(),
            Error::MissingKey { .. } | Error::BadValue { .. } => {
                "Compare config.json with the one the model was published with.".into()
            }
            Error::MissingTensor { .. } => {
                "The checkpoint is incomplete or of another architecture: fetch it again, or check `model_type`.".into()
            }
            Error::Shape { .. } => "config.json and weights come from different models: fetch both again.".into(),
            Error::Tensor { .. } => "The file is damaged or of an unknown variant: fetch it again.".into(),
            Error::Tokenizer { .. } => {
                "Put the model's tokenizer.json beside its weights, or convert with --no-tokenizer.".into()
            }
            Error::Weight { .. } => "This is a mistake in the program: please report it.".into(),
        }
    }
}
