//! What the daemon and a worker that hosts a model say to each other, over a channel of their own: documents in the
//! frames of [`crate::worker::protocol`]. Both ends are the same binary.

use serde::{Deserialize, Serialize};

use super::{Ask, Embedded, Logprobs, Prompt, Usage};

/// Daemon to worker.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Call {
    /// Answer this.
    Ask {
        /// The daemon's number for it.
        id: u64,
        /// What is asked.
        ask: Box<Ask>,
    },
    /// Embed these.
    Embed {
        /// The daemon's number for it.
        id: u64,
        /// The texts.
        texts: Vec<Prompt>,
        /// Whether to shorten what is longer than the model reads, instead of refusing it.
        truncate: bool,
    },
    /// Nobody waits for this any more.
    Forget {
        /// Its number.
        id: u64,
    },
}

/// Worker to daemon.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Reply {
    /// The model is loaded.
    Ready {
        /// Its longest context.
        context: u32,
        /// Sequences answered at a time.
        sequences: u32,
    },
    /// A request has got its place: in the batch or in the queue.
    Accepted {
        /// Which.
        id: u64,
    },
    /// A request has left the queue.
    Started {
        /// Which.
        id: u64,
    },
    /// A token came.
    Token {
        /// Of which request.
        id: u64,
        /// Of which of its answers.
        choice: u32,
        /// Text that is certain now.
        text: String,
        /// Where asked for.
        logprobs: Option<Logprobs>,
    },
    /// The model calls a tool.
    Called {
        /// In which request.
        id: u64,
        /// In which of its answers.
        choice: u32,
        /// The tool.
        name: String,
        /// JSON text.
        arguments: String,
    },
    /// Texts are embedded.
    Embedded {
        /// Of which request.
        id: u64,
        /// Their embeddings.
        embedded: Embedded,
    },
    /// An answer is complete.
    Finished {
        /// Of which request.
        id: u64,
        /// Which of its answers.
        choice: u32,
        /// Text that was still held back.
        text: String,
        /// OpenAI's word.
        reason: String,
        /// Tokens counted.
        usage: Usage,
    },
    /// A request was refused or broke.
    Failed {
        /// Which.
        id: u64,
        /// Why.
        trouble: Trouble,
    },
}

/// Why a request is not answered.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Trouble {
    /// It makes no sense for this model.
    Invalid(String),
    /// Too many wait.
    Busy {
        /// How many.
        message: String,
        /// When to try again.
        retry_after_seconds: u64,
    },
    /// The model failed over it.
    Broke(String),
}
