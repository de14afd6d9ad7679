//! Log lines.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::words;

words! {
    /// How much a line matters.
    LogLevel {
        /// For whoever looks closer.
        Debug = "debug",
        /// Something happened.
        Info = "info",
        /// Something is odd.
        Warn = "warn",
        /// Something failed.
        Error = "error",
    }
}

words! {
    /// Who wrote a line.
    LogSource {
        /// The daemon.
        Daemon = "daemon",
        /// A plugin, through its job's log.
        Plugin = "plugin",
        /// A worker's standard output: native libraries print there.
        Stdout = "stdout",
        /// A worker's standard error.
        Stderr = "stderr",
    }
}

/// One line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct LogLine {
    /// Grows by at least one per line within a daemon's life: a line read twice can be told.
    pub sequence: u64,
    /// When, Unix seconds.
    pub time: f64,
    /// The job it belongs to.
    pub job: Option<String>,
    /// How much it matters.
    pub level: LogLevel,
    /// Who wrote it.
    pub source: LogSource,
    /// The text, one line, without control characters.
    pub message: String,
}

/// Answer of a job's or plugin's log.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Log {
    /// Oldest first.
    pub lines: Vec<LogLine>,
    /// Whether older lines were dropped.
    pub truncated: bool,
}
