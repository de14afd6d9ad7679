//! The parent's side: starts workers and answers for them, whatever they do.
//!
//! [`Supervisor::start`] gives a [`Running`] worker: its [`WorkerEvent`]s while it works, and in the end an
//! [`Outcome`](crate::worker::protocol::Outcome) or a [`WorkerFailure`] that says how it ended, in which stage, at which
//! tensor and what it printed last. [`Catalog`] knows the plugins of this machine.
//!
//! A worker that is dropped is killed; so are all of them with their supervisor. Nothing here knows any particular
//! plugin.

// A worker fails at most once in its life: its failure may be large.
#![allow(clippy::result_large_err)]

mod catalog;
mod failure;
mod output;
mod running;
mod settings;
mod supervisor;

pub use catalog::{Catalog, Installed};
pub use failure::{Ending, WorkerFailure};
pub(crate) use running::api_level;
pub use running::{Finished, Running, WorkerEvent};
pub use settings::WorkerSettings;
pub use supervisor::{Supervisor, Task};
