//! From a checkpoint to a program: record the architecture, then find its weights.
//!
//! Matrices that the source stores as plain rows are used where they are, in the mapped file, or laid out in tiles; vectors (norms,
//! biases) become floats. Tiles take memory that cannot be given back as a file's pages can: where there is too little, experts,
//! which are most of a mixture and used sparsely, stay in the file, and with still less everything does.
#![allow(unsafe_code)] // threads lay disjoint strips into one buffer

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use drophammer_models::description::ModelKind;
use drophammer_models::{Checkpoint, Error, build_decoder, build_encoder};
use drophammer_sdk::{JobContext, LogLevel};

use super::execute::Program;
use super::fuse::fuse;
use super::matrix::Matrix;
use super::narrow::narrow;
use super::record::{MatrixRef, Recorder, VectorRef};
use super::shelf::{Name, Shelf};
use super::step::{Step, assign_buffers};
use crate::cache::LayerShape;
use crate::kernels::tile::Cut;
use crate::memory::{self, Bytes, Memory};
use crate::threads::{Pool, Shares};

/// A program and what its cache has to hold.
pub(crate) struct Loaded {
    pub(crate) program: Program,
    pub(crate) layers: Vec<LayerShape>,
    /// What the program's matrices are, by number.
    pub(crate) references: Vec<MatrixRef>,
    /// For each matrix the first of those that are multiplied with the same rows.
    pub(crate) inputs: Vec<usize>,
}

/// What fast mode does to matrices: it lays them out in tiles.
pub(crate) struct Fast<'a> {
    /// Who lays them.
    pub(crate) pool: &'a mut Pool,
    /// Whom to tell of what is not laid.
    pub(crate) job: &'a dyn JobContext,
    /// Where they are kept for the next load.
    pub(crate) shelf: Option<Shelf<'a>>,
}

/// Builds the program of a checkpoint; without `fast` matrices are used as they are stored.
///
/// # Errors
/// Weights that cannot be read, and operations this backend does not have.
pub(crate) fn load(checkpoint: &Arc<Checkpoint>, fast: Option<Fast<'_>>) -> Result<Loaded, Error> {
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
    let (mut steps, result) = fuse(narrow(steps, result), result);
    let (buffers, result) = assign_buffers(&mut steps, result);
    let mut held: Vec<Matrix> =
        matrices.iter().map(|reference| matrix_of(checkpoint, reference)).collect::<Result<_, _>>()?;
    if let Some(fast) = fast {
        tile(checkpoint, &matrices, &mut held, fast);
    }
    let (references, matrices) = (matrices, held);
    let inputs = inputs(&steps, references.len());
    for vector in &vectors {
        checkpoint.weight(vector.weight)?.prefetch();
    }
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

/// Takes up as tiles what gains by it: those that an earlier load kept, or those that are laid now.
fn tile(
    checkpoint: &Checkpoint,
    references: &[MatrixRef],
    matrices: &mut [Matrix],
    Fast { pool, job, shelf }: Fast<'_>,
) {
    // Tables are read row by row.
    let gains = references.iter().zip(matrices).filter(|(reference, _)| !reference.table);
    let mut all: Vec<_> =
        gains.filter_map(|(reference, matrix)| Some((reference, matrix.cut()?, matrix))).collect();
    let threads = pool.threads();
    let name = |all: &[(&MatrixRef, Cut, &mut Matrix)]| {
        Name::of(checkpoint, all.iter().map(|(reference, cut, _)| (*reference, *cut)))
    };
    let kept = |all: &[_]| shelf.as_ref()?.take(&name(all)?, bytes_of(all), threads);
    // What is kept is mapped, and takes no memory that it could not give back.
    let mut tiles = kept(&all);
    if tiles.is_none() {
        let laid = Laid::within(memory::available(), &all);
        if let Some(told) = laid.told() {
            job.log(LogLevel::Warning, told);
            all.retain(|(reference, ..)| laid.has(reference));
            tiles = kept(&all);
        }
    }
    let bytes = bytes_of(&all);
    if bytes == 0 {
        return;
    }
    let tiles = if let Some(tiles) = tiles {
        tiles
    } else {
        // Without the memory, weights are used as they are stored.
        let Some(mut memory) = Memory::zeroed(bytes) else { return };
        lay(checkpoint, &all, memory.bytes_mut(), pool);
        if let Some(shelf) = &shelf
            && let Some(name) = name(&all)
        {
            shelf.put(&name, memory.bytes(), threads);
        }
        Bytes::of(&Arc::new(memory), Memory::bytes)
    };
    let mut begin = 0;
    for (_, cut, matrix) in all {
        if let Some(part) = tiles.part(begin, cut.bytes()) {
            matrix.take_up(part);
        }
        begin += cut.bytes();
    }
}

fn bytes_of(all: &[(&MatrixRef, Cut, &mut Matrix)]) -> usize {
    all.iter().map(|(_, cut, _)| cut.bytes()).sum()
}

/// Which matrices are laid in tiles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Laid {
    All,
    AllButExperts,
    Nothing,
}

