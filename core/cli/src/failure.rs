//! Why a command failed, and with which exit code.

use std::process::ExitCode;

use drophammer_client::ClientError;
use drophammer_client::api::{ApiError, ErrorReport};
use drophammer_daemon::serving::ServeError;
use drophammer_daemon::workers::WorkerFailure;
use drophammer_sdk::ErrorCode;

/// A command that did not do what it was asked for.
#[derive(Debug)]
pub(crate) struct Failure {
    report: Box<ErrorReport>,
    exit: Exit,
}

/// The contract's exit codes besides 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    Failed = 1,
    Usage = 2,
    Unsupported = 3,
    MissingRuntime = 4,
}

pub(crate) type Result<T, E = Failure> = std::result::Result<T, E>;

impl Failure {
    /// A failure of the command itself.
    pub(crate) fn new(exit: Exit, message: impl Into<String>, help: impl Into<String>) -> Self {
        let code = match exit {
            Exit::Failed => "failed",
            Exit::Usage => "usage",
            Exit::Unsupported => "unsupported_input",
            Exit::MissingRuntime => "missing_runtime",
        };
        let mut report = ErrorReport::new(code, message);
        report.help = Some(help.into()).filter(|help| !help.is_empty());
        Self { report: Box::new(report), exit }
    }

    /// A failure to read or write something.
    pub(crate) fn io(path: &std::path::Path, error: &std::io::Error) -> Self {
        Self::new(Exit::Failed, format!("{}: {error}", path.display()), "check the path and its permissions")
    }

    /// Says it: in words on standard error and, where a document was asked for, as one on standard output.
    pub(crate) fn tell(self, json: bool) -> ExitCode {
        let report = *self.report;
        eprintln!("drophammer: {}", report.message);
        for line in &report.detail {
            eprintln!("  | {line}");
        }
        if let Some(help) = &report.help {
            eprintln!("  help: {help}");
        }
        if json && let Ok(text) = serde_json::to_string_pretty(&ApiError { error: report }) {
            println!("{text}");
        }
        ExitCode::from(self.exit as u8)
    }
}

impl From<WorkerFailure> for Failure {
    fn from(failure: WorkerFailure) -> Self {
        let exit = match failure.code() {
            ErrorCode::UnsupportedInput => Exit::Unsupported,
            ErrorCode::MissingRuntime => Exit::MissingRuntime,
            ErrorCode::InvalidRequest => Exit::Usage,
            _ => Exit::Failed,
        };
        Self { report: Box::new(failure.report()), exit }
    }
}

impl From<ServeError> for Failure {
    fn from(error: ServeError) -> Self {
        let help = match &error {
            ServeError::Invalid(_) => "change the prompt or the settings",
            ServeError::Busy { .. } => "try again later",
            ServeError::NoSuchModel { .. } => "`drophammer models` lists what is there",
            ServeError::NoRoom { .. } => {
                "raise `serve.memory_bytes`, unpin another model or serve a smaller artifact"
            }
            ServeError::CannotLoad { .. } | ServeError::Broke(_) => "see `drophammer doctor`",
        };
        Self::new(Exit::Failed, error.to_string(), help)
    }
}

impl From<ErrorReport> for Failure {
    fn from(report: ErrorReport) -> Self {
        let unsupported = ["unsupported", "not_a_model", "pickle", "ambiguous", "unknown_architecture"];
        let exit = if unsupported.iter().any(|word| report.code.starts_with(word)) {
            Exit::Unsupported
        } else {
            Exit::Failed
        };
        Self { report: Box::new(report), exit }
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        Self { report: Box::new(error.report()), exit: Exit::Failed }
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::new(Exit::Failed, format!("{error:#}"), "see `drophammer doctor`")
    }
}

impl From<drophammer_formats::Error> for Failure {
    fn from(error: drophammer_formats::Error) -> Self {
        use drophammer_formats::Error;
        let exit = match &error {
            Error::NotAModel { .. } | Error::Pickle { .. } | Error::Ambiguous { .. } => Exit::Unsupported,
            _ => Exit::Failed,
        };
        let report = ErrorReport::new(error.code(), error.to_string()).help(error.help());
        Self { report: Box::new(report.about(error.path().display().to_string())), exit }
    }
}
