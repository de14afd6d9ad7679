//! SHA-256 digests: of files, and of whole sources.

use std::fmt;
use std::fs::File;
use std::io::Read as _;
use std::ops::ControlFlow;
use std::path::Path;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest as _, Sha256};

use crate::Source;
use crate::error::{Error, Result};

/// A SHA-256 digest; displayed, parsed and serialized as 64 lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// The digest of bytes at hand.
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A text that is no digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a SHA-256 digest has 64 hexadecimal digits")]
pub struct NotADigest;

impl FromStr for Digest {
    type Err = NotADigest;

    fn from_str(text: &str) -> Result<Self, NotADigest> {
        let mut digest = [0; 32];
        if text.len() != 64 || !text.is_ascii() {
            return Err(NotADigest);
        }
        for (byte, digits) in digest.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            let high = char::from(digits[0]).to_digit(16).ok_or(NotADigest)?;
            let low = char::from(digits[1]).to_digit(16).ok_or(NotADigest)?;
            *byte = (high * 16 + low) as u8;
        }
        Ok(Self(digest))
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// The digest of a file's content, streamed. `progress` hears the bytes read since its last call, and may break off.
///
/// # Errors
/// [`Error::Io`], and [`Error::Cancelled`] when `progress` breaks.
pub fn file(path: &Path, progress: &mut dyn FnMut(u64) -> ControlFlow<()>) -> Result<Digest> {
    let mut file = File::open(path).map_err(Error::io(path, "open"))?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let read = match file.read(&mut buffer) {
            Ok(0) => return Ok(Digest(hasher.finalize().into())),
            Ok(read) => read,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(Error::io(path, "read")(error)),
        };
        hasher.update(&buffer[..read]);
        if progress(read as u64).is_break() {
            return Err(Error::Cancelled { path: path.to_owned() });
        }
    }
}

/// A quick name for a source: the digest of its weight files' names, lengths and headers and of its other files.
///
/// It does not read tensor data, so it takes milliseconds and notices a model that was replaced by another, but
/// not a changed weight; [`source`] does.
///
/// # Errors
/// [`Error::Io`] when a file can no longer be read.
pub fn source_fingerprint(source: &Source) -> Result<Digest> {
    let mut hasher = Sha256::new();
    for (file, header) in source.header_bytes() {
        add(&mut hasher, file.path(), file.len(), header);
    }
    let weights: Vec<&Path> = source.files().collect();
    for path in source.all_files().iter().filter(|path| !weights.contains(&path.as_path())) {
        let content = self::file(path, &mut |_| ControlFlow::Continue(()))?;
        add(&mut hasher, path, 0, &content.0);
    }
    Ok(Digest(hasher.finalize().into()))
}

/// The digest of a source's whole content: every file's plain name and digest. Independent of where it lies.
///
/// # Errors
/// [`Error::Io`], and [`Error::Cancelled`] when `progress` breaks.
pub fn source(source: &Source, progress: &mut dyn FnMut(u64) -> ControlFlow<()>) -> Result<Digest> {
    let mut hasher = Sha256::new();
    for path in source.all_files() {
        let content = self::file(&path, progress)?;
        add(&mut hasher, &path, 0, &content.0);
    }
    Ok(Digest(hasher.finalize().into()))
}

/// Lengths go before contents, so that no two lists of files run together to the same bytes.
fn add(hasher: &mut Sha256, path: &Path, len: u64, content: &[u8]) {
    let name = path.file_name().unwrap_or_default().as_encoded_bytes();
    hasher.update((name.len() as u64).to_le_bytes());
    hasher.update(name);
    hasher.update(len.to_le_bytes());
    hasher.update((content.len() as u64).to_le_bytes());
    hasher.update(content);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_print_parse_and_match_the_published_vector() {
        let digest = Digest::of(b"abc");
        let text = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(digest.to_string(), text);
        assert_eq!(text.parse(), Ok(digest));
        assert_eq!("xyz".parse::<Digest>(), Err(NotADigest));
        assert_eq!(serde_json::to_string(&digest).unwrap(), format!("\"{text}\""));
    }

    #[test]
    fn a_streamed_digest_reports_its_progress_and_can_be_broken_off() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        std::fs::write(&path, vec![7; 3 << 20]).unwrap();
        let mut read = 0;
        let digest = file(&path, &mut |bytes| {
            read += bytes;
            ControlFlow::Continue(())
        });
        assert_eq!(digest.unwrap(), Digest::of(&vec![7; 3 << 20]));
        assert_eq!(read, 3 << 20);
        let broken = file(&path, &mut |_| ControlFlow::Break(()));
        assert!(matches!(broken, Err(Error::Cancelled { .. })));
    }
}
