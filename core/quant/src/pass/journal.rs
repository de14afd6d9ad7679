//! The journal beside an unfinished output: which items are done, each with the digest of its bytes.
//!
//! ```text
//! drophammer-journal 1 <digest of the plan>
//! <item number> <digest of its chunks' digests>
//! …
//! ```
//!
//! Lines are appended, each in one write, after the bytes they speak of. A last line without its end, as a crash
//! leaves it, is ignored and cut off. Nothing is flushed to the disk before the end: after a power failure the
//! journal may promise what the disk never got, which is why every promise is verified before it is believed.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use drophammer_formats::Error;
use drophammer_formats::digest::Digest;

/// The journal's file name.
pub const JOURNAL_NAME: &str = ".drophammer-journal";

/// An open journal.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: File,
    finished: BTreeMap<usize, Digest>,
}

impl Journal {
    /// Opens the journal in `directory` if it is of this very plan, and reads what it knows.
    ///
    /// # Errors
    /// [`Error::Io`] when an existing journal cannot be read.
    pub fn resume(directory: &Path, plan: Digest) -> Result<Option<Self>, Error> {
        let path = directory.join(JOURNAL_NAME);
        let mut file = match OpenOptions::new().read(true).write(true).open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::io(&path, "open")(error)),
        };
        let mut bytes = Vec::new();
        // A journal has a line per tensor; anything larger than this is not one.
        (&file).take(1 << 30).read_to_end(&mut bytes).map_err(Error::io(&path, "read"))?;
        let Some((finished, len)) = parse(&bytes, plan) else { return Ok(None) };
        file.set_len(len).map_err(Error::io(&path, "shorten"))?;
        file.seek(SeekFrom::Start(len)).map_err(Error::io(&path, "position"))?;
        Ok(Some(Self { path, file, finished }))
    }

    /// Begins a new journal in `directory`, replacing any other.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn create(directory: &Path, plan: Digest) -> Result<Self, Error> {
        let path = directory.join(JOURNAL_NAME);
        let mut file = File::create(&path).map_err(Error::io(&path, "create"))?;
        file.write_all(head(plan).as_bytes()).map_err(Error::io(&path, "write"))?;
        Ok(Self { path, file, finished: BTreeMap::new() })
    }

    /// The items that are done by its word, and their digests.
    pub fn finished(&self) -> &BTreeMap<usize, Digest> {
        &self.finished
    }

    /// Enters a finished item.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn append(&mut self, item: usize, digest: Digest) -> Result<(), Error> {
        self.file
            .write_all(format!("{item} {digest}\n").as_bytes())
            .map_err(Error::io(&self.path, "write"))?;
        self.finished.insert(item, digest);
        Ok(())
    }

    /// Removes the journal: the output is complete.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn remove(self) -> Result<(), Error> {
        std::fs::remove_file(&self.path).map_err(Error::io(&self.path, "remove"))
    }
}

fn head(plan: Digest) -> String {
    format!("drophammer-journal 1 {plan}\n")
}

/// The finished items and the length of the well-formed part; `None` for another plan's journal. Later lines for
/// the same item replace earlier ones.
fn parse(bytes: &[u8], plan: Digest) -> Option<(BTreeMap<usize, Digest>, u64)> {
    let head = head(plan);
    let mut rest = bytes.strip_prefix(head.as_bytes())?;
    let mut finished = BTreeMap::new();
    let mut len = head.len();
    while let Some(end) = rest.iter().position(|&byte| byte == b'\n') {
        let Some((item, digest)) = std::str::from_utf8(&rest[..end]).ok().and_then(parse_line) else { break };
        finished.insert(item, digest);
        len += end + 1;
        rest = &rest[end + 1..];
    }
    Some((finished, len as u64))
}

fn parse_line(line: &str) -> Option<(usize, Digest)> {
    let (item, digest) = line.split_once(' ')?;
    Some((item.parse().ok()?, digest.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_journal_cut_anywhere_keeps_its_whole_lines_and_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let plan = Digest::of(b"plan");
        let mut journal = Journal::create(dir.path(), plan).unwrap();
        for item in [3, 0, 7] {
            journal.append(item, Digest::of(&[item as u8])).unwrap();
        }
        let path = dir.path().join(JOURNAL_NAME);
        let whole = std::fs::read(&path).unwrap();
        let head_len = head(plan).len();
        for len in 0..=whole.len() {
            std::fs::write(&path, &whole[..len]).unwrap();
            let Some(mut journal) = Journal::resume(dir.path(), plan).unwrap() else {
                assert!(len < head_len);
                continue;
            };
            let lines = String::from_utf8_lossy(&whole[head_len..len]).matches('\n').count();
            assert_eq!(journal.finished().len(), lines);
            journal.append(9, plan).unwrap();
            let again = Journal::resume(dir.path(), plan).unwrap().unwrap();
            assert_eq!(again.finished().get(&9), Some(&plan));
            assert_eq!(again.finished().len(), lines + 1);
        }
    }

    #[test]
    fn a_journal_of_another_plan_is_not_resumed() {
        let dir = tempfile::tempdir().unwrap();
        Journal::create(dir.path(), Digest::of(b"one")).unwrap();
        assert!(Journal::resume(dir.path(), Digest::of(b"other")).unwrap().is_none());
        assert!(Journal::resume(&dir.path().join("none"), Digest::of(b"one")).unwrap().is_none());
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_after_the_head_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let plan = Digest::of(b"plan");
            let journal = [head(plan).as_bytes(), &bytes].concat();
            prop_assert!(parse(&journal, plan).is_some());
        }
    }
}
