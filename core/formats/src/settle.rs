//! Whether a model's files are all there: a question the watcher asks until nothing is missing.
//!
//! The answer comes from file names, lengths and headers; nothing is mapped (a growing or vanishing file can do no
//! harm) and no tensor data are read. A *damaged* file is complete: what is wrong with it is told when it is opened.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::error::{Error, Fault, Result};
use crate::source;

/// What is still missing from a model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Missing {
    /// A downloader's temporary file lies beside the model, or inside its directory.
    PartialDownload {
        /// The temporary file.
        path: PathBuf,
    },
    /// A file that an index or a part's name announces.
    Shard {
        /// Its name.
        name: String,
    },
    /// A file shorter than its header says.
    Bytes {
        /// The file.
        path: PathBuf,
        /// The length its header asks for, as far as it can be read yet.
        expected: u64,
        /// Its present length.
        actual: u64,
    },
    /// Weights whose configuration has not arrived, or a configuration without weights.
    Counterpart {
        /// What is not there yet.
        what: &'static str,
    },
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Missing::PartialDownload { path } => write!(f, "{} is still being downloaded", path.display()),
            Missing::Shard { name } => write!(f, "{name} is missing"),
            Missing::Bytes { path, expected, actual } => {
                write!(f, "{} has {actual} of at least {expected} bytes", path.display())
            }
            Missing::Counterpart { what } => write!(f, "{what} is missing"),
        }
    }
}

/// All that is missing; empty when the model is complete.
pub type Completeness = Vec<Missing>;

/// Endings that downloaders give to files they have not finished.
const PARTIAL: &[&str] =
    &["incomplete", "part", "partial", "crdownload", "aria2", "download", "tmp", "!qb", "opdownload"];

/// What is missing from the model at `path`, a file or a directory.
///
/// # Errors
/// What [`source::identify`] and the file system say about a path that is no model at all; these do not heal by
/// waiting, unless more files arrive.
pub fn completeness(path: &Path) -> Result<Completeness> {
    let metadata = std::fs::metadata(path).map_err(Error::io(path, "examine"))?;
    let mut missing = Vec::new();
    if metadata.is_dir() {
        add_partial_downloads(path, |_| true, &mut missing)?;
        add_partial_downloads(&path.join(".cache/huggingface/download"), |_| true, &mut missing).ok();
    } else if let (Some(parent), Some(name)) = (path.parent(), path.file_name()) {
        let name = name.to_string_lossy();
        let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
        add_partial_downloads(parent, |candidate| candidate.contains(&*name), &mut missing)?;
    }
    match source::identify(path) {
        Ok(found) => {
            for weights in &found.weights {
                missing.extend(missing_bytes(weights)?);
            }
        }
        Err(Error::MissingShard { missing: names, .. }) => {
            missing.extend(names.into_iter().map(|name| Missing::Shard { name }));
        }
        // An index that is still being written.
        Err(Error::Malformed { path, fault: Fault::Json { .. } }) => {
            let actual = std::fs::metadata(&path).map_err(Error::io(&path, "examine"))?.len();
            missing.push(Missing::Bytes { path, expected: actual + 1, actual });
        }
        Err(Error::NotAModel { .. }) if metadata.is_dir() && path.join("config.json").is_file() => {
            missing.push(Missing::Counterpart { what: "*.safetensors" });
        }
        Err(Error::NotAModel { .. }) if metadata.is_dir() && has_safetensors(path) => {
            missing.push(Missing::Counterpart { what: "config.json" });
        }
        Err(_) if !missing.is_empty() => {}
        Err(error) => return Err(error),
    }
    Ok(missing)
}

/// Whether a file name is one that a downloader gives to a file it has not finished.
pub fn is_partial_download(name: &str) -> bool {
    let lower = name.to_ascii_lowercase();
    lower.rsplit_once('.').is_some_and(|(_, ending)| PARTIAL.contains(&ending))
}

fn has_safetensors(directory: &Path) -> bool {
    std::fs::read_dir(directory).is_ok_and(|entries| {
        entries.flatten().any(|e| e.path().extension().is_some_and(|x| x == "safetensors"))
    })
}

fn add_partial_downloads(
    directory: &Path,
    concerns: impl Fn(&str) -> bool,
    missing: &mut Completeness,
) -> Result<()> {
    let entries = std::fs::read_dir(directory).map_err(Error::io(directory, "list"))?;
    let mut found: Vec<PathBuf> = Vec::new();
    for entry in entries {
        let entry = entry.map_err(Error::io(directory, "list"))?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if is_partial_download(&name) && concerns(&name) {
            found.push(entry.path());
        }
    }
    found.sort();
    missing.extend(found.into_iter().map(|path| Missing::PartialDownload { path }));
    Ok(())
}

/// How much of a weight file has still to come, by its own header.
fn missing_bytes(path: &Path) -> Result<Option<Missing>> {
    let actual = std::fs::metadata(path).map_err(Error::io(path, "examine"))?.len();
    let expected = match source::header_fault(path)? {
        Some(Fault::Truncated { offset, needed, .. }) => offset.saturating_add(needed),
        Some(Fault::Beyond { end, .. }) => end,
        // A count that cannot fit is either damage or a file that has barely begun; only waiting tells.
        Some(Fault::Count { .. }) if actual < 1 << 20 => actual + 1,
        _ => return Ok(None),
    };
    Ok(Some(Missing::Bytes { path: path.to_owned(), expected, actual }))
}
