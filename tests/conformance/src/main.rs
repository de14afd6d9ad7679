//! `conformance`: runs the suite on one packaged plugin.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, ensure};
use clap::Parser;
use drophammer_conformance::{CASES, Outcome, Subject, load_once};

/// Asks a packaged plugin for what every backend promises.
#[derive(Parser)]
struct Options {
    /// Directory of the packaged plugin: `plugin.toml` and dylib.
    #[arg(long)]
    plugin: PathBuf,
    /// The plugin's source folder, where `conformance.toml` may lie.
    #[arg(long)]
    source: PathBuf,
    /// Directory with installed runtimes. Where it is given, a plugin without its runtime fails; else it is skipped.
    #[arg(long, env = "DROPHAMMER_RUNTIMES")]
    runtimes: Option<PathBuf>,
    /// Only these cases.
    #[arg(long)]
    case: Vec<String>,
    /// Only load this artifact, run a few tokens and end.
    #[arg(long)]
    load: Option<PathBuf>,
    /// List the cases.
    #[arg(long)]
    list: bool,
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("conformance: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether all holds.
fn run(options: &Options) -> Result<bool> {
    if options.list {
        for case in CASES {
            println!("{:<16} {}", case.name, case.promise);
        }
        return Ok(true);
    }
    for name in &options.case {
        ensure!(CASES.iter().any(|case| case.name == name), "there is no case {name:?}; --list names them");
    }
    let Some(subject) = Subject::open(&options.plugin, &options.source, options.runtimes.as_deref())? else {
        println!("{} skipped: its runtime is missing", options.plugin.display());
        return Ok(true);
    };
    if let Some(path) = &options.load {
        load_once(&subject, path)?;
        return Ok(true);
    }
    let mut all = true;
    for case in
        CASES.iter().filter(|case| options.case.is_empty() || options.case.iter().any(|n| n == case.name))
    {
        match case.run(&subject) {
            Ok(Outcome::Holds(seen)) => println!("{:<10} {:<16} holds: {seen}", subject.id(), case.name),
            Ok(Outcome::Excepted(why)) => println!("{:<10} {:<16} excepted: {why}", subject.id(), case.name),
            Err(error) => {
                all = false;
                println!("{:<10} {:<16} FAILS: {} — {error:#}", subject.id(), case.name, case.promise);
            }
        }
    }
    Ok(all)
}
