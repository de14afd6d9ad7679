//! The daemon in brief.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::words;

/// Answer of `status`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Status {
    /// The daemon's version.
    pub version: String,
    /// Where it keeps everything.
    pub home: String,
    /// The folder it watches.
    pub models_dir: String,
    /// Where it publishes.
    pub library_dir: String,
    /// The OpenAI-compatible server.
    pub server: Server,
    /// Jobs in numbers.
    pub jobs: JobCounts,
    /// Its worker processes.
    pub workers: Vec<Worker>,
    /// The daemon's process.
    pub pid: u32,
    /// When it started, Unix seconds.
    pub started: f64,
}

/// Where the OpenAI-compatible API listens.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Server {
    /// Such as `http://127.0.0.1:8777/v1`; `null` when it is switched off.
    pub url: Option<String>,
}

/// How many jobs are in each state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct JobCounts {
    /// Waiting.
    pub queued: u64,
    /// With a worker.
    pub running: u64,
    /// Published.
    pub succeeded: u64,
    /// Ended with an error.
    pub failed: u64,
    /// Stopped by somebody.
    pub cancelled: u64,
    /// Waiting for somebody to do something.
    pub blocked: u64,
}

words! {
    /// What a worker was started for.
    WorkerRole {
        /// Asking a plugin what it can do.
        Probe = "probe",
        /// A job.
        Forge = "forge",
        /// Measuring an artifact.
        Measure = "measure",
        /// A loaded model.
        Serve = "serve",
    }
}

/// One worker process.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Worker {
    /// Its process.
    pub pid: u32,
    /// What it was started for.
    pub role: WorkerRole,
    /// The plugin it loaded.
    pub plugin: String,
    /// The model it works on.
    pub model: Option<String>,
    /// The job it does.
    pub job: Option<String>,
    /// The artifact it serves or measures.
    pub artifact: Option<String>,
    /// Of one core: two busy cores are 200.
    pub cpu_percent: f64,
    /// Resident memory.
    pub memory_bytes: u64,
    /// Its threads.
    pub threads: Option<u32>,
    /// Sequences in its batch, when it serves.
    pub sequences: Option<u32>,
    /// When it started, Unix seconds.
    pub started: f64,
}
