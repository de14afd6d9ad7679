//! The dashboard: what is being forged, how the machine is, what came out best, and a chat to try it.
//!
//! - [`app`] is the whole program without its surroundings: messages in, effects out, drawn on demand.
//!   [`run()`] gives it a terminal, a clock and a daemon.
//! - [`actions`] is the one registry of what can be done. Keys, hint bar, help, palette and mouse are
//!   read from it.
//! - `views/` and `overlays/` hold what is shown, one panel one file. `mirror` is the daemon's state as
//!   last told. `widgets/` knows nothing of models or jobs.
//! - [`theme`] names roles; views never name colours, and nothing is meant by colour alone.
//!
//! Only `drophammer-client` is known here: no HTTP, no files of the daemon.

pub mod actions;
pub mod app;
mod canvas;
mod chrome;
mod config;
pub mod keys;
pub mod message;
mod mirror;
mod overlays;
mod run;
mod terminal;
pub mod theme;
mod units;
mod views;
mod widgets;

pub use config::TuiConfig;
pub use run::{TuiOptions, run};

#[cfg(test)]
mod tests;
