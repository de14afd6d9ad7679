//! Tensors as files describe them.

use serde::Serialize;

use crate::DType;
use crate::error::Fault;

/// Most dimensions a tensor may have; no known model exceeds five.
pub(crate) const MAX_DIMENSIONS: usize = 16;

/// A tensor to be written: everything but its data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TensorDecl {
    /// The name in the file.
    pub name: String,
    /// How elements are stored.
    pub dtype: DType,
    /// Dimensions, outermost first (row-major); empty for a scalar.
    pub shape: Vec<u64>,
}

impl TensorDecl {
    /// A tensor of this name, type and shape (outermost dimension first).
    pub fn new(name: impl Into<String>, dtype: DType, shape: impl Into<Vec<u64>>) -> Self {
        Self { name: name.into(), dtype, shape: shape.into() }
    }

    /// Bytes of the tensor's data.
    ///
    /// # Errors
    /// [`Fault::Shape`] for too many dimensions, a size beyond 64 bits, or rows that do not fill whole blocks.
    pub fn byte_len(&self) -> Result<u64, Fault> {
        checked_byte_len(&self.name, self.dtype, &self.shape)
    }
}

/// A tensor in an open [`Source`](crate::Source): checked to lie inside its file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TensorInfo {
    /// The name in the file.
    pub name: String,
    /// How elements are stored.
    pub dtype: DType,
    /// Dimensions, outermost first (row-major); empty for a scalar.
    pub shape: Vec<u64>,
    /// Which of the source's files holds it.
    pub(crate) file: usize,
    /// Where its data begins, in bytes from the file's start.
    pub(crate) offset: u64,
    /// Bytes of its data.
    pub(crate) len: u64,
}

impl TensorInfo {
    /// How many elements it has.
    pub fn elements(&self) -> u64 {
        self.shape.iter().product()
    }

    /// Elements of one row: the innermost dimension, 1 for a scalar.
    pub fn row_elements(&self) -> u64 {
        self.shape.last().copied().unwrap_or(1)
    }

    /// How many rows it has: the product of all dimensions but the innermost.
    pub fn rows(&self) -> u64 {
        self.shape.split_last().map_or(1, |(_, outer)| outer.iter().product())
    }

    /// Bytes of its data.
    pub fn byte_len(&self) -> u64 {
        self.len
    }

    /// Index into [`Source::files`](crate::Source::files).
    pub fn file_index(&self) -> usize {
        self.file
    }

    /// Where its data begins, in bytes from its file's start.
    pub fn file_offset(&self) -> u64 {
        self.offset
    }

    /// What a writer needs to make the same tensor.
    pub fn decl(&self) -> TensorDecl {
        TensorDecl { name: self.name.clone(), dtype: self.dtype, shape: self.shape.clone() }
    }
}

/// Bytes of a tensor of this type and shape, every multiplication checked.
pub(crate) fn checked_byte_len(name: &str, dtype: DType, shape: &[u64]) -> Result<u64, Fault> {
    let fault = |problem: String| Fault::Shape { tensor: name.to_owned(), shape: shape.to_vec(), problem };
    if shape.len() > MAX_DIMENSIONS {
        // The shape itself came from the file: do not repeat thousands of numbers in the message.
        return Err(Fault::Shape {
            tensor: name.to_owned(),
            shape: shape[..MAX_DIMENSIONS].to_vec(),
            problem: format!("{} dimensions, more than {MAX_DIMENSIONS}", shape.len()),
        });
    }
    let elements = shape
        .iter()
        .try_fold(1u64, |product, &dimension| product.checked_mul(dimension))
        .ok_or_else(|| fault("more elements than 64 bits can count".into()))?;
    // An outer product may overflow although an inner zero makes the whole zero; such a shape is refused too,
    // because `rows()` multiplies the outer dimensions alone.
    shape
        .iter()
        .filter(|&&dimension| dimension != 0)
        .try_fold(1u64, |product, &dimension| product.checked_mul(dimension))
        .ok_or_else(|| fault("dimensions whose product 64 bits cannot hold".into()))?;
    let row = shape.last().copied().unwrap_or(1);
    if row % dtype.block_elements() as u64 != 0 {
        return Err(fault(format!(
            "rows do not fill whole {dtype} blocks of {} elements",
            dtype.block_elements()
        )));
    }
    dtype.bytes_for(elements).ok_or_else(|| fault("more bytes than 64 bits can count".into()))
}

/// Checks that tensors do not share bytes; `strict` also refuses unclaimed bytes between and after them.
///
/// `spans` are (begin, end, index) in any order, `names` gives an index its tensor name.
pub(crate) fn check_spans<'a>(
    spans: &mut [(u64, u64, usize)],
    names: impl Fn(usize) -> &'a str,
    strict: Option<(u64, u64)>,
) -> Result<(), Fault> {
    spans.sort_unstable();
    let mut last: Option<(u64, usize)> = None;
    for &(begin, end, index) in spans.iter() {
        if begin == end {
            continue; // an empty tensor claims no bytes, wherever it says it lies
        }
        if let Some((last_end, last_index)) = last
            && begin < last_end
        {
            return Err(Fault::Overlap {
                first: names(last_index).to_owned(),
                second: names(index).to_owned(),
                offset: begin,
            });
        }
        if let Some((start, _)) = strict {
            let expected = last.map_or(start, |(last_end, _)| last_end);
            if begin > expected {
                return Err(Fault::Unclaimed { begin: expected, end: begin });
            }
        }
        last = Some((end, index));
    }
    if let Some((start, file_end)) = strict {
        let claimed = last.map_or(start, |(last_end, _)| last_end);
        if claimed < file_end {
            return Err(Fault::Unclaimed { begin: claimed, end: file_end });
        }
    }
    Ok(())
}
