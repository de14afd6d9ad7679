//! Where a pass writes, and the whole life of an output: create or continue, fill, flush.

use std::path::Path;

use drophammer_formats::Error;
use drophammer_formats::digest::Digest;
use drophammer_formats::layout::Layout;
use drophammer_formats::placed::PlacedFiles;

use super::error::PassError;
use super::item::Item;
use super::journal::Journal;
use super::run::{Options, Progress, Report, plan_digest, run};

/// Output tensors whose sizes and places are fixed beforehand.
pub trait TensorSink: Sync {
    /// Bytes of the output tensor of this index, or `None` where there is none.
    fn tensor_len(&self, tensor: usize) -> Option<u64>;

    /// Writes bytes at an offset within a tensor. Called from any thread, in any order, never twice for the same
    /// bytes in one pass.
    ///
    /// # Errors
    /// [`Error::Io`].
    fn write_at(&self, tensor: usize, offset: u64, bytes: &[u8]) -> Result<(), Error>;

    /// Reads bytes back, to verify what an interrupted pass wrote.
    ///
    /// # Errors
    /// [`Error::Io`].
    fn read_at(&self, tensor: usize, offset: u64, bytes: &mut [u8]) -> Result<(), Error>;
}

impl TensorSink for PlacedFiles {
    fn tensor_len(&self, tensor: usize) -> Option<u64> {
        self.layout().places.get(tensor).map(|place| place.len)
    }

    fn write_at(&self, tensor: usize, offset: u64, bytes: &[u8]) -> Result<(), Error> {
        PlacedFiles::write_at(self, tensor, offset, bytes)
    }

    fn read_at(&self, tensor: usize, offset: u64, bytes: &mut [u8]) -> Result<(), Error> {
        PlacedFiles::read_at(self, tensor, offset, bytes)
    }
}

/// Makes the files of `layout` in `directory` from `items`, continuing where an earlier, interrupted call with the
/// same layout, items and `recipe` stopped.
///
/// `recipe` names everything the bytes depend on besides the plan itself: the source's digest, options, and the
/// version of the code. On success the files are complete (and flushed, if that is asked for) and the journal is gone; on failure the
/// files and the journal stay, for the next call.
///
/// # Errors
/// [`PassError`]; the code of a full disk is `disk_full`, already when space is reserved.
pub fn forge(
    directory: &Path,
    layout: Layout,
    items: &[Item<'_>],
    recipe: Digest,
    options: &Options,
    progress: &dyn Progress,
) -> Result<Report, PassError> {
    let plan = plan_digest(items, &layout, recipe, options)?;
    let resumed = match Journal::resume(directory, plan)? {
        Some(journal) => PlacedFiles::resume(directory, layout.clone())?.map(|files| (journal, files)),
        None => None,
    };
    let (mut journal, files) = if let Some(resumed) = resumed {
        resumed
    } else {
        let files = PlacedFiles::create(directory, layout)?;
        (Journal::create(directory, plan)?, files)
    };
    let report = run(items, &files, Some(&mut journal), options, progress)?;
    if options.durable {
        files.finish()?;
    }
    journal.remove()?;
    Ok(report)
}
