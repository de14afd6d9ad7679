//! Source → artifact: two matrices, streamed row by row.

use drophammer_formats::placed::PlacedFiles;
use drophammer_formats::{DType, Source, TensorDecl, TensorInfo, safetensors};
use drophammer_sdk::{BackendError, ErrorCode, ForgeReport, ForgeRequest, JobContext, Result};

use crate::{ID, failed, quantize};

/// Names of the embedding and of the output matrix in Hugging Face's and in GGUF files.
const EMBEDDING: [&str; 2] = ["model.embed_tokens.weight", "token_embd.weight"];
const OUTPUT: [&str; 2] = ["lm_head.weight", "output.weight"];

/// How weights are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Numbers {
    F32,
    Int8,
}

impl Numbers {
    pub(crate) const ALL: [Self; 2] = [Self::F32, Self::Int8];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Int8 => "int8",
        }
    }

    /// The scheme of this name; none in particular means float32.
    pub(crate) fn named(name: &str) -> Option<Self> {
        if name.is_empty() {
            Some(Self::F32)
        } else {
            Self::ALL.into_iter().find(|numbers| numbers.name() == name)
        }
    }

    fn bytes_per_weight(self) -> u64 {
        match self {
            Self::F32 => 4,
            Self::Int8 => 1,
        }
    }
}

/// The two matrices of a source, [vocabulary, width] each; models may use one for both.
pub(crate) struct Ends<'a> {
    source: &'a Source,
    embedding: &'a TensorInfo,
    output: &'a TensorInfo,
}

impl<'a> Ends<'a> {
    /// Finds them.
    pub(crate) fn of(source: &'a Source) -> Result<Self> {
        let find = |names: [&str; 2]| names.iter().find_map(|name| source.tensor(name));
        let unsupported = |what: String| {
            let message = format!("{}: {what}", source.root().display());
            BackendError::new(ErrorCode::UnsupportedInput, message)
                .with_help("give a decoder whose embedding is stored as f32, f16 or bf16")
        };
        let embedding = find(EMBEDDING).ok_or_else(|| unsupported("no embedding was found in it".into()))?;
        let output = find(OUTPUT).unwrap_or(embedding);
        for tensor in [embedding, output] {
            if !matches!(tensor.dtype, DType::F32 | DType::F16 | DType::BF16) || tensor.shape.len() != 2 {
                return Err(unsupported(format!("{} is stored as {}", tensor.name, tensor.dtype)));
            }
        }
        Ok(Self { source, embedding, output })
    }

    fn both(&self) -> [(&'static str, &'a TensorInfo); 2] {
        [("embedding", self.embedding), ("output", self.output)]
    }

    fn weights(&self) -> u64 {
        self.embedding.elements() + self.output.elements()
    }

    /// Size of an artifact.
    pub(crate) fn bytes(&self, numbers: Numbers) -> u64 {
        let scales = self.embedding.rows() + self.output.rows();
        self.weights() * numbers.bytes_per_weight() + if numbers == Numbers::Int8 { scales * 4 } else { 0 }
    }

    /// One row of a matrix.
    fn row(&self, tensor: &TensorInfo, index: u64) -> Vec<f32> {
        let size = tensor.byte_len() as usize / tensor.rows().max(1) as usize;
        let row = self.source.bytes(tensor).chunks_exact(size.max(1)).nth(index as usize).unwrap_or_default();
        let halves = || row.chunks_exact(2).map(|bytes| [bytes[0], bytes[1]]);
        match tensor.dtype {
            DType::F16 => halves().map(|bytes| half::f16::from_le_bytes(bytes).to_f32()).collect(),
            DType::BF16 => halves().map(|bytes| half::bf16::from_le_bytes(bytes).to_f32()).collect(),
            _ => row.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
        }
    }
}

/// Makes an artifact.
pub(crate) fn forge(request: &ForgeRequest, job: &dyn JobContext, numbers: Numbers) -> Result<ForgeReport> {
    let source = Source::open(&request.source).map_err(failed)?;
    let ends = Ends::of(&source)?;
    let mut tensors = Vec::new();
    for (name, matrix) in ends.both() {
        let dtype = if numbers == Numbers::F32 { DType::F32 } else { DType::I8 };
        tensors.push(TensorDecl::new(name, dtype, matrix.shape.clone()));
        if numbers == Numbers::Int8 {
            tensors.push(TensorDecl::new(format!("{name}.scale"), DType::F32, [matrix.rows()]));
        }
    }
    let layout = safetensors::plan(&request.name, &tensors, &[], None)
        .map_err(drophammer_formats::Error::malformed(&request.staging))
        .map_err(failed)?;
    // After a crash the same directory comes again; so little is simply written again (see `PlacedFiles::resume`).
    let files = PlacedFiles::create(&request.staging, layout).map_err(failed)?;
    let (mut done, total) = (0, ends.weights());
    for (number, (name, matrix)) in ends.both().into_iter().enumerate() {
        let width = matrix.row_elements();
        for index in 0..matrix.rows() {
            if index % 256 == 0 {
                job.check()?;
                job.progress("copy", name, done, total);
            }
            let row = ends.row(matrix, index);
            match numbers {
                Numbers::F32 => {
                    let bytes: Vec<u8> = row.iter().flat_map(|weight| weight.to_le_bytes()).collect();
                    files.write_at(number, index * width * 4, &bytes).map_err(failed)?;
                }
                Numbers::Int8 => {
                    let (bytes, scale) = quantize::encode(&row);
                    files.write_at(2 * number, index * width, &bytes).map_err(failed)?;
                    files.write_at(2 * number + 1, index * 4, &scale.to_le_bytes()).map_err(failed)?;
                }
            }
            done += width;
        }
    }
    files.finish().map_err(failed)?;
    let made = request.staging.join(format!("{}.safetensors", request.name));
    let name = format!("{}.{ID}", request.name);
    std::fs::rename(&made, request.staging.join(&name))
        .map_err(|error| BackendError::new(ErrorCode::Failed, format!("{}: {error}", made.display())))?;
    let bytes = ends.bytes(numbers);
    Ok(ForgeReport {
        files: vec![name.into()],
        bytes,
        bits_per_weight: bytes as f64 * 8.0 / total as f64,
        parameters: total,
        types: [(numbers.name().to_owned(), 2)].into(),
        ..ForgeReport::default()
    })
}
