//! What a path is, by the names of files and nothing else: no weights are opened here.

use std::path::{Path, PathBuf};

use super::document::read_index;
use super::{SourceKind, TokenizerFiles, split_error};
use crate::error::{Error, Result};
use crate::gguf::SplitName;
use crate::safetensors::INDEX_NAME;

/// The graph of an OpenVINO directory, as its own tools name it.
const OPENVINO_MODEL: &str = "openvino_model.xml";
/// What a directory of compiled QNN contexts says of itself.
const QNN_MODEL: &str = "qnn_model.json";

/// The files of a source, found but not yet opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// What it is ([`SourceKind::HuggingFace`] may turn out to be MLX when it is opened).
    pub kind: SourceKind,
    /// The directory, or the (first) file.
    pub root: PathBuf,
    /// The files with weights, in order.
    pub weights: Vec<PathBuf>,
    /// The shard index, where there is one.
    pub index: Option<PathBuf>,
    /// `config.json` or `adapter_config.json`.
    pub config: Option<PathBuf>,
    /// `generation_config.json`.
    pub generation_config: Option<PathBuf>,
    /// Tokenizer files beside the weights.
    pub tokenizer: TokenizerFiles,
}

/// Finds out what `path` is.
///
/// # Errors
/// [`Error::NotAModel`], [`Error::Pickle`], [`Error::Ambiguous`], [`Error::MissingShard`], or the fault of an index.
pub fn identify(path: &Path) -> Result<Found> {
    let metadata = std::fs::metadata(path).map_err(Error::io(path, "examine"))?;
    if metadata.is_dir() {
        identify_directory(path)
    } else if metadata.is_file() {
        identify_file(path)
    } else {
        Err(Error::NotAModel { path: path.to_owned(), found: "not a regular file".into() })
    }
}

