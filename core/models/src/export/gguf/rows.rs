//! Where the rows of an output tensor come from.

use std::ops::Range;

use drophammer_formats::DType;
use drophammer_quant::pass::{BoxError, ByteSource, RowSource};

use crate::checkpoint::{Blocks, Checkpoint};
use crate::error::Error;
use crate::weight::WeightId;

/// What a tensor holds.
#[derive(Debug)]
pub(super) enum Content {
    /// A weight, without its first rows.
    Rows { id: WeightId, skip: u64 },
    /// Several weights, one after another; as vectors, end to end in one row.
    Joined { ids: Vec<WeightId>, vector: bool },
    /// A weight of `plain` rows per head, each head's transposed.
    Transposed { id: WeightId, plain: u64 },
    /// These numbers.
    Values(Vec<f32>),
}

impl Content {
    /// The weights whose rows these are, with the columns they have in the model; `None` where columns are other ones.
    pub(super) fn matrices(&self) -> Option<&[WeightId]> {
        match self {
            Content::Rows { id, .. } => Some(std::slice::from_ref(id)),
            Content::Joined { ids, vector: false } => Some(ids),
            Content::Joined { .. } | Content::Transposed { .. } | Content::Values(_) => None,
        }
    }

    pub(super) fn rows<'a>(&'a self, checkpoint: &'a Checkpoint) -> Rows<'a> {
        Rows { checkpoint, content: self }
    }

    /// The source's bytes, where it stores all of the tensor as `dtype`.
    pub(super) fn copy<'a>(&'a self, checkpoint: &'a Checkpoint, dtype: DType) -> Option<Bytes<'a>> {
        let Content::Rows { id, skip } = self else { return None };
        let weight = checkpoint.weight(*id).ok()?;
        let blocks = weight.blocks().filter(|blocks| blocks.dtype() == dtype && !id.is_vector())?;
        // Plain numbers may be NaN; only an encoder looks at them.
        dtype.is_block().then_some(Bytes { blocks, skip: *skip })
    }
}

/// Rows as floats.
pub(super) struct Rows<'a> {
    checkpoint: &'a Checkpoint,
    content: &'a Content,
}

impl RowSource for Rows<'_> {
    fn read(&self, rows: Range<u64>, out: &mut [f32]) -> Result<(), BoxError> {
        match self.content {
            Content::Rows { id, skip } => {
                let weight = self.checkpoint.weight(*id)?;
                weight.read(rows.start + skip..rows.end + skip, out)?;
            }
            Content::Joined { ids, vector: true } => {
                let mut values = Vec::with_capacity(out.len());
                for id in ids {
                    values.extend(self.checkpoint.weight(*id)?.to_vec()?);
                }
                fill(out, &values)?;
            }
            Content::Joined { ids, vector: false } => self.joined(ids, rows, out)?,
            Content::Transposed { id, plain } => self.transposed(*id, *plain, rows, out)?,
            Content::Values(values) => fill(out, values)?,
        }
        Ok(())
    }

    fn release(&self, rows: Range<u64>) {
        match self.content {
            Content::Rows { id, skip } => {
                if let Ok(weight) = self.checkpoint.weight(*id) {
                    weight.release_rows(rows.start + skip..rows.end + skip);
                }
            }
            Content::Joined { ids, vector: false } => {
                let mut first = 0;
                for weight in ids.iter().filter_map(|id| self.checkpoint.weight(*id).ok()) {
                    let end = first + weight.rows();
                    let (from, to) = (rows.start.max(first), rows.end.min(end));
                    if from < to {
                        weight.release_rows(from - first..to - first);
                    }
                    first = end;
                }
            }
            Content::Transposed { id, plain } => {
                if let Ok(weight) = self.checkpoint.weight(*id) {
                    let columns = weight.columns().max(1);
                    weight.release_rows(rows.start / columns * plain..rows.end.div_ceil(columns) * plain);
                }
            }
            Content::Joined { vector: true, .. } | Content::Values(_) => {}
        }
    }
}

impl Rows<'_> {
    fn joined(&self, ids: &[WeightId], rows: Range<u64>, mut out: &mut [f32]) -> Result<(), Error> {
        let mut first = 0;
        for id in ids {
            let weight = self.checkpoint.weight(*id)?;
            let end = first + weight.rows();
            let (from, to) = (rows.start.max(first), rows.end.min(end));
            if from < to {
                let (now, rest) = out.split_at_mut(((to - from) * weight.columns()) as usize);
                weight.read(from - first..to - first, now)?;
                out = rest;
            }
            first = end;
        }
        Ok(())
    }

    fn transposed(&self, id: WeightId, plain: u64, rows: Range<u64>, out: &mut [f32]) -> Result<(), Error> {
        let weight = self.checkpoint.weight(id)?;
        let (columns, height) = (weight.columns(), plain as usize);
        let mut matrix = vec![0.0; height * columns as usize];
        let mut held = None;
        for (row, out) in rows.zip(out.chunks_exact_mut(height)) {
            let (head, column) = (row / columns, (row % columns) as usize);
            if held != Some(head) {
                weight.read(head * plain..(head + 1) * plain, &mut matrix)?;
                held = Some(head);
            }
            for (i, value) in out.iter_mut().enumerate() {
                *value = matrix[i * columns as usize + column];
            }
        }
        Ok(())
    }
}

fn fill(out: &mut [f32], values: &[f32]) -> Result<(), BoxError> {
    if out.len() != values.len() {
        return Err(format!("{} numbers where {} belong", values.len(), out.len()).into());
    }
    out.copy_from_slice(values);
    Ok(())
}

/// Rows as the source's bytes.
pub(super) struct Bytes<'a> {
    blocks: Blocks<'a>,
    skip: u64,
}

impl ByteSource for Bytes<'_> {
    fn read(&self, bytes: Range<u64>, out: &mut [u8]) -> Result<(), BoxError> {
        let width = self.blocks.row_bytes() as u64;
        let (mut at, mut out) = (bytes.start, out);
        while !out.is_empty() {
            let row = self.blocks.row(at / width + self.skip).ok_or("bytes outside the tensor")?;
            let row = &row[(at % width) as usize..];
            let count = row.len().min(out.len());
            let (now, rest) = out.split_at_mut(count);
            now.copy_from_slice(&row[..count]);
            at += count as u64;
            out = rest;
        }
        Ok(())
    }
}
