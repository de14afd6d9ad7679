//! Where news of changes comes from: the system, where it can tell; nowhere otherwise, and the watcher polls.

use std::collections::HashSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::Notify;

use crate::config::Poll;

/// Changes that were told and not yet taken. Bounded by the number of entries in the folder, whatever is told.
#[derive(Debug, Clone, Default)]
pub(super) struct Changes {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    news: Mutex<News>,
    wake: Notify,
}

/// What changed.
#[derive(Debug, Default)]
pub(super) struct News {
    /// Entries of the folder.
    pub(super) names: HashSet<OsString>,
    /// Anything may have changed.
    pub(super) rescan: bool,
}

impl Changes {
    fn add(&self, add: impl FnOnce(&mut News)) {
        add(&mut self.shared.news.lock().unwrap_or_else(PoisonError::into_inner));
        self.shared.wake.notify_one();
    }

    /// Waits until something changed and takes it.
    pub(super) async fn wait(&self) -> News {
        loop {
            let news = std::mem::take(&mut *self.shared.news.lock().unwrap_or_else(PoisonError::into_inner));
            if news.rescan || !news.names.is_empty() {
                return news;
            }
            self.shared.wake.notified().await;
        }
    }
}

/// The system's notifications; they end when this is dropped.
pub(super) struct Notifier {
    _watcher: RecommendedWatcher,
}

impl Notifier {
    /// Starts them; `None` where the folder has to be polled.
    pub(super) fn start(folder: &Path, poll: Poll, changes: &Changes) -> Option<Self> {
        let polled = match poll {
            Poll::Always => true,
            Poll::Never => false,
            Poll::Auto => is_remote(folder),
        };
        if polled {
            tracing::info!(folder = %folder.display(), "the models folder is polled");
            return None;
        }
        let (changes, root) = (changes.clone(), canonical(folder));
        let told = move |event: notify::Result<notify::Event>| match event {
            Ok(event) if event.kind.is_access() => {}
            Ok(event) if !event.need_rescan() => changes.add(|news| {
                for path in &event.paths {
                    match path.strip_prefix(&root).ok().and_then(|rest| rest.components().next()) {
                        Some(entry) => drop(news.names.insert(entry.as_os_str().to_owned())),
                        // The folder itself: moved, removed, or seen under another name.
                        None => news.rescan = true,
                    }
                }
            }),
            Ok(_) | Err(_) => changes.add(|news| news.rescan = true),
        };
        let started = notify::recommended_watcher(told).and_then(|mut watcher| {
            watcher.watch(&canonical(folder), RecursiveMode::Recursive).map(|()| watcher)
        });
        match started {
            Ok(watcher) => Some(Self { _watcher: watcher }),
            Err(error) => {
                tracing::warn!(folder = %folder.display(), %error, "no change notifications: the models folder is polled");
                None
            }
        }
    }
}

fn canonical(folder: &Path) -> PathBuf {
    folder.canonicalize().unwrap_or_else(|_| folder.to_owned())
}

/// Whether the folder lies on a file system that other machines write to, whose changes the system does not tell.
#[cfg(target_os = "linux")]
fn is_remote(folder: &Path) -> bool {
    /// Magic numbers of nfs, smb, cifs, smb2, fuse, 9p, afs, ceph and virtiofs' relatives (`statfs(2)`).
    const REMOTE: &[u32] =
        &[0x6969, 0x517B, 0xFF53_4D42, 0xFE53_4D42, 0x6573_5546, 0x0102_1997, 0x5346_414F, 0x00C3_6400];
    rustix::fs::statfs(folder).is_ok_and(|found| REMOTE.contains(&(found.f_type as u32)))
}

#[cfg(not(target_os = "linux"))]
fn is_remote(_folder: &Path) -> bool {
    false
}
