//! The door for everything a user may drop: [`Source::open`] finds out what a path is, maps its weights, checks
//! them, and gives one view of them all. Containers only: quantized checkpoints (GPTQ, AWQ, FP8, MLX) show the raw
//! tensors they store, and what they mean is decided by the crates above, from the configuration.

mod document;
mod header;
mod identify;
mod tokenizer;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

pub use document::{parse_json, read_json};
pub(crate) use header::fault as header_fault;
pub use identify::{Found, identify};
pub use tokenizer::TokenizerFiles;

use crate::error::{Error, Fault, Result};
use crate::gguf::{self, Metadata};
use crate::mapped::MappedFile;
use crate::onnx::{self, InitializerData};
use crate::tensor::{TensorInfo, checked_byte_len};

/// What a source is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum SourceKind {
    /// A directory with `config.json` and safetensors weights, as Hugging Face lays it out.
    HuggingFace,
    /// The same, written by MLX: quantized weights are packed in its own way.
    Mlx,
    /// A LoRA adapter: `adapter_config.json` and `adapter_model.safetensors`.
    Lora,
    /// One safetensors file.
    Safetensors,
    /// A GGUF file or all parts of a split one.
    Gguf,
    /// An ONNX graph.
    Onnx,
    /// A directory with an OpenVINO model, or its XML file. It is run, not converted: no tensors are read.
    OpenVino,
    /// A directory with compiled QNN contexts. It is run, not converted: no tensors are read.
    Qnn,
}

impl SourceKind {
    /// The lower-case name used in reports and `--json` output.
    pub const fn name(self) -> &'static str {
        match self {
            SourceKind::HuggingFace => "huggingface",
            SourceKind::Mlx => "mlx",
            SourceKind::Lora => "lora",
            SourceKind::Safetensors => "safetensors",
            SourceKind::Gguf => "gguf",
            SourceKind::Onnx => "onnx",
            SourceKind::OpenVino => "openvino",
            SourceKind::Qnn => "qnn",
        }
    }
}

impl std::fmt::Display for SourceKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// An open model: its tensors mapped and checked, its documents read.
#[derive(Debug)]
pub struct Source {
    kind: SourceKind,
    root: PathBuf,
    files: Vec<MappedFile>,
    headers: Vec<u64>,
    config: Option<Json>,
    generation_config: Option<Json>,
    metadata: Metadata,
    annotations: Vec<(String, String)>,
    tokenizer: TokenizerFiles,
    onnx: Option<onnx::Model>,
    tensors: Vec<TensorInfo>,
    by_name: HashMap<String, usize>,
}

