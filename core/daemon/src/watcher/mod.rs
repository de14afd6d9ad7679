//! Watches the models folder: notices what is dropped, changed and removed, and says when a path has come to rest.
//!
//! The system's change notifications only say *where to look*; what counts is what a look shows. So a notification
//! that is lost, merged or comes late does no harm, and a file system without notifications is merely polled.
//! Nothing is read here but names, lengths, times and headers.

mod sight;
mod source;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use drophammer_engine::settle::{Settling, Verdict};
use drophammer_formats::gguf::SplitName;
use tokio_util::sync::CancellationToken;

use crate::config::{Watch, seconds};
use source::Changes;

pub use sight::Seen;
pub(crate) use sight::look;

/// Whoever wants to know what happens in the folder.
pub trait Listener: Send + Sync + 'static {
    /// A path is there and not at rest yet; `waits_for` says what it lacks.
    fn settling(&self, path: &Path, waits_for: Option<String>);
    /// A path is complete and at rest.
    fn settled(&self, path: &Path, seen: &Seen);
    /// A path is gone.
    fn gone(&self, path: &Path);
    /// Paths that were known when the daemon last ended.
    fn known(&self) -> Vec<PathBuf>;
}

/// The folder cannot be seen: how long until the next try.
const RETRY: Duration = Duration::from_secs(2);

/// Watches `folder` until `stop`.
pub async fn watch(folder: PathBuf, settings: Watch, listener: Arc<dyn Listener>, stop: CancellationToken) {
    let watcher = Watcher {
        patience: settings.patience(),
        poll: seconds(settings.poll_seconds).max(Duration::from_millis(50)),
        folder,
        settings,
        listener,
        start: Instant::now(),
        paths: HashMap::new(),
    };
    tokio::select! {
        () = watcher.run() => {}
        () = stop.cancelled() => {}
    }
}

struct Watcher {
    folder: PathBuf,
    settings: Watch,
    patience: drophammer_engine::settle::Patience,
    poll: Duration,
    listener: Arc<dyn Listener>,
    start: Instant,
    paths: HashMap<PathBuf, Watched>,
}

/// A path in the folder.
struct Watched {
    settling: Settling,
    /// When to look; `None` once it is at rest.
    look_at: Option<Duration>,
    /// What was seen when it settled.
    settled: Option<u64>,
    /// What was last said about it.
    said: Said,
}

/// What a listener was last told of a path.
#[derive(Debug, Default, PartialEq, Eq)]
enum Said {
    #[default]
    Settled,
    Settling {
        waits_for: Option<String>,
    },
}

impl Watcher {
    async fn run(mut self) {
        let changes = Changes::default();
        let mut notifier = self.start_notifier(&changes);
        for path in self.listener.known() {
            if !path.exists() {
                self.listener.gone(&path);
            }
        }
        let mut scan_at = Some(Instant::now());
        loop {
            if scan_at.is_some_and(|at| at <= Instant::now()) {
                let visible = self.scan();
                if !visible {
                    notifier = None;
                } else if notifier.is_none() {
                    notifier = self.start_notifier(&changes);
                    // What happened before it started.
                    self.scan();
                }
                scan_at = match (visible, &notifier) {
                    (false, _) => Some(Instant::now() + RETRY),
                    (true, None) => Some(Instant::now() + self.poll),
                    (true, Some(_)) => None,
                };
            }
            self.look().await;
            let next_look = self.paths.values().filter_map(|watched| watched.look_at).min();
            let next_look = next_look.map(|moment| self.start + moment);
            let wake_at = [next_look, scan_at].into_iter().flatten().min();
            let news = tokio::select! {
                news = changes.wait() => news,
                () = sleep_until(wake_at) => continue,
            };
            for name in news.names {
                self.touch(self.folder.join(name));
            }
            if news.rescan {
                scan_at = Some(Instant::now());
            }
        }
    }

    fn start_notifier(&self, changes: &Changes) -> Option<source::Notifier> {
        source::Notifier::start(&self.folder, self.settings.poll, changes)
    }

