//! Rows and bytes of an open [`Source`]'s tensors, mapped pages given back behind the pass.

use std::ops::Range;

use drophammer_formats::{Source, TensorInfo};

use super::error::PassError;
use super::item::{BoxError, ByteSource, RowSource};
use crate::codec::Codec;

/// How far ahead of what is being read the disk is asked to read, in bytes. Page faults alone would wait for the
/// disk every few pages.
const READ_AHEAD: u64 = 8 << 20;

/// The rows of a tensor, decoded from its own type.
pub struct SourceRows<'a> {
    source: &'a Source,
    tensor: &'a TensorInfo,
    codec: &'static dyn Codec,
    row_bytes: u64,
}

impl<'a> SourceRows<'a> {
    /// The rows of a tensor of `source`.
    ///
    /// # Errors
    /// [`PassError::Unsupported`] for types that are no weights.
    pub fn new(source: &'a Source, tensor: &'a TensorInfo) -> Result<Self, PassError> {
        let unsupported = || PassError::Unsupported { tensor: tensor.name.clone(), dtype: tensor.dtype };
        let codec = crate::codec(tensor.dtype).ok_or_else(unsupported)?;
        let row_bytes = tensor.dtype.bytes_for(tensor.row_elements()).ok_or_else(unsupported)?;
        Ok(Self { source, tensor, codec, row_bytes })
    }

    fn bytes(&self, rows: &Range<u64>) -> Range<u64> {
        rows.start * self.row_bytes..rows.end * self.row_bytes
    }
}

impl RowSource for SourceRows<'_> {
    fn read(&self, rows: Range<u64>, out: &mut [f32]) -> Result<(), BoxError> {
        let range = self.bytes(&rows);
        self.source.prefetch(self.tensor, range.start..range.end + READ_AHEAD);
        let bytes = self.source.bytes(self.tensor).get(range.start as usize..range.end as usize);
        self.codec.decode(bytes.ok_or("rows outside the tensor")?, out);
        Ok(())
    }

    fn release(&self, rows: Range<u64>) {
        self.source.release(self.tensor, self.bytes(&rows));
    }
}

/// The bytes of a tensor as they are.
pub struct SourceBytes<'a> {
    source: &'a Source,
    tensor: &'a TensorInfo,
}

impl<'a> SourceBytes<'a> {
    /// The bytes of a tensor of `source`.
    pub fn new(source: &'a Source, tensor: &'a TensorInfo) -> Self {
        Self { source, tensor }
    }
}

impl ByteSource for SourceBytes<'_> {
    fn read(&self, bytes: Range<u64>, out: &mut [u8]) -> Result<(), BoxError> {
        self.source.prefetch(self.tensor, bytes.start..bytes.end + READ_AHEAD);
        let slice = self.source.bytes(self.tensor).get(bytes.start as usize..bytes.end as usize);
        out.copy_from_slice(slice.ok_or("bytes outside the tensor")?);
        Ok(())
    }

    fn release(&self, bytes: Range<u64>) {
        self.source.release(self.tensor, bytes);
    }
}
