//! What went wrong, where, and what to do about it.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// An error as people and scripts see it, on a job, a model or an API answer.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ErrorReport {
    /// A stable word for scripts, such as `unsupported_architecture`.
    pub code: String,
    /// What happened, in one sentence.
    pub message: String,
    /// The file, tensor or setting it happened to.
    pub subject: Option<String>,
    /// What the user can do next; a command where there is one.
    pub help: Option<String>,
    /// More lines for whoever looks closer: causes, the last lines a worker printed.
    #[serde(default)]
    pub detail: Vec<String>,
}

impl ErrorReport {
    /// A report without a subject, help or detail.
    pub fn new(code: impl Into<String>, message: impl Into<String>) -> Self {
        Self { code: code.into(), message: message.into(), ..Self::default() }
    }

    /// Names the file, tensor or setting.
    #[must_use]
    pub fn about(mut self, subject: impl Into<String>) -> Self {
        self.subject = Some(subject.into());
        self
    }

    /// Says what the user can do next.
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }
}

impl std::fmt::Display for ErrorReport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)?;
        if let Some(subject) = &self.subject {
            write!(f, " ({subject})")?;
        }
        if let Some(help) = &self.help {
            write!(f, "; {help}")?;
        }
        Ok(())
    }
}

/// The body of every control-API answer of status 400 or more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ApiError {
    /// What happened.
    pub error: ErrorReport,
}

/// Something that is not as it should be but stops nothing else.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// What is missing or wrong.
    pub message: String,
    /// The command or setting that puts it right.
    pub help: Option<String>,
}
