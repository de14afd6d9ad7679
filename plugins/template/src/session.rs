//! A loaded artifact: the row of the last token's embedding times every row of the output matrix.

use std::path::Path;

use drophammer_formats::mapped::MappedFile;
use drophammer_formats::{DType, TensorInfo, safetensors};
use drophammer_sdk::{BackendError, Batch, ErrorCode, Limits, LoadRequest, OutputKind, Result, Session};

use crate::{failed, quantize};

/// A matrix of the file, with the scales of its rows where it is quantized.
struct Matrix {
    weights: TensorInfo,
    scales: Option<TensorInfo>,
}

struct Ends {
    file: MappedFile,
    embedding: Matrix,
    output: Matrix,
    limits: Limits,
}

/// Loads an artifact this plugin made.
pub(crate) fn load(request: &LoadRequest) -> Result<Box<dyn Session>> {
    let path = &request.path;
    let file = MappedFile::open(path).map_err(failed)?;
    let header = safetensors::parse(file.bytes())
        .map_err(drophammer_formats::Error::malformed(path))
        .map_err(failed)?;
    let matrix = |name: &str| {
        let find = |name: &str| header.tensors.iter().find(|tensor| tensor.name == name).cloned();
        let weights = find(name).filter(|tensor| tensor.shape.len() == 2);
        let weights = weights.ok_or_else(|| no_artifact(path, &format!("it holds no matrix `{name}`")))?;
        let scales = find(&format!("{name}.scale"));
        let scaled = scales.as_ref().is_some_and(|s| s.dtype == DType::F32 && s.elements() == weights.rows());
        match weights.dtype {
            DType::F32 => Ok(Matrix { weights, scales: None }),
            DType::I8 if scaled => Ok(Matrix { weights, scales }),
            _ => Err(no_artifact(path, &format!("`{name}` is {} without its scales", weights.dtype))),
        }
    };
    let (embedding, output) = (matrix("embedding")?, matrix("output")?);
    if embedding.weights.row_elements() != output.weights.row_elements() {
        return Err(no_artifact(path, "its two matrices are not equally wide"));
    }
    let limits = Limits {
        context: request.context.unwrap_or(4096),
        max_sequences: request.max_sequences,
        max_batch: request.max_batch.unwrap_or(512),
        output_width: u32::try_from(output.weights.rows())
            .map_err(|_| no_artifact(path, "its vocabulary has no end"))?,
        output_kind: OutputKind::Logits,
    };
    Ok(Box::new(Ends { file, embedding, output, limits }))
}

fn no_artifact(path: &Path, what: &str) -> BackendError {
    BackendError::new(ErrorCode::InvalidInput, format!("{}: {what}", path.display()))
        .with_help("make it again")
}

impl Ends {
    fn bytes(&self, tensor: &TensorInfo) -> &[u8] {
        // The parser has compared every place with the file's length.
        self.file.slice(tensor.file_offset(), tensor.byte_len()).unwrap_or_default()
    }

    fn rows<'a>(&'a self, matrix: &'a Matrix) -> impl Iterator<Item = Vec<f32>> + 'a {
        let floats = |bytes: &[u8]| -> Vec<f32> {
            bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
        };
        let width = matrix.weights.row_elements().max(1) as usize;
        let scales = matrix.scales.as_ref().map(|scales| floats(self.bytes(scales)));
        let size = if scales.is_some() { width } else { width * 4 };
        self.bytes(&matrix.weights).chunks_exact(size).enumerate().map(move |(index, row)| match &scales {
            Some(scales) => quantize::decode(row, scales[index]).collect(),
            None => floats(row),
        })
    }
}

impl Session for Ends {
    fn limits(&self) -> Limits {
        self.limits
    }

    fn forward(&mut self, batch: Batch<'_>, output: &mut [f32]) -> Result<()> {
        batch.validate(&self.limits, output.len())?;
        for (logits, &index) in output.chunks_exact_mut(self.limits.output_width as usize).zip(batch.outputs)
        {
            let token = batch.tokens[index as usize];
            let embedded = self.rows(&self.embedding).nth(token as usize).ok_or_else(|| {
                BackendError::new(
                    ErrorCode::InvalidRequest,
                    format!("token {token} is not in the vocabulary"),
                )
            })?;
            for (logit, row) in logits.iter_mut().zip(self.rows(&self.output)) {
                *logit = embedded.iter().zip(&row).map(|(a, b)| a * b).sum();
            }
        }
        Ok(())
    }

    // Nothing of earlier tokens is kept, so there is nothing to forget.
    fn keep(&mut self, _: u32, _: u32, _: u32) -> Result<()> {
        Ok(())
    }

    fn remove(&mut self, _: u32, _: u32, _: u32) -> Result<()> {
        Ok(())
    }

    fn copy(&mut self, _: u32, _: u32, _: u32, _: u32) -> Result<()> {
        Ok(())
    }
}
