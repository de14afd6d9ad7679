//! From a source to an artifact: what plugins that make files have in common.
//!
//! - [`open`] opens a source with the adapters to merge, [`failure`] words the errors of the layers below.
//! - [`estimate`] tells what a goal would take, [`need_tokenizer`] refuses a source that lacks one.
//! - [`run`] is the one pass over a planned layout: within the job's budgets, reported and cancelled through its context,
//!   resumed by a [`Recipe`]; [`report`] says what came out.
//! - [`beside`] is what lies beside a model: configuration and tokenizer.
//! - [`equalize`](mod@equalize) scales columns so that rounding loses less.
//! - [`gguf`] is a whole forge: any source into any GGUF scheme. Several runtimes read that format.
//! - [`plain`] makes ONNX graphs that are no language models smaller.
//!
//! A plugin whose format is its own makes layout and items itself and hands them to [`run`]. Nothing here knows a plugin.

pub mod beside;
pub mod equalize;
pub mod failure;
pub mod gguf;
mod pass;
pub mod plain;

use std::path::{Path, PathBuf};

use drophammer_formats::Source;
use drophammer_models::Checkpoint;
use drophammer_sdk::{BackendError, ErrorCode, Estimate, ForgeRequest, Goal, Result};

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

/// What reaching a goal would take, before there is a request to reach it; a goal that cannot be reached says why. `plan` decides,
/// `fill` tells what that comes to.
///
/// # Errors
/// As `plan` where the source cannot be read ([`ErrorCode::Failed`]), and as `fill`.
pub fn estimate<P>(
    source: &Path,
    goal: &Goal,
    plan: impl FnOnce(&ForgeRequest) -> Result<P>,
    fill: impl FnOnce(&mut Estimate, &P) -> Result<()>,
) -> Result<Estimate> {
    let mut estimate = blank(goal);
    let request = ForgeRequest {
        source: source.to_owned(),
        goal: goal.clone(),
        name: "model".into(),
        no_tokenizer: goal.options.get("no_tokenizer").and_then(serde_json::Value::as_bool).unwrap_or(false),
        ..ForgeRequest::default()
    };
    match plan(&request) {
        Ok(plan) => fill(&mut estimate, &plan)?,
        Err(error) if error.code == ErrorCode::Failed => return Err(error),
        Err(error) => refuse(&mut estimate, error),
    }
    Ok(estimate)
}

/// The same for what is no checkpoint: `fill` finds it, and where it fails, the estimate says why.
pub fn estimate_with(goal: &Goal, fill: impl FnOnce(&mut Estimate) -> Result<()>) -> Estimate {
    let mut estimate = blank(goal);
    if let Err(error) = fill(&mut estimate) {
        refuse(&mut estimate, error);
    }
    estimate
}

fn blank(goal: &Goal) -> Estimate {
    Estimate { format: goal.format.clone(), scheme: goal.scheme.clone(), ..Estimate::default() }
}

/// Says why a goal cannot be reached, and what can be done.
fn refuse(estimate: &mut Estimate, error: BackendError) {
    estimate.reason = Some(error.message);
    estimate.help = Some(error.help).filter(|help| !help.is_empty());
}

/// Refuses a source without any tokenizer, unless the request does without.
///
/// # Errors
/// [`ErrorCode::InvalidInput`].
pub fn need_tokenizer(request: &ForgeRequest, checkpoint: &Checkpoint) -> Result<()> {
    if request.no_tokenizer || checkpoint.has_tokenizer() {
        return Ok(());
    }
    let message = format!("{}: there is no tokenizer beside the weights", request.source.display());
    Err(BackendError::new(ErrorCode::InvalidInput, message).with_help(
        "Put the model's tokenizer.json beside it, or ask for the model without one (--no-tokenizer).",
    ))
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