impl Found {
    fn new(kind: SourceKind, root: &Path, weights: Vec<PathBuf>) -> Self {
        let directory = if root.is_dir() { root } else { parent(root) };
        let existing = |name: &str| Some(directory.join(name)).filter(|path| path.is_file());
        // A GGUF or ONNX file is complete in itself: what lies beside it may belong to another model.
        let alone = matches!(kind, SourceKind::Gguf | SourceKind::Onnx) && !root.is_dir();
        let config = if kind == SourceKind::Lora { "adapter_config.json" } else { "config.json" };
        Self {
            kind,
            root: root.to_owned(),
            weights,
            index: None,
            config: if alone { None } else { existing(config) },
            generation_config: if alone { None } else { existing("generation_config.json") },
            tokenizer: if alone { TokenizerFiles::default() } else { TokenizerFiles::find(directory) },
        }
    }
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn extension(path: &Path) -> String {
    path.extension().unwrap_or_default().to_string_lossy().to_ascii_lowercase()
}

fn is_pickle(path: &Path) -> bool {
    matches!(extension(path).as_str(), "bin" | "pt" | "pth" | "ckpt" | "pkl" | "pickle")
}

fn identify_file(path: &Path) -> Result<Found> {
    match extension(path).as_str() {
        "gguf" => identify_gguf(path),
        "safetensors" => {
            if let Some(split) = SplitName::parse(path, "safetensors").filter(|split| split.count > 1) {
                let problem = format!(
                    "is shard {} of {} of a model: name its directory instead",
                    split.number, split.count
                );
                return Err(split_error(path, problem));
            }
            Ok(Found::new(SourceKind::Safetensors, path, vec![path.to_owned()]))
        }
        "xml" if path.with_extension("bin").is_file() => {
            Ok(Found::new(SourceKind::OpenVino, path, Vec::new()))
        }
        "onnx" => Ok(Found::new(SourceKind::Onnx, path, vec![path.to_owned()])),
        _ if is_pickle(path) => Err(Error::Pickle { path: path.to_owned() }),
        "json" if path.file_name().is_some_and(|name| name == QNN_MODEL) => {
            Ok(Found::new(SourceKind::Qnn, parent(path), Vec::new()))
        }
        "json" if path.file_name().is_some_and(|name| name == INDEX_NAME || name == "config.json") => {
            Err(Error::NotAModel {
                path: path.to_owned(),
                found: "a description only; name its directory".into(),
            })
        }
        "" => Err(Error::NotAModel { path: path.to_owned(), found: "a file without an extension".into() }),
        other => Err(Error::NotAModel { path: path.to_owned(), found: format!("a .{other} file") }),
    }
}

/// A GGUF file, and where its name says it is part of a split model, all its parts.
fn identify_gguf(path: &Path) -> Result<Found> {
    let Some(split) = SplitName::parse(path, "gguf").filter(|split| split.count > 1) else {
        return Ok(Found::new(SourceKind::Gguf, path, vec![path.to_owned()]));
    };
    let parts: Vec<PathBuf> =
        (1..=split.count).map(|number| parent(path).join(split.part(number, "gguf"))).collect();
    require_all(path, &parts)?;
    Ok(Found::new(SourceKind::Gguf, &parts[0], parts.clone()))
}

fn require_all(named_by: &Path, files: &[PathBuf]) -> Result<()> {
    let missing: Vec<String> = files
        .iter()
        .filter(|file| !file.is_file())
        .map(|file| file.file_name().unwrap_or_default().to_string_lossy().into_owned())
        .collect();
    if missing.is_empty() { Ok(()) } else { Err(Error::MissingShard { path: named_by.to_owned(), missing }) }
}

fn identify_directory(path: &Path) -> Result<Found> {
    let names = list(path)?;
    let has = |name: &str| names.iter().any(|candidate| candidate == name);
    if has("adapter_config.json") && !names.iter().any(|name| is_model_weights(name)) {
        return identify_adapter(path);
    }
    if let Some((weights, index)) = find_safetensors(path, &names)? {
        if !has("config.json") {
            let found = "safetensors weights without config.json, which says what they are".into();
            return Err(Error::NotAModel { path: path.to_owned(), found });
        }
        return Ok(Found { index, ..Found::new(SourceKind::HuggingFace, path, weights) });
    }
    if let Some(first) = find_single(path, &names, "gguf", |name| !name.starts_with("mmproj"))? {
        return identify_gguf(&first);
    }
    if has(OPENVINO_MODEL) && has("openvino_model.bin") {
        return Ok(Found::new(SourceKind::OpenVino, path, Vec::new()));
    }
    if has(QNN_MODEL) {
        return Ok(Found::new(SourceKind::Qnn, path, Vec::new()));
    }
    if let Some(onnx) = find_single(path, &names, "onnx", |_| true)? {
        return Ok(Found::new(SourceKind::Onnx, path, vec![onnx]));
    }
    if let Some(snapshot) = sole_snapshot(path) {
        return identify_directory(&snapshot);
    }
    if let Some(pickle) = names.iter().find(|name| is_pickle(Path::new(name)) && *name != "training_args.bin")
    {
        // OpenVINO keeps plain weights in .bin files beside an .xml: those are no pickles.
        if !has(&format!("{}.xml", pickle.trim_end_matches(".bin"))) {
            return Err(Error::Pickle { path: path.join(pickle) });
        }
    }
    Err(Error::NotAModel { path: path.to_owned(), found: describe_directory(&names) })
}

fn list(path: &Path) -> Result<Vec<String>> {
    let entries = std::fs::read_dir(path).map_err(Error::io(path, "list"))?;
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(Error::io(path, "list"))?;
        if let Ok(name) = entry.file_name().into_string() {
            names.push(name);
        }
    }
    names.sort_unstable();
    Ok(names)
}

fn identify_adapter(path: &Path) -> Result<Found> {
    // Hugging Face's name, and mlx-lm's.
    for name in ["adapter_model.safetensors", "adapters.safetensors"] {
        let weights = path.join(name);
        if weights.is_file() {
            return Ok(Found::new(SourceKind::Lora, path, vec![weights]));
        }
    }
    let pickle = path.join("adapter_model.bin");
    if pickle.is_file() {
        return Err(Error::Pickle { path: pickle });
    }
    let missing = vec!["adapter_model.safetensors".to_owned()];
    Err(Error::MissingShard { path: path.join("adapter_config.json"), missing })
}

/// Whether a file holds the weights of a model, rather than an adapter or a second copy in another layout.
fn is_model_weights(name: &str) -> bool {
    extension(Path::new(name)) == "safetensors"
        && !name.starts_with('.')
        && !name.starts_with("adapter")
        && !name.ends_with("_adapters.safetensors")
        && !name.starts_with("consolidated")
}