impl Laid {
    /// As many as `available` bytes hold, of which an eighth is left to others.
    fn within(available: u64, all: &[(&MatrixRef, Cut, &mut Matrix)]) -> Self {
        let room = available - available / 8;
        let fits = |laid: &Self| {
            let held = all.iter().filter(|(reference, ..)| laid.has(reference));
            held.map(|(_, cut, _)| cut.bytes() as u64).sum::<u64>() <= room
        };
        [Self::All, Self::AllButExperts].into_iter().find(fits).unwrap_or(Self::Nothing)
    }

    fn has(self, reference: &MatrixRef) -> bool {
        match self {
            Self::All => true,
            Self::AllButExperts => reference.expert.is_none(),
            Self::Nothing => false,
        }
    }

    /// What whoever waits for answers should know.
    fn told(self) -> Option<&'static str> {
        match self {
            Self::All => None,
            Self::AllButExperts => Some(
                "experts are used as the file stores them, which is slow: there is not the memory to lay them out",
            ),
            Self::Nothing => Some(
                "weights are used as the file stores them, which is slow: there is not the memory to lay them out",
            ),
        }
    }
}

/// Lays matrices in tiles, one behind the other, into zeros. Every thread lays its strips of each; whoever comes last to a matrix gives
/// back the memory of its source.
fn lay(checkpoint: &Checkpoint, all: &[(&MatrixRef, Cut, &mut Matrix)], tiles: &mut [u8], pool: &mut Pool) {
    let (size, tiles) = (tiles.len(), Shares::new(tiles));
    let laid: Vec<AtomicUsize> = all.iter().map(|_| AtomicUsize::new(0)).collect();
    pool.run(size, &|member| {
        let mut begin = 0;
        for ((reference, cut, matrix), laid) in all.iter().zip(&laid) {
            let strip_bytes = cut.strip_bytes();
            let strips = member.share(cut.bytes() / strip_bytes, 1);
            let first = begin + strips.start * strip_bytes;
            // SAFETY: each strip is one thread's.
            matrix.lay(strips.start, unsafe { tiles.part(first, strips.len() * strip_bytes) });
            begin += cut.bytes();
            let last_of_weight = reference.expert.is_none_or(|(number, count)| number + 1 == count);
            if laid.fetch_add(1, Ordering::AcqRel) + 1 == member.count
                && last_of_weight
                && let Ok(weight) = checkpoint.weight(reference.weight)
            {
                weight.release();
            }
        }
    });
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
        let of_whole = (number * rows) as u64..((number + 1) * rows) as u64;
        let bytes = if blocks.contiguous_rows(of_whole.clone()).is_some() {
            Bytes::of(checkpoint, |checkpoint| {
                let blocks = checkpoint.weight(id).ok().and_then(|weight| weight.blocks());
                blocks.and_then(|blocks| blocks.contiguous_rows(of_whole)).unwrap_or_default()
            })
        } else {
            let mut copied = Vec::with_capacity(rows * blocks.row_bytes());
            for row in of_whole {
                copied.extend_from_slice(blocks.row(row).unwrap_or_default());
            }
            Bytes::from(copied)
        };
        if let Some(matrix) = Matrix::new(blocks.dtype(), rows, columns, bytes) {
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

#[cfg(test)]
mod tests {
    use drophammer_formats::DType;
    use drophammer_models::weight::Role;

    use super::*;

    #[test]
    fn experts_stay_in_the_file_where_memory_is_short_and_then_everything_does() {
        let reference =
            |expert| MatrixRef { weight: Role::Head.global(), expert, rows: 16, columns: 32, table: false };
        let references = [reference(None), reference(Some((0, 2))), reference(Some((1, 2)))];
        let mut matrices: Vec<_> = references
            .iter()
            .map(|_| Matrix::new(DType::F32, 16, 32, Bytes::from(vec![0; 16 * 32 * 4])).unwrap())
            .collect();
        let all: Vec<_> =
            references.iter().zip(&mut matrices).map(|(r, m)| (r, m.cut().unwrap(), m)).collect();
        let one = bytes_of(&all[..1]) as u64;
        for (available, due) in [
            (u64::MAX, Laid::All),
            (3 * one * 8 / 7 + 1, Laid::All),
            (3 * one, Laid::AllButExperts),
            (one * 8 / 7 + 1, Laid::AllButExperts),
            (one, Laid::Nothing),
            (0, Laid::Nothing),
        ] {
            assert_eq!(Laid::within(available, &all), due, "{available}");
        }
    }
}
