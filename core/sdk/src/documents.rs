//! The JSON documents that cross the ABI. Fields may be added, with a default; none is ever renamed or removed.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Free-form options of one call, as the user wrote them in a target or on the command line.
pub type Options = serde_json::Map<String, serde_json::Value>;

/// What the host tells a plugin when it opens it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct HostInfo {
    /// Version of the host.
    pub version: String,
    /// Where `drophammer runtime install` puts runtimes: one directory per runtime name.
    pub runtimes: PathBuf,
    /// Where the plugin may cache files that can be made again (compiled kernels, repacked weights); see [`crate::Kept`].
    pub cache: PathBuf,
    /// The `[plugins.<id>]` table of the configuration.
    pub config: Options,
    /// The directory that the plugin was opened from, for files it brings along. The host fills it in.
    pub plugin: PathBuf,
}

/// Question to [`crate::Backend::probe`].
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ProbeRequest {
    /// A source to plan for; without one only the machine is described.
    pub source: Option<PathBuf>,
    /// What to plan for that source; empty means every format and scheme the backend would offer by default.
    pub goals: Vec<Goal>,
}

impl ProbeRequest {
    /// The goals to plan for: the request's own, or else these schemes of a format.
    pub fn goals_or(&self, format: &str, offered: &[&str]) -> Vec<Goal> {
        if !self.goals.is_empty() {
            return self.goals.clone();
        }
        let goal = |scheme: &&str| Goal {
            format: format.to_owned(),
            scheme: (*scheme).to_owned(),
            ..Goal::default()
        };
        offered.iter().map(goal).collect()
    }
}

/// One thing a backend could make from a source.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Goal {
    /// `gguf`, `openvino`, `onnx`, `qnn` or `mlx`, or whatever a third party's backend calls its own.
    pub format: String,
    /// Scheme name of that format (`q4_k_m`, `int4_asym_g64`, …).
    pub scheme: String,
    /// Options of the scheme.
    pub options: Options,
}

/// What a backend can do on this machine, and why not for what it cannot.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ProbeReport {
    /// Version of the runtime found; `None` if it has none or none was found.
    pub runtime_version: Option<String>,
    /// Devices it can run on.
    pub devices: Vec<Device>,
    /// Formats it can make or run, and their schemes.
    pub formats: Vec<FormatSupport>,
    /// What is missing or broken here, each with the user's next step.
    pub problems: Vec<Problem>,
    /// One entry per goal of the request.
    pub estimates: Vec<Estimate>,
}

/// A device a backend can run on.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Device {
    /// Name the backend knows it by (`cpu`, `GPU.0`, `htp`).
    pub id: String,
    /// What a person calls it.
    pub name: String,
    /// `cpu`, `gpu`, `npu`.
    pub kind: String,
    /// Bytes of memory in all, where known.
    pub memory_bytes: Option<u64>,
    /// Bytes of memory free now, where known.
    pub free_bytes: Option<u64>,
    /// Set when the device is imitated in software, so that nobody mistakes its speed.
    pub emulated: bool,
}

/// A format with what the backend does with it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct FormatSupport {
    /// Format name.
    pub format: String,
    /// Schemes it can make.
    pub schemes: Vec<String>,
    /// Whether artifacts of this format can be made here.
    pub make: bool,
    /// Whether artifacts of this format can be run here.
    pub run: bool,
}

/// Something missing or broken.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Problem {
    /// What is wrong.
    pub message: String,
    /// What to do about it.
    pub help: String,
}

/// What reaching one goal would take, decided before any work starts.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Estimate {
    /// The goal's format.
    pub format: String,
    /// The goal's scheme, as resolved.
    pub scheme: String,
    /// Whether it can be done.
    pub supported: bool,
    /// Why not, or what the user should know (fallbacks for awkward widths, lossy steps).
    pub reason: Option<String>,
    /// What the user can do when it is not supported.
    pub help: Option<String>,
    /// The steps in order, in words.
    pub steps: Vec<String>,
    /// Bytes of the finished artifact.
    pub bytes: u64,
    /// Peak resident bytes of the worker.
    pub peak_memory_bytes: u64,
    /// Estimated seconds on this machine.
    pub seconds: f64,
}

/// Order to make an artifact: [`crate::Backend::convert`] and [`crate::Backend::quantize`] take the same document.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ForgeRequest {
    /// The source: a file or a directory. Never written to.
    pub source: PathBuf,
    /// What to make.
    pub goal: Goal,
    /// Existing, writable directory for everything the job writes. After a crash the same directory comes again,
    /// with what the last attempt left, so that work can resume.
    pub staging: PathBuf,
    /// Base name for output files, without extension.
    pub name: String,
    /// Importance matrix to use, in llama.cpp's GGUF form.
    pub imatrix: Option<PathBuf>,
    /// LoRA adapter directories to merge into the weights.
    pub adapters: Vec<PathBuf>,
    /// Allows a source without a tokenizer.
    pub no_tokenizer: bool,
}

/// What was made.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ForgeReport {
    /// Files written, relative to the staging directory; the first is the one to load (or `.` for the directory).
    pub files: Vec<PathBuf>,
    /// Bytes of all files.
    pub bytes: u64,
    /// Average bits per weight over all parameters.
    pub bits_per_weight: f64,
    /// Number of parameters.
    pub parameters: u64,
    /// What the user should know: fallbacks, lossy steps.
    pub notes: Vec<String>,
    /// Tensors per storage type.
    pub types: BTreeMap<String, u64>,
}

/// Order to load an artifact or a source.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LoadRequest {
    /// What to load.
    pub path: PathBuf,
    /// Longest sequence wanted, in tokens; `None` leaves it to the model and the memory.
    pub context: Option<u32>,
    /// Sequences held at once.
    pub max_sequences: u32,
    /// Largest batch in tokens; `None` leaves it to the backend.
    pub max_batch: Option<u32>,
    /// Device id from [`Device::id`]; `None` is the backend's choice.
    pub device: Option<String>,
    /// Reference mode: float32 accumulation, no quantized activations. Slow and exact; `eval` uses it.
    pub reference: bool,
    /// LoRA adapters attached to the session.
    pub adapters: Vec<PathBuf>,
    /// Backend-specific options.
    pub options: Options,
}

impl Default for LoadRequest {
    fn default() -> Self {
        Self {
            path: PathBuf::new(),
            context: None,
            max_sequences: 1,
            max_batch: None,
            device: None,
            reference: false,
            adapters: Vec::new(),
            options: Options::new(),
        }
    }
}
