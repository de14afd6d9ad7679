//! `cargo xtask test`: what must be green before anything lands.

use anyhow::Result;

use crate::shell::{self, available, cargo, equipped_cargo};
use crate::{clients, fetch, plugins, runtimes};

/// Options of the task.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Only the quick part: formatting, lints and unit tests.
    #[arg(long)]
    quick: bool,
}

/// Runs every check; the first failure ends it.
pub(crate) fn run(options: &Options) -> Result<()> {
    shell::run(&mut cargo(&["fmt", "--all", "--check"]))?;
    // First, since plugins are built against the headers of some.
    let runtimes = if options.quick { None } else { Some(runtimes::provide()?) };
    shell::run(&mut equipped_cargo(&["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]))?;
    // End-to-end tests run the binary and load the plugins packaged beside it.
    plugins::build(false, &[])?;
    let nextest = available(&mut cargo(&["nextest", "--version"]));
    let mut tests = if nextest {
        equipped_cargo(&["nextest", "run", "--workspace", "--no-fail-fast"])
    } else {
        equipped_cargo(&["test", "--workspace", "--lib", "--bins", "--tests"])
    };
    if let Some(runtimes) = runtimes {
        // Tests that need what is fetched here are ignored otherwise.
        tests.args(if nextest { ["--run-ignored", "all"] } else { ["--", "--include-ignored"] });
        tests.env("DROPHAMMER_SMOLLM2", fetch::path(fetch::Model::Smollm2)?);
        tests.env("DROPHAMMER_CLIENTS", clients::provide()?);
        tests.env("DROPHAMMER_RUNTIMES", runtimes);
        tests.env("DROPHAMMER_MINILM", fetch::path(fetch::Model::Minilm)?);
        tests.env("DROPHAMMER_RAPIDOCR", fetch::path(fetch::Model::Rapidocr)?);
        tests.env("DROPHAMMER_SILERO", fetch::path(fetch::Model::Silero)?);
    }
    shell::run(&mut tests)?;
    if options.quick {
        return Ok(());
    }
    shell::run(&mut equipped_cargo(&["test", "--workspace", "--doc"]))?;
    shell::run(equipped_cargo(&["doc", "--workspace", "--no-deps"]).env(
        "RUSTDOCFLAGS",
        "-D warnings -A rustdoc::private-intra-doc-links -A rustdoc::redundant-explicit-links",
    ))?;
    licences()
}

/// `cargo deny` where it is installed; its advisory database needs the network and is left to releases.
fn licences() -> Result<()> {
    if available(&mut cargo(&["deny", "--version"])) {
        return shell::run(&mut cargo(&["deny", "check", "licenses", "bans", "sources"]));
    }
    eprintln!("\ncargo-deny is not installed: licences were not checked (cargo install cargo-deny)");
    Ok(())
}
