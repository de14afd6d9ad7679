//! How patient the supervisor is.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The `[workers]` table of the configuration. Times in seconds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct WorkerSettings {
    /// From asking a worker to stop until it is killed.
    pub cancel_grace_seconds: f64,
    /// From one sign of life to being taken for hung: a process that does not even answer a ping.
    pub heartbeat_timeout_seconds: f64,
    /// From one sign of progress to being taken for stuck, where progress is due (forging, measuring). 0: never.
    pub stall_timeout_seconds: f64,
    /// The longest a probe may take.
    pub probe_timeout_seconds: f64,
    /// How much workers that forge or measure yield to other programs, 0 to 19.
    pub nice: i32,
    /// The program to start; by default the one that is running.
    #[serde(skip)]
    pub program: Option<PathBuf>,
}

impl Default for WorkerSettings {
    fn default() -> Self {
        Self {
            cancel_grace_seconds: 5.0,
            heartbeat_timeout_seconds: 30.0,
            stall_timeout_seconds: 600.0,
            probe_timeout_seconds: 30.0,
            nice: 10,
            program: None,
        }
    }
}

/// Seconds as written by a person: what is not a sensible time counts as "never", a year.
pub(super) fn duration(seconds: f64) -> Duration {
    const YEAR: f64 = 365.0 * 86_400.0;
    let sensible = if seconds > 0.0 { seconds.min(YEAR) } else { YEAR };
    Duration::from_secs_f64(sensible)
}
