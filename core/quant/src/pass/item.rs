//! What a pass works on: a source of rows, an encoder, and the outputs it fills.

use std::ops::Range;
use std::sync::Arc;

use drophammer_formats::TensorDecl;

use super::error::PassError;
use crate::codec::Codec;
use crate::compensate::Compensator;

/// An error of a source or an encoder.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Gives a tensor's rows as floats, any range at any time, from any thread.
///
/// Closures `Fn(Range<u64>, &mut [f32]) -> Result<(), BoxError>` are row sources.
pub trait RowSource: Send + Sync {
    /// Fills `out` (rows × columns values) with these rows.
    ///
    /// # Errors
    /// Whatever keeps the rows from being read; the pass names tensor and rows.
    fn read(&self, rows: Range<u64>, out: &mut [f32]) -> Result<(), BoxError>;

    /// These rows will not be asked for again: memory mapped for them may be given back.
    fn release(&self, rows: Range<u64>) {
        let _ = rows;
    }
}

impl<F: Fn(Range<u64>, &mut [f32]) -> Result<(), BoxError> + Send + Sync> RowSource for F {
    fn read(&self, rows: Range<u64>, out: &mut [f32]) -> Result<(), BoxError> {
        self(rows, out)
    }
}

/// Gives a tensor's bytes unchanged, any range at any time, from any thread.
pub trait ByteSource: Send + Sync {
    /// Fills `out` with these bytes.
    ///
    /// # Errors
    /// Whatever keeps the bytes from being read.
    fn read(&self, bytes: Range<u64>, out: &mut [u8]) -> Result<(), BoxError>;

    /// These bytes will not be asked for again: memory mapped for them may be given back.
    fn release(&self, bytes: Range<u64>) {
        let _ = bytes;
    }
}

/// Bytes at hand, such as a small tensor computed beforehand.
impl ByteSource for Vec<u8> {
    fn read(&self, bytes: Range<u64>, out: &mut [u8]) -> Result<(), BoxError> {
        let slice = self.get(bytes.start as usize..bytes.end as usize).ok_or("bytes outside the tensor")?;
        out.copy_from_slice(slice);
        Ok(())
    }
}

/// Makes the outputs' bytes of some rows. The bytes of a row must not depend on which other rows come along.
pub trait Encoder: Send + Sync {
    /// How many rows belong together: chunks begin at multiples of it. 1 unless a format packs rows into one
    /// another.
    fn row_group(&self) -> u64 {
        1
    }

    /// Bytes that it holds while its rows are being encoded.
    fn memory(&self) -> u64 {
        0
    }

    /// Encodes `rows` (finite values; rows × columns) that begin at `first_row`, into one slice per output.
    ///
    /// # Errors
    /// Whatever makes these rows impossible to encode.
    fn encode(&self, first_row: u64, rows: &[f32], outputs: &mut [&mut [u8]]) -> Result<(), BoxError>;
}

/// One output tensor of an item.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Output {
    /// Its index in the [`TensorSink`](super::TensorSink).
    pub tensor: usize,
    /// Bytes that [`Encoder::row_group`] rows take in it.
    pub group_bytes: u64,
}

pub(super) enum Work<'a> {
    Copy(Box<dyn ByteSource + 'a>),
    Encode { source: Box<dyn RowSource + 'a>, encoder: Box<dyn Encoder + 'a>, columns: u64 },
}

/// One unit of a pass: some rows in, one or more output tensors out.
pub struct Item<'a> {
    pub(super) name: String,
    /// Rows; for copied bytes, bytes.
    pub(super) rows: u64,
    pub(super) work: Work<'a>,
    pub(super) outputs: Vec<Output>,
}

impl<'a> Item<'a> {
    /// Rows encoded as the output's own type, the usual case. `tensor` is the output's index in the sink and
    /// `decl` what it was planned as; the source's rows are all its dimensions but the innermost.
    ///
    /// # Errors
    /// [`PassError::Unsupported`] for types without a codec, [`PassError::Layout`] for rows that do not fill
    /// blocks, [`PassError::Importance`] for importance of other rows.
    pub fn quantize(
        tensor: usize,
        decl: &TensorDecl,
        source: impl RowSource + 'a,
        importance: Option<Importance>,
    ) -> Result<Self, PassError> {
        Self::quantize_compensated(tensor, decl, source, importance, None)
    }

    /// [`Item::quantize`] with rounding errors made up for, where somebody can.
    ///
    /// # Errors
    /// As for [`Item::quantize`]; [`PassError::Importance`] also for a compensator of other columns.
    pub fn quantize_compensated(
        tensor: usize,
        decl: &TensorDecl,
        source: impl RowSource + 'a,
        importance: Option<Importance>,
        compensator: Option<Compensator>,
    ) -> Result<Self, PassError> {
        let unsupported = || PassError::Unsupported { tensor: decl.name.clone(), dtype: decl.dtype };
        let codec = crate::codec(decl.dtype).ok_or_else(unsupported)?;
        decl.byte_len()?;
        let columns = decl.shape.last().copied().unwrap_or(1);
        let rows = decl.shape.split_last().map_or(1, |(_, outer)| outer.iter().product());
        if let Some(importance) = &importance {
            importance.check(&decl.name, rows, columns)?;
        }
        let group_bytes = decl.dtype.bytes_for(columns).ok_or_else(unsupported)?;
        let compensator = compensator.filter(|_| codec.top_code() > 0);
        if let Some(other) = compensator.as_ref().filter(|it| it.columns() as u64 != columns) {
            let problem = format!("products of {} columns do not fit {columns}", other.columns());
            return Err(PassError::Importance { tensor: decl.name.clone(), problem });
        }
        let compensator = compensator.map(|compensator| compensator.of_rows(rows));
        let encoder = CodecEncoder { codec, columns, rows, importance, compensator };
        let outputs = vec![Output { tensor, group_bytes }];
        Ok(Self::encode(&decl.name, [rows, columns], source, encoder, outputs))
    }

