//! A checkpoint's weights as arrays.

use std::collections::HashMap;
use std::path::Path;

use drophammer_forge::failure;
use drophammer_formats::DType;
use drophammer_models::{Checkpoint, LowRank, MlxMode, MlxRows, Role, Weight, WeightId, WeightShape};
use drophammer_sdk::{BackendError, ErrorCode, JobContext, Result};

use crate::runtime::{Array, Arrays, Packing, Quantized, Type};

/// Floats that are converted together.
const STRETCH: u64 = 1 << 20;

/// A matrix or a stack of matrices.
pub(crate) enum Matrix {
    /// As it is stored, and as it is multiplied by: `[.., inputs, outputs]`, a view.
    Plain { rows: Array, columns: Array },
    /// Packed.
    Packed(Quantized),
}

/// What an adapter adds to a product: `x · downᵀ · upᵀ`.
pub(crate) struct Thin {
    pub(crate) down: Array,
    pub(crate) up: Array,
}

/// All weights.
pub(crate) struct Weights {
    pub(crate) kind: Type,
    matrices: HashMap<WeightId, Matrix>,
    vectors: HashMap<WeightId, Array>,
    adapters: HashMap<WeightId, Vec<Thin>>,
}

/// The type to compute in: the one that the model is kept in, or float32 for exact arithmetic.
pub(crate) fn compute_type(checkpoint: &Checkpoint, exact: bool) -> Type {
    if exact {
        return Type::F32;
    }
    // Norms are never packed.
    let norm = checkpoint.weights().iter().find(|weight| weight.id.is_vector());
    match norm.and_then(|weight| Some(checkpoint.weight(weight.id).ok()?.dtype())) {
        Some(DType::F16) => Type::F16,
        Some(DType::F32) => Type::F32,
        _ => Type::Bf16,
    }
}

impl Weights {
    /// Brings all weights into arrays.
    ///
    /// # Errors
    /// Where the source cannot be read, or the job is cancelled.
    pub(crate) fn load(
        arrays: Arrays,
        checkpoint: &Checkpoint,
        kind: Type,
        path: &Path,
        job: &dyn JobContext,
    ) -> Result<Self> {
        let mut weights =
            Self { kind, matrices: HashMap::new(), vectors: HashMap::new(), adapters: HashMap::new() };
        let loader = Loader { arrays, kind, path };
        let all = checkpoint.weights();
        let tied = checkpoint.description().head.is_some_and(|head| head.tied);
        for (number, WeightShape { id, .. }) in all.iter().enumerate() {
            job.check()?;
            job.progress("loading", &id.to_string(), number as u64, all.len() as u64);
            if tied && *id == Role::Head.global() {
                continue; // the embedding serves
            }
            let weight = checkpoint.weight(*id).map_err(|error| failure::of_model(path, &error))?;
            if id.is_vector() {
                weights.vectors.insert(*id, loader.vector(weight)?);
                continue;
            }
            let (matrix, adapters) = loader.matrix(weight)?;
            weights.matrices.insert(*id, matrix);
            if !adapters.is_empty() {
                weights.adapters.insert(*id, adapters);
            }
            weight.release();
        }
        if tied {
            weights.tie();
        }
        Ok(weights)
    }

    fn tie(&mut self) {
        let (head, embedding) = (Role::Head.global(), Role::TokenEmbedding.global());
        let shared = match self.matrices.get(&embedding) {
            Some(Matrix::Plain { rows, columns }) => {
                Some(Matrix::Plain { rows: rows.clone(), columns: columns.clone() })
            }
            Some(Matrix::Packed(packed)) => Some(Matrix::Packed(packed.clone())),
            None => None,
        };
        self.matrices.extend(shared.map(|shared| (head, shared)));
    }

    /// Frees everything.
    pub(crate) fn clear(&mut self) {
        self.matrices.clear();
        self.vectors.clear();
        self.adapters.clear();
    }

    pub(crate) fn matrix(&self, id: WeightId) -> Result<&Matrix> {
        self.matrices.get(&id).ok_or_else(|| absent(id))
    }

    pub(crate) fn vector(&self, id: WeightId) -> Result<&Array> {
        self.vectors.get(&id).ok_or_else(|| absent(id))
    }

    pub(crate) fn adapters(&self, id: WeightId) -> &[Thin] {
        self.adapters.get(&id).map_or(&[], Vec::as_slice)
    }
}

fn absent(id: WeightId) -> BackendError {
    BackendError::new(ErrorCode::Failed, format!("{id} was not loaded"))
        .with_help("This is a mistake in the program: please report it.")
}

struct Loader<'a> {
    arrays: Arrays,
    kind: Type,
    path: &'a Path,
}

