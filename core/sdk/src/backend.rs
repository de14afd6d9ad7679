//! The safe traits: a plugin implements [`Backend`] and [`Session`], the host implements [`JobContext`], and both
//! sides call the same ones.

use crate::documents::{ForgeReport, ForgeRequest, LoadRequest, ProbeReport, ProbeRequest};
use crate::error::{BackendError, Result};

pub use drophammer_abi::Budgets;

/// A backend: convert, quantize, infer. See the crate's documentation for the contract.
pub trait Backend: Send + Sync {
    /// What this backend can do on this machine and, when the request names a source, what each goal would take.
    ///
    /// Cheap (well under a second) and without side effects; a missing runtime is a [`crate::Problem`], not an error.
    ///
    /// # Errors
    /// When the source cannot be read.
    fn probe(&self, request: &ProbeRequest) -> Result<ProbeReport>;

    /// Makes an artifact at plain precision (f32, f16, bf16) from the source.
    ///
    /// # Errors
    /// Any [`crate::ErrorCode`]; [`crate::ErrorCode::Cancelled`] soon after the job is cancelled.
    fn convert(&self, request: &ForgeRequest, job: &dyn JobContext) -> Result<ForgeReport>;

    /// Makes a quantized artifact from the source: straight from it wherever the format allows.
    ///
    /// # Errors
    /// As for [`Backend::convert`].
    fn quantize(&self, request: &ForgeRequest, job: &dyn JobContext) -> Result<ForgeReport>;

    /// Loads an artifact or, where the backend can, a source.
    ///
    /// # Errors
    /// As for [`Backend::convert`]; [`crate::ErrorCode::OutOfResources`] when it would not fit.
    fn load(&self, request: &LoadRequest, job: Box<dyn JobContext>) -> Result<Box<dyn Session>>;

    /// Abilities beyond this trait, by id. Ids the host does not know are never asked for.
    fn extension(&self, id: &str) -> Option<Box<dyn Extension>> {
        let _ = id;
        None
    }
}

/// What one output row of a session is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutputKind {
    /// Logits over the vocabulary.
    Logits,
    /// Final hidden states (encoders).
    Hidden,
}

/// What a loaded model can take and what it gives. Constant for the session's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Longest sequence in tokens.
    pub context: u32,
    /// Sequences held at once; ids run below it.
    pub max_sequences: u32,
    /// Most tokens in one batch.
    pub max_batch: u32,
    /// Floats per output row: vocabulary or hidden size.
    pub output_width: u32,
    /// What a row is.
    pub output_kind: OutputKind,
}

impl Limits {
    /// Checks the id of a sequence.
    ///
    /// # Errors
    /// [`crate::ErrorCode::InvalidRequest`] for one that the session does not hold.
    pub fn check_sequence(&self, sequence: u32) -> Result<()> {
        if sequence < self.max_sequences {
            return Ok(());
        }
        let message = format!("sequence {sequence}; this session holds {}", self.max_sequences);
        Err(BackendError::new(crate::ErrorCode::InvalidRequest, message))
    }
}

/// Tokens to push through a model in one call; `tokens`, `positions` and `sequences` have equal length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Batch<'a> {
    /// Token ids.
    pub tokens: &'a [u32],
    /// Position of each token in its sequence. Within a sequence positions continue what the cache holds.
    pub positions: &'a [u32],
    /// Sequence of each token.
    pub sequences: &'a [u32],
    /// Indices, ascending, of the tokens whose output row is wanted.
    pub outputs: &'a [u32],
}

impl Batch<'_> {
    /// Checks the batch against a session's limits, so that no backend has to trust it.
    ///
    /// # Errors
    /// [`crate::ErrorCode::InvalidRequest`] naming the first thing that is off.
    pub fn validate(&self, limits: &Limits, output_len: usize) -> Result<()> {
        let bad = |message: String| Err(BackendError::new(crate::ErrorCode::InvalidRequest, message));
        let n = self.tokens.len();
        if self.positions.len() != n || self.sequences.len() != n {
            return bad(format!(
                "batch of {n} tokens has {} positions and {} sequence ids",
                self.positions.len(),
                self.sequences.len()
            ));
        }
        if n == 0 || n > limits.max_batch as usize {
            return bad(format!("batch of {n} tokens; this session takes 1 to {}", limits.max_batch));
        }
        if let Some(p) = self.positions.iter().find(|&&p| p >= limits.context) {
            return bad(format!("position {p} is beyond the context of {} tokens", limits.context));
        }
        self.sequences.iter().try_for_each(|&sequence| limits.check_sequence(sequence))?;
        if !self.outputs.windows(2).all(|w| w[0] < w[1])
            || self.outputs.last().is_some_and(|&i| i as usize >= n)
        {
            return bad(format!("output indices must ascend and stay below {n}"));
        }
        let expected = self.outputs.len() * limits.output_width as usize;
        if output_len != expected {
            return bad(format!("output buffer holds {output_len} floats, {expected} are due"));
        }
        Ok(())
    }

    /// Checks that the model knows every token.
    ///
    /// # Errors
    /// [`crate::ErrorCode::InvalidRequest`] naming the first one it does not know.
    pub fn check_vocabulary(&self, vocabulary: u32) -> Result<()> {
        let Some(id) = self.tokens.iter().find(|&&id| id >= vocabulary) else { return Ok(()) };
        let message = format!("token {id}; this model's vocabulary has {vocabulary}");
        Err(BackendError::new(crate::ErrorCode::InvalidRequest, message)
            .with_help("The tokenizer belongs to another model: use the one beside the weights."))
    }
}

