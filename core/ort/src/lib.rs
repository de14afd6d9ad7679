//! ONNX Runtime's library, as plugins use it: found where `drophammer runtime install` or the user put it, opened once per process.
//!
//! - [`find`] and [`environment`]: the library itself.
//! - [`provider`]: execution providers that come as libraries of their own, and their devices.
//! - [`placement`]: which operations of a session went to which provider.
//! - [`graph`]: plain graphs run over samples; [`accuracy`]: an artifact of one beside its original.
//! - [`failed`] words the library's errors.
//!
//! What must not come in: knowledge of a language model. Plugins build their sessions with the crate `ort` itself.

pub mod accuracy;
pub mod graph;
mod library;
pub mod placement;
pub mod provider;

pub use library::{environment, failed, find};
