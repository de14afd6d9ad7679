//! From a source to an artifact: what plugins that make files have in common.
//!
//! - [`open`] opens a source with the adapters to merge, [`failure`] words the errors of the layers below.
//! - [`run`] is the one pass over a planned layout: within the job's budgets, reported and cancelled through its context,
//!   resumed by a [`Recipe`]; [`report`] says what came out.
//! - [`equalize`](mod@equalize) scales columns so that rounding loses less.
//! - [`gguf`] is a whole forge: any source into any GGUF scheme. Several runtimes read that format.
//!
//! A plugin whose format is its own makes layout and items itself and hands them to [`run`]. Nothing here knows a plugin.

pub mod equalize;
pub mod failure;
pub mod gguf;
mod pass;

use std::path::{Path, PathBuf};

use drophammer_formats::Source;
use drophammer_models::Checkpoint;
use drophammer_sdk::{BackendError, ErrorCode, Goal, Result};

pub use pass::{Recipe, report, run};

/// Opens a checkpoint with its adapters.
///
/// # Errors
/// When source or adapter cannot be read, described or matched.
pub fn open(path: &Path, adapters: &[PathBuf]) -> Result<Checkpoint> {
    let mut checkpoint = Checkpoint::open(path).map_err(|error| failure::of_model(path, &error))?;
    for adapter in adapters {
        let source = Source::open(adapter).map_err(|error| failure::of_source(&error))?;
        checkpoint = checkpoint.with_adapter(source).map_err(|error| failure::of_model(adapter, &error))?;
    }
    Ok(checkpoint)
}

/// A goal's option `max_file_bytes`: the artifact is cut into files of at most so much tensor data each.
///
/// # Errors
/// [`ErrorCode::InvalidRequest`] for anything but a number of bytes.
pub fn max_file_bytes(goal: &Goal) -> Result<Option<u64>> {
    let Some(value) = goal.options.get("max_file_bytes") else { return Ok(None) };
    let bytes = value.as_u64().filter(|bytes| *bytes > 0);
    bytes.map(Some).ok_or_else(|| {
        BackendError::new(ErrorCode::InvalidRequest, "option `max_file_bytes` is not a number of bytes")
    })
}

/// An option of a goal that is true or false; false where it is not told.
///
/// # Errors
/// [`ErrorCode::InvalidRequest`] for anything else.
pub fn flag(goal: &Goal, name: &str) -> Result<bool> {
    let Some(value) = goal.options.get(name) else { return Ok(false) };
    value.as_bool().ok_or_else(|| {
        let message = format!("option `{name}` is neither true nor false");
        BackendError::new(ErrorCode::InvalidRequest, message)
    })
}
