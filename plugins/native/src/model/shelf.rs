//! Tiles kept between loads: what one load laid the next maps, and reads nothing of the source's matrices.
//!
//! A file holds all tiles of one model, as they lie in memory, and then a seal:
//!
//! ```text
//! tiles of the first matrix | tiles of the second … | seal: 64 hexadecimal digits
//! ```
//!
//! Its name is the digest of what decides those bytes: which files the model was read from, which matrices were laid, and how
//! ([`LAYOUT`]); the instruction set is not among it. A file is written beside its place and renamed, so it is there whole or not
//! at all; one that is not what it should be is told in the log and replaced. Nothing that goes wrong here fails a load.

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use drophammer_formats::digest::Digest;
use drophammer_formats::mapped::MappedFile;
use drophammer_formats::placed::sync_directory;
use drophammer_models::Checkpoint;
use drophammer_sdk::{HostInfo, JobContext, Kept, LogLevel};
use tempfile::NamedTempFile;

use super::record::MatrixRef;
use crate::kernels::tile::Cut;
use crate::memory::Bytes;

/// Version of tiles. To be raised when a row's bytes become others in a tile, or a matrix's rows come in another order.
const LAYOUT: u32 = 2;
/// Bytes kept where the configuration says nothing: only who asks for it gives that much of a disk.
const USUAL_BYTES: u64 = 0;
/// Bytes of a seal.
const SEAL: usize = 64;
/// Bytes that are summed by themselves.
const PART: usize = 16 << 20;

/// Where tiles are kept, for one load.
pub(crate) struct Shelf<'a> {
    kept: Kept,
    job: &'a dyn JobContext,
}

/// Which tiles.
pub(crate) struct Name(String);

impl Name {
    /// Of these matrices of a checkpoint, in the order they are laid; `None` if the system does not tell its files apart.
    pub(crate) fn of<'m>(
        checkpoint: &Checkpoint,
        matrices: impl Iterator<Item = (&'m MatrixRef, Cut)>,
    ) -> Option<Self> {
        let mut text =
            format!("tiles {LAYOUT} of {}\n{:?}", env!("CARGO_PKG_VERSION"), checkpoint.description());
        let source = checkpoint.source();
        for number in 0..source.files().len() {
            // Not where it lies: a folder that moves, as one that is published, brings what was kept for it along.
            let about = source.mapped(number)?.metadata();
            let changed = [about.mtime(), about.mtime_nsec(), about.ctime(), about.ctime_nsec()];
            write!(text, "\n{} {} {changed:?}", about.ino(), about.len()).ok()?;
        }
        for (reference, cut) in matrices {
            write!(text, "\n{} {:?} {cut:?}", reference.weight, reference.expert).ok()?;
        }
        Some(Self(hexadecimal(&text)))
    }
}

impl<'a> Shelf<'a> {
    /// `None` where the plugin's setting `cache_bytes` does not allow it.
    pub(crate) fn of(host: &HostInfo, job: &'a dyn JobContext) -> Option<Self> {
        Some(Self { kept: Kept::of(host, "tiles", USUAL_BYTES)?, job })
    }

    fn path(&self, name: &Name) -> PathBuf {
        self.kept.directory().join(format!("{}.tiles", name.0))
    }

    /// So many bytes of tiles, mapped, if they are there and whole.
    pub(crate) fn take(&self, name: &Name, bytes: usize, threads: usize) -> Option<Bytes> {
        let path = self.path(name);
        if !path.exists() {
            return None;
        }
        let file = MappedFile::open(&path).map(Arc::new);
        let tiles = file.ok().and_then(|file| {
            file.in_large_pages();
            let (tiles, seal) = file.bytes().split_at_checked(bytes)?;
            (seal == seal_of(name, tiles, threads).as_bytes()).then(|| Bytes::of(&file, |file| file.bytes()))
        });
        let told = if tiles.is_some() {
            "weights are mapped as"
        } else {
            "weights are laid out again: damaged is what"
        };
        self.job.log(LogLevel::Info, &format!("{told} {} keeps them", path.display()));
        tiles.and_then(|tiles| tiles.part(0, bytes))
    }

