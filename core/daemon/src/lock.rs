//! One daemon per home.
//!
//! The lock is the kernel's (`flock`): it goes with the process however that ends, so it is never stale. The file
//! tells a second daemon who holds it.

use std::fs::File;
use std::io::{Read as _, Seek as _, Write as _};
use std::path::Path;

use anyhow::Context as _;
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use crate::home::Home;

/// Who holds a home.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// Its process.
    pub pid: u32,
    /// Where it listens.
    pub socket: std::path::PathBuf,
}

/// Whether some daemon holds the home at `root`.
pub fn is_held(root: &Path) -> bool {
    File::open(crate::home::lock_in(root)).is_ok_and(|file| {
        matches!(flock(&file, FlockOperation::NonBlockingLockShared), Err(rustix::io::Errno::WOULDBLOCK))
    })
}

/// The home is another daemon's.
#[derive(Debug, thiserror::Error)]
#[error("another daemon runs in {home}: {who}; use it, or stop it first")]
pub struct Held {
    home: String,
    who: String,
}

/// The lock; it is given back when this is dropped.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the home.
    ///
    /// # Errors
    /// [`Held`] naming the holder, or the file system's refusal.
    pub fn take(home: &Home) -> anyhow::Result<Self> {
        let path = home.lock();
        let failed = || format!("lock {}", path.display());
        let mut file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .with_context(failed)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(held(home, &mut file).into()),
            Err(error) => return Err(error).with_context(failed),
        }
        let holder = Holder { pid: std::process::id(), socket: home.socket() };
        file.set_len(0).with_context(failed)?;
        file.write_all(&serde_json::to_vec(&holder)?).with_context(failed)?;
        Ok(Self { _file: file })
    }
}

fn held(home: &Home, file: &mut File) -> Held {
    let mut text = String::new();
    let read = file.rewind().and_then(|()| file.take(4096).read_to_string(&mut text));
    let holder = read.ok().and_then(|_| serde_json::from_str::<Holder>(&text).ok());
    let who = match holder {
        Some(holder) => format!("pid {}, socket {}", holder.pid, holder.socket.display()),
        None => "it is just starting".to_owned(),
    };
    Held { home: home.root.display().to_string(), who }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn a_second_daemon_is_told_who_holds_the_home() {
        let directory = tempfile::tempdir().unwrap();
        let home = Home::prepare(directory.path(), &Config::default()).unwrap();
        let lock = Lock::take(&home).unwrap();
        let error = Lock::take(&home).unwrap_err().to_string();
        assert!(error.contains(&format!("pid {}", std::process::id())), "{error}");
        assert!(error.contains("control.sock"), "{error}");
        assert!(is_held(directory.path()));
        drop(lock);
        assert!(!is_held(directory.path()));
        Lock::take(&home).unwrap();
    }
}
