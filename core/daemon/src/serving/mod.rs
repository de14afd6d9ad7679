//! Published artifacts that answer requests: loaded into workers when somebody asks, unloaded when nobody does.

mod hosted;
mod pins;
mod room;
mod rooms;
mod traffic;
pub(crate) mod wire;

use drophammer_infer::tools::Tools;
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use hosted::Hosted;
pub use rooms::Serving;
pub use traffic::{Answers, Traffic};

/// What is asked of a model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Ask {
    /// What to continue.
    pub prompt: Prompt,
    /// The most tokens to generate.
    pub max_tokens: Option<u32>,
    /// 0 is greedy.
    pub temperature: f32,
    /// Nucleus.
    pub top_p: f32,
    /// Most likely tokens only; 0 keeps all.
    pub top_k: u32,
    /// Tokens at least this many times as likely as the most likely one.
    pub min_p: f32,
    /// Taken from the logits of tokens in the answer, once.
    pub presence_penalty: f32,
    /// Taken from the logits of tokens in the answer, each time.
    pub frequency_penalty: f32,
    /// Divides the logits of tokens that came before.
    pub repetition_penalty: f32,
    /// Added to the logits of tokens.
    pub logit_bias: Vec<(u32, f32)>,
    /// Makes it repeatable; chance otherwise.
    pub seed: Option<u64>,
    /// Texts before which the answer ends.
    pub stop: Vec<String>,
    /// How many answers.
    pub choices: u32,
    /// Log-probabilities of so many most likely tokens.
    pub top_logprobs: Option<u32>,
    /// What the answer has to be.
    pub json_schema: Option<Value>,
    /// What the model may call; only in conversations.
    pub tools: Option<Tools>,
    /// Who asks: requests of different flows take turns.
    pub flow: u64,
}

impl Ask {
    /// One answer by chance alone: nothing is cut off, punished or preferred.
    pub fn new(prompt: Prompt) -> Self {
        Self {
            prompt,
            max_tokens: None,
            temperature: 1.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            repetition_penalty: 1.0,
            logit_bias: Vec::new(),
            seed: None,
            stop: Vec::new(),
            choices: 1,
            top_logprobs: None,
            json_schema: None,
            tools: None,
            flow: 0,
        }
    }
}

/// What to continue.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Prompt {
    /// A conversation, put into the model's own form by its template.
    Chat {
        /// As OpenAI's API has them.
        messages: Vec<Value>,
    },
    /// Text.
    Text(String),
    /// Tokens.
    Tokens(Vec<u32>),
}

/// Why a request is not answered.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Nothing of this name is published.
    #[error("there is no model `{name}`; there are: {}", known.join(", "))]
    NoSuchModel {
        /// What was asked for.
        name: String,
        /// What could be.
        known: Vec<String>,
    },
    /// It makes no sense for this model.
    #[error("{0}")]
    Invalid(String),
    /// Too many wait.
    #[error("{message}")]
    Busy {
        /// How many.
        message: String,
        /// When to try again.
        retry_after_seconds: u64,
    },
    /// Its worker cannot be started.
    #[error("{artifact} cannot be loaded: {why}")]
    CannotLoad {
        /// The artifact.
        artifact: String,
        /// Why.
        why: String,
    },
    /// It never fits beside what must stay.
    #[error("{artifact} cannot be loaded: {why}")]
    NoRoom {
        /// The artifact.
        artifact: String,
        /// The figures.
        why: String,
    },
    /// Its worker failed or died over it.
    #[error("{0}")]
    Broke(String),
}

impl ServeError {
    /// Its worker is no more, and cannot say why.
    pub(crate) fn lost() -> Self {
        Self::Broke("the model's worker went away".to_owned())
    }
}

/// Something a model said. Each choice has any number of tokens, then one end.
#[derive(Debug)]
pub enum Said {
    /// It has left the queue.
    Started,
    /// A token came.
    Token {
        /// Which answer.
        choice: u32,
        /// Text that is certain now.
        text: String,
        /// Where asked for.
        logprobs: Option<Logprobs>,
    },
    /// The model calls a tool.
    Call {
        /// In which answer.
        choice: u32,
        /// The tool.
        name: String,
        /// JSON text.
        arguments: String,
    },
    /// An answer is complete.
    Finished {
        /// Which answer.
        choice: u32,
        /// Text that was still held back.
        text: String,
        /// OpenAI's word.
        reason: String,
        /// Tokens counted.
        usage: Usage,
    },
    /// All texts are embedded; nothing follows.
    Embedded(Embedded),
    /// It broke; nothing follows.
    Failed(ServeError),
}

/// Embeddings of texts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Embedded {
    /// One of unit length for each text, in order.
    pub vectors: Vec<Vec<f32>>,
    /// Tokens of all texts.
    pub tokens: u64,
}

/// Log-probabilities of one token.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Logprobs {
    /// Of the chosen token.
    pub chosen: TokenLogprob,
    /// Of the most likely ones.
    pub top: Vec<TokenLogprob>,
}

/// A token and how likely it was.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TokenLogprob {
    /// Its bytes; a token may be part of a character.
    pub bytes: Vec<u8>,
    /// Natural logarithm.
    pub logprob: f64,
}

/// Tokens counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Of the prompt.
    pub prompt_tokens: u64,
    /// Of the prompt, not read again.
    pub cached_tokens: u64,
    /// Generated.
    pub completion_tokens: u64,
}
