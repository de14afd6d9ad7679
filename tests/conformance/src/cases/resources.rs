//! Memory, descriptors, and what is left when all is over.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use drophammer_sdk::{Backend, ErrorCode, LoadRequest};

use crate::models::{tokens, trained};
use crate::subject::{Silent, Subject, forward, order, told};

/// Environment variable: how many fresh processes the case `workers` starts.
const CYCLES: &str = "DROPHAMMER_CONFORMANCE_CYCLES";

/// The case `unloading` loads and drops a model so often between two looks at memory,
const STRETCH: u64 = 10;
/// until it grows by less than so many bytes meanwhile,
const QUIET: u64 = 2 << 20;
/// or has grown by so many in all.
const MOST_GROWN: u64 = 20 << 20;

pub(super) fn memory_budget(subject: &Subject) -> Result<String> {
    const BUDGET: u64 = 96 << 20;
    let staging = tempfile::tempdir()?;
    let path = subject.make(&trained(), staging.path()).map_err(told)?;
    // A million tokens for four sequences take gigabytes in any precision.
    let request = LoadRequest { context: Some(1 << 20), max_sequences: 4, ..order(&path, 4) };
    let before = resident()?;
    match subject.plugin.load(&request, Box::new(Silent::with_memory(BUDGET))) {
        Ok(_) => bail!("a cache beyond the budget of {BUDGET} bytes is allocated"),
        Err(error) => {
            ensure!(error.code == ErrorCode::OutOfResources, "refused as {}: {error}", error.code.word());
            ensure!(
                error.message.chars().any(|c| c.is_ascii_digit()) && !error.help.is_empty(),
                "the refusal tells no figure or no next step: {error} ({})",
                error.help
            );
            let grown = resident()?.saturating_sub(before);
            ensure!(grown < BUDGET, "{grown} bytes were taken before it was refused");
            Ok(error.message)
        }
    }
}

pub(super) fn unloading(subject: &Subject) -> Result<String> {
    let staging = tempfile::tempdir()?;
    let path = subject.make(&trained(), staging.path()).map_err(told)?;
    let prompt: Vec<_> =
        tokens(11, 64, 2048).into_iter().zip(0..).map(|(token, at)| (token, at, 0)).collect();
    let cycle = || -> Result<(u64, usize, usize)> {
        let mut session = subject.load(&path, 2).map_err(told)?;
        forward(session.as_mut(), &prompt)?;
        drop(session);
        Ok((resident()?, descriptors()?, threads()?))
    };
    // What is made once (pools, tables, compiled kernels) is there after a few.
    let mut first = cycle()?;
    for _ in 0..2 {
        first = cycle()?;
    }
    // Allocators take more from the system now and then, up to some point; what leaks grows in every stretch.
    let (mut last, mut cycles, mut quiet) = (first, 0, false);
    while !quiet {
        let before = last.0;
        for _ in 0..STRETCH {
            last = cycle()?;
        }
        cycles += STRETCH;
        quiet = last.0.saturating_sub(before) < QUIET;
        let grown = last.0.saturating_sub(first.0);
        ensure!(
            grown < MOST_GROWN,
            "resident memory grew by {grown} bytes in {cycles} cycles (from {})",
            first.0
        );
    }
    ensure!(last.1 <= first.1, "descriptors grew from {} to {}", first.1, last.1);
    ensure!(last.2 <= first.2, "threads grew from {} to {}", first.2, last.2);
    let grown = last.0.saturating_sub(first.0) >> 10;
    Ok(format!("{cycles} cycles: memory +{grown} kB, {} descriptors, {} threads", last.1, last.2))
}

pub(super) fn workers(subject: &Subject) -> Result<String> {
    let cycles = std::env::var(CYCLES).ok().and_then(|text| text.parse().ok()).unwrap_or(3);
    let staging = tempfile::tempdir()?;
    let path = subject.make(&trained(), staging.path()).map_err(told)?;
    let own = tempfile::tempdir()?;
    let program = std::env::current_exe().context("this program's path")?;
    let arguments: Vec<_> = std::env::args_os().skip(1).take_while(|word| word != "--case").collect();
    let run = || -> Result<()> {
        let status = Command::new(&program)
            .args(&arguments)
            .arg("--load")
            .arg(&path)
            .env("TMPDIR", own.path())
            .status()
            .context("this program")?;
        ensure!(status.success(), "a fresh process ended with {status}");
        Ok(())
    };
    run()?;
    let before = (shared(), names(own.path())?, descriptors()?);
    for cycle in 0..cycles {
        run().with_context(|| format!("cycle {cycle}"))?;
    }
    let after = (shared(), names(own.path())?, descriptors()?);
    let new: Vec<_> = after.0.difference(&before.0).collect();
    ensure!(new.is_empty(), "left in shared memory: {new:?}");
    let new: Vec<_> = after.1.difference(&before.1).collect();
    ensure!(new.is_empty(), "left in the temporary directory: {new:?}");
    ensure!(before.2 == after.2, "descriptors grew from {} to {}", before.2, after.2);
    Ok(format!("{cycles} fresh processes left nothing behind"))
}

/// Loads a model, runs a prompt, drops it: what the case `workers` has fresh processes do.
///
/// # Errors
/// When it cannot be loaded or run.
pub fn load_once(subject: &Subject, path: &Path) -> Result<()> {
    let mut session = subject.load(path, 1).map_err(told)?;
    forward(session.as_mut(), &[(1, 0, 0), (2, 1, 0), (3, 2, 0)])?;
    Ok(())
}

/// Resident bytes of this process that are not mapped files.
fn resident() -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).context("no RssAnon")?;
    let kilobytes: u64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kilobytes << 10)
}

fn descriptors() -> Result<usize> {
    Ok(std::fs::read_dir("/proc/self/fd")?.count())
}

fn threads() -> Result<usize> {
    Ok(std::fs::read_dir("/proc/self/task")?.count())
}

fn names(directory: &Path) -> Result<BTreeSet<String>> {
    std::fs::read_dir(directory)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
}

/// Names in shared memory, POSIX and System V.
fn shared() -> BTreeSet<String> {
    let mut found = names(Path::new("/dev/shm")).unwrap_or_default();
    let segments = std::fs::read_to_string("/proc/sysvipc/shm").unwrap_or_default();
    found.extend(
        segments.lines().skip(1).map(|line| line.split_whitespace().take(2).collect::<Vec<_>>().join(" ")),
    );
    found
}
