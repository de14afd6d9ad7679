//! The plugin under test, and how cases talk to it.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Result, anyhow, ensure};
use drophammer_sdk::host::Plugin;
use drophammer_sdk::{
    Backend, BackendError, Batch, Budgets, ForgeRequest, FormatSupport, Goal, HostInfo, JobContext,
    LoadRequest, LogLevel, Session,
};

use crate::exceptions::Exceptions;

/// Plain schemes, the most exact first; every format calls its own by one of these.
const PLAIN: [&str; 5] = ["f32", "fp32", "bf16", "f16", "fp16"];

/// The repository's root.
pub fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(here).to_path_buf()
}

/// A plugin, opened.
pub struct Subject {
    /// The backend behind its ABI.
    pub plugin: Plugin,
    /// What it says it cannot do.
    pub exceptions: Exceptions,
    /// The format it both makes and runs.
    pub format: String,
    /// The most exact plain scheme of that format.
    pub scheme: String,
}

/// A job of two threads that nobody watches, cancelled after so many questions.
pub(crate) struct Silent {
    questions: AtomicU32,
    memory_bytes: u64,
}

impl Silent {
    /// A job that goes on.
    pub(crate) fn new() -> Self {
        Self { questions: AtomicU32::new(u32::MAX), memory_bytes: 0 }
    }

    /// A job that is cancelled when it was asked this often.
    pub(crate) fn cancelled_after(questions: u32) -> Self {
        Self { questions: AtomicU32::new(questions), memory_bytes: 0 }
    }

    /// A job that may use so much memory.
    pub(crate) fn with_memory(memory_bytes: u64) -> Self {
        Self { questions: AtomicU32::new(u32::MAX), memory_bytes }
    }
}

impl Default for Silent {
    fn default() -> Self {
        Self::new()
    }
}

impl JobContext for Silent {
    fn progress(&self, _stage: &str, _tensor: &str, _done: u64, _total: u64) {}

    fn log(&self, level: LogLevel, message: &str) {
        if level <= LogLevel::Warning {
            eprintln!("{message}");
        }
    }

    fn cancelled(&self) -> bool {
        let ask = |left: u32| Some(if left == u32::MAX { left } else { left.saturating_sub(1) });
        self.questions.fetch_update(Ordering::Relaxed, Ordering::Relaxed, ask) == Ok(0)
    }

    fn budgets(&self) -> Budgets {
        Budgets { threads: 2, memory_bytes: self.memory_bytes, disk_bytes: 0 }
    }
}

impl Subject {
    /// Opens the plugin packaged in `directory`, whose source is `folder`. `None` where its runtime is missing and no
    /// directory with runtimes was given: the plugin said so, with the remedy.
    ///
    /// # Errors
    /// When it cannot be opened, or offers no format that it also runs.
    pub fn open(directory: &Path, folder: &Path, runtimes: Option<&Path>) -> Result<Option<Self>> {
        let host = HostInfo {
            version: env!("CARGO_PKG_VERSION").into(),
            runtimes: runtimes.unwrap_or(Path::new("")).to_owned(),
            cache: std::env::temp_dir(),
            ..HostInfo::default()
        };
        let plugin = Plugin::open(directory, &host).map_err(told)?;
        let report = plugin.probe(&drophammer_sdk::ProbeRequest::default()).map_err(told)?;
        for problem in &report.problems {
            eprintln!("{}: {}", problem.message, problem.help);
        }
        let mut both = report.formats.iter().filter(|format| format.make && format.run);
        let Some((format, scheme)) = both.find_map(|format| Some((format.format.clone(), plain(format)?)))
        else {
            // A runtime whose licence nobody accepted is not there, and that is no failure.
            let licensed = drophammer_runtimes::runtime(&plugin.manifest().id).is_some_and(|runtime| {
                runtime.notice.is_some() && !drophammer_runtimes::accepted(&runtime.name)
            });
            let missing = (runtimes.is_none() || licensed) && !report.problems.is_empty();
            ensure!(missing, "the plugin offers no format that it both makes and runs at plain precision");
            return Ok(None);
        };
        Ok(Some(Self { plugin, exceptions: Exceptions::read(folder)?, format, scheme }))
    }

    /// The manifest's id.
    pub fn id(&self) -> &str {
        &self.plugin.manifest().id
    }

    /// A request to make this fixture at plain precision.
    pub fn request(&self, fixture: &Path, staging: &Path) -> ForgeRequest {
        ForgeRequest {
            source: fixture.to_owned(),
            goal: Goal { format: self.format.clone(), scheme: self.scheme.clone(), ..Goal::default() },
            staging: staging.to_owned(),
            name: "model".into(),
            no_tokenizer: !fixture.join("tokenizer.json").exists(),
            ..ForgeRequest::default()
        }
    }

    /// Makes this fixture and gives the path to load.
    ///
    /// # Errors
    /// Whatever the backend says.
    pub fn make(&self, fixture: &Path, staging: &Path) -> Result<PathBuf, BackendError> {
        let report = self.plugin.convert(&self.request(fixture, staging), &Silent::new())?;
        Ok(report.files.first().map_or_else(|| staging.to_owned(), |file| staging.join(file)))
    }

    /// Loads with room for so many sequences, in reference mode.
    ///
    /// # Errors
    /// Whatever the backend says.
    pub fn load(&self, path: &Path, sequences: u32) -> Result<Box<dyn Session>, BackendError> {
        self.load_as(&order(path, sequences))
    }

    /// Loads as told.
    ///
    /// # Errors
    /// Whatever the backend says.
    pub fn load_as(&self, request: &LoadRequest) -> Result<Box<dyn Session>, BackendError> {
        self.plugin.load(request, Box::new(Silent::new()))
    }
}

/// The usual order: reference mode, a short context.
pub(crate) fn order(path: &Path, sequences: u32) -> LoadRequest {
    LoadRequest {
        path: path.to_owned(),
        context: Some(256),
        max_sequences: sequences,
        reference: true,
        ..LoadRequest::default()
    }
}

fn plain(format: &FormatSupport) -> Option<String> {
    PLAIN.iter().find(|scheme| format.schemes.iter().any(|known| known == *scheme)).map(ToString::to_string)
}

/// An error with its next step.
pub(crate) fn told(error: BackendError) -> anyhow::Error {
    anyhow!("{} ({}); {}", error.message, error.code.word(), error.help)
}

/// Runs a batch given as `(token, position, sequence)`; a row for each.
///
/// # Errors
/// When the session refuses, or leaves a value unwritten.
pub(crate) fn forward(session: &mut dyn Session, batch: &[(u32, u32, u32)]) -> Result<Vec<Vec<f32>>> {
    let width = session.limits().output_width as usize;
    let mut rows = Vec::with_capacity(batch.len());
    for part in batch.chunks(session.limits().max_batch.max(1) as usize) {
        let tokens: Vec<u32> = part.iter().map(|token| token.0).collect();
        let positions: Vec<u32> = part.iter().map(|token| token.1).collect();
        let sequences: Vec<u32> = part.iter().map(|token| token.2).collect();
        let outputs: Vec<u32> = (0..part.len() as u32).collect();
        let mut out = vec![f32::NAN; part.len() * width];
        let batch =
            Batch { tokens: &tokens, positions: &positions, sequences: &sequences, outputs: &outputs };
        session.forward(batch, &mut out).map_err(told)?;
        ensure!(out.iter().all(|value| value.is_finite()), "an output row holds NaN, infinity or nothing");
        rows.extend(out.chunks(width).map(<[f32]>::to_vec));
    }
    Ok(rows)
}
