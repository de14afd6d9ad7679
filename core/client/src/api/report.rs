//! Answers of the one-shot commands: `inspect`, `eval`, `bench`, `devices`.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Device, Problem};

/// Answer of `inspect`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct InspectReport {
    /// Such as `gguf` or `safetensors`.
    pub format: String,
    /// Such as `llama`, when it is a known one.
    pub architecture: Option<String>,
    /// How many weights.
    pub parameters: u64,
    /// Size of all its files.
    pub bytes: u64,
    /// Every tensor.
    pub tensors: Vec<InspectTensor>,
    /// What is odd about it.
    pub problems: Vec<Problem>,
}

/// One tensor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct InspectTensor {
    /// As in the file.
    pub name: String,
    /// How it is stored.
    pub dtype: String,
    /// Outermost dimension first.
    pub shape: Vec<u64>,
}

/// Answer of `eval`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct EvalReport {
    /// What was evaluated.
    pub artifact: String,
    /// What it was compared with.
    pub reference: Option<String>,
    /// Who ran it.
    pub backend: String,
    /// Of the artifact.
    pub perplexity: f64,
    /// Of the reference.
    pub reference_perplexity: Option<f64>,
    /// Mean KL divergence from the reference, nats.
    pub kl_mean: Option<f64>,
    /// Its 99th percentile, nats.
    pub kl_p99: Option<f64>,
    /// Its median, nats.
    #[serde(default)]
    pub kl_median: Option<f64>,
    /// Its largest value, nats.
    #[serde(default)]
    pub kl_max: Option<f64>,
    /// How often the most likely token is the reference's, 0 to 1.
    pub top1: Option<f64>,
    /// Which share of the reference's five most likely tokens are among the artifact's five, 0 to 1.
    #[serde(default)]
    pub top5: Option<f64>,
    /// Tokens scored.
    pub tokens: u64,
    /// How it does early and late in a chunk of text, where details were asked for.
    #[serde(default)]
    pub positions: Vec<EvalPosition>,
    /// How far each tensor is from the reference's, where details were asked for.
    #[serde(default)]
    pub tensors: Vec<EvalTensor>,
}

/// Means over all chunks at one position.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct EvalPosition {
    /// Position in the chunk, from 1.
    pub position: u64,
    /// Negative log-likelihood, nats.
    pub nll: f64,
    /// KL divergence from the reference, nats.
    pub kl: Option<f64>,
}

/// One tensor beside the reference's.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct EvalTensor {
    /// What it is for.
    pub name: String,
    /// How the artifact stores it.
    pub dtype: String,
    /// Its elements.
    pub elements: u64,
    /// Root of the mean squared difference.
    pub rmse: f64,
    /// Squared difference as a fraction of the reference's squares.
    pub relative: f64,
    /// The largest difference.
    pub largest: f64,
}

/// Answer of `bench`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct BenchReport {
    /// In the order asked for.
    pub artifacts: Vec<BenchArtifact>,
}

/// One artifact's speed.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct BenchArtifact {
    /// Where it is.
    pub path: String,
    /// Who ran it.
    pub backend: String,
    /// Its scheme.
    pub scheme: String,
    /// Size of all its files.
    pub bytes: u64,
    /// Threads used.
    pub threads: u32,
    /// Time to load.
    pub load_seconds: f64,
    /// Prompt tokens per second.
    pub prefill_tps: f64,
    /// Generated tokens per second.
    pub decode_tps: f64,
    /// Peak resident memory.
    pub peak_memory_bytes: u64,
    /// Prompt tokens per second as a multiple of what the artifact at F16 reaches on the same backend, where one of those
    /// measured is that.
    #[serde(default)]
    pub prefill_speedup: Option<f64>,
    /// The same for generated tokens.
    #[serde(default)]
    pub decode_speedup: Option<f64>,
    /// Where the time goes and what the machine would allow, of backends that tell.
    #[serde(default)]
    pub roofline: Option<BenchRoofline>,
}

/// The work of one run beside what the machine does at most with as many threads, measured in the same run.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct BenchRoofline {
    /// Bytes read from memory a second.
    pub read_bytes_limit: f64,
    /// Multiplications and additions of floats a second.
    pub float_operations_limit: f64,
    /// Multiplications and additions of integers a second, or of bfloat16 where processors multiply whole tiles of it faster.
    pub integer_operations_limit: f64,
    /// Kinds of operation while the prompt is read.
    pub prefill: Vec<BenchOperation>,
    /// Kinds of operation while tokens are generated.
    pub decode: Vec<BenchOperation>,
}

/// One kind of operation, over all layers; amounts are per token.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct BenchOperation {
    /// What it computes.
    pub name: String,
    /// Time it takes.
    pub seconds: f64,
    /// Bytes of weights, keys and values that it has to read.
    pub bytes: f64,
    /// Multiplications and additions that it has to do.
    pub operations: f64,
    /// The least time that the machine's limits allow, as a share of the time taken.
    pub reached: f64,
}

/// Answer of `devices`: every device some plugin reaches, once per plugin.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Devices {
    /// By plugin, then device.
    pub devices: Vec<PluginDevice>,
}

/// A device and the plugin that reaches it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PluginDevice {
    /// The plugin's id.
    pub plugin: String,
    /// The device.
    #[serde(flatten)]
    pub device: Device,
}
