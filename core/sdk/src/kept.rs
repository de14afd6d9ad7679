//! What plugins keep between runs and could make again: compiled models, repacked weights. Never more than a budget.

use std::fs::Metadata;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::HostInfo;

/// A directory, and what it may hold.
#[derive(Debug, Clone)]
pub struct Kept {
    directory: PathBuf,
    bytes: u64,
}

impl Kept {
    /// A folder of the place where the host lets things be kept. The plugin's setting `cache_bytes` says how much, `usual` where
    /// the configuration says nothing. `None` where nothing is kept.
    pub fn of(host: &HostInfo, folder: &str, usual: u64) -> Option<Self> {
        let bytes = host.config.get("cache_bytes").and_then(serde_json::Value::as_u64).unwrap_or(usual);
        let directory = host.cache.join(folder);
        (!host.cache.as_os_str().is_empty() && bytes > 0).then_some(Self { directory, bytes })
    }

    /// Where things are kept.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Makes room for another file of so many bytes: those not used for longest go. `None` if it is too large to be kept.
    pub fn room_for(&self, bytes: u64) -> Option<&Path> {
        let left = self.bytes.checked_sub(bytes)?;
        let mut files: Vec<(SystemTime, u64, PathBuf)> = std::fs::read_dir(&self.directory)
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| {
                let metadata = entry.metadata().ok().filter(Metadata::is_file)?;
                Some((used(&metadata), metadata.len(), entry.path()))
            })
            .collect();
        files.sort();
        let mut held: u64 = files.iter().map(|(_, bytes, _)| bytes).sum();
        for (_, bytes, path) in files {
            if held <= left {
                break;
            }
            // What another session has open lives on until it is closed; what cannot be removed is asked again next time.
            if std::fs::remove_file(&path).is_ok() {
                held -= bytes;
            }
        }
        Some(&self.directory)
    }
}

/// When a file was last read or written.
fn used(metadata: &Metadata) -> SystemTime {
    let [read, written] = [metadata.accessed(), metadata.modified()].map(Result::ok);
    read.max(written).unwrap_or(SystemTime::UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_was_not_used_for_longest_makes_room_and_the_budget_holds() {
        let place = tempfile::tempdir().unwrap();
        let mut host = HostInfo { cache: place.path().to_owned(), ..HostInfo::default() };
        host.config.insert("cache_bytes".into(), 100.into());
        let kept = Kept::of(&host, "compiled", 0).unwrap();
        assert_eq!(
            kept.room_for(10),
            Some(place.path().join("compiled").as_path()),
            "before anything is kept"
        );
        std::fs::create_dir(place.path().join("compiled")).unwrap();
        let path = |name: &str| place.path().join("compiled").join(name);
        for (age, name) in [(9, "b"), (30, "a"), (1, "c")] {
            std::fs::write(path(name), [0; 30]).unwrap();
            let then = SystemTime::now() - Duration::from_secs(60 * age);
            let times = std::fs::FileTimes::new().set_accessed(then).set_modified(then);
            File::options().write(true).open(path(name)).unwrap().set_times(times).unwrap();
        }
        let left = || ["a", "b", "c"].map(|name| path(name).exists());
        kept.room_for(10).unwrap();
        assert_eq!(left(), [true, true, true]);
        kept.room_for(40).unwrap();
        assert_eq!(left(), [false, true, true]);
        assert!(kept.room_for(101).is_none());
        assert_eq!(left(), [false, true, true], "nothing goes for what is not kept");
        kept.room_for(100).unwrap();
        assert_eq!(left(), [false; 3]);
        host.config.insert("cache_bytes".into(), 0.into());
        assert!(Kept::of(&host, "compiled", 0).is_none());
    }
}