    /// Lists the folder: notices new and removed paths, and polls known ones. False when the folder cannot be seen.
    fn scan(&mut self) -> bool {
        let entries = match std::fs::read_dir(&self.folder) {
            Ok(entries) => entries,
            Err(error) => {
                tracing::warn!(folder = %self.folder.display(), %error, "the models folder cannot be read");
                for (path, _) in std::mem::take(&mut self.paths) {
                    self.listener.gone(&path);
                }
                return false;
            }
        };
        let found: Vec<PathBuf> =
            entries.flatten().map(|entry| entry.path()).filter_map(|p| candidate(&p)).collect();
        let removed: Vec<PathBuf> = self.paths.keys().filter(|path| !found.contains(path)).cloned().collect();
        for path in removed {
            self.paths.remove(&path);
            self.listener.gone(&path);
        }
        let now = self.start.elapsed();
        for path in found {
            match self.paths.get_mut(&path) {
                // Polling: a look at a settled path settles at once unless something changed.
                Some(watched) => {
                    watched.look_at.get_or_insert(now);
                }
                None => self.touch(path),
            }
        }
        true
    }

    /// Something about an entry of the folder changed.
    fn touch(&mut self, entry: PathBuf) {
        let Some(path) = candidate(&entry) else { return };
        let now = self.start.elapsed();
        let watched = self.paths.entry(path).or_insert_with(|| Watched {
            settling: Settling::noticed(now),
            look_at: None,
            settled: None,
            said: Said::default(),
        });
        watched.settling.touched(now);
        watched.look_at = Some(watched.settling.first_look(&self.patience));
    }

    /// Looks at every path whose moment has come.
    async fn look(&mut self) {
        let now = self.start.elapsed();
        let due: Vec<PathBuf> = self
            .paths
            .iter()
            .filter(|(_, watched)| watched.look_at.is_some_and(|moment| moment <= now))
            .map(|(path, _)| path.clone())
            .collect();
        for path in due {
            let looked_at = path.clone();
            let seen = tokio::task::spawn_blocking(move || sight::look(&looked_at)).await;
            self.judge(&path, seen.ok().flatten());
        }
    }

    fn judge(&mut self, path: &Path, seen: Option<Seen>) {
        let now = self.start.elapsed();
        let Some(watched) = self.paths.get_mut(path) else { return };
        let Some(seen) = seen else {
            self.paths.remove(path);
            self.listener.gone(path);
            return;
        };
        if watched.settled == Some(seen.sight.fingerprint) && seen.sight.waits_for.is_none() {
            watched.look_at = None;
            if std::mem::take(&mut watched.said) != Said::Settled {
                self.listener.settled(path, &seen);
            }
            return;
        }
        let mut patience = self.patience;
        if seen.puzzling {
            // Perhaps the first files of something: judged as what it is only after a longer rest.
            patience.quiet *= 8;
        }
        match watched.settling.look(now, &seen.sight, &patience) {
            Verdict::Settled => {
                watched.look_at = None;
                watched.settled = Some(seen.sight.fingerprint);
                watched.said = Said::Settled;
                self.listener.settled(path, &seen);
            }
            Verdict::LookAt { moment, waits_for } => {
                watched.look_at = Some(moment);
                let said = Said::Settling { waits_for: waits_for.clone() };
                if watched.said != said {
                    self.listener.settling(path, waits_for);
                    watched.said = said;
                }
            }
        }
    }
}

/// The path that stands for a folder's entry: itself, or the first part of a split model; `None` for hidden files.
fn candidate(entry: &Path) -> Option<PathBuf> {
    let name = entry.file_name()?.to_string_lossy();
    if name.starts_with('.') {
        return None;
    }
    for extension in ["gguf", "safetensors"] {
        if let Some(split) = SplitName::parse(entry, extension).filter(|split| split.count > 1) {
            return Some(entry.with_file_name(split.part(1, extension)));
        }
    }
    Some(entry.to_owned())
}

async fn sleep_until(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment.into()).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
