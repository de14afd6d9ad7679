//! What would be forged, at what cost, and why.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::SourceInfo;

/// Body of `plan`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PlanRequest {
    /// A file or directory on the daemon's machine.
    pub path: String,
    /// Names of targets; empty means every one known.
    pub targets: Vec<String>,
}

/// A plan.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PlanReport {
    /// What it is made from.
    pub source: SourceInfo,
    /// One per target, possible or not.
    pub targets: Vec<PlanTarget>,
}

/// What one target would take.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PlanTarget {
    /// The target's name.
    pub name: String,
    /// The plugin that would do it.
    pub backend: String,
    /// The device it is for, where the target names one.
    pub device: Option<String>,
    /// The file format that would come out.
    pub format: String,
    /// The number scheme that would come out.
    pub scheme: String,
    /// Whether it can be done here.
    pub supported: bool,
    /// Why it cannot, or why it would be done this way.
    pub reason: Option<String>,
    /// What would be done, in order, one phrase each.
    pub steps: Vec<String>,
    /// Size of the result.
    pub bytes: Option<u64>,
    /// The most memory the work would take.
    pub peak_memory_bytes: Option<u64>,
    /// Time it would take.
    pub seconds: Option<f64>,
}
