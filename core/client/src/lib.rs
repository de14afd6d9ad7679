//! The control API, seen from outside the daemon: its documents, its routes and a client.
//!
//! - [`api`] holds every document that crosses the control socket. The command line prints the same
//!   types under `--json`, so they are the contract scripts rely on: sizes are bytes, durations are
//!   seconds, moments are seconds since the Unix epoch, rates are per second.
//! - [`routes`] is the only place that spells a path.
//!
//! Nothing of the daemon may come in here: this crate also serves programs on other machines.

pub mod api;
pub mod routes;
