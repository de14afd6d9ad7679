//! Official clients of the APIs that the daemon speaks, for tests only: Python packages in a directory outside the
//! repository.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;

use crate::{fetch, shell};

/// What is installed; another list goes to another directory.
const PACKAGES: [&str; 2] = ["openai==3.57.0", "ollama==0.6.3"];

/// A directory for `PYTHONPATH` that holds the clients, filled on first use.
///
/// # Errors
/// When pip or a package is not to be had.
pub(crate) fn provide() -> Result<PathBuf> {
    let place = fetch::cache("clients")?.join(PACKAGES.join("+"));
    if place.is_dir() {
        return Ok(place);
    }
    // Complete under its name or not there at all.
    let unfinished = place.with_extension("part");
    let _ = std::fs::remove_dir_all(&unfinished);
    std::fs::create_dir_all(&unfinished)?;
    shell::run(
        Command::new("python3")
            .args(["-m", "pip", "install", "--quiet", "--only-binary", ":all:", "--target"])
            .arg(&unfinished)
            .args(PACKAGES),
    )?;
    std::fs::rename(&unfinished, &place)?;
    Ok(place)
}
