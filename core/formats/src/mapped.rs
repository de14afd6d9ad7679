//! Read-only memory maps: the one place of this crate with unsafe code.
//!
//! A mapped file that another process *shrinks* raises `SIGBUS` at the next access beyond its new end; no check
//! made here can exclude that. Everything that maps user files therefore runs in worker processes, where a
//! signal costs one job and is reported with its name; the daemon opens sources by
//! [`Source::open_headers`](crate::Source::open_headers), which reads into memory and maps nothing. A file
//! that is *overwritten* in place yields other bytes, not undefined behaviour in practice: every number is checked
//! when it is read, and tensor data are plain bytes for which any value is valid.
#![allow(unsafe_code)] // a memory map cannot be made without it; the reasons stand at each block

use std::fs::{File, Metadata};
use std::io::Read as _;
use std::path::{Path, PathBuf};

use memmap2::{Advice, Mmap, UncheckedAdvice};

use crate::error::{Error, Fault, Result};

/// A file mapped into memory, read-only; or the copy of its beginning.
#[derive(Debug)]
pub struct MappedFile {
    path: PathBuf,
    content: Content,
    metadata: Metadata,
}

#[derive(Debug)]
enum Content {
    Map(Mmap),
    /// A copy of the beginning, and all there is of an empty file, which cannot be mapped.
    Prefix(Vec<u8>),
}

impl MappedFile {
    /// Maps the whole file.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be opened or mapped, or is not a regular file.
    pub fn open(path: &Path) -> Result<Self> {
        let (file, metadata) = open_regular(path)?;
        let content = if metadata.len() == 0 {
            Content::Prefix(Vec::new())
        } else {
            // SAFETY: the map is read-only and only ever seen as bytes. The remaining hazard, another process
            // shrinking the file, is a signal in this process; see the module's head.
            Content::Map(unsafe { Mmap::map(&file) }.map_err(Error::io(path, "map"))?)
        };
        Ok(Self { path: path.to_owned(), content, metadata })
    }

    /// Reads at most `prefix` bytes of the file into memory and maps nothing: what lies behind them cannot be
    /// sliced.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be opened or read, or is not a regular file.
    pub fn open_prefix(path: &Path, prefix: u64) -> Result<Self> {
        let (file, metadata) = open_regular(path)?;
        let mut bytes = Vec::new();
        file.take(prefix.min(metadata.len())).read_to_end(&mut bytes).map_err(Error::io(path, "read"))?;
        Ok(Self { path: path.to_owned(), content: Content::Prefix(bytes), metadata })
    }

    /// The file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file's length in bytes when it was opened.
    pub fn len(&self) -> u64 {
        self.metadata.len()
    }

    /// What the system said of the file when it was opened.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// Whether the file was empty.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The whole file, or as much of it as was read.
    pub fn bytes(&self) -> &[u8] {
        match &self.content {
            Content::Map(map) => map,
            Content::Prefix(bytes) => bytes,
        }
    }

    /// `len` bytes from `offset`, or `None` where the file (or what was read of it) does not hold them.
    pub fn slice(&self, offset: u64, len: u64) -> Option<&[u8]> {
        let begin = usize::try_from(offset).ok()?;
        let end = begin.checked_add(usize::try_from(len).ok()?)?;
        self.bytes().get(begin..end)
    }

    /// Tells the system that `len` bytes from `offset` will be read soon. A hint: failure is of no consequence.
    pub fn prefetch(&self, offset: u64, len: u64) {
        if let (Content::Map(map), Some(_)) = (&self.content, self.slice(offset, len)) {
            let _ = map.advise_range(Advice::WillNeed, offset as usize, len as usize);
        }
    }

    /// Asks the system to read and map the file in large pages: for what is read from end to end. A hint.
    pub fn in_large_pages(&self) {
        #[cfg(target_os = "linux")]
        if let Content::Map(map) = &self.content {
            let _ = map.advise(Advice::HugePage);
        }
    }

    /// Gives the memory of `len` bytes from `offset` back, so that resident memory does not grow with the file.
    /// Reading them again reads the file again; neighbours within 2 MiB may have to be mapped anew, too.
    pub fn release(&self, offset: u64, len: u64) {
        // One page fault may map a whole large folio of the page cache: up to 2 MiB, aligned in the file (Linux
        // 6.18 and later; 64 KiB before). Rounding less would leave a little behind at the edges of every range,
        // in the end a share of the whole file.
        const AROUND: u64 = 2 << 20;
        let (Content::Map(map), Some(_)) = (&self.content, self.slice(offset, len)) else { return };
        let begin = offset / AROUND * AROUND;
        let end = (offset + len).next_multiple_of(AROUND).min(self.len());
        // SAFETY: the pages are clean, file-backed and mapped shared and read-only: dropping them loses nothing,
        // and a later access, of any thread, maps the same bytes again.
        let _ = unsafe {
            map.unchecked_advise_range(UncheckedAdvice::DontNeed, begin as usize, (end - begin) as usize)
        };
    }
}

/// Opens a regular file. Others are told before they are opened: a pipe would wait for its writer.
fn open_regular(path: &Path) -> Result<(File, Metadata)> {
    let metadata = std::fs::metadata(path).map_err(Error::io(path, "examine"))?;
    if !metadata.is_file() {
        return Err(Error::NotAModel { path: path.to_owned(), found: "not a regular file".into() });
    }
    let file = File::open(path).map_err(Error::io(path, "open"))?;
    let metadata = file.metadata().map_err(Error::io(path, "examine"))?;
    if usize::try_from(metadata.len()).is_err() {
        let fault = Fault::HeaderTooLarge { declared: metadata.len(), limit: usize::MAX as u64 };
        return Err(Error::Malformed { path: path.to_owned(), fault });
    }
    Ok((file, metadata))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_outside_the_file_are_none_and_released_pages_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let content: Vec<u8> = (0..40_000u32).map(|i| i as u8).collect();
        std::fs::write(&path, &content).unwrap();
        let file = MappedFile::open(&path).unwrap();
        assert_eq!(file.slice(0, 40_000), Some(&content[..]));
        file.release(1, 39_999);
        assert_eq!(file.slice(5, 30_000), Some(&content[5..30_005]));
        assert_eq!(file.slice(39_999, 2), None);
        assert_eq!(file.slice(u64::MAX, 1), None);
        assert_eq!(file.slice(1, u64::MAX), None);
    }

    #[test]
    fn an_empty_file_maps_to_no_bytes_and_a_directory_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("empty");
        std::fs::write(&path, b"").unwrap();
        assert!(MappedFile::open(&path).unwrap().is_empty());
        assert!(MappedFile::open(dir.path()).is_err());
    }
}
