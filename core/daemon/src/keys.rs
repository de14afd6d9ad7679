//! Keys to the API over TCP. Only their digests are kept: who reads the file cannot use it.
//!
//! A key is 256 bits of chance, so a plain SHA-256 of it cannot be guessed back. While there is no key, loopback is open to
//! every user of this machine; from the first key on, every request needs one.

use std::io::{Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use anyhow::{Context as _, bail};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::moment::now;

/// One key, as it is kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct KeyRecord {
    /// What its owner calls it.
    pub name: String,
    /// SHA-256 of the key, hexadecimal.
    pub sha256: String,
    /// When it was made, Unix seconds.
    pub created: f64,
}

/// The keys of a home, in a file that other programs may change.
#[derive(Debug)]
pub struct Keys {
    path: PathBuf,
    read: Mutex<(Option<Sight>, Arc<Vec<KeyRecord>>)>,
}

/// What tells a file from what it was before. Its time alone does not: clocks of file systems stand still for milliseconds.
type Sight = (SystemTime, u64, u64);

fn digest(key: &str) -> String {
    format!("{:x}", Sha256::digest(key.as_bytes()))
}

impl Keys {
    /// The keys of a home.
    pub fn of_home(root: &Path) -> Self {
        Self { path: root.join("keys.json"), read: Mutex::default() }
    }

    /// Every key. A file that cannot be read lets nobody in, instead of everybody: the error says why.
    ///
    /// # Errors
    /// When it is there and no list of keys.
    pub fn all(&self) -> anyhow::Result<Arc<Vec<KeyRecord>>> {
        let changed = match std::fs::metadata(&self.path) {
            Ok(found) => Some((found.modified()?, found.ino(), found.len())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => return Err(error).with_context(|| self.path.display().to_string()),
        };
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        if read.0 != changed {
            let mut records = Vec::new();
            if changed.is_some() {
                let context = || self.path.display().to_string();
                let text = std::fs::read_to_string(&self.path).with_context(context)?;
                records = serde_json::from_str(&text).with_context(context)?;
            }
            *read = (changed, Arc::new(records));
        }
        Ok(read.1.clone())
    }

    /// Makes a key and returns it: it cannot be read again.
    ///
    /// # Errors
    /// When there is one of this name, or the file cannot be written.
    pub fn add(&self, name: &str) -> anyhow::Result<String> {
        let mut records = self.all()?.to_vec();
        if records.iter().any(|record| record.name == name) {
            bail!("there is a key named `{name}`; remove it first or choose another name");
        }
        let mut chance = [0; 32];
        std::fs::File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut chance))?;
        let key = chance.iter().fold("dh-".to_owned(), |key, byte| format!("{key}{byte:02x}"));
        records.push(KeyRecord { name: name.to_owned(), sha256: digest(&key), created: now() });
        self.write(&records)?;
        Ok(key)
    }

    /// Removes a key; false when there is none of this name.
    ///
    /// # Errors
    /// When the file cannot be read or written.
    pub fn remove(&self, name: &str) -> anyhow::Result<bool> {
        let mut records = self.all()?.to_vec();
        let before = records.len();
        records.retain(|record| record.name != name);
        if records.len() == before {
            return Ok(false);
        }
        self.write(&records)?;
        Ok(true)
    }

    /// Complete under its name or as it was; readable by its user alone.
    fn write(&self, records: &[KeyRecord]) -> anyhow::Result<()> {
        let context = || self.path.display().to_string();
        let early = self.path.with_extension("json.new");
        let mut file = std::fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&early)
            .with_context(context)?;
        file.write_all(serde_json::to_string_pretty(records)?.as_bytes()).with_context(context)?;
        file.sync_all().with_context(context)?;
        std::fs::rename(&early, &self.path).with_context(context)
    }
}

/// Which of the records is that of a key.
pub(crate) fn holder(records: &[KeyRecord], key: &str) -> Option<usize> {
    let digest = digest(key);
    records.iter().position(|record| record.sha256 == digest)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_key_opens_until_it_is_removed_and_is_kept_only_as_a_digest() {
        let home = tempfile::tempdir().unwrap();
        let keys = Keys::of_home(home.path());
        assert!(keys.all().unwrap().is_empty());
        let key = keys.add("laptop").unwrap();
        assert!(keys.add("laptop").is_err(), "a name is one key's");
        let other = keys.add("phone").unwrap();
        assert_ne!(key, other);
        let records = keys.all().unwrap();
        assert_eq!(records[holder(&records, &key).unwrap()].name, "laptop");
        assert!(holder(&records, "dh-0").is_none());
        let file = home.path().join("keys.json");
        assert!(!std::fs::read_to_string(&file).unwrap().contains(&key));
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(keys.remove("laptop").unwrap() && !keys.remove("laptop").unwrap());
        assert!(holder(&keys.all().unwrap(), &key).is_none());
    }

    #[test]
    fn a_removed_key_is_gone_at_once_however_fast_keys_come_and_go() {
        let home = tempfile::tempdir().unwrap();
        let keys = Keys::of_home(home.path());
        for round in 0..50 {
            let key = keys.add("laptop").unwrap();
            assert!(holder(&keys.all().unwrap(), &key).is_some(), "round {round}");
            assert!(keys.remove("laptop").unwrap(), "round {round}");
            assert!(holder(&keys.all().unwrap(), &key).is_none(), "round {round}");
        }
    }

    #[test]
    fn a_broken_file_is_an_error_not_an_open_door() {
        let home = tempfile::tempdir().unwrap();
        std::fs::write(home.path().join("keys.json"), "[{").unwrap();
        assert!(Keys::of_home(home.path()).all().unwrap_err().to_string().contains("keys.json"));
    }
}
