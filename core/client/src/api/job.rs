//! Jobs: one target forged from one model.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{ErrorReport, words};

/// Answer of `jobs`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Jobs {
    /// Newest last.
    pub jobs: Vec<Job>,
}

/// The target of a job that makes nothing: a source is measured as it is. Nothing else is called so, since `model:source` means it.
pub const SOURCE_TARGET: &str = "source";

words! {
    /// Where a job stands.
    JobState {
        /// Waits for memory, cores or an earlier job.
        Queued = "queued",
        /// A worker is on it.
        Running = "running",
        /// Its artifact is published.
        Succeeded = "succeeded",
        /// It ended with an error.
        Failed = "failed",
        /// Somebody stopped it.
        Cancelled = "cancelled",
        /// It cannot start until somebody does something; its error says what.
        Blocked = "blocked",
    }
}

impl JobState {
    /// Whether nothing more will happen by itself.
    pub const fn is_finished(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled)
    }
}

words! {
    /// The part of a model's life a job is in, in order.
    Stage {
        /// What is this file?
        Identify = "identify",
        /// What can be made of it here, and at what cost?
        Plan = "plan",
        /// Convert and quantize.
        Forge = "forge",
        /// Perplexity, divergence, speed, memory.
        Measure = "measure",
        /// Made visible in the library.
        Publish = "publish",
        /// Loaded for requests.
        Serve = "serve",
    }
}

/// One job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Job {
    /// What `cancel` and `retry` take.
    pub id: String,
    /// The model it works on.
    pub model: String,
    /// The target's name, such as `gguf-q4_k_m`; none while a model is only being identified.
    pub target: Option<String>,
    /// The plugin that does the work.
    pub backend: Option<String>,
    /// The device the result is for, where the target names one.
    pub device: Option<String>,
    /// The file format that comes out.
    pub format: Option<String>,
    /// The number scheme that comes out.
    pub scheme: Option<String>,
    /// Where it stands.
    pub state: JobState,
    /// The stage it is in or ended in.
    pub stage: Stage,
    /// Of the present stage, 0 to 1.
    pub progress: f64,
    /// What is going on, such as `tensor 120 of 272` or `waits for 1.2 GB of memory`.
    pub activity: Option<String>,
    /// Bytes of the present stage already handled.
    pub bytes_done: u64,
    /// Bytes of the present stage in all; 0 when unknown.
    pub bytes_total: u64,
    /// Bytes per second, recently.
    pub rate: Option<f64>,
    /// Until the job is done, if that can be foretold.
    pub eta_seconds: Option<f64>,
    /// Time spent working (not queueing) so far.
    pub seconds: f64,
    /// 1 for the first try.
    pub attempt: u32,
    /// Why the plan looks as it does, one sentence each.
    pub reasons: Vec<String>,
    /// Size the plan foretells, bytes.
    pub planned_bytes: Option<u64>,
    /// Peak memory the plan foretells, bytes.
    pub planned_memory_bytes: Option<u64>,
    /// When it was queued, Unix seconds.
    pub created: f64,
    /// When it ended, Unix seconds.
    pub finished: Option<f64>,
    /// The worker's process.
    pub pid: Option<u32>,
    /// The artifact it published.
    pub artifact: Option<String>,
    /// Why it failed or is blocked.
    pub error: Option<ErrorReport>,
}
