//! From a checkpoint to a program: record the architecture, then find its weights.
//!
//! Matrices that the source stores as plain rows are used where they are, in the mapped file; vectors (norms, biases) become
//! floats.

use std::sync::Arc;

use drophammer_models::description::ModelKind;
use drophammer_models::{Checkpoint, Error, build_decoder, build_encoder};

use super::execute::Program;
use super::fuse::fuse;
use super::matrix::{Bytes, Matrix};
use super::record::{MatrixRef, Recorder, VectorRef};
use super::step::{Step, assign_buffers};
use crate::cache::LayerShape;
use crate::memory::Arena;

/// A program and what its cache has to hold.
pub(crate) struct Loaded {
    pub(crate) program: Program,
    pub(crate) layers: Vec<LayerShape>,
    /// What the program's matrices are, by number.
    pub(crate) references: Vec<MatrixRef>,
    /// For each matrix the first of those that are multiplied with the same rows.
    pub(crate) inputs: Vec<usize>,
}

/// Builds the program of a checkpoint. In fast mode quantized matrices become tiles, on so many threads.
///
/// # Errors
/// Weights that cannot be read, and operations this backend does not have.
pub(crate) fn load(checkpoint: &Arc<Checkpoint>, fast: Option<usize>) -> Result<Loaded, Error> {
    let description = checkpoint.description();
    let mut recorder = Recorder::default();
    let result = match description.kind {
        ModelKind::Decoder => build_decoder(&mut recorder, description),
        ModelKind::Encoder => build_encoder(&mut recorder, description),
    };
    let result = result.map_err(|unsupported| Error::Unsupported {
        family: description.family.to_owned(),
        what: unsupported.0,
    })?;
    let Recorder { steps, matrices, vectors, ropes, caches, .. } = recorder;
    let (mut steps, result) = fuse(steps, result);
    let (buffers, result) = assign_buffers(&mut steps, result);
    let mut held: Vec<Matrix> =
        matrices.iter().map(|reference| matrix_of(checkpoint, reference)).collect::<Result<_, _>>()?;
    if let Some(threads) = fast {
        tile(checkpoint, &matrices, &mut held, threads)?;
    }
    let (references, matrices) = (matrices, held);
    let inputs = inputs(&steps, references.len());
    let vectors = vectors.iter().map(|vector| vector_of(checkpoint, vector)).collect::<Result<_, _>>()?;
    Ok(Loaded {
        program: Program { steps, buffers, result, matrices, vectors, ropes },
        layers: caches,
        references,
        inputs,
    })
}

fn inputs(steps: &[Step], matrices: usize) -> Vec<usize> {
    let mut inputs: Vec<usize> = (0..matrices).collect();
    for step in steps {
        match step {
            Step::Linear { products, .. } => {
                for product in products {
                    inputs[product.matrix] = products[0].matrix;
                }
            }
            Step::Experts(experts) => {
                for (gate, up) in experts.gate.iter().zip(&experts.up) {
                    inputs[*up] = *gate;
                }
            }
            _ => {}
        }
    }
    inputs
}

/// Lays out in tiles what gains by it.
fn tile(
    checkpoint: &Checkpoint,
    references: &[MatrixRef],
    matrices: &mut [Matrix],
    threads: usize,
) -> Result<(), Error> {
    // Tables are read row by row, experts sparsely: both stay in the file.
    let gains = |reference: &MatrixRef| !reference.table && reference.expert.is_none();
    let all = references.iter().zip(matrices).filter(|(reference, _)| gains(reference));
    let mut all: Vec<_> = all.collect();
    let bytes = all.iter().filter_map(|(_, matrix)| matrix.cut()).map(|cut| cut.bytes()).sum();
    // Without the memory, weights are used as they are stored.
    let Some(mut arena) = Arena::new(bytes) else { return Ok(()) };
    for (reference, matrix) in &mut all {
        if matrix.tile(&mut arena, threads) {
            checkpoint.weight(reference.weight)?.release();
        }
    }
    Ok(())
}

fn matrix_of(checkpoint: &Arc<Checkpoint>, reference: &MatrixRef) -> Result<Matrix, Error> {
    let MatrixRef { weight: id, expert, rows, columns, .. } = *reference;
    let weight = checkpoint.weight(id)?;
    let (number, count) = expert.unwrap_or((0, 1));
    let problem = |problem: String| Error::Weight { id, problem };
    if weight.columns() != columns as u64 || weight.rows() != (rows * count) as u64 {
        return Err(problem(format!(
            "is {} × {}, but the architecture asks for {} × {columns}",
            weight.rows(),
            weight.columns(),
            rows * count
        )));
    }
    if let Some(blocks) = weight.blocks() {
        let len = rows * blocks.row_bytes();
        let bytes = if blocks.contiguous().is_some() {
            Bytes::of(checkpoint, |checkpoint| {
                checkpoint
                    .weight(id)
                    .ok()
                    .and_then(|weight| weight.blocks())
                    .and_then(|blocks| blocks.contiguous())
                    .unwrap_or_default()
            })
            .part(number * len, len)
        } else {
            let first = number * rows;
            let mut copied = Vec::with_capacity(len);
            for row in first..first + rows {
                copied.extend_from_slice(blocks.row(row as u64).unwrap_or_default());
            }
            Some(Bytes::from(copied))
        };
        if let Some(matrix) = bytes.and_then(|bytes| Matrix::new(blocks.dtype(), rows, columns, bytes)) {
            return Ok(matrix);
        }
        return Err(problem(format!(
            "rows of {columns} numbers stored as {} cannot be read",
            blocks.dtype()
        )));
    }
    // Packed in a way of its own (GPTQ, MLX, FP8 with scales, adapters): decoded while it is read.
    Ok(Matrix::decoded(Arc::clone(checkpoint), id, number * rows, rows, columns))
}

fn vector_of(checkpoint: &Checkpoint, reference: &VectorRef) -> Result<Vec<f32>, Error> {
    let VectorRef { weight: id, expert, len } = *reference;
    let whole = checkpoint.weight(id)?.to_vec()?;
    let (number, count) = expert.unwrap_or((0, 1));
    if whole.len() != len * count {
        let problem = format!("has {} numbers, but the architecture asks for {}", whole.len(), len * count);
        return Err(Error::Weight { id, problem });
    }
    Ok(whole[number * len..][..len].to_vec())
}
