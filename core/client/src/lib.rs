//! The control API, seen from outside the daemon: its documents, its routes and a client.
//!
//! - [`api`] holds every document that crosses the control socket. The command line prints the same
//!   types under `--json`, so they are the contract scripts rely on: sizes are bytes, durations are
//!   seconds, moments are seconds since the Unix epoch, rates are per second.
//! - [`routes`] is the only place that spells a path.
//! - [`Client`] speaks them over a Unix socket or TCP: typed calls, a stream of [`Event`](api::Event)s
//!   that reconnects by itself, and a streamed chat.
//!
//! Nothing of the daemon may come in here: this crate also serves programs on other machines. Every
//! read is bounded, since whatever listens at an address need not be a daemon.

pub mod api;
mod chat;
mod client;
mod endpoint;
mod error;
mod events;
pub mod routes;
mod sse;
mod transport;

pub use client::Client;
pub use endpoint::{Endpoint, SOCKET_NAME};
pub use error::ClientError;
pub use events::{Events, Update};
