//! The `drophammer` binary: dashboard, daemon, worker and one-shot commands.
//!
//! [`arguments`] is the registry of all commands: help, completions and the manual page come from it. Each command is one
//! module of [`commands`]. Commands about a running daemon go through its control API; one-shot commands start the same
//! supervised workers the daemon starts, and need no daemon.
//!
//! What must not come in: knowledge about any particular backend.

// Text for people is put together piece by piece; one allocation more costs nobody anything.
#![allow(clippy::format_push_string)]

mod arguments;
mod artifact;
mod commands;
mod failure;
mod progress;
mod workshop;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    // A worker confines itself before it has a second thread; so this comes before everything else.
    if std::env::args_os().nth(1).is_some_and(|word| word == "worker") {
        return drophammer_daemon::worker::run();
    }
    let arguments = arguments::Arguments::parse();
    let json = arguments.wants_json();
    match commands::run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.tell(json),
    }
}
