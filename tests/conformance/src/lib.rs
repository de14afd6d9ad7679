//! The conformance suite: what every backend promises, asked of its packaged dylib.
//!
//! A [`Subject`] is a plugin opened as a worker opens it, through its ABI. [`CASES`] are the promises, each a function that
//! says what it saw or what is wrong. `cargo xtask conformance --backend ID` runs them all; as tests they run for each
//! plugin that is built, one process per plugin and case, because a process opens one plugin and a plugin may end it.
//!
//! What a backend cannot do is written in `conformance.toml` beside its `plugin.toml`, with the reason ([`Exceptions`]).
//! A failure that is not written there fails, and so does an exception that is none any more.

mod cases;
mod exceptions;
mod models;
mod subject;

pub use cases::{CASES, Case, Outcome, load_once};
pub use exceptions::Exceptions;
pub use subject::{Subject, root};