/// The safetensors files of a directory, and their index.
fn find_safetensors(path: &Path, names: &[String]) -> Result<Option<(Vec<PathBuf>, Option<PathBuf>)>> {
    let has = |name: &str| names.iter().any(|candidate| candidate == name);
    if has(INDEX_NAME) {
        let index_path = path.join(INDEX_NAME);
        let index = read_index(&index_path)?;
        let shards: Vec<PathBuf> = index.shards().iter().map(|shard| path.join(shard)).collect();
        // Some repositories keep the index of an earlier, sharded upload beside the whole file.
        if shards.iter().all(|shard| !shard.is_file()) && has("model.safetensors") {
            return Ok(Some((vec![path.join("model.safetensors")], None)));
        }
        require_all(&index_path, &shards)?;
        return Ok(Some((shards, Some(index_path))));
    }
    if has("model.safetensors") {
        return Ok(Some((vec![path.join("model.safetensors")], None)));
    }
    let mut candidates: Vec<&String> = names.iter().filter(|name| is_model_weights(name)).collect();
    if candidates.is_empty() {
        candidates = names.iter().filter(|name| *name == "consolidated.safetensors").collect();
    }
    let Some(first) = candidates.first() else { return Ok(None) };
    let first_path = path.join(first);
    if let Some(split) = SplitName::parse(&first_path, "safetensors") {
        let parts: Vec<PathBuf> =
            (1..=split.count).map(|number| path.join(split.part(number, "safetensors"))).collect();
        if candidates.iter().all(|name| parts.contains(&path.join(name))) {
            require_all(path, &parts)?;
            return Ok(Some((parts, None)));
        }
    }
    if candidates.len() > 1 {
        let candidates = candidates.into_iter().cloned().collect();
        return Err(Error::Ambiguous { path: path.to_owned(), candidates });
    }
    Ok(Some((vec![first_path], None)))
}

/// The one model of this extension in a directory; the parts of a split model count as one.
fn find_single(
    path: &Path,
    names: &[String],
    extension: &str,
    wanted: impl Fn(&str) -> bool,
) -> Result<Option<PathBuf>> {
    let suffix = format!(".{extension}");
    let mut models: Vec<(String, &String)> = Vec::new();
    for name in names.iter().filter(|name| name.ends_with(&suffix) && !name.starts_with('.') && wanted(name))
    {
        let stem =
            SplitName::parse(Path::new(name), extension).map_or_else(|| name.clone(), |split| split.stem);
        if !models.iter().any(|(known, _)| *known == stem) {
            models.push((stem, name));
        }
    }
    match models.as_slice() {
        [] => Ok(None),
        [(_, name)] => Ok(Some(path.join(name))),
        _ => {
            let candidates = models.into_iter().map(|(_, name)| name.clone()).collect();
            Err(Error::Ambiguous { path: path.to_owned(), candidates })
        }
    }
}

/// The only snapshot in a directory of the Hugging Face cache (`models--owner--name/snapshots/<commit>`).
fn sole_snapshot(path: &Path) -> Option<PathBuf> {
    let snapshots = path.join("snapshots");
    let mut entries = std::fs::read_dir(snapshots).ok()?.filter_map(|entry| Some(entry.ok()?.path()));
    let first = entries.next()?;
    (entries.next().is_none() && first.is_dir()).then_some(first)
}

fn describe_directory(names: &[String]) -> String {
    let has = |name: &str| names.iter().any(|candidate| candidate == name);
    if names.is_empty() {
        "an empty directory".into()
    } else if names
        .iter()
        .any(|name| name.strip_suffix(".xml").is_some_and(|stem| has(&format!("{stem}.bin"))))
    {
        "an OpenVINO model, which is already converted".into()
    } else if has("config.json") {
        "config.json, but no weights (*.safetensors) beside it".into()
    } else if names.iter().any(|name| matches!(extension(Path::new(name)).as_str(), "h5" | "msgpack")) {
        "TensorFlow or Flax weights only; a safetensors version is needed".into()
    } else {
        "a directory without config.json, *.safetensors or *.gguf".into()
    }
}