    /// Bytes copied as they are.
    ///
    /// # Errors
    /// [`PassError::Layout`] for an impossible shape.
    pub fn copy(tensor: usize, decl: &TensorDecl, source: impl ByteSource + 'a) -> Result<Self, PassError> {
        Ok(Self {
            name: decl.name.clone(),
            rows: decl.byte_len()?,
            work: Work::Copy(Box::new(source)),
            outputs: vec![Output { tensor, group_bytes: 1 }],
        })
    }

    /// Rows and columns encoded in any way, into any number of outputs (packed weights beside their scales).
    pub fn encode(
        name: &str,
        [rows, columns]: [u64; 2],
        source: impl RowSource + 'a,
        encoder: impl Encoder + 'a,
        outputs: Vec<Output>,
    ) -> Self {
        let work = Work::Encode { source: Box::new(source), encoder: Box::new(encoder), columns };
        Self { name: name.to_owned(), rows, work, outputs }
    }

    /// The tensor's name, as messages give it.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn row_group(&self) -> u64 {
        match &self.work {
            Work::Copy(_) => 1,
            Work::Encode { encoder, .. } => encoder.row_group().max(1),
        }
    }

    /// Bytes of buffers that so many rows need.
    pub(super) fn chunk_memory(&self, rows: u64) -> u64 {
        let groups = rows.div_ceil(self.row_group());
        let outputs = self.outputs.iter().map(|output| output.group_bytes.saturating_mul(groups));
        let floats = match &self.work {
            Work::Copy(_) => 0,
            Work::Encode { columns, .. } => rows.saturating_mul(*columns).saturating_mul(4),
        };
        outputs.fold(floats, u64::saturating_add)
    }

    /// Bytes that the encoder holds while its rows are being encoded.
    pub(super) fn encoder_memory(&self) -> u64 {
        match &self.work {
            Work::Copy(_) => 0,
            Work::Encode { encoder, .. } => encoder.memory(),
        }
    }

    /// Bytes of one output.
    pub(super) fn output_bytes(&self, output: Output) -> Option<u64> {
        self.rows.div_ceil(self.row_group()).checked_mul(output.group_bytes)
    }
}

/// How much each column of a tensor matters: one weight per column, or per matrix and column for stacked matrices
/// (experts), the matrix outermost.
#[derive(Debug, Clone, PartialEq)]
pub struct Importance(pub Arc<[f32]>);

impl Importance {
    fn check(&self, tensor: &str, rows: u64, columns: u64) -> Result<(), PassError> {
        let problem = |problem: String| Err(PassError::Importance { tensor: tensor.to_owned(), problem });
        let len = self.0.len() as u64;
        if columns == 0 || len == 0 || !len.is_multiple_of(columns) || !rows.is_multiple_of(len / columns) {
            return problem(format!(
                "importance of {len} values does not fit {rows} rows of {columns} columns"
            ));
        }
        if let Some(index) = self.0.iter().position(|weight| !weight.is_finite() || *weight < 0.0) {
            return problem(format!(
                "importance {index} is {}: it must be finite and not negative",
                self.0[index]
            ));
        }
        Ok(())
    }
}

/// Encodes rows with a [`Codec`].
pub struct CodecEncoder {
    codec: &'static dyn Codec,
    columns: u64,
    rows: u64,
    importance: Option<Importance>,
    compensator: Option<Compensator>,
}

impl Encoder for CodecEncoder {
    fn memory(&self) -> u64 {
        self.compensator.as_ref().map_or(0, Compensator::memory)
    }

    fn encode(&self, first_row: u64, rows: &[f32], outputs: &mut [&mut [u8]]) -> Result<(), BoxError> {
        let [out] = outputs else { return Err("a codec fills one output".into()) };
        self.encode_plainly(first_row, rows, out);
        if let Some(compensator) = &self.compensator {
            compensator.improve(self.codec, rows, out)?;
        }
        Ok(())
    }
}

impl CodecEncoder {
    fn encode_plainly(&self, first_row: u64, rows: &[f32], out: &mut [u8]) {
        let Some(Importance(importance)) = &self.importance else {
            self.codec.encode(rows, None, out);
            return;
        };
        let columns = self.columns as usize;
        let matrices = importance.len() / columns;
        let rows_per_matrix = (self.rows as usize / matrices).max(1);
        let row_bytes = out.len() / (rows.len() / columns).max(1);
        let (mut row, mut rest, mut out) = (first_row as usize, rows, out);
        while !rest.is_empty() {
            let until_next = rows_per_matrix - row % rows_per_matrix;
            let count = until_next.min(rest.len() / columns);
            let (now, later) = rest.split_at(count * columns);
            let (bytes, bytes_later) = out.split_at_mut(count * row_bytes);
            let matrix = row / rows_per_matrix;
            self.codec.encode(now, Some(&importance[matrix * columns..(matrix + 1) * columns]), bytes);
            (row, rest, out) = (row + count, later, bytes_later);
        }
    }
}
