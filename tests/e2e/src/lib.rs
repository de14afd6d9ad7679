//! What end-to-end tests stand on: the real binary, the real plugins, a home of one's own.
//!
//! Everything is built and packaged once per test process by `cargo xtask plugins`, unless `DROPHAMMER_BUILT` names the
//! directory where that was done already. Nothing is imitated: a test starts the program and reads what it says.

pub mod daemon;
pub mod terminal;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tempfile::TempDir;

/// Names the directory holding the built binary and packaged plugins.
pub const BUILT_VARIABLE: &str = "DROPHAMMER_BUILT";

/// The repository's root.
pub fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(here).to_path_buf()
}

/// A fixture by its path below `tests/fixtures`.
pub fn fixture(name: &str) -> PathBuf {
    root().join("tests/fixtures").join(name)
}

/// The directory with the `drophammer` binary, `plugins/` and `test-plugins/`.
///
/// # Panics
/// When they cannot be built: no test could say anything then.
pub fn built() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| match std::env::var_os(BUILT_VARIABLE) {
        Some(directory) => directory.into(),
        None => build().unwrap_or_else(|error| panic!("cargo xtask plugins: {error:#}")),
    })
}

fn build() -> Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status =
        Command::new(cargo).args(["xtask", "plugins"]).current_dir(root()).status().context("cargo")?;
    ensure!(status.success(), "it ended with {status}");
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
    Ok(target.join("debug"))
}

/// A throw-away home and the binary that works in it.
#[derive(Debug)]
pub struct Home {
    directory: TempDir,
}

impl Home {
    /// A home with these lines in its configuration, where only the plugins of `places` are looked for besides those
    /// that come with the program.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn new(places: &[&Path], configuration: &str) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("drophammer-e2e-").tempdir()?;
        let text = format!("[paths]\nplugins = {places:?}\n\n{configuration}\n");
        std::fs::write(directory.path().join("drophammer.toml"), text)?;
        Ok(Self { directory })
    }

    /// A home with the plugin that misbehaves.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn faulty(configuration: &str) -> Result<Self> {
        Self::new(&[&built().join("test-plugins")], configuration)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// The binary, told of this home.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(built().join("drophammer"));
        command
            .args(arguments)
            .env("DROPHAMMER_HOME", self.path())
            .env_remove("DROPHAMMER_CONFIG")
            .env_remove("RUST_BACKTRACE");
        command
    }

    /// Runs the binary to its end.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn run(&self, arguments: &[&str]) -> Result<Answer> {
        let output = self.command(arguments).output().context("drophammer")?;
        Ok(Answer::of(&output))
    }

    /// Runs the binary, which must succeed, and reads the document it prints.
    ///
    /// # Errors
    /// When it fails or prints something else.
    pub fn json(&self, arguments: &[&str]) -> Result<Value> {
        let answer = self.run(&[arguments, &["--json"]].concat())?;
        ensure!(answer.code == 0, "{arguments:?} exited with {}: {}", answer.code, answer.stderr);
        serde_json::from_str(&answer.stdout).with_context(|| answer.stdout.clone())
    }
}

/// What a command said.
#[derive(Debug)]
pub struct Answer {
    /// Exit code; -1 when a signal ended it.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Answer {
    fn of(output: &Output) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

/// Copies a packaged plugin so that a test can damage it.
///
/// # Errors
/// When it cannot be copied.
pub fn copy_plugin(id: &str, into: &Path) -> Result<PathBuf> {
    let from = built().join(if id == "faulty" { "test-plugins" } else { "plugins" }).join(id);
    let to = into.join(id);
    std::fs::create_dir_all(&to)?;
    for entry in std::fs::read_dir(&from).with_context(|| from.display().to_string())? {
        let entry = entry?;
        std::fs::copy(entry.path(), to.join(entry.file_name()))?;
    }
    Ok(to)
}
