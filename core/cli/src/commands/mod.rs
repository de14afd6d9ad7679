//! One module per group of commands.

mod calibrate;
mod daemon;
mod dashboard;
mod forge;
mod inspect;
mod key;
mod measure;
mod new_plugin;
mod picture;
mod plan;
mod plugin;
mod roofline;
mod run;
mod runtime;
mod table;
mod voice;

use std::future::Future;
use std::io::Write;

use clap::CommandFactory;
use serde::Serialize;

use crate::arguments::{Arguments, Command, PluginCommand, RuntimeCommand};
use crate::failure::{Exit, Failure, Result};

/// Does what was asked for.
///
/// # Errors
/// Whatever went wrong, with its exit code.
pub(crate) fn run(arguments: Arguments) -> Result<()> {
    match arguments.command.unwrap_or(Command::Tui(arguments.dashboard)) {
        Command::Tui(dashboard) => dashboard::run(dashboard),
        Command::Daemon => daemon::run(),
        Command::Stop(daemon) => wait(daemon::stop(daemon)),
        Command::Status(query) => wait(daemon::status(query)),
        Command::Jobs(query) => wait(daemon::jobs(query)),
        Command::Models(models) => wait(daemon::models(models)),
        Command::Plugins(query) => wait(daemon::plugins(query)),
        Command::Devices(query) => wait(daemon::devices(query)),
        Command::Add { path, name, daemon } => wait(daemon::add(path, name, daemon)),
        Command::Forge { model, targets, daemon } => wait(daemon::forge(model, targets, daemon)),
        Command::Cancel { job, daemon } => wait(daemon::cancel(job, daemon)),
        Command::Retry { job, daemon } => wait(daemon::retry(job, daemon)),
        Command::Run(arguments) => wait(run::run(arguments)),
        Command::Inspect(inspect) => inspect::run(&inspect),
        Command::Plan(plan) => wait(plan::run(plan)),
        Command::Convert(convert) => wait(forge::convert(convert)),
        Command::Quantize(quantize) => wait(forge::quantize(quantize)),
        Command::Imatrix(imatrix) => wait(calibrate::imatrix(imatrix)),
        Command::Eval(eval) => wait(measure::eval(eval)),
        Command::Bench(bench) => wait(measure::bench(bench)),
        Command::Logits(logits) => wait(measure::logits(logits)),
        Command::Plugin(PluginCommand::List(output)) => wait(plugin::list(output)),
        Command::Plugin(PluginCommand::Info { id, output }) => wait(plugin::info(id, output)),
        Command::Plugin(PluginCommand::Check { path, output }) => wait(plugin::check(path, output)),
        Command::Runtime(RuntimeCommand::List(output)) => runtime::list(output),
        Command::Runtime(RuntimeCommand::Install { name, from, accept_licence, output }) => {
            runtime::install(&name, from, accept_licence, output)
        }
        Command::Plugin(PluginCommand::New { name, into, sdk }) => new_plugin::write(&name, &into, sdk),
        Command::Plugin(PluginCommand::Install { dylib, manifest, into }) => {
            plugin::install(&dylib, &manifest, into)
        }
        Command::Key(command) => key::run(command),
        Command::Doctor(output) => wait(plugin::doctor(output)),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Arguments::command(), "drophammer", &mut std::io::stdout());
            Ok(())
        }
        Command::Man => manual(),
    }
}

/// Runs a command that waits for processes or answers.
fn wait(command: impl Future<Output = Result<()>>) -> Result<()> {
    let failed = |error: std::io::Error| {
        Failure::new(Exit::Failed, format!("no threads for this command: {error}"), "close some programs")
    };
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .map_err(failed)?
        .block_on(command)
}

fn manual() -> Result<()> {
    let mut page = Vec::new();
    let written = clap_mangen::Man::new(Arguments::command()).render(&mut page);
    let command = Arguments::command();
    let parts = command.get_subcommands().try_for_each(|part| {
        writeln!(page)?;
        clap_mangen::Man::new(part.clone()).render(&mut page)
    });
    written.and(parts).map_err(|error| Failure::io("the manual page".as_ref(), &error))?;
    print(&String::from_utf8_lossy(&page));
    Ok(())
}

/// Writes an answer: as one document, or as text.
fn answer<T: Serialize>(json: bool, document: &T, text: impl FnOnce(&T) -> String) -> Result<()> {
    if json {
        let text = serde_json::to_string_pretty(document)
            .map_err(|error| Failure::new(Exit::Failed, error.to_string(), "report this"))?;
        print(&format!("{text}\n"));
    } else {
        print(&text(document));
    }
    Ok(())
}

/// Writes to standard output; a reader that went away (`| head`) is not an error.
fn print(text: &str) {
    let _ = std::io::stdout().write_all(text.as_bytes());
}
