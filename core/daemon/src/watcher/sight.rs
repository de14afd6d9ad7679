//! One look at a path.

use std::path::Path;
use std::time::UNIX_EPOCH;

use drophammer_engine::settle::Sight;
use drophammer_formats::Error;
use drophammer_formats::digest::Digest;
use drophammer_formats::settle::completeness;

/// Deeper directories and more files than any model has: what lies beyond is not looked at.
const DEPTH: usize = 6;
const FILES: usize = 20_000;

/// What a look showed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// For the settling rule.
    pub sight: Sight,
    /// Size of all files.
    pub bytes: u64,
    /// It is no model as it is, but may become one when more files arrive.
    pub puzzling: bool,
}

/// Looks at a path; `None` when it is gone.
pub(crate) fn look(path: &Path) -> Option<Seen> {
    std::fs::metadata(path).ok()?;
    let mut facts = Vec::new();
    let mut bytes = 0;
    collect(path, DEPTH, &mut facts, &mut bytes);
    facts.sort();
    let digest = Digest::of(facts.join("\n").as_bytes());
    let fingerprint = digest.0.iter().take(8).fold(0u64, |sum, byte| sum << 8 | u64::from(*byte));
    let (waits_for, puzzling) = match completeness(path) {
        Ok(missing) => (missing.first().map(ToString::to_string), false),
        Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound && !path.exists() => {
            return None;
        }
        // It will not heal by waiting: identification says why. A directory may still be filling.
        Err(error) => (None, path.is_dir() && matches!(error, Error::NotAModel { .. })),
    };
    Some(Seen { sight: Sight { fingerprint, waits_for }, bytes, puzzling })
}

/// One line per file: name, length and time of the last change. Links are followed once, to what they name.
fn collect(path: &Path, depth: usize, facts: &mut Vec<String>, bytes: &mut u64) {
    let Ok(metadata) = std::fs::metadata(path) else { return };
    if facts.len() >= FILES {
        return;
    }
    if metadata.is_dir() {
        let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
        if depth > 0 {
            entries.for_each(|entry| collect(&entry.path(), depth - 1, facts, bytes));
        }
        return;
    }
    let changed = metadata.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    *bytes += metadata.len();
    facts.push(format!("{} {} {}", path.display(), metadata.len(), changed.unwrap_or_default().as_nanos()));
}