    /// Keeps tiles for the next load.
    pub(crate) fn put(&self, name: &Name, tiles: &[u8], threads: usize) {
        let Some(directory) = self.kept.room_for((tiles.len() + SEAL) as u64) else {
            let bytes = tiles.len();
            let told =
                format!("weights are not kept as they are laid out: {bytes} bytes are more than cache_bytes");
            return self.job.log(LogLevel::Warning, &told);
        };
        let path = self.path(name);
        match publish(directory, &path, &[tiles, seal_of(name, tiles, threads).as_bytes()]) {
            Ok(()) => self.job.log(
                LogLevel::Info,
                &format!("{} keeps weights as they are laid out, for the next start", path.display()),
            ),
            Err(error) => {
                let told = format!("weights are not kept as they are laid out: {}: {error}", path.display());
                self.job.log(LogLevel::Warning, &told);
            }
        }
    }
}

/// Writes a file that appears whole or not at all.
fn publish(directory: &Path, path: &Path, parts: &[&[u8]]) -> io::Result<()> {
    std::fs::create_dir_all(directory)?;
    // What a killed process leaves of it counts and goes like everything that is kept.
    let mut early = NamedTempFile::new_in(directory)?;
    parts.iter().try_for_each(|part| early.write_all(part))?;
    early.as_file().sync_all()?;
    early.persist(path)?;
    sync_directory(directory).map_err(io::Error::other)
}

/// Vouches for tiles of this name: the digest of checksums that any changed byte changes, and which are made as fast as memory is read.
fn seal_of(name: &Name, tiles: &[u8], threads: usize) -> String {
    let mut sums = vec![0; tiles.len().div_ceil(PART)];
    let each = sums.len().div_ceil(threads.max(1)).max(1);
    std::thread::scope(|scope| {
        for (sums, tiles) in sums.chunks_mut(each).zip(tiles.chunks(each * PART)) {
            scope.spawn(move || {
                sums.iter_mut().zip(tiles.chunks(PART)).for_each(|(sum, part)| *sum = crc32fast::hash(part));
            });
        }
    });
    hexadecimal(&format!("{} {sums:x?}", name.0))
}

fn hexadecimal(text: &str) -> String {
    Digest::of(text.as_bytes()).to_string()
}

#[cfg(test)]
mod tests {
    use drophammer_formats::DType;

    use super::*;
    use crate::kernels::tile::lay_strip;

    /// Whoever lays tiles in another way changes this digest, and raises [`LAYOUT`] with it.
    #[test]
    fn tiles_are_those_of_this_version() {
        const ROWS: usize = 13;
        const COLUMNS: usize = 512;
        let mut told = String::new();
        for &dtype in DType::ALL {
            let Some(cut) = Cut::of(dtype, ROWS, COLUMNS) else { continue };
            let row_bytes = dtype.bytes_for(COLUMNS as u64).unwrap() as usize;
            // No byte that would make a plain number infinite.
            let stored: Vec<u8> = (0..ROWS * row_bytes).map(|i| (i * i % 123) as u8).collect();
            let mut strip = vec![0; cut.strip_bytes()];
            lay_strip(dtype, COLUMNS, stored.chunks(row_bytes), &mut strip);
            writeln!(told, "{dtype} {}", Digest::of(&strip)).unwrap();
        }
        assert!(told.lines().count() >= 16, "{told}");
        let due = (2, "2a7443a45331788b6df281ada413d3610ca68b59b1231458e15e1183e8403d4b");
        assert_eq!((LAYOUT, hexadecimal(&told).as_str()), due, "{told}");
    }

    #[test]
    fn a_seal_breaks_with_any_byte_and_with_any_order() {
        let name = Name("name".to_owned());
        let mut tiles: Vec<u8> = (0..PART + 4096).map(|i| (i / 64 % 251) as u8).collect();
        let due = seal_of(&name, &tiles, 1);
        assert_eq!(seal_of(&name, &tiles, 7), due, "whoever reads it");
        assert_ne!(seal_of(&Name("other".to_owned()), &tiles, 1), due);
        for at in [0, 63, 64, PART - 1, PART, tiles.len() - 1] {
            tiles[at] ^= 0x10;
            assert_ne!(seal_of(&name, &tiles, 1), due, "byte {at}");
            tiles[at] ^= 0x10;
        }
        tiles.swap(0, 64);
        assert_ne!(seal_of(&name, &tiles, 1), due);
    }
}
