//! How a source stores the matrices of one tensor (or of several tensors that make one).

use std::fmt;
use std::ops::Range;

use drophammer_formats::{DType, Source, TensorInfo};

use super::packed::Mlx;
use crate::error::{Error, Result};

/// One or more equal matrices, one behind the other.
pub(super) trait Stored: fmt::Debug + Send + Sync {
    /// How many matrices, and rows and columns of each.
    fn extent(&self) -> [u64; 3];

    /// Rows of one matrix as floats, end to end.
    fn read(&self, source: &Source, matrix: u64, rows: Range<u64>, out: &mut [f32]) -> Result<()>;

    /// The type that best says how precise it is.
    fn dtype(&self) -> DType;

    /// The tensor whose bytes are these rows, unchanged.
    fn plain(&self) -> Option<&TensorInfo> {
        None
    }

    /// MLX's packed matrices, where they are stored so.
    fn mlx(&self) -> Option<&Mlx> {
        None
    }

    /// Whether single rows cost as much as many neighbours.
    fn is_column_major(&self) -> bool {
        false
    }

    /// The tensors it reads, for giving memory back.
    fn tensors(&self) -> Vec<&TensorInfo>;
}

/// Row-major, in any type with a codec.
#[derive(Debug)]
pub(super) struct Plain {
    tensor: TensorInfo,
    extent: [u64; 3],
}

impl Plain {
    /// Sees a tensor as matrices: its last two dimensions; vectors (`vector`) as columns, one number per row.
    pub(super) fn new(tensor: &TensorInfo, vector: bool) -> Self {
        let mut shape = tensor.shape.clone();
        if vector {
            shape.push(1);
        }
        Self { tensor: tensor.clone(), extent: matrices(&shape) }
    }

    /// All matrices as one, end to end.
    pub(super) fn flatten(&mut self) {
        let [count, rows, columns] = self.extent;
        self.extent = [1, count * rows, columns];
    }
}

/// Matrices, rows, columns of a shape.
pub(super) fn matrices(shape: &[u64]) -> [u64; 3] {
    match shape {
        [] => [1, 1, 1],
        [columns] => [1, 1, *columns],
        [outer @ .., rows, columns] => [outer.iter().product(), *rows, *columns],
    }
}

impl Stored for Plain {
    fn extent(&self) -> [u64; 3] {
        self.extent
    }

    fn read(&self, source: &Source, matrix: u64, rows: Range<u64>, out: &mut [f32]) -> Result<()> {
        let [_, height, columns] = self.extent;
        let first = (matrix * height + rows.start) * columns;
        decode(source, &self.tensor, first, (rows.end - rows.start) * columns, out)
    }

    fn dtype(&self) -> DType {
        self.tensor.dtype
    }

    fn plain(&self) -> Option<&TensorInfo> {
        Some(&self.tensor)
    }

    fn tensors(&self) -> Vec<&TensorInfo> {
        vec![&self.tensor]
    }
}

/// `[inputs, outputs]` instead of `[outputs, inputs]`.
#[derive(Debug)]
pub(super) struct Transposed(pub(super) Box<dyn Stored>);

impl Stored for Transposed {
    fn extent(&self) -> [u64; 3] {
        let [count, rows, columns] = self.0.extent();
        [count, columns, rows]
    }

    fn read(&self, source: &Source, matrix: u64, rows: Range<u64>, out: &mut [f32]) -> Result<()> {
        let [_, inner_rows, inner_columns] = self.0.extent();
        let (width, height) = (inner_columns as usize, (rows.end - rows.start) as usize);
        let mut line = vec![0.0; width];
        for column in 0..inner_rows {
            self.0.read(source, matrix, column..column + 1, &mut line)?;
            let wanted = &line[rows.start as usize..][..height];
            for (row, value) in wanted.iter().enumerate() {
                out[row * inner_rows as usize + column as usize] = *value;
            }
        }
        Ok(())
    }

    fn dtype(&self) -> DType {
        self.0.dtype()
    }

    fn is_column_major(&self) -> bool {
        true
    }

    fn tensors(&self) -> Vec<&TensorInfo> {
        self.0.tensors()
    }
}

/// Decodes `count` elements of a tensor from element `first`; both on block boundaries.
pub(super) fn decode(
    source: &Source,
    tensor: &TensorInfo,
    first: u64,
    count: u64,
    out: &mut [f32],
) -> Result<()> {
    let bytes = elements(source, tensor, first, count)?;
    let problem = |problem: String| Error::Tensor { name: tensor.name.clone(), problem };
    if out.len() as u64 != count {
        return Err(problem(format!("{} numbers asked for where {count} are read", out.len())));
    }
    if tensor.dtype == DType::I8 {
        for (out, byte) in out.iter_mut().zip(bytes) {
            *out = f32::from(byte.cast_signed());
        }
        return Ok(());
    }
    drophammer_quant::dequantize(tensor.dtype, bytes, out).map_err(|error| problem(error.to_string()))
}

/// The bytes of `count` elements from element `first`; both on block boundaries.
pub(super) fn elements<'a>(
    source: &'a Source,
    tensor: &TensorInfo,
    first: u64,
    count: u64,
) -> Result<&'a [u8]> {
    let range = || {
        let begin = tensor.dtype.bytes_for(first)?;
        let end = begin.checked_add(tensor.dtype.bytes_for(count)?)?;
        source.bytes(tensor).get(usize::try_from(begin).ok()?..usize::try_from(end).ok()?)
    };
    range().ok_or_else(|| Error::Tensor {
        name: tensor.name.clone(),
        problem: format!("elements {first}..{} are not in it", first.saturating_add(count)),
    })
}
