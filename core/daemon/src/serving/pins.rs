//! Which models stay loaded whatever else needs memory.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::Context as _;

/// Names as requests have them: of the configuration, and those that people pinned, which outlive the daemon.
#[derive(Debug)]
pub(super) struct Pins {
    configured: Vec<String>,
    path: PathBuf,
    added: Mutex<Vec<String>>,
}

impl Pins {
    /// Those of the configuration and of a home.
    pub(super) fn of_home(root: &Path, configured: &[String]) -> Self {
        let path = root.join("pinned.json");
        let added = match read(&path) {
            Ok(added) => added,
            Err(error) => {
                tracing::warn!(error = format!("{error:#}"), "pinned models are forgotten");
                Vec::new()
            }
        };
        Self { configured: configured.to_vec(), path, added: Mutex::new(added) }
    }

    fn added(&self) -> MutexGuard<'_, Vec<String>> {
        self.added.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Every pinned name.
    pub(super) fn names(&self) -> Vec<String> {
        self.configured.iter().cloned().chain(self.added().iter().cloned()).collect()
    }

    /// Pins a name.
    ///
    /// # Errors
    /// When it cannot be written down.
    pub(super) fn add(&self, name: &str) -> anyhow::Result<()> {
        let mut added = self.added();
        if added.iter().any(|known| known == name) {
            return Ok(());
        }
        added.push(name.to_owned());
        self.write(&added)
    }

    /// Takes back what somebody pinned by any of these names.
    ///
    /// # Errors
    /// When it cannot be written down.
    pub(super) fn remove(&self, names: &[&str]) -> anyhow::Result<()> {
        let mut added = self.added();
        let before = added.len();
        added.retain(|known| !names.contains(&known.as_str()));
        if added.len() == before { Ok(()) } else { self.write(&added) }
    }

    /// Complete under its name or as it was.
    fn write(&self, names: &[String]) -> anyhow::Result<()> {
        let context = || self.path.display().to_string();
        let early = self.path.with_extension("json.new");
        let mut file = std::fs::File::create(&early).with_context(context)?;
        file.write_all(serde_json::to_string_pretty(names)?.as_bytes()).with_context(context)?;
        file.sync_all().with_context(context)?;
        std::fs::rename(&early, &self.path).with_context(context)
    }
}

fn read(path: &Path) -> anyhow::Result<Vec<String>> {
    let context = || path.display().to_string();
    match std::fs::read_to_string(path) {
        Ok(text) => serde_json::from_str(&text).with_context(context),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error).with_context(context),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_pin_outlives_the_daemon_and_the_configuration_stays() {
        let home = tempfile::tempdir().unwrap();
        let open = || Pins::of_home(home.path(), &["always".to_owned()]);
        let pins = open();
        pins.add("a:gguf").unwrap();
        pins.add("a:gguf").unwrap();
        pins.add("b:gguf").unwrap();
        assert_eq!(open().names(), ["always", "a:gguf", "b:gguf"]);
        pins.remove(&["a:gguf", "always"]).unwrap();
        assert_eq!(open().names(), ["always", "b:gguf"]);
        std::fs::write(home.path().join("pinned.json"), "no list").unwrap();
        assert_eq!(open().names(), ["always"]);
    }
}
