//! Decisions without IO: every question the daemon answers by thinking alone lives here, so that it can be answered
//! in a test.
//!
//! - [`settle`]: has a dropped path come to rest?
//! - [`identify`]: what is it, or precisely why can nothing be made of it?
//! - [`plan`]: which targets can be made of it here, by whom, and at what cost?
//! - [`job`]: what may happen to a job next?
//! - [`admission`]: which waiting jobs may start now?
//! - [`choice`]: which artifact answers for its model?
//! - [`residence`]: which loaded models make room for another?
//!
//! What comes in are facts, as numbers and words; what goes out are verdicts. No files, no clocks (a moment is an
//! argument), no network, no processes, and no backend's name.

pub mod admission;
pub mod choice;
pub mod identify;
pub mod job;
pub mod plan;
pub mod residence;
pub mod settle;
mod words;

use serde::{Deserialize, Serialize};

/// Why something cannot be done: what happened, to what, and what the user can do next.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Obstacle {
    /// A stable word for scripts.
    pub code: String,
    /// What happened, in one sentence.
    pub message: String,
    /// The file, tensor or setting it happened to.
    pub subject: Option<String>,
    /// The next step.
    pub help: Option<String>,
}

impl Obstacle {
    /// An obstacle that names no file and no next step yet.
    pub fn new(code: impl Into<String>, message: impl Into<String>) -> Self {
        Self { code: code.into(), message: message.into(), subject: None, help: None }
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
