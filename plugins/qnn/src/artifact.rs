//! What lies in an artifact's folder, and what its contexts take: `qnn_model.json`.

use std::path::{Path, PathBuf};

use drophammer_formats::digest::{self, Digest};
use drophammer_models::export::onnx::{Halves, Interface};
use drophammer_ort::placement::Placement;
use drophammer_sdk::{BackendError, ErrorCode, Result};
use serde::{Deserialize, Serialize};

use crate::plain;

/// The file that says it.
pub(crate) const FILE: &str = "qnn_model.json";
/// The version of its form.
pub(crate) const VERSION: u32 = 3;
/// The oldest that is read: one whose logits have nothing in common that is told apart.
const OLDEST: u32 = 2;
/// The largest such file that is read.
const LARGEST: u64 = 16 << 20;
/// The most of anything that it counts.
const MOST: u32 = 1 << 20;

/// A compiled model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Artifact {
    pub(crate) version: u32,
    /// What it is, and for which chip.
    pub(crate) target: Target,
    /// How many tokens there are.
    pub(crate) vocabulary: u32,
    /// Width of the hidden states that an encoder gives instead of logits.
    pub(crate) hidden: Option<u32>,
    /// The longest sequence: places of cache, or the tokens of an encoder's longest graph.
    pub(crate) context: u32,
    /// What a mask adds where a token may not be seen.
    pub(crate) unseen: f32,
    /// Values that are halves where others are codes.
    #[serde(default, skip_serializing_if = "Halves::is_empty")]
    pub(crate) halves: Halves,
    /// The graphs' inputs and outputs.
    pub(crate) interface: Interface,
    /// One compiled graph for each number of tokens.
    pub(crate) steps: Vec<Step>,
}

/// What was compiled for which chip.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Target {
    /// The scheme's name.
    pub(crate) scheme: String,
    /// The chip's name.
    pub(crate) soc: String,
    /// The generation of its NPU.
    pub(crate) htp_arch: u32,
    /// QNN's number for it.
    pub(crate) soc_model: u32,
    /// What compiled it.
    pub(crate) compiler: String,
}

impl Target {
    /// A scheme for a chip, by a version of the provider.
    pub(crate) fn new(scheme: &str, soc: &crate::soc::Soc, version: &str) -> Self {
        Self {
            scheme: scheme.to_owned(),
            soc: soc.name.clone(),
            htp_arch: soc.htp_arch,
            soc_model: soc.model,
            compiler: format!("onnxruntime-qnn {version}"),
        }
    }
}

/// A compiled graph for so many tokens.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Step {
    /// Tokens at a time.
    pub(crate) tokens: u32,
    /// The graph.
    pub(crate) graph: Compiled,
}

/// A compiled graph.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Compiled {
    /// The ONNX file that ONNX Runtime opens.
    pub(crate) model: String,
    /// Every file of it, with its digest.
    pub(crate) files: Vec<(String, Digest)>,
    /// Which operations the compiler put where.
    pub(crate) placement: Placement,
}

fn unsound(path: &Path, problem: impl std::fmt::Display) -> BackendError {
    BackendError::new(ErrorCode::InvalidInput, format!("{}: {problem}", path.display()))
        .with_help("Make the artifact again; its files belong together.")
}

impl Artifact {
    /// Reads a folder's file, and compares every compiled file with its digest: QNN's own reader trusts what it reads.
    ///
    /// # Errors
    /// [`ErrorCode::InvalidInput`] naming what is missing or damaged.
    pub(crate) fn read(path: &Path) -> Result<(PathBuf, Self)> {
        let folder =
            if path.is_dir() { path.to_owned() } else { path.parent().unwrap_or(Path::new("")).to_owned() };
        let file = folder.join(FILE);
        if !path.is_dir() && path.file_name().is_none_or(|name| name != FILE) {
            let help = format!("Name the folder that holds {FILE}.");
            let message = format!("{}: is no compiled QNN model", path.display());
            return Err(BackendError::new(ErrorCode::UnsupportedInput, message).with_help(help));
        }
        if !file.exists() && folder.join(plain::FILE).exists() {
            let message = format!("{}: is a compiled graph that is no language model", folder.display());
            return Err(BackendError::new(ErrorCode::UnsupportedInput, message)
                .with_help("Run its model.onnx in ONNX Runtime with the QNN provider."));
        }
        let length = std::fs::metadata(&file).map_err(|error| unsound(&file, error))?.len();
        if length > LARGEST {
            return Err(unsound(&file, "is too large to be one"));
        }
        let bytes = std::fs::read(&file).map_err(|error| unsound(&file, error))?;
        let artifact: Self = serde_json::from_slice(&bytes).map_err(|error| unsound(&file, error))?;
        artifact.check().map_err(|problem| unsound(&file, problem))?;
        for (name, due) in artifact.steps.iter().flat_map(|step| &step.graph.files) {
            let path = folder.join(name);
            let found = digest::file(&path, &mut |_| std::ops::ControlFlow::Continue(()))
                .map_err(|error| unsound(&path, error))?;
            if found != *due {
                return Err(unsound(&path, "is damaged: its digest is another one"));
            }
        }
        Ok((folder, artifact))
    }

    /// Sizes that make sense together.
    fn check(&self) -> Result<(), String> {
        if !(OLDEST..=VERSION).contains(&self.version) {
            return Err(format!("is of version {}; {OLDEST} to {VERSION} are read", self.version));
        }
        let plain = |name: &str| Path::new(name).file_name().is_some_and(|file| file == name);
        for step in &self.steps {
            if step.tokens == 0 || step.tokens > MOST {
                return Err(format!("a graph of {} tokens", step.tokens));
            }
            let Compiled { model, files, .. } = &step.graph;
            if !files.iter().any(|(name, _)| name == model) {
                return Err(format!("{model} has no digest"));
            }
            if let Some((name, _)) = files.iter().find(|(name, _)| !plain(name)) {
                return Err(format!("{name:?} is no plain file name"));
            }
        }
        if self.steps.is_empty() || self.vocabulary == 0 || self.context == 0 || self.context > MOST {
            return Err("holds no graphs, no vocabulary or no context".into());
        }
        let longest = self.steps.iter().map(|step| step.tokens).max();
        if self.interface.encoder && longest < Some(self.context) || self.hidden == Some(0) {
            return Err(format!("no graph takes {} tokens, or gives hidden states", self.context));
        }
        for cache in &self.interface.caches {
            if [cache.heads, cache.key_width, cache.value_width].iter().any(|size| !(1..=MOST).contains(size))
            {
                return Err(format!("the cache of layer {} has no size", cache.layer));
            }
        }
        for rotation in &self.interface.rotations {
            let turned = rotation.frequencies.len() * 2 + rotation.start as usize;
            if rotation.width > MOST || turned > rotation.width as usize {
                return Err("a rotation is wider than its head".into());
            }
        }
        Ok(())
    }

    /// Floats that a sequence's caches hold.
    pub(crate) fn cache_floats(&self) -> u64 {
        let token = self.interface.caches.iter();
        let token: u64 = token
            .map(|cache| u64::from(cache.heads) * (u64::from(cache.key_width) + u64::from(cache.value_width)))
            .sum();
        token.saturating_mul(self.context.into())
    }
}

/// A file's name and digest.
///
/// # Errors
/// When it cannot be read.
pub(crate) fn told(folder: &Path, name: &str) -> Result<(String, Digest)> {
    let path = folder.join(name);
    let digest = digest::file(&path, &mut |_| std::ops::ControlFlow::Continue(()));
    Ok((name.to_owned(), digest.map_err(|error| unsound(&path, error))?))
}
