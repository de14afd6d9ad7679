//! Failures of the layers below as the backend's own: a code for programs, words and a next step for people.

use std::path::Path;

use drophammer_models::Error;
use drophammer_quant::pass::PassError;
use drophammer_sdk::{BackendError, ErrorCode};

/// A model that could not be described or read.
pub fn of_model(path: &Path, error: &Error) -> BackendError {
    let code = match error {
        Error::UnknownArchitecture { .. } | Error::Unsupported { .. } => ErrorCode::UnsupportedInput,
        Error::Source(source) => of_source(source).code,
        _ => ErrorCode::InvalidInput,
    };
    let message = match error {
        Error::Source(source) => source.to_string(), // names its file itself
        other => format!("{}: {other}", path.display()),
    };
    BackendError::new(code, message).with_help(error.help())
}

/// A file that could not be opened or read.
pub fn of_source(error: &drophammer_formats::Error) -> BackendError {
    let code = match error.code() {
        "io" | "permission" => ErrorCode::Failed,
        "disk_full" => ErrorCode::OutOfResources,
        "pickle" => ErrorCode::UnsupportedInput,
        _ => ErrorCode::InvalidInput,
    };
    BackendError::new(code, error.to_string()).with_help(error.help())
}

/// A pass that did not finish.
pub fn of_pass(error: &PassError) -> BackendError {
    let code = match error {
        PassError::Cancelled => return BackendError::cancelled(),
        PassError::Output(output) => return of_source(output),
        PassError::Read { .. } | PassError::NonFinite { .. } => ErrorCode::InvalidInput,
        PassError::Unsupported { .. } => ErrorCode::UnsupportedInput,
        PassError::Importance { .. } => ErrorCode::InvalidRequest,
        PassError::Memory { .. } => ErrorCode::OutOfResources,
        _ => ErrorCode::Failed,
    };
    BackendError::new(code, error.to_string()).with_help(error.help())
}