impl Loader<'_> {
    fn in_model(&self, error: &drophammer_models::Error) -> BackendError {
        failure::of_model(self.path, error)
    }

    fn dims(&self, weight: &Weight<'_>, columns: u64) -> Result<Vec<i32>> {
        let mut shape = weight.shape().to_vec();
        if let Some(last) = shape.last_mut() {
            *last = columns;
        }
        let narrow = |dim: u64| {
            i32::try_from(dim).map_err(|_| {
                let message = format!("{}: {} has a dimension of {dim}", self.path.display(), weight.id());
                BackendError::new(ErrorCode::UnsupportedInput, message)
                    .with_help("libmlx counts dimensions in 31 bits.")
            })
        };
        shape.into_iter().map(narrow).collect()
    }

    fn vector(&self, weight: Weight<'_>) -> Result<Array> {
        self.floats(weight, self.kind)
    }

    /// A matrix, and what adapters add to it where that is kept apart.
    fn matrix(&self, weight: Weight<'_>) -> Result<(Matrix, Vec<Thin>)> {
        let thin = weight.low_ranks().map_err(|error| self.in_model(&error))?;
        // Adapters of stacks are added while rows are read.
        let Some(thin) = thin else { return Ok((self.plain(weight)?, Vec::new())) };
        let bare = weight.bare();
        let matrix = match bare.mlx() {
            Some(rows) => Matrix::Packed(self.packed(bare, &rows)?),
            None => self.plain(bare)?,
        };
        let thin = thin.iter().map(|thin| self.thin(thin, bare.columns())).collect::<Result<_>>()?;
        Ok((matrix, thin))
    }

    fn thin(&self, thin: &LowRank, columns: u64) -> Result<Thin> {
        let (rank, columns) = (thin.rank as i32, columns as i32);
        let rows = (thin.up.len() / thin.rank.max(1)) as i32;
        let down = self.arrays.floats(&thin.down, &[rank, columns], self.kind)?;
        let up = self.arrays.floats(&thin.up, &[rows, rank], self.kind)?;
        Ok(Thin { down: down.transpose(&[1, 0])?, up: up.transpose(&[1, 0])? })
    }

    fn plain(&self, weight: Weight<'_>) -> Result<Matrix> {
        let rows = self.floats(weight, self.kind)?;
        let axes: &[i32] = if weight.shape().len() == 3 { &[0, 2, 1] } else { &[1, 0] };
        Ok(Matrix::Plain { columns: rows.transpose(axes)?, rows })
    }

    /// All of a weight in `kind`.
    fn floats(&self, weight: Weight<'_>, kind: Type) -> Result<Array> {
        let dims = self.dims(&weight, weight.columns())?;
        let dtype = match kind {
            Type::F16 => DType::F16,
            Type::Bf16 => DType::BF16,
            _ => DType::F32,
        };
        self.arrays.filled(&dims, kind, |bytes| {
            if let Some(stored) = weight.blocks().filter(|blocks| blocks.dtype() == dtype)
                && let Some(stored) = stored.contiguous()
                && stored.len() == bytes.len()
            {
                bytes.copy_from_slice(stored);
                return Ok(());
            }
            let codec = drophammer_quant::codec(dtype).ok_or_else(|| {
                BackendError::new(ErrorCode::Failed, format!("there is no codec of {dtype}"))
            })?;
            let columns = weight.columns();
            let step = (STRETCH / columns.max(1)).max(1);
            let mut values = vec![0.0; (step.min(weight.rows()) * columns) as usize];
            let mut bytes = bytes;
            for first in (0..weight.rows()).step_by(step as usize) {
                let end = (first + step).min(weight.rows());
                let values = &mut values[..((end - first) * columns) as usize];
                weight.read(first..end, values).map_err(|error| self.in_model(&error))?;
                let (now, rest) = bytes.split_at_mut(values.len() * kind.bytes());
                codec.encode(values, None, now);
                bytes = rest;
            }
            Ok(())
        })
    }

    /// Codes, scales and biases row by row, in the weight's own order.
    fn packed(&self, weight: Weight<'_>, rows: &MlxRows<'_>) -> Result<Quantized> {
        let packing = rows.packing();
        let groups = weight.columns() / packing.group;
        let part = |number: usize, columns: u64, kind: Type| -> Result<Array> {
            let dims = self.dims(&weight, columns)?;
            self.arrays.filled(&dims, kind, |bytes| {
                let width = columns as usize * kind.bytes();
                for (row, out) in (0..).zip(bytes.chunks_exact_mut(width.max(1))) {
                    let parts = rows.row(row).map_err(|error| self.in_model(&error))?;
                    out.copy_from_slice(parts.get(number).filter(|part| part.len() == width).ok_or_else(
                        || {
                            BackendError::new(
                                ErrorCode::InvalidInput,
                                format!(
                                    "{}: {} has rows of another length",
                                    self.path.display(),
                                    weight.id()
                                ),
                            )
                        },
                    )?);
                }
                Ok(())
            })
        };
        let scale = match packing.scale {
            DType::F32 => Type::F32,
            DType::F16 => Type::F16,
            DType::BF16 => Type::Bf16,
            _ => Type::U8,
        };
        let affine = packing.mode == MlxMode::Affine;
        // Scales in the type of the computation: libmlx would convert them in every product.
        let own =
            |array: Array| if affine && scale != self.kind { array.astype(self.kind) } else { Ok(array) };
        Ok(Quantized {
            codes: part(0, packing.words, Type::U32)?,
            scales: own(part(1, groups, scale)?)?,
            biases: affine.then(|| own(part(2, groups, scale)?)).transpose()?,
            packing: Packing {
                group: packing.group as i32,
                bits: packing.bits as i32,
                mode: match packing.mode {
                    MlxMode::Affine => c"affine",
                    MlxMode::Mxfp4 => c"mxfp4",
                    MlxMode::Nvfp4 => c"nvfp4",
                    MlxMode::Mxfp8 => c"mxfp8",
                },
            },
        })
    }
}
