//! `cargo xtask conformance --backend ID`: the conformance suite on one plugin, case by case.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Result, ensure};

use crate::plugins;
use crate::shell::{self, cargo, root, target};

/// Options of the task.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// The plugin, by folder name below `plugins/`.
    #[arg(long)]
    backend: String,
    /// Optimized.
    #[arg(long)]
    release: bool,
    /// Only these cases.
    #[arg(long)]
    case: Vec<String>,
    /// How many fresh processes load, run and end in the case `workers`.
    #[arg(long, default_value_t = 3)]
    cycles: u32,
    /// Directory with installed runtimes.
    #[arg(long)]
    runtimes: Option<PathBuf>,
}

/// Builds the plugin and asks it for everything.
pub(crate) fn run(options: &Options) -> Result<()> {
    let source = root().join("plugins").join(&options.backend);
    ensure!(source.is_dir(), "there is no plugin folder {}", source.display());
    plugins::build(options.release, std::slice::from_ref(&options.backend))?;
    let mut build = cargo(&["build", "--package", "drophammer-conformance"]);
    if options.release {
        build.arg("--release");
    }
    shell::run(&mut build)?;
    let built = target().join(if options.release { "release" } else { "debug" });
    let mut suite = Command::new(built.join("conformance"));
    suite
        .arg("--plugin")
        .arg(built.join("plugins").join(&options.backend))
        .arg("--source")
        .arg(source)
        .args(options.case.iter().flat_map(|case| ["--case", case]))
        .env("DROPHAMMER_CONFORMANCE_CYCLES", options.cycles.to_string());
    if let Some(runtimes) = &options.runtimes {
        suite.arg("--runtimes").arg(runtimes);
    }
    shell::run(&mut suite)
}
