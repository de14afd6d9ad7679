//! `cargo xtask demo`: the whole way of two real models in a throw-away home, as a newcomer would go it by hand.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::shell::{self, root, target};
use crate::{fetch, plugins};

const QUESTION: &str = "What is the capital of France?";
/// The usual targets, and one that is smaller than SmolLM2's file: over the larger ones that answers as it is.
const SETTINGS: &str =
    "[serve]\nport = 0\n[targets]\ndefault = [\"gguf-q8_0\", \"gguf-q4_k_m\", \"gguf-q4_0\"]\n";

/// Options of the task.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Give up on the forge after this many seconds.
    #[arg(long, default_value_t = 600)]
    timeout: u64,
    /// Do not open the dashboard at the end.
    #[arg(long)]
    no_tui: bool,
}

/// Builds, forges, prints the table, asks a question; then the dashboard where there is a terminal.
pub(crate) fn run(options: &Options) -> Result<()> {
    let smollm2 = fetch::path(fetch::Model::Smollm2)?;
    plugins::build(true, &["native".to_owned()])?;
    let forge = Forge::start()?;
    println!("\nhome {} · dropping two models into {}", forge.home.display(), forge.models().display());
    copy(&root().join("tests/fixtures/shakespeare-llama"), &forge.models().join("shakespeare-llama"))?;
    copy(&smollm2, &forge.models().join("smollm2-135m-instruct.gguf"))?;
    let started = Instant::now();
    forge.wait(Duration::from_secs(options.timeout))?;
    println!("\nforged and measured in {:.0} s\n", started.elapsed().as_secs_f64());
    forge.print_table()?;
    println!("\n> {QUESTION}");
    shell::run(forge.command().args([
        "run",
        "smollm2-135m-instruct",
        QUESTION,
        "--temperature",
        "0",
        "-n",
        "48",
    ]))?;
    if std::io::stdout().is_terminal() && !options.no_tui {
        shell::run(&mut forge.command())?;
    }
    Ok(())
}

/// A daemon in a home of its own; both go when this is dropped.
struct Forge {
    home: PathBuf,
    daemon: Child,
}

impl Forge {
    fn start() -> Result<Self> {
        let home = std::env::temp_dir().join(format!("drophammer-demo-{}", std::process::id()));
        std::fs::create_dir_all(home.join("models"))?;
        std::fs::write(home.join("drophammer.toml"), SETTINGS)?;
        let log = std::fs::File::create(home.join("daemon.out"))?;
        let daemon = binary(&home)
            .arg("daemon")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("cannot start the daemon")?;
        let forge = Self { home, daemon };
        let deadline = Instant::now() + Duration::from_secs(20);
        while forge.json("status").is_err() {
            if Instant::now() > deadline {
                let log = std::fs::read_to_string(forge.home.join("daemon.out")).unwrap_or_default();
                bail!("the daemon does not answer; it said:\n{log}");
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(forge)
    }

    fn models(&self) -> PathBuf {
        self.home.join("models")
    }

    fn command(&self) -> Command {
        binary(&self.home)
    }

    fn json(&self, subject: &str) -> Result<Value> {
        let output = self.command().args([subject, "--json"]).output()?;
        if !output.status.success() {
            bail!("`drophammer {subject}`: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    /// Until every job ended, showing what changes.
    fn wait(&self, patience: Duration) -> Result<()> {
        let deadline = Instant::now() + patience;
        let mut shown = std::collections::BTreeMap::new();
        loop {
            let jobs = self.json("jobs")?;
            let jobs = jobs["jobs"].as_array().context("`drophammer jobs --json` lists no jobs")?;
            for job in jobs {
                let line = describe(job);
                let key = job["id"].to_string();
                if shown.get(&key) != Some(&line) {
                    println!("{line}");
                    shown.insert(key, line);
                }
            }
            let pending = jobs.iter().any(|job| matches!(text(&job["state"]), "queued" | "running"));
            let models: std::collections::BTreeSet<_> = jobs.iter().map(|job| text(&job["model"])).collect();
            if models.len() >= 2 && !pending {
                let failed = jobs.iter().filter(|job| text(&job["state"]) == "failed").count();
                return if failed == 0 { Ok(()) } else { bail!("{failed} jobs failed") };
            }
            if Instant::now() > deadline {
                bail!("not finished after {} s", patience.as_secs());
            }
            std::thread::sleep(Duration::from_millis(500));
        }
    }

    fn print_table(&self) -> Result<()> {
        shell::run(self.command().arg("models"))
    }
}

impl Drop for Forge {
    fn drop(&mut self) {
        // A polite end first: the daemon takes its workers with it either way.
        let _ = Command::new("kill").arg(self.daemon.id().to_string()).status();
        let deadline = Instant::now() + Duration::from_secs(10);
        while Instant::now() < deadline && matches!(self.daemon.try_wait(), Ok(None)) {
            std::thread::sleep(Duration::from_millis(50));
        }
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
        let _ = std::fs::remove_dir_all(&self.home);
    }
}

/// One line about a job: what, where it stands, how far in tens of percent.
fn describe(job: &Value) -> String {
    let progress = job["progress"].as_f64().unwrap_or(0.0);
    let mut line = format!(
        "{:<26} {:<16} {:<10} {:<9} {:>3.0}%",
        text(&job["model"]),
        text(&job["target"]),
        text(&job["state"]),
        text(&job["stage"]),
        (progress * 10.0).floor() * 10.0
    );
    if let Some(error) = job["error"]["message"].as_str() {
        line.push_str("  ");
        line.push_str(error);
    }
    line
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or("")
}

fn binary(home: &Path) -> Command {
    let mut command = Command::new(target().join("release").join("drophammer"));
    command.env("DROPHAMMER_HOME", home).env_remove("DROPHAMMER_CONFIG");
    command
}

/// Copies a file or a flat directory, as a user's file manager would.
fn copy(from: &Path, to: &Path) -> Result<()> {
    if from.is_file() {
        std::fs::copy(from, to).with_context(|| format!("copying {}", from.display()))?;
        return Ok(());
    }
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        copy(&entry.path(), &to.join(entry.file_name()))?;
    }
    Ok(())
}
