//! From text to tokens and from logits to text.
//!
//! What lives here: everything between the bytes a user types and [`drophammer_sdk::Session`], done once for every
//! backend. Nothing here knows HTTP, files beyond a model's own, or which backend runs.
//!
//! - [`tokenizer`]: text ↔ token ids, from `tokenizer.json` or a GGUF vocabulary.
//! - [`template`]: a conversation → a prompt.
//! - [`tools`]: functions a model may call, told to it and read out of its text.
//! - [`sampler`]: a row of logits → a token; [`constrain`]: which tokens may come.
//! - [`scheduler`]: many requests, one session; [`complete`]: one request, start to end.
//! - [`measure`]: perplexity, divergence from a reference, speed.

pub mod complete;
pub mod constrain;
pub mod measure;
pub mod sampler;
pub mod scheduler;
pub mod template;
#[cfg(test)]
mod testing;
pub mod tokenizer;
pub mod tools;

pub use tokenizer::{Detokenizer, Tokenizer, TokenizerError};
