//! What lies in an artifact's folder, and what its contexts take: `qnn_model.json`.

use std::path::{Path, PathBuf};

use drophammer_formats::digest::{self, Digest};
use drophammer_models::export::onnx::Interface;
use drophammer_ort::placement::Placement;
use drophammer_sdk::{BackendError, ErrorCode, Result};
use serde::{Deserialize, Serialize};

/// The file that says it.
pub(crate) const FILE: &str = "qnn_model.json";
/// The version of its form.
const VERSION: u32 = 1;
/// The largest such file that is read.
const LARGEST: u64 = 16 << 20;
/// The most of anything that it counts.
const MOST: u32 = 1 << 20;

/// A compiled model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Artifact {
    version: u32,
    /// The scheme's name.
    pub(crate) scheme: String,
    /// The chip it was compiled for.
    pub(crate) soc: String,
    /// The generation of its NPU.
    pub(crate) htp_arch: u32,
    /// QNN's number for it.
    pub(crate) soc_model: u32,
    /// What compiled it.
    pub(crate) compiler: String,
    /// How many tokens there are.
    pub(crate) vocabulary: u32,
    /// Places of cache: the longest sequence.
    pub(crate) context: u32,
    /// What a mask adds where a token may not be seen.
    pub(crate) unseen: f32,
    /// The graphs' inputs and outputs.
    pub(crate) interface: Interface,
    /// One compiled graph for each number of tokens.
    pub(crate) steps: Vec<Compiled>,
}

/// A compiled graph.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Compiled {
    /// Tokens at a time.
    pub(crate) tokens: u32,
    /// The ONNX file that ONNX Runtime opens.
    pub(crate) model: String,
    /// Every file of it, with its digest.
    pub(crate) files: Vec<(String, Digest)>,
    /// Which operations the compiler put where.
    pub(crate) placement: Placement,
}

/// What is told of a model when it is compiled.
pub(crate) struct Head<'a> {
    pub(crate) scheme: &'a str,
    pub(crate) soc: &'a crate::soc::Soc,
    pub(crate) compiler: String,
    pub(crate) vocabulary: u32,
    pub(crate) context: u32,
    pub(crate) unseen: f32,
    pub(crate) interface: Interface,
}

fn unsound(path: &Path, problem: impl std::fmt::Display) -> BackendError {
    BackendError::new(ErrorCode::InvalidInput, format!("{}: {problem}", path.display()))
        .with_help("Make the artifact again; its files belong together.")
}

impl Artifact {
    /// A model and its compiled graphs.
    pub(crate) fn new(head: Head<'_>, steps: Vec<Compiled>) -> Self {
        Self {
            version: VERSION,
            scheme: head.scheme.to_owned(),
            soc: head.soc.name.clone(),
            htp_arch: head.soc.htp_arch,
            soc_model: head.soc.model,
            compiler: head.compiler,
            vocabulary: head.vocabulary,
            context: head.context,
            unseen: head.unseen,
            interface: head.interface,
            steps,
        }
    }

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
        let length = std::fs::metadata(&file).map_err(|error| unsound(&file, error))?.len();
        if length > LARGEST {
            return Err(unsound(&file, "is too large to be one"));
        }
        let bytes = std::fs::read(&file).map_err(|error| unsound(&file, error))?;
        let artifact: Self = serde_json::from_slice(&bytes).map_err(|error| unsound(&file, error))?;
        artifact.check().map_err(|problem| unsound(&file, problem))?;
        for (name, due) in artifact.steps.iter().flat_map(|step| &step.files) {
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
        if self.version != VERSION {
            return Err(format!("is of version {}; {VERSION} is read", self.version));
        }
        let plain = |name: &str| Path::new(name).file_name().is_some_and(|file| file == name);
        for step in &self.steps {
            if step.tokens == 0 || step.tokens > MOST {
                return Err(format!("a graph of {} tokens", step.tokens));
            }
            if !step.files.iter().any(|(name, _)| *name == step.model) {
                return Err(format!("{} has no digest", step.model));
            }
            if let Some((name, _)) = step.files.iter().find(|(name, _)| !plain(name)) {
                return Err(format!("{name:?} is no plain file name"));
            }
        }
        if self.steps.is_empty() || self.vocabulary == 0 || self.context == 0 || self.context > MOST {
            return Err("holds no graphs, no vocabulary or no context".into());
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
