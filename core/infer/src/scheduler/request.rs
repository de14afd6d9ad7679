//! What comes in and what goes out.

use drophammer_sdk::BackendError;
use serde::{Deserialize, Serialize};

use crate::constrain::Constraint;
use crate::sampler::{SamplingParameters, TokenLogprobs};

/// A text to continue.
#[derive(Debug, Clone)]
pub struct Request {
    /// Tokens of the prompt, at least one.
    pub prompt: Vec<u32>,
    /// How tokens are chosen.
    pub sampling: SamplingParameters,
    /// Seed of the first choice; the others count up from it.
    pub seed: u64,
    /// The most tokens to generate; `None`: what the context leaves.
    pub max_tokens: Option<u32>,
    /// Texts before which the answer ends.
    pub stop: Vec<String>,
    /// What the answer must look like.
    pub constraint: Option<Constraint>,
    /// How many answers.
    pub choices: u32,
    /// Whether tokens that end generation are text like any other (benchmarks).
    pub ignore_end: bool,
    /// Who asks: flows take turns.
    pub flow: u64,
}

impl Request {
    /// A request for one answer by the model's own distribution.
    pub fn new(prompt: Vec<u32>) -> Self {
        Self {
            prompt,
            sampling: SamplingParameters::default(),
            seed: 0,
            max_tokens: None,
            stop: Vec::new(),
            constraint: None,
            choices: 1,
            ignore_end: false,
            flow: 0,
        }
    }
}

/// Names a request to its scheduler.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(pub u64);

/// Something happened to one choice of a request.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// Which request.
    pub request: RequestId,
    /// Which of its choices, from 0.
    pub choice: u32,
    /// What happened.
    pub kind: EventKind,
}

/// What happened. Each choice has one `Started` at most, then tokens, then exactly one `Finished` or `Failed`.
#[derive(Debug, Clone, PartialEq)]
pub enum EventKind {
    /// It has left the queue.
    Started {
        /// Tokens of the prompt that need not be read again.
        reused_tokens: u32,
    },
    /// A token came.
    Token {
        /// Text that is certain now; empty while it might be the beginning of a stop text or of a character.
        text: String,
        /// The token.
        token: u32,
        /// Where asked for.
        logprobs: Option<TokenLogprobs>,
    },
    /// The answer is complete.
    Finished {
        /// Text that was still held back.
        text: String,
        /// Why it ended.
        reason: FinishReason,
        /// Tokens counted.
        usage: Usage,
        /// Times taken.
        timings: Timings,
    },
    /// It broke.
    Failed(BackendError),
}

impl EventKind {
    /// Whether nothing comes after it.
    pub fn is_last(&self) -> bool {
        matches!(self, Self::Finished { .. } | Self::Failed(_))
    }
}

/// Why an answer ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// The model ended it.
    EndOfText,
    /// One of the request's stop texts came; it is not part of the answer.
    StopText(String),
    /// The constraint is fulfilled and allows nothing more.
    ConstraintComplete,
    /// `max_tokens` or the context is used up.
    Length,
    /// Nobody wants it any more.
    Cancelled,
}

impl FinishReason {
    /// OpenAI's word.
    pub fn word(&self) -> &'static str {
        match self {
            Self::EndOfText | Self::StopText(_) | Self::ConstraintComplete => "stop",
            Self::Length => "length",
            Self::Cancelled => "cancelled",
        }
    }
}

/// Tokens of one choice.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Of the prompt.
    pub prompt_tokens: u32,
    /// Of the prompt, not read again.
    pub reused_tokens: u32,
    /// Generated, counting one that ended the text.
    pub completion_tokens: u32,
}

/// Seconds of one choice, all from its submission.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Timings {
    /// When it left the queue.
    pub started: f64,
    /// When its first token came.
    pub first_token: Option<f64>,
    /// When it ended.
    pub finished: f64,
}

impl Timings {
    /// Generated tokens per second after the first one.
    pub fn decode_tps(&self, completion_tokens: u32) -> Option<f64> {
        let seconds = self.finished - self.first_token?;
        (completion_tokens > 1 && seconds > 0.0).then(|| f64::from(completion_tokens - 1) / seconds)
    }
}
