//! From text to tokens and from logits to text.
//!
//! What lives here: everything between the bytes a user types and [`drophammer_sdk::Session`], done once for every
//! backend. Nothing here knows HTTP, files beyond a model's own, or which backend runs.
//!
//! - [`tokenizer`]: text ↔ token ids, from `tokenizer.json` or a GGUF vocabulary.

pub mod tokenizer;

pub use tokenizer::{Detokenizer, Tokenizer, TokenizerError};
