//! The pass itself: threads that claim chunks in order, encode and write them.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use drophammer_formats::digest::Digest;
use drophammer_formats::layout::Layout;
use sha2::{Digest as _, Sha256};

use super::error::PassError;
use super::estimate::{Estimate, chunk_rows, estimate};
use super::item::{Item, Work};
use super::journal::Journal;
use super::sink::TensorSink;
use crate::codec::first_non_finite;

/// Floats that are made and encoded together: 256 KiB.
const PIECE_FLOATS: u64 = 1 << 16;

/// How a pass may use the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Most threads; at least one is used.
    pub threads: usize,
    /// Most memory for buffers, in bytes. `None` leaves it at the threads' usual chunks (a few megabytes each).
    pub memory_budget: Option<u64>,
    /// Whether the output is forced to the disk at the end. What is published must be; what is measured against
    /// tools that leave it to the system should not.
    pub durable: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            memory_budget: None,
            durable: true,
        }
    }
}

/// How far a pass is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Advance<'a> {
    /// The tensor that was just worked on.
    pub tensor: &'a str,
    /// Output bytes finished, those of earlier, interrupted passes included.
    pub done_bytes: u64,
    /// Output bytes in all.
    pub total_bytes: u64,
    /// Items finished.
    pub done_items: usize,
    /// Items in all.
    pub total_items: usize,
    /// Whether bytes of an interrupted pass are being verified, rather than new ones made.
    pub verifying: bool,
}

/// Hears of a pass and may end it. Called from the pass's threads, after every chunk.
pub trait Progress: Sync {
    /// A chunk is done.
    fn advanced(&self, advance: Advance<'_>) {
        let _ = advance;
    }

    /// Whether to stop. What is finished is kept.
    fn cancelled(&self) -> bool {
        false
    }
}

/// Nobody listens.
impl Progress for () {}

/// What a pass did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Report {
    /// Bytes written in this pass.
    pub written_bytes: u64,
    /// Items taken over from an interrupted pass, verified.
    pub resumed_items: usize,
    /// Memory and threads, as they were estimated and used.
    pub estimate: Estimate,
}