/// A loaded model with its key/value cache.
pub trait Session: Send {
    /// Sizes and kind of output.
    fn limits(&self) -> Limits;

    /// Runs a batch and writes `batch.outputs.len()` rows of `output_width` floats, in order.
    ///
    /// # Errors
    /// [`crate::ErrorCode::InvalidRequest`] for a batch outside the limits; nothing is changed then.
    fn forward(&mut self, batch: Batch<'_>, output: &mut [f32]) -> Result<()>;

    /// Forgets everything of `sequence` outside positions `from..to`.
    ///
    /// # Errors
    /// [`crate::ErrorCode::UnsupportedInput`] where the backend's cache cannot drop a prefix.
    fn keep(&mut self, sequence: u32, from: u32, to: u32) -> Result<()>;

    /// Forgets positions `from..to` of `sequence`; removing a tail (`to` = `u32::MAX`) always works.
    ///
    /// # Errors
    /// As for [`Session::keep`].
    fn remove(&mut self, sequence: u32, from: u32, to: u32) -> Result<()>;

    /// Makes positions `from..to` of `source` the content of `target`, replacing what it held.
    ///
    /// # Errors
    /// As for [`Session::keep`].
    fn copy(&mut self, source: u32, target: u32, from: u32, to: u32) -> Result<()>;

    /// Abilities beyond this trait, by id.
    fn extension(&self, id: &str) -> Option<Box<dyn Extension>> {
        let _ = id;
        None
    }
}

/// How serious a log line is. The numbers cross the ABI.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u32)]
pub enum LogLevel {
    /// The job fails or loses something.
    Error = 1,
    /// The user should know.
    Warning = 2,
    /// What is being done.
    Info = 3,
    /// For those who look into a problem.
    Debug = 4,
    /// Everything.
    Trace = 5,
}

impl LogLevel {
    /// The level with this number; numbers outside the table read as the nearest level.
    pub fn from_number(number: u32) -> Self {
        match number {
            0 | 1 => Self::Error,
            2 => Self::Warning,
            3 => Self::Info,
            4 => Self::Debug,
            _ => Self::Trace,
        }
    }
}

/// The host's side of one job.
pub trait JobContext: Send + Sync {
    /// Reports `done` of `total` units (bytes, wherever bytes make sense) in `stage`; `tensor` may be empty.
    fn progress(&self, stage: &str, tensor: &str, done: u64, total: u64);

    /// Writes a line to the job's log.
    fn log(&self, level: LogLevel, message: &str);

    /// Whether the job should end. Cheap; ask often.
    fn cancelled(&self) -> bool;

    /// Threads, memory and disk the job may use.
    fn budgets(&self) -> Budgets;

    /// Further services of the host, by id.
    fn extension(&self, id: &str) -> Option<Box<dyn Extension>> {
        let _ = id;
        None
    }

    /// Returns [`crate::ErrorCode::Cancelled`] if the job should end: `job.check()?` in a loop.
    ///
    /// # Errors
    /// When the job was cancelled.
    fn check(&self) -> Result<()> {
        if self.cancelled() { Err(BackendError::cancelled()) } else { Ok(()) }
    }
}

/// A job that nobody watches, for tests and tools that call a backend in their own process: it may use so many threads and all
/// memory and disk, is never cancelled, and what it logs goes to standard error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unwatched {
    /// Threads to work on.
    pub threads: u32,
}

impl JobContext for Unwatched {
    fn progress(&self, _stage: &str, _tensor: &str, _done: u64, _total: u64) {}

    fn log(&self, _level: LogLevel, message: &str) {
        eprintln!("{message}");
    }

    fn cancelled(&self) -> bool {
        false
    }

    fn budgets(&self) -> Budgets {
        Budgets { threads: self.threads, memory_bytes: 0, disk_bytes: 0 }
    }
}

/// The place of the largest number of a row of logits, the first of equals: the token that greedy sampling chooses. `None` for an
/// empty row.
pub fn most_likely(row: &[f32]) -> Option<usize> {
    (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b]).then(b.cmp(&a)))
}

/// A named set of calls beyond the traits above.
pub trait Extension: Send + Sync {
    /// Calls `method` with bytes the extension defines.
    ///
    /// # Errors
    /// As the extension defines; unknown methods are [`crate::ErrorCode::InvalidRequest`].
    fn call(&self, method: &str, payload: &[u8]) -> Result<Vec<u8>>;
}
