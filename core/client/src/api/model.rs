//! Models, the artifacts forged from them, and which are being served.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{ErrorReport, words};

/// Answer of `models`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Models {
    /// By name.
    pub models: Vec<ModelEntry>,
}

words! {
    /// Where a model stands.
    ModelState {
        /// Still being copied into the folder.
        Settling = "settling",
        /// Being looked at.
        Identifying = "identifying",
        /// Understood; its jobs wait.
        Planned = "planned",
        /// At least one job runs.
        Forging = "forging",
        /// All its jobs ended, and at least one artifact is there or its source answers as it is.
        Ready = "ready",
        /// Nothing could be made of it; its error says why.
        Failed = "failed",
        /// Its source was removed from the folder; its artifacts remain.
        Missing = "missing",
    }
}

/// One model: a source in the watched folder and what was made of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ModelEntry {
    /// Its name: that of its file or directory in the watched folder.
    pub name: String,
    /// Where it stands.
    pub state: ModelState,
    /// What it is, as far as it is known.
    pub source: SourceInfo,
    /// What it waits for, such as a shard that is not there yet.
    pub waits_for: Option<String>,
    /// Why nothing could be made of it.
    pub error: Option<ErrorReport>,
    /// Published artifacts; the source is among them where some target would have gained nothing over it and it was
    /// measured as it is.
    pub artifacts: Vec<Artifact>,
}

impl ModelEntry {
    /// Whether one of its artifacts is its source, which is the user's own.
    pub fn is_source(&self, artifact: &Artifact) -> bool {
        self.source.api_name.as_ref() == Some(&artifact.api_name)
    }
}

/// What was dropped.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SourceInfo {
    /// Where it is on the daemon's machine.
    pub path: String,
    /// The `model` value with which `/v1` requests reach the source itself, while it lies there and is understood.
    pub api_name: Option<String>,
    /// Such as `gguf` or `safetensors`.
    pub format: Option<String>,
    /// Such as `llama`.
    pub architecture: Option<String>,
    /// How its weights are stored, such as `bf16` or `q4_1`.
    pub scheme: Option<String>,
    /// How many weights.
    pub parameters: Option<u64>,
    /// How many tensors.
    pub tensors: Option<u64>,
    /// The longest context the model was made for, tokens.
    pub context_length: Option<u64>,
    /// Size of all its files.
    pub bytes: u64,
}

/// One form of a model that answers: published, or its source as it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Artifact {
    /// Named by content; what `serve` and `delete` take.
    pub id: String,
    /// The model it was forged from.
    pub model: String,
    /// The target that made it, such as `gguf-q4_k_m`.
    pub target: String,
    /// The `model` value with which `/v1` requests reach exactly this artifact.
    pub api_name: String,
    /// Where it is on the daemon's machine.
    pub path: String,
    /// The plugin that runs it.
    pub backend: String,
    /// The device it is for, where its target names one.
    pub device: Option<String>,
    /// Such as `gguf` or `openvino`.
    pub format: String,
    /// Such as `q4_k_m`.
    pub scheme: String,
    /// Size of all its files.
    pub bytes: u64,
    /// Stored bits per weight, all tensors counted.
    pub bits_per_weight: Option<f64>,
    /// What was measured.
    pub measurements: Measurements,
    /// Whether this is the one served for its model's bare name.
    pub best: bool,
    /// When it was published, Unix seconds.
    pub created: f64,
}

/// What was measured of an artifact; a value that was not measured is `null`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Measurements {
    /// Of the artifact on the shipped text.
    pub perplexity: Option<f64>,
    /// Of the source on the same text.
    pub reference_perplexity: Option<f64>,
    /// Mean KL divergence from the source, nats.
    pub kl_mean: Option<f64>,
    /// Its 99th percentile, nats.
    pub kl_p99: Option<f64>,
    /// How often the most likely token is the source's, 0 to 1.
    pub top1: Option<f64>,
    /// Prompt tokens per second.
    pub prefill_tps: Option<f64>,
    /// Generated tokens per second, one sequence.
    pub decode_tps: Option<f64>,
    /// Peak resident memory of the worker.
    pub peak_memory_bytes: Option<u64>,
}

/// Body of `models/add`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AddModel {
    /// A file or directory on the daemon's machine.
    pub path: String,
    /// Its name in the watched folder; by default the path's last part.
    pub name: Option<String>,
}

/// Body of `models/{name}/forge`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ForgeModel {
    /// Names of targets; empty means those the configuration asks for.
    pub targets: Vec<String>,
}

/// Answer of `served`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Served {
    /// By name.
    pub models: Vec<ServedModel>,
}

words! {
    /// Where a served model stands.
    ServedState {
        /// Its worker is starting.
        Loading = "loading",
        /// It answers.
        Ready = "ready",
        /// It finishes its requests, then goes.
        Draining = "draining",
        /// Its worker died; the next request starts another.
        Failed = "failed",
    }
}

/// One loaded model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ServedModel {
    /// The `model` value of `/v1` requests.
    pub name: String,
    /// The model.
    pub model: String,
    /// The artifact that is loaded.
    pub artifact: String,
    /// Its backend.
    pub backend: String,
    /// Where it stands.
    pub state: ServedState,
    /// Its worker.
    pub pid: Option<u32>,
    /// Longest context, tokens.
    pub context_length: Option<u64>,
    /// Sequences in the batch now.
    pub sequences: u32,
    /// Never unloaded to make room.
    pub pinned: bool,
    /// Why it failed.
    pub error: Option<ErrorReport>,
}