/// Runs `items` into `sink`. Items that `journal` names are verified and skipped; finished ones are entered.
///
/// # Errors
/// [`PassError`]. Of several failing chunks the first in order is reported, whatever the threads' timing.
pub fn run(
    items: &[Item<'_>],
    sink: &dyn TensorSink,
    journal: Option<&mut Journal>,
    options: &Options,
    progress: &dyn Progress,
) -> Result<Report, PassError> {
    let estimate = estimate(items, options)?;
    let mut chunked = Vec::with_capacity(items.len());
    for item in items {
        check_outputs(item, sink)?;
        chunked.push(Chunked::new(item, options)?);
    }
    let claimed = journal.as_ref().map(|journal| journal.finished().clone()).unwrap_or_default();
    let mut pass = Pass {
        items: chunked,
        sink,
        progress,
        journal: Mutex::new(journal),
        stopped: AtomicBool::new(false),
        failure: Mutex::new(None),
        done_bytes: AtomicU64::new(0),
        done_items: AtomicUsize::new(0),
        written_bytes: AtomicU64::new(0),
        total_bytes: estimate.output_bytes,
    };
    let verified = pass.verify(&claimed, estimate.threads)?;
    for (item, &verified) in pass.items.iter_mut().zip(&verified) {
        item.skip = verified;
    }
    pass.work(estimate.threads)?;
    Ok(Report {
        written_bytes: pass.written_bytes.into_inner(),
        resumed_items: verified.iter().filter(|verified| **verified).count(),
        estimate,
    })
}

/// The name of a plan: journals of other plans are of no use.
pub(super) fn plan_digest(
    items: &[Item<'_>],
    layout: &Layout,
    recipe: Digest,
    options: &Options,
) -> Result<Digest, PassError> {
    let mut hasher = Sha256::new();
    let mut add = |bytes: &[u8]| {
        hasher.update((bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
    };
    add(&recipe.0);
    for file in &layout.files {
        add(file.name.as_bytes());
        add(&file.len.to_le_bytes());
        add(&file.header);
    }
    for (name, content) in &layout.side_files {
        add(name.as_bytes());
        add(content);
    }
    for item in items {
        add(item.name.as_bytes());
        for number in [item.rows, item.row_group(), chunk_rows(item, options.memory_budget)?] {
            add(&number.to_le_bytes());
        }
        for output in &item.outputs {
            add(&(output.tensor as u64).to_le_bytes());
            add(&output.group_bytes.to_le_bytes());
        }
    }
    Ok(Digest(hasher.finalize().into()))
}

fn check_outputs(item: &Item<'_>, sink: &dyn TensorSink) -> Result<(), PassError> {
    for &output in &item.outputs {
        let made = item.output_bytes(output).unwrap_or(u64::MAX);
        let planned = sink.tensor_len(output.tensor).unwrap_or(0);
        if made != planned {
            let tensor = item.name.clone();
            return Err(PassError::Size { tensor, output: output.tensor, made, planned });
        }
    }
    Ok(())
}

/// An item, cut into chunks of rows.
struct Chunked<'a, 'i> {
    item: &'a Item<'i>,
    chunk_rows: u64,
    chunks: u64,
    /// Verified from an earlier pass.
    skip: bool,
    state: Mutex<State>,
}

/// The digests of an item's finished chunks.
struct State {
    digests: Vec<[u8; 32]>,
    remaining: u64,
}

impl<'a, 'i> Chunked<'a, 'i> {
    fn new(item: &'a Item<'i>, options: &Options) -> Result<Self, PassError> {
        let chunk_rows = chunk_rows(item, options.memory_budget)?;
        // An empty tensor is one empty chunk, so that it too is finished at some time.
        let chunks = item.rows.div_ceil(chunk_rows).max(1);
        let state = Mutex::new(State { digests: Vec::new(), remaining: chunks });
        Ok(Self { item, chunk_rows, chunks, skip: false, state })
    }

    fn rows(&self, chunk: u64) -> Range<u64> {
        let begin = chunk * self.chunk_rows;
        begin..(begin + self.chunk_rows).min(self.item.rows)
    }

    /// Where a chunk lies in an output of so many bytes per group of rows.
    fn bytes(&self, rows: &Range<u64>, group_bytes: u64) -> Range<u64> {
        let group = self.item.row_group();
        rows.start / group * group_bytes..rows.end.div_ceil(group) * group_bytes
    }

    /// Fills `buffers.bytes` with a chunk of every output, one after the other.
    fn fill(&self, rows: &Range<u64>, buffers: &mut Buffers) -> Result<(), PassError> {
        let item = self.item;
        let lengths: Vec<usize> = item
            .outputs
            .iter()
            .map(|output| {
                let place = self.bytes(rows, output.group_bytes);
                (place.end - place.start) as usize
            })
            .collect();
        // Encoders may leave padding alone: what an earlier chunk left there must not show.
        buffers.bytes.clear();
        buffers.bytes.resize(lengths.iter().sum(), 0);
        let unreadable =
            |source| PassError::Read { tensor: item.name.clone(), begin: rows.start, end: rows.end, source };
        match &item.work {
            Work::Copy(source) => {
                source.read(rows.clone(), &mut buffers.bytes).map_err(unreadable)?;
                source.release(rows.clone());
            }
            Work::Encode { source, encoder, columns } => {
                // Floats are made and encoded in pieces that stay in a core's own cache.
                let group = item.row_group();
                let step = (PIECE_FLOATS / columns.max(&1) / group).max(1) * group;
                let mut rest: Vec<&mut [u8]> = Vec::with_capacity(lengths.len());
                let mut bytes = buffers.bytes.as_mut_slice();
                for len in lengths {
                    let (output, later) = bytes.split_at_mut(len);
                    rest.push(output);
                    bytes = later;
                }
                let mut begin = rows.start;
                // An empty tensor is one empty piece, as it is one empty chunk.
                loop {
                    let piece = begin..(begin + step).min(rows.end);
                    buffers.floats.resize(((piece.end - piece.start) * columns) as usize, 0.0);
                    source.read(piece.clone(), &mut buffers.floats).map_err(unreadable)?;
                    if let Some(position) = first_non_finite(&buffers.floats) {
                        return Err(PassError::NonFinite {
                            tensor: item.name.clone(),
                            row: piece.start + position as u64 / columns,
                            column: position as u64 % columns,
                            value: buffers.floats[position],
                        });
                    }
                    let mut outputs = Vec::with_capacity(rest.len());
                    for (output, rest) in item.outputs.iter().zip(&mut rest) {
                        let place = self.bytes(&piece, output.group_bytes);
                        let (now, later) =
                            std::mem::take(rest).split_at_mut((place.end - place.start) as usize);
                        outputs.push(now);
                        *rest = later;
                    }
                    encoder.encode(piece.start, &buffers.floats, &mut outputs).map_err(|source| {
                        PassError::Encode { tensor: item.name.clone(), row: piece.start, source }
                    })?;
                    // At once: what stays mapped until the end of a chunk depends on how chunks lie in pages.
                    begin = piece.end;
                    source.release(piece);
                    if begin >= rows.end {
                        break;
                    }
                }
            }
        }
        Ok(())
    }
}

/// What one thread needs; its capacity is the chunk it is stated to be.
#[derive(Default)]
struct Buffers {
    floats: Vec<f32>,
    bytes: Vec<u8>,
}

struct Pass<'a, 'i> {
    items: Vec<Chunked<'a, 'i>>,
    sink: &'a dyn TensorSink,
    progress: &'a dyn Progress,
    journal: Mutex<Option<&'a mut Journal>>,
    stopped: AtomicBool,
    /// The first failure in the order of items and chunks.
    failure: Mutex<Option<(usize, u64, PassError)>>,
    done_bytes: AtomicU64,
    done_items: AtomicUsize,
    written_bytes: AtomicU64,
    total_bytes: u64,
}

/// A panic elsewhere has already been reported; what a lock guards is consistent between statements.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pass<'_, '_> {
    /// Makes all items that are not skipped.
    fn work(&self, threads: usize) -> Result<(), PassError> {
        // Chunks of all items in one row, so that threads flow from one tensor into the next.
        let mut ends = Vec::with_capacity(self.items.len());
        let mut total = 0u64;
        for item in &self.items {
            total += if item.skip { 0 } else { item.chunks };
            ends.push(total);
        }
        let next = AtomicU64::new(0);
        let worker = || {
            let mut buffers = Buffers::default();
            while !self.stopped.load(Ordering::Relaxed) {
                let claimed = next.fetch_add(1, Ordering::Relaxed);
                if claimed >= total {
                    break;
                }
                let index = ends.partition_point(|&end| end <= claimed);
                let chunk = claimed - if index == 0 { 0 } else { ends[index - 1] };
                if self.progress.cancelled() {
                    self.fail(index, chunk, PassError::Cancelled);
                } else if let Err(error) = self.make_chunk(index, chunk, &mut buffers) {
                    self.fail(index, chunk, error);
                }
            }
        };
        self.on_threads(threads, &worker)
    }

    /// Reads back the items the journal names. Those whose bytes are not what it says are made anew.
    fn verify(&self, claimed: &BTreeMap<usize, Digest>, threads: usize) -> Result<Vec<bool>, PassError> {
        let claimed: Vec<(usize, Digest)> = claimed
            .iter()
            .map(|(&item, &digest)| (item, digest))
            .filter(|(i, _)| *i < self.items.len())
            .collect();
        let verified: Vec<AtomicBool> = self.items.iter().map(|_| AtomicBool::new(false)).collect();
        let next = AtomicUsize::new(0);
        let worker = || {
            let mut buffers = Buffers::default();
            while !self.stopped.load(Ordering::Relaxed) {
                let Some(&(index, digest)) = claimed.get(next.fetch_add(1, Ordering::Relaxed)) else { break };
                match self.digest_of_written(index, &mut buffers) {
                    Ok(found) if found == digest => {
                        verified[index].store(true, Ordering::Relaxed);
                        let done = self.done_items.fetch_add(1, Ordering::Relaxed) + 1;
                        let bytes = self.output_bytes(index);
                        self.advance(index, bytes, done, true);
                    }
                    Ok(_) => {}
                    Err(error) => self.fail(index, 0, error),
                }
            }
        };
        self.on_threads(threads, &worker)?;
        Ok(verified.into_iter().map(AtomicBool::into_inner).collect())
    }

    fn on_threads(&self, threads: usize, worker: &(dyn Fn() + Sync)) -> Result<(), PassError> {
        std::thread::scope(|scope| {
            for _ in 1..threads {
                scope.spawn(worker);
            }
            worker();
        });
        lock(&self.failure).take().map_or(Ok(()), |(.., error)| Err(error))
    }

    fn make_chunk(&self, index: usize, chunk: u64, buffers: &mut Buffers) -> Result<(), PassError> {
        let chunked = &self.items[index];
        let rows = chunked.rows(chunk);
        chunked.fill(&rows, buffers)?;
        let digest = Sha256::digest(&buffers.bytes).into();
        let mut rest = buffers.bytes.as_slice();
        for output in &chunked.item.outputs {
            let place = chunked.bytes(&rows, output.group_bytes);
            let (bytes, later) = rest.split_at((place.end - place.start) as usize);
            self.sink.write_at(output.tensor, place.start, bytes)?;
            rest = later;
        }
        let written = buffers.bytes.len() as u64;
        self.written_bytes.fetch_add(written, Ordering::Relaxed);
        let finished = usize::from(self.finish_chunk(index, chunk, digest)?);
        let done_items = self.done_items.fetch_add(finished, Ordering::Relaxed) + finished;
        self.advance(index, written, done_items, false);
        Ok(())
    }

    /// Notes a chunk's digest; enters the item into the journal with its last one. Returns whether it was.
    fn finish_chunk(&self, index: usize, chunk: u64, digest: [u8; 32]) -> Result<bool, PassError> {
        let chunked = &self.items[index];
        let digest = {
            let mut state = lock(&chunked.state);
            state.digests.resize(chunked.chunks as usize, [0; 32]);
            state.digests[chunk as usize] = digest;
            state.remaining -= 1;
            if state.remaining > 0 {
                return Ok(false);
            }
            Digest::of(std::mem::take(&mut state.digests).as_flattened())
        };
        if let Some(journal) = lock(&self.journal).as_mut() {
            journal.append(index, digest)?;
        }
        Ok(true)
    }

    /// The digest that [`Self::finish_chunk`] would enter, from the bytes that are there.
    fn digest_of_written(&self, index: usize, buffers: &mut Buffers) -> Result<Digest, PassError> {
        let chunked = &self.items[index];
        let mut digests = Vec::new();
        for chunk in 0..chunked.chunks {
            if self.progress.cancelled() {
                return Err(PassError::Cancelled);
            }
            let rows = chunked.rows(chunk);
            let mut hasher = Sha256::new();
            for output in &chunked.item.outputs {
                let place = chunked.bytes(&rows, output.group_bytes);
                buffers.bytes.resize((place.end - place.start) as usize, 0);
                self.sink.read_at(output.tensor, place.start, &mut buffers.bytes)?;
                hasher.update(&buffers.bytes);
            }
            digests.push(hasher.finalize().into());
        }
        Ok(Digest::of(digests.as_flattened()))
    }

    fn output_bytes(&self, index: usize) -> u64 {
        let item = self.items[index].item;
        item.outputs.iter().filter_map(|&output| item.output_bytes(output)).sum()
    }

    fn advance(&self, index: usize, bytes: u64, done_items: usize, verifying: bool) {
        let done_bytes = self.done_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.progress.advanced(Advance {
            tensor: &self.items[index].item.name,
            done_bytes,
            total_bytes: self.total_bytes,
            done_items,
            total_items: self.items.len(),
            verifying,
        });
    }

    /// Stops all threads. Chunks are claimed in order and a claimed one is always tried, so the first failure in
    /// order is among those noted, however the threads ran.
    fn fail(&self, index: usize, chunk: u64, error: PassError) {
        let mut failure = lock(&self.failure);
        if failure.as_ref().is_none_or(|(i, c, _)| (index, chunk) < (*i, *c)) {
            *failure = Some((index, chunk, error));
        }
        self.stopped.store(true, Ordering::Relaxed);
    }
}
