//! `cargo xtask abi`: a plugin built by another compiler loads and runs in this one's host.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use drophammer_sdk::manifest::{MANIFEST_FILE, package};

use crate::plugins;
use crate::shell::{self, cargo, root, target};

/// Where distributions put their compiler.
const USUAL: &str = "/usr/bin/rustc";

/// Options of the task.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// The other compiler.
    #[arg(long, default_value = USUAL)]
    rustc: PathBuf,
}

/// Builds the misbehaving plugin with the other compiler and has the host check it and forge with it.
pub(crate) fn run(options: &Options) -> Result<()> {
    let ours = version(Path::new("rustc")).context("this toolchain's rustc")?;
    let theirs = match version(&options.rustc) {
        Ok(theirs) if theirs != ours => theirs,
        _ => {
            eprintln!(
                "skipped: {} is no other compiler (on Debian: apt-get install rustc-web)",
                options.rustc.display()
            );
            return Ok(());
        }
    };
    plugins::build(false, &["faulty".to_owned()])?;
    let elsewhere = target().join("other-compiler");
    shell::run(
        cargo(&["build", "--package", "drophammer-faulty"])
            .env("RUSTC", &options.rustc)
            .env("CARGO_TARGET_DIR", &elsewhere),
    )?;
    let (prefix, suffix) = (std::env::consts::DLL_PREFIX, std::env::consts::DLL_SUFFIX);
    let dylib = elsewhere.join("debug").join(format!("{prefix}drophammer_faulty{suffix}"));
    let place = elsewhere.join("plugins");
    package(&dylib, &root().join("tests/faulty").join(MANIFEST_FILE), &place.join("faulty"))?;
    let home = elsewhere.join("home");
    let output = home.join("made.faulty");
    std::fs::create_dir_all(&home)?;
    std::fs::write(home.join("drophammer.toml"), format!("[paths]\nplugins = [\"{}\"]\n", place.display()))?;
    let host = || {
        let mut command = Command::new(target().join("debug/drophammer"));
        command.env("DROPHAMMER_HOME", &home);
        command
    };
    shell::run(host().args(["plugin", "check"]).arg(place.join("faulty")))?;
    let source = root().join("tests/fixtures/shakespeare-llama");
    shell::run(
        host().arg("convert").arg(&source).args(["--to", "faulty", "--scheme", "obey", "-o"]).arg(&output),
    )?;
    ensure!(std::fs::read_to_string(&output)? == "obey", "{} is not what was asked for", output.display());
    println!("a plugin built by {theirs} runs in a host built by {ours}");
    Ok(())
}

/// First line of `rustc --version`.
fn version(rustc: &Path) -> Result<String> {
    let output =
        Command::new(rustc).arg("--version").output().with_context(|| rustc.display().to_string())?;
    ensure!(output.status.success(), "{} does not tell its version", rustc.display());
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
