//! Where a module's rows come from, and how they become bytes.

use std::ops::Range;

use drophammer_formats::DType;
use drophammer_quant::grouped::mlx::Matrix;
use drophammer_quant::pass::{BoxError, Encoder, RowSource};

use super::{Member, Module};
use crate::checkpoint::Checkpoint;
use crate::names::Rows;
use crate::weight::{Part, Role};

/// A module's rows as floats, as the source's ecosystem stores them.
pub(super) struct Floats<'a> {
    checkpoint: &'a Checkpoint,
    module: &'a Module,
    /// Taken off every number: what the family's norms store less than they mean.
    offset: f32,
}

impl<'a> Floats<'a> {
    pub(super) fn new(checkpoint: &'a Checkpoint, module: &'a Module) -> Self {
        let norm = module.id.is_vector()
            && module.id.part == Part::Weight
            && !matches!(module.id.role, Role::AttentionSinks | Role::RouterCorrection);
        Self { checkpoint, module, offset: if norm { checkpoint.family().norm_offset } else { 0.0 } }
    }
}

impl RowSource for Floats<'_> {
    fn read(&self, rows: Range<u64>, out: &mut [f32]) -> Result<(), BoxError> {
        if let [member] = self.module.members.as_slice()
            && member.rows.block == member.rows.stride
            && let weight = self.checkpoint.weight(member.id)?
            && weight.shape().iter().product::<u64>() == self.module.elements()
        {
            // Biases of stacks are vectors of several rows.
            let rows = if self.module.is_vector() { 0..weight.rows() } else { rows };
            // Where the source stores as little as is written, nothing is added and taken off again, which would round.
            weight.read_stored(rows, out)?;
            let shift = weight.offset() - self.offset;
            if shift != 0.0 {
                for value in out {
                    *value += shift;
                }
            }
            return Ok(());
        }
        let vector = self.module.is_vector();
        // Inside, vectors have one number per row.
        let (rows, columns) = if vector { (0..out.len() as u64, 1) } else { (rows, self.module.columns()) };
        let (mut row, mut out) = (rows.start, out);
        while row < rows.end {
            let (member, first, count) = self.run(row, rows.end).ok_or("rows outside the tensor")?;
            let (now, rest) = out.split_at_mut((count * columns) as usize);
            let weight = self.checkpoint.weight(member.id)?;
            if vector {
                let values = weight.to_vec()?;
                now.copy_from_slice(
                    values.get(first as usize..(first + count) as usize).ok_or("a short vector")?,
                );
            } else {
                weight.read(first..first + count, now)?;
            }
            (row, out) = (row + count, rest);
        }
        Ok(())
    }

    fn release(&self, rows: Range<u64>) {
        if let [member] = self.module.members.as_slice()
            && let Ok(weight) = self.checkpoint.weight(member.id)
        {
            weight.release_rows(rows);
        }
    }
}

impl Floats<'_> {
    /// The member that holds a row of the module, where in it, and how many rows follow there.
    fn run(&self, row: u64, end: u64) -> Option<(&Member, u64, u64)> {
        self.module.members.iter().find_map(|member| {
            let Rows { block, stride, offset, .. } = member.rows;
            let within = (row % stride).checked_sub(offset).filter(|within| *within < block)?;
            let first = member.first + row / stride * block + within;
            Some((member, first, (block - within).min(end - row)))
        })
    }
}

/// Plain numbers.
pub(super) struct PlainEncoder(pub(super) DType);

impl Encoder for PlainEncoder {
    fn encode(&self, _: u64, rows: &[f32], outputs: &mut [&mut [u8]]) -> Result<(), BoxError> {
        let [out] = outputs else { return Err("plain numbers fill one tensor".into()) };
        let codec = drophammer_quant::codec(self.0).ok_or("no codec")?;
        codec.encode(rows, None, out);
        Ok(())
    }
}

/// Codes, scales and biases, from rows rounded to the type that is kept unpacked.
pub(super) struct PackEncoder {
    pub(super) matrix: Matrix,
    pub(super) base: DType,
}

impl Encoder for PackEncoder {
    fn encode(&self, _: u64, rows: &[f32], outputs: &mut [&mut [u8]]) -> Result<(), BoxError> {
        let rounded = round(rows, self.base);
        let rows = rounded.as_deref().unwrap_or(rows);
        match outputs {
            [weight, scales] => self.matrix.encode(rows, weight, scales, &mut []),
            [weight, scales, biases] => self.matrix.encode(rows, weight, scales, biases),
            _ => return Err("packed matrices fill two or three tensors".into()),
        }
        Ok(())
    }
}

/// Rows rounded to a float type; `None` where they already are.
fn round(rows: &[f32], base: DType) -> Option<Vec<f32>> {
    match base {
        DType::BF16 => {
            let low = rows.iter().fold(0, |low, x| low | x.to_bits() & 0xffff);
            (low != 0).then(|| {
                let nearest = |bits: u32| bits.wrapping_add(0x7fff + (bits >> 16 & 1)) & 0xffff_0000;
                rows.iter().map(|x| f32::from_bits(nearest(x.to_bits()))).collect()
            })
        }
        DType::F16 => {
            let codec = drophammer_quant::codec(DType::F16)?;
            let mut bytes = vec![0; rows.len() * 2];
            codec.encode(rows, None, &mut bytes);
            let mut rounded = vec![0.0; rows.len()];
            codec.decode(&bytes, &mut rounded);
            Some(rounded)
        }
        _ => None,
    }
}
