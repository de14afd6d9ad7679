//! The daemon: watches the models folder, has what is dropped forged by workers, publishes what comes out and answers
//! requests with it.
//!
//! - [`watcher`] tells what was dropped; [`pipeline`] takes it from there, stage by stage; what it may do when is
//!   decided by `drophammer_engine`, which knows no IO.
//! - [`workers`] starts and watches worker processes, [`worker`] is what runs inside of one. No plugin code runs in the
//!   daemon.
//! - [`ledger`] is what is known now; [`store`] what survives the daemon; [`library`] the artifacts themselves.
//! - [`http`] answers.
//!
//! What must not come in: decisions that can be made without IO, anything about one particular backend, screens.

mod board;
pub mod config;
mod daemon;
pub mod events;
mod facts;
pub mod hardware;
pub mod home;
pub mod http;
pub mod journal;
pub mod keys;
pub mod ledger;
pub mod library;
pub mod lock;
mod moment;
pub mod pipeline;
pub mod planning;
mod plugins;
pub mod serving;
pub mod store;
pub mod watcher;
pub mod worker;
pub mod workers;

pub use config::Config;
pub use daemon::{Options, run};
pub use home::Home;
