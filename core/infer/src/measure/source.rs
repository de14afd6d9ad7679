//! Where rows of logits come from.

use drophammer_sdk::BackendError;

use crate::tokenizer::TokenizerError;

/// Gives the logits of a chunk of text, position by position.
pub trait LogitSource {
    /// Floats per row: the vocabulary, possibly padded.
    fn width(&self) -> usize;

    /// Starts a chunk; what was read before is forgotten.
    ///
    /// # Errors
    /// [`MeasureError`], and the source is of no use afterwards.
    fn begin(&mut self, tokens: &[u32]) -> Result<(), MeasureError>;

    /// Fills `rows` with the logits of the next `rows.len() / width` positions of the chunk.
    ///
    /// # Errors
    /// As for [`Self::begin`].
    fn next_rows(&mut self, rows: &mut [f32]) -> Result<(), MeasureError>;
}

/// Why a model could not be measured.
#[derive(Debug, thiserror::Error)]
pub enum MeasureError {
    /// The model failed.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// The text could not be tokenized.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// Not one whole chunk.
    #[error(
        "the text has {tokens} tokens and one chunk takes {chunk}; give a longer text or a smaller chunk"
    )]
    TooShort {
        /// How many it has.
        tokens: usize,
        /// How many one chunk takes.
        chunk: usize,
    },
    /// The model cannot take a chunk.
    #[error("a chunk of {chunk} tokens does not fit {limit}; give a smaller chunk, of two tokens at least")]
    Chunk {
        /// Tokens per chunk.
        chunk: usize,
        /// What it does not fit.
        limit: String,
    },
    /// The model has no row for a token.
    #[error("token {token} is outside the model's {width} logits; the tokenizer belongs to another model")]
    TokenOutside {
        /// The token.
        token: u32,
        /// The narrower model's logits.
        width: usize,
    },
    /// Not a language model.
    #[error("this model gives hidden states, no logits: an encoder has no perplexity")]
    NoLogits,
    /// A row cannot be scored.
    #[error(
        "the {which} model's logits at token {position} of chunk {chunk} are not finite; its weights or this \
         backend's arithmetic overflow: try another precision or backend"
    )]
    NotFinite {
        /// `measured` or `reference`.
        which: &'static str,
        /// Counted from 0.
        chunk: usize,
        /// Position in the chunk.
        position: usize,
    },
    /// The other end of a channel is gone.
    #[error("the worker that computes the other model's logits ended before the text did; see its log")]
    Disconnected,
    /// The other end of a channel computes something else.
    #[error(
        "the other model's logits have {found} numbers where {expected} are due; both must read the same text"
    )]
    OutOfStep {
        /// Numbers received.
        found: usize,
        /// Numbers due.
        expected: usize,
    },
    /// Whoever asked does not want it any more.
    #[error("the measurement was cancelled")]
    Cancelled,
}
