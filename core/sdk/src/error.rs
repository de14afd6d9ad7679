//! The error every plugin call returns: a stable code for programs, a message and a next step for people.

use drophammer_abi::AbiError;
use drophammer_abi::types::RString;

/// What kind of failure it is. The word of each variant is stable and crosses the ABI.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorCode {
    /// The input is broken: truncated, inconsistent, not finite.
    InvalidInput,
    /// The input is sound, but this backend cannot take it.
    UnsupportedInput,
    /// The caller asked for something meaningless.
    InvalidRequest,
    /// A runtime library is absent, too old or broken.
    MissingRuntime,
    /// Memory, disk or another budget does not suffice.
    OutOfResources,
    /// The user asked for the job to end.
    Cancelled,
    /// The plugin panicked.
    Panic,
    /// The worker process ended without an answer.
    WorkerDied,
    /// Anything else.
    Failed,
}

impl ErrorCode {
    const TABLE: [(ErrorCode, &'static str); 9] = [
        (ErrorCode::InvalidInput, "invalid_input"),
        (ErrorCode::UnsupportedInput, "unsupported_input"),
        (ErrorCode::InvalidRequest, "invalid_request"),
        (ErrorCode::MissingRuntime, "missing_runtime"),
        (ErrorCode::OutOfResources, "out_of_resources"),
        (ErrorCode::Cancelled, "cancelled"),
        (ErrorCode::Panic, "panic"),
        (ErrorCode::WorkerDied, "worker_died"),
        (ErrorCode::Failed, "failed"),
    ];

    /// The stable word.
    pub fn word(self) -> &'static str {
        Self::TABLE.iter().find(|(code, _)| *code == self).map_or("failed", |(_, word)| word)
    }

    /// The code with this word; words of a newer peer read as [`ErrorCode::Failed`].
    pub fn from_word(word: &str) -> Self {
        Self::TABLE.iter().find(|(_, known)| *known == word).map_or(Self::Failed, |(code, _)| *code)
    }
}

/// A failure of a backend call.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct BackendError {
    /// What kind of failure.
    pub code: ErrorCode,
    /// What happened, to which file or tensor.
    pub message: String,
    /// What the user can do next; may be empty.
    pub help: String,
}

impl BackendError {
    /// An error with a code and a message.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), help: String::new() }
    }

    /// Adds what the user can do next.
    #[must_use]
    pub fn with_help(mut self, help: impl Into<String>) -> Self {
        self.help = help.into();
        self
    }

    /// The error of a job the user cancelled.
    pub fn cancelled() -> Self {
        Self::new(ErrorCode::Cancelled, "the job was cancelled")
    }
}

impl From<BackendError> for AbiError {
    fn from(error: BackendError) -> Self {
        Self {
            code: RString::from(error.code.word()),
            message: error.message.into(),
            help: error.help.into(),
        }
    }
}

impl From<AbiError> for BackendError {
    fn from(error: AbiError) -> Self {
        Self {
            code: ErrorCode::from_word(&error.code),
            message: error.message.into_string(),
            help: error.help.into_string(),
        }
    }
}

/// Result of a backend call.
pub type Result<T, E = BackendError> = std::result::Result<T, E>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_survives_the_boundary_and_unknown_words_read_as_failed() {
        for (code, word) in ErrorCode::TABLE {
            let error = BackendError::new(code, "m").with_help("h");
            assert_eq!(BackendError::from(AbiError::from(error.clone())), error);
            assert_eq!(ErrorCode::from_word(word), code);
        }
        assert_eq!(ErrorCode::from_word("from_the_future"), ErrorCode::Failed);
    }
}
