//! One request from start to end, in the caller's thread: what `drophammer run` does.

use drophammer_sdk::BackendError;

use crate::scheduler::{EventKind, FinishReason, Refused, Request, Scheduler, Timings, Usage};

/// A finished answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Completion {
    /// All of its text.
    pub text: String,
    /// Its tokens, without one that ended it.
    pub tokens: Vec<u32>,
    /// Why it ended.
    pub reason: FinishReason,
    /// Tokens counted.
    pub usage: Usage,
    /// Times taken.
    pub timings: Timings,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum CompleteError {
    /// The request cannot be served.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// The model failed.
    #[error(transparent)]
    Backend(#[from] BackendError),
}

/// Runs a request for one answer. `on_text` sees the text as it comes, and ends the answer by returning `false`.
///
/// # Errors
/// [`CompleteError`].
pub fn complete(
    scheduler: &mut Scheduler,
    request: Request,
    on_text: &mut dyn FnMut(&str) -> bool,
) -> Result<Completion, CompleteError> {
    let id = scheduler.submit(Request { choices: 1, ..request })?;
    let (mut all, mut tokens) = (String::new(), Vec::new());
    let mut wanted = true;
    loop {
        let events = if wanted { scheduler.step() } else { scheduler.cancel(id) };
        for event in events.into_iter().filter(|event| event.request == id) {
            let (text, end) = match event.kind {
                EventKind::Started { .. } => continue,
                EventKind::Failed(error) => return Err(error.into()),
                EventKind::Token { text, token, .. } => {
                    tokens.push(token);
                    (text, None)
                }
                EventKind::Finished { text, reason, usage, timings } => {
                    (text, Some((reason, usage, timings)))
                }
            };
            all.push_str(&text);
            if wanted && !text.is_empty() {
                wanted = on_text(&text);
            }
            if let Some((reason, usage, timings)) = end {
                return Ok(Completion { text: all, tokens, reason, usage, timings });
            }
        }
    }
}
