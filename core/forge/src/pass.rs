//! One pass over a layout as a job: budgets, progress, cancelling, resuming, report.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;

use drophammer_formats::digest::{Digest, source_fingerprint};
use drophammer_formats::layout::Layout;
use drophammer_formats::{Source, TensorDecl};
use drophammer_quant::pass::{self, Advance, Item};
use drophammer_sdk::{BackendError, ErrorCode, ForgeReport, JobContext, Result};

use crate::failure;

/// What the process itself and mapped pages in use take of a job's memory, in bytes.
const RESERVED: u64 = 64 << 20;
/// Memory that is tried even where less is allowed, in bytes.
const LEAST: u64 = 16 << 20;
/// Output that is flushed together while the pass goes on, in bytes.
const FLUSHED_BYTES: u64 = 32 << 20;

/// Everything an artifact's bytes depend on besides its plan. Equal recipes continue each other's interrupted work.
#[derive(Debug, Clone)]
pub struct Recipe(String);

impl Recipe {
    /// A recipe of `maker`: who encodes, in which version, by which scheme.
    pub fn new(maker: &str, version: &str, scheme: &str) -> Self {
        Self(format!("{maker} {version} {scheme}\n"))
    }

    /// Adds a source by its fingerprint.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn with_source(mut self, source: &Source) -> Result<Self> {
        let digest = source_fingerprint(source).map_err(|error| failure::of_source(&error))?;
        self.0 += &digest.to_string();
        Ok(self)
    }

    /// Adds files: adapters, an importance matrix.
    ///
    /// # Errors
    /// When one cannot be read.
    pub fn with_files<'a>(self, paths: impl IntoIterator<Item = &'a PathBuf>) -> Result<Self> {
        paths.into_iter().try_fold(self, |recipe, path| {
            recipe.with_source(&Source::open(path).map_err(|error| failure::of_source(&error))?)
        })
    }

    /// Adds an option that changes bytes but not the plan.
    #[must_use]
    pub fn with_option(mut self, name: &str, value: &str) -> Self {
        let Self(text) = &mut self;
        text.extend(["\n", name, "=", value, "\n"]);
        self
    }

    /// The digest of all that.
    pub fn digest(&self) -> Digest {
        Digest::of(self.0.as_bytes())
    }
}

/// Makes the files of `layout` in `staging` from `items`, as a job: within its budgets, heard and cancelled through it,
/// continuing what an interrupted call with the same recipe left.
///
/// # Errors
/// [`ErrorCode::OutOfResources`] before anything is written where the job may not use the disk; then those of the pass.
pub fn run(
    staging: &Path,
    layout: &Layout,
    items: &[Item<'_>],
    recipe: &Recipe,
    job: &dyn JobContext,
) -> Result<()> {
    job.check()?;
    let budgets = job.budgets();
    let needed = layout.total_bytes();
    if budgets.disk_bytes != 0 && needed > budgets.disk_bytes {
        let message = format!(
            "the artifact takes {needed} bytes, more than the {} this job may write",
            budgets.disk_bytes
        );
        return Err(BackendError::new(ErrorCode::OutOfResources, message)
            .with_help("Free some disk space or choose a smaller scheme."));
    }
    let options = pass::Options {
        threads: budgets.threads.max(1) as usize,
        memory_budget: (budgets.memory_bytes != 0)
            .then(|| budgets.memory_bytes.saturating_sub(RESERVED).max(LEAST)),
        ..pass::Options::default()
    };
    let files: Vec<PathBuf> = layout.files.iter().map(|file| staging.join(&file.name)).collect();
    let (flush, calls) = mpsc::channel();
    let made = std::thread::scope(|scope| {
        scope.spawn(move || flush_along(&files, &calls));
        // Gone with the pass, which ends the flushing.
        let heard = Heard { job, flush, flushed: AtomicU64::new(0) };
        pass::forge(staging, layout.clone(), items, recipe.digest(), &options, &heard)
    });
    made.map_err(|error| failure::of_pass(&error))?;
    Ok(())
}

/// Sends what is written to the disk whenever it is called to, so that little is left to wait for at the end.
fn flush_along(files: &[PathBuf], calls: &mpsc::Receiver<()>) {
    while calls.recv().is_ok() {
        while calls.try_recv().is_ok() {}
        for path in files {
            // Only an early start: what fails here fails again at the end, where it is reported.
            if let Ok(file) = File::open(path) {
                let _ = file.sync_data();
            }
        }
    }
}

/// What was made: the layout's files, in order.
pub fn report(layout: &Layout, tensors: &[TensorDecl], notes: Vec<String>) -> ForgeReport {
    let parameters = parameters(tensors);
    let data: u64 = layout.places.iter().map(|place| place.len).sum();
    let mut types = BTreeMap::new();
    for tensor in tensors {
        *types.entry(tensor.dtype.name().to_owned()).or_default() += 1;
    }
    ForgeReport {
        files: layout.files.iter().map(|file| file.name.clone().into()).collect(),
        bytes: layout.total_bytes(),
        bits_per_weight: data as f64 * 8.0 / parameters.max(1) as f64,
        parameters,
        types,
        notes,
    }
}

/// Elements of all tensors.
pub(crate) fn parameters(tensors: &[TensorDecl]) -> u64 {
    tensors.iter().map(|tensor| tensor.shape.iter().product::<u64>()).sum()
}

/// Reports a pass to its job, and calls for flushing.
struct Heard<'a> {
    job: &'a dyn JobContext,
    flush: mpsc::Sender<()>,
    /// Bytes made when flushing was called for last.
    flushed: AtomicU64,
}

impl pass::Progress for Heard<'_> {
    fn advanced(&self, advance: Advance<'_>) {
        let stage = if advance.verifying { "verifying" } else { "forging" };
        self.job.progress(stage, advance.tensor, advance.done_bytes, advance.total_bytes);
        let (made, flushed) = (advance.done_bytes, self.flushed.load(Ordering::Relaxed));
        if made >= flushed + FLUSHED_BYTES
            && self.flushed.compare_exchange(flushed, made, Ordering::Relaxed, Ordering::Relaxed).is_ok()
        {
            let _ = self.flush.send(());
        }
    }

    fn cancelled(&self) -> bool {
        self.job.cancelled()
    }
}