impl Source {
    /// Opens whatever lies at `path`.
    ///
    /// Only headers are read: the cost does not depend on the model's size.
    ///
    /// # Errors
    /// Every [`Error`]: what the path is instead of a model, which file is missing, which rule is broken where.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::open_found(identify(path.as_ref())?, MappedFile::open)
    }

    /// Opens whatever lies at `path` without mapping it: everything but tensor data is there and checked, and
    /// [`Self::bytes`] is empty. For processes that must survive a file that shrinks under them. The graph of an
    /// ONNX source is not read.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_headers(path: impl AsRef<Path>) -> Result<Self> {
        Self::open_found(identify(path.as_ref())?, header::open)
    }

    fn open_found(found: Found, open: fn(&Path) -> Result<MappedFile>) -> Result<Self> {
        let mut source = Source {
            kind: found.kind,
            root: found.root,
            files: Vec::with_capacity(found.weights.len()),
            headers: Vec::with_capacity(found.weights.len()),
            config: found.config.as_deref().map(read_json).transpose()?,
            generation_config: found.generation_config.as_deref().map(read_json).transpose()?,
            metadata: Metadata::new(),
            annotations: Vec::new(),
            tokenizer: found.tokenizer,
            onnx: None,
            tensors: Vec::new(),
            by_name: HashMap::new(),
        };
        for path in &found.weights {
            let map = open(path)?;
            match found.kind {
                SourceKind::Gguf => source.add_gguf(map, found.weights.len())?,
                SourceKind::Onnx => source.add_onnx(map)?,
                _ => source.add_safetensors(map)?,
            }
        }
        if found.kind == SourceKind::Gguf {
            let path = source.files.first().map_or(source.root.as_path(), MappedFile::path);
            gguf::check_total(&source.metadata, source.tensors.len()).map_err(Error::malformed(path))?;
            gguf::strip_keys(&mut source.metadata);
        }
        if let Some(index) = &found.index {
            source.check_index(index)?;
        }
        if source.kind == SourceKind::HuggingFace && source.is_mlx() {
            source.kind = SourceKind::Mlx;
        }
        Ok(source)
    }

    /// What it is.
    pub fn kind(&self) -> SourceKind {
        self.kind
    }

    /// The directory, or the (first) file.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The files that hold weights.
    pub fn files(&self) -> impl ExactSizeIterator<Item = &Path> {
        self.files.iter().map(MappedFile::path)
    }

    /// The mapped file of this index, as [`TensorInfo::file_index`] gives it.
    pub fn mapped(&self, file: usize) -> Option<&MappedFile> {
        self.files.get(file)
    }

    /// `config.json` (for an adapter: `adapter_config.json`).
    pub fn config(&self) -> Option<&Json> {
        self.config.as_ref()
    }

    /// `generation_config.json`.
    pub fn generation_config(&self) -> Option<&Json> {
        self.generation_config.as_ref()
    }

    /// GGUF metadata, without the keys that tell of a split; empty for other sources.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// The strings in the first safetensors file's `__metadata__`.
    pub fn annotations(&self) -> &[(String, String)] {
        &self.annotations
    }

    /// The tokenizer's and chat template's files, where they lie beside the weights.
    pub fn tokenizer(&self) -> &TokenizerFiles {
        &self.tokenizer
    }

    /// The graph of an ONNX source. [`Self::tensors`] holds those of its initializers whose data lie in a file and
    /// whose type is at least a byte wide.
    pub fn onnx(&self) -> Option<&onnx::Model> {
        self.onnx.as_ref()
    }

    /// All tensors, file by file in the order of their data.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// The tensor of this name.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.by_name.get(name).map(|&index| &self.tensors[index])
    }

    /// A tensor's data. Empty when only headers were opened, and for a tensor of another source that does not fit.
    pub fn bytes(&self, tensor: &TensorInfo) -> &[u8] {
        self.files.get(tensor.file).and_then(|file| file.slice(tensor.offset, tensor.len)).unwrap_or_default()
    }

    /// Tells the system that a tensor's bytes `range` will be read soon; it may go past the tensor's end, into what
    /// follows in the file. See [`MappedFile::prefetch`].
    pub fn prefetch(&self, tensor: &TensorInfo, range: std::ops::Range<u64>) {
        if let Some(file) = self.files.get(tensor.file) {
            let begin = tensor.offset.saturating_add(range.start).min(file.len());
            let end = tensor.offset.saturating_add(range.end).min(file.len());
            file.prefetch(begin, end.saturating_sub(begin));
        }
    }

    /// Gives the memory pages of a tensor's bytes `range` back to the system; see [`MappedFile::release`].
    pub fn release(&self, tensor: &TensorInfo, range: std::ops::Range<u64>) {
        let end = range.end.min(tensor.len);
        if let Some(file) = self.files.get(tensor.file)
            && range.start < end
        {
            file.release(tensor.offset + range.start, end - range.start);
        }
    }

    /// Bytes of all tensors together.
    pub fn tensor_bytes(&self) -> u64 {
        self.tensors.iter().map(|tensor| tensor.len).fold(0, u64::saturating_add)
    }

    /// Every file that makes up the model: weights, configuration, tokenizer. In a fixed order.
    pub fn all_files(&self) -> Vec<PathBuf> {
        let mut files: Vec<PathBuf> = self.files().map(Path::to_owned).collect();
        let beside = if self.root.is_dir() { Some(self.root.as_path()) } else { self.root.parent() };
        if let Some(directory) = beside {
            let config = if self.kind == SourceKind::Lora { "adapter_config.json" } else { "config.json" };
            if self.config.is_some() {
                files.push(directory.join(config));
            }
            if self.generation_config.is_some() {
                files.push(directory.join("generation_config.json"));
            }
        }
        files.extend(self.tokenizer.iter().map(|(_, path)| path.to_owned()));
        files.sort();
        files
    }

    /// The bytes before tensor data of each weight file: what names and shapes are read from.
    pub(crate) fn header_bytes(&self) -> impl Iterator<Item = (&MappedFile, &[u8])> {
        self.files
            .iter()
            .zip(&self.headers)
            .map(|(file, &len)| (file, file.slice(0, len).unwrap_or_default()))
    }

    fn is_mlx(&self) -> bool {
        let quantization = self.config.as_ref().and_then(|config| config.get("quantization"));
        quantization.is_some_and(Json::is_object)
            || self.annotations.iter().any(|(key, value)| key == "format" && value == "mlx")
    }

    fn add_safetensors(&mut self, map: MappedFile) -> Result<()> {
        let (data_begin, header) = header::parse_safetensors(&map).map_err(Error::malformed(map.path()))?;
        if self.files.is_empty() {
            self.annotations = header.metadata;
        }
        self.add_file(map, data_begin, header.tensors)
    }

    fn add_gguf(&mut self, map: MappedFile, count: usize) -> Result<()> {
        let parsed = gguf::parse(map.bytes(), map.len()).map_err(Error::malformed(map.path()))?;
        let number = self.files.len();
        gguf::check_split(&parsed.metadata, number as u32, count as u32)
            .map_err(Error::malformed(map.path()))?;
        if number == 0 {
            self.metadata = parsed.metadata;
        }
        self.add_file(map, parsed.data_begin, parsed.tensors)
    }

    fn add_onnx(&mut self, map: MappedFile) -> Result<()> {
        let path = map.path().to_owned();
        if (map.bytes().len() as u64) < map.len() {
            return self.add_file(map, 0, Vec::new());
        }
        let model = onnx::parse(map.bytes()).map_err(Error::malformed(&path))?;
        let directory = path.parent().unwrap_or(Path::new("."));
        let mut external: BTreeMap<&str, Vec<TensorInfo>> = BTreeMap::new();
        let mut inside = Vec::new();
        for tensor in &model.graph.initializers {
            let Some(dtype) = tensor.element_type.dtype() else { continue };
            let len =
                checked_byte_len(&tensor.name, dtype, &tensor.shape).map_err(Error::malformed(&path))?;
            let info = |offset| TensorInfo {
                name: tensor.name.clone(),
                dtype,
                shape: tensor.shape.clone(),
                file: 0,
                offset,
                len,
            };
            match &tensor.data {
                InitializerData::Inline(_) => {}
                InitializerData::InFile(range) => inside.push(info(range.start)),
                InitializerData::External { location, offset, .. } => {
                    external.entry(location).or_default().push(info(*offset));
                }
            }
        }
        let header = map.len();
        self.add_file(map, header, inside)?;
        for (location, tensors) in external {
            let data_path = directory.join(location);
            if !data_path.is_file() {
                return Err(Error::MissingShard { path, missing: vec![location.to_owned()] });
            }
            let data = MappedFile::open(&data_path)?;
            if let Some(tensor) =
                tensors.iter().find(|tensor| data.slice(tensor.offset, tensor.len).is_none())
            {
                let (begin, end) = (tensor.offset, tensor.offset.saturating_add(tensor.len));
                let fault = Fault::Beyond { tensor: tensor.name.clone(), begin, end, len: data.len() };
                return Err(Error::malformed(&data_path)(fault));
            }
            self.add_file(data, 0, tensors)?;
        }
        self.onnx = Some(model);
        Ok(())
    }

    fn add_file(&mut self, map: MappedFile, header: u64, tensors: Vec<TensorInfo>) -> Result<()> {
        let file = self.files.len();
        for mut tensor in tensors {
            tensor.file = file;
            if let Some(other) = self.by_name.insert(tensor.name.clone(), self.tensors.len()) {
                return Err(Error::TensorInTwoFiles {
                    path: map.path().to_owned(),
                    other: self.files[self.tensors[other].file].path().to_owned(),
                    tensor: tensor.name,
                });
            }
            self.tensors.push(tensor);
        }
        self.headers.push(header);
        self.files.push(map);
        Ok(())
    }

    /// Every tensor of the index is in the shard that the index names.
    fn check_index(&self, path: &Path) -> Result<()> {
        let index = document::read_index(path)?;
        for (name, shard) in &index.weight_map {
            let holder = self.tensor(name).and_then(|tensor| self.files[tensor.file].path().file_name());
            if holder.and_then(|holder| holder.to_str()) != Some(shard.as_str()) {
                return Err(Error::NotInShard {
                    path: path.to_owned(),
                    tensor: name.clone(),
                    shard: shard.clone(),
                });
            }
        }
        Ok(())
    }
}

/// A fault of one file of a source as an error.
pub(crate) fn split_error(path: &Path, problem: String) -> Error {
    Error::Malformed { path: path.to_owned(), fault: Fault::Split { problem } }
}
