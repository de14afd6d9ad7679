//! From a checkpoint's rows to the data file's tensors.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use drophammer_formats::{DType, TensorDecl};
use drophammer_quant::channels;
use drophammer_quant::compensate::{Compensator, Products};
use drophammer_quant::grouped::{self, Fit, Format, Levels, ScaleType};
use drophammer_quant::pass::{BoxError, Encoder, Importance, Item, Output, PassError, RowSource};

use super::qdq::Encoding;
use super::scheme::Storage;
use crate::checkpoint::Checkpoint;
use crate::names;
use crate::weight::WeightId;

/// Activation statistics by GGUF's tensor names.
pub type Importances = BTreeMap<String, Importance>;

/// Products of what matrices are multiplied with, by the value's name in the graph.
pub type Inputs = BTreeMap<String, Arc<Products>>;

/// Another initializer of the same bytes, of another shape.
#[derive(Debug)]
pub(super) struct Alias {
    /// Its index in the graph.
    pub(super) initializer: usize,
    /// Whose bytes: a place of the layout.
    pub(super) of: usize,
}

/// Which rows of a weight a matrix has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Part {
    /// All: the weight is one matrix.
    Whole,
    /// Those of one matrix of a stack: which one of how many.
    Expert(u32, u32),
    /// Those of a whole stack of so many matrices, in turns with another's of the same shape where one is named.
    Stack(u32, Option<WeightId>),
}

/// One matrix, one of a stack, or a stack that is read as one.
#[derive(Debug)]
pub(super) struct Matrix {
    pub(super) id: WeightId,
    pub(super) part: Part,
    pub(super) rows: u64,
    pub(super) columns: u64,
    pub(super) storage: Storage,
    /// Places of the layout: the numbers; for blocks codes, scales and perhaps zero points.
    pub(super) outputs: Vec<usize>,
    /// The encoding of the whole matrix, where it has one.
    pub(super) encoding: Option<Encoding>,
}

impl Matrix {
    /// How many matrices of the model it holds.
    pub(super) fn count(&self) -> u64 {
        match self.part {
            Part::Whole | Part::Expert(..) => 1,
            Part::Stack(count, beside) => u64::from(count) * if beside.is_some() { 2 } else { 1 },
        }
    }

    fn source<'a>(&self, checkpoint: &'a Checkpoint) -> Rows<'a> {
        let (skip, beside) = match self.part {
            Part::Whole => (0, None),
            Part::Expert(number, _) => (u64::from(number) * self.rows, None),
            Part::Stack(_, beside) => (0, beside),
        };
        Rows { checkpoint, id: self.id, skip, beside }
    }

    pub(super) fn item<'a>(
        &self,
        checkpoint: &'a Checkpoint,
        importances: &Importances,
        products: Option<Arc<Products>>,
    ) -> Result<Item<'a>, PassError> {
        let rows = self.source(checkpoint);
        let name = match self.part {
            Part::Expert(number, _) => format!("{} of expert {number}", self.id),
            Part::Stack(_, Some(beside)) => format!("{} and {beside}", self.id),
            Part::Whole | Part::Stack(_, None) => self.id.to_string(),
        };
        let output = self.outputs.first().copied().unwrap_or_default();
        match self.storage {
            Storage::Float(dtype) => {
                let decl = TensorDecl::new(&name, dtype, vec![self.rows, self.columns]);
                Item::quantize(output, &decl, rows, None)
            }
            Storage::Blocks { bits, block, symmetric } => {
                let levels = if symmetric { Levels::Signed { bits } } else { Levels::ZeroPoint { bits } };
                let importance = self.importance(checkpoint, importances)?;
                let told = importance.as_ref().map_or(1, |all| all.len() as u64 / self.columns.max(1));
                let encoder = Blocks {
                    format: Format { levels, group: Some(block), scale: ScaleType::F32 },
                    columns: self.columns as usize,
                    rows: (self.rows / told.max(1)).max(1) as usize,
                    importance,
                };
                let groups = (self.columns / u64::from(block)) as usize;
                let bytes = [
                    grouped::packed_bytes(self.columns as usize, bits.into()),
                    groups * 4,
                    grouped::packed_bytes(groups, bits.into()),
                ];
                let outputs = self.outputs.iter().zip(bytes);
                let outputs =
                    outputs.map(|(&tensor, bytes)| Output { tensor, group_bytes: bytes as u64 }).collect();
                Ok(Item::encode(&name, [self.rows, self.columns], rows, encoder, outputs))
            }
            Storage::Channels { bits } => {
                let importance = self.importance(checkpoint, importances)?;
                let columns = self.columns as usize;
                let compensator = products.map(|products| {
                    Compensator::new(columns, move || Ok(products.as_ref().clone())).of_rows(self.rows)
                });
                let encoder = Channels { bits, columns, importance, compensator };
                // An odd number of nibbles fills up a byte with the next row's first.
                let group = encoder.row_group();
                let bytes = [self.columns * group * u64::from(bits) / 8, 4 * group];
                let outputs = self.outputs.iter().zip(bytes);
                let outputs = outputs.map(|(&tensor, group_bytes)| Output { tensor, group_bytes }).collect();
                Ok(Item::encode(&name, [self.rows, self.columns], rows, encoder, outputs))
            }
            Storage::Even { bits } => {
                let encoding = self.encoding.unwrap_or_default();
                let group_bytes = self.columns * u64::from(bits) / 8;
                let outputs = vec![Output { tensor: output, group_bytes }];
                Ok(Item::encode(&name, [self.rows, self.columns], rows, encoding, outputs))
            }
        }
    }

    /// This matrix's part of the statistics, where its columns are those that they tell of: a row, or one for each matrix of a stack.
    fn importance(
        &self,
        checkpoint: &Checkpoint,
        importances: &Importances,
    ) -> Result<Option<Arc<[f32]>>, PassError> {
        if checkpoint.weight(self.id).is_ok_and(|weight| weight.mixes_columns()) {
            return Ok(None);
        }
        let mut places = names::gguf::NAMES.iter().filter(|(role, _)| *role == self.id.role);
        let found = places.find_map(|(_, place)| {
            importances.get(&format!("{}{}", place.module(self.id.layer, 0), place.suffix(self.id.part)))
        });
        let Some(Importance(values)) = found else { return Ok(None) };
        let columns = self.columns as usize;
        let (begin, length) = match self.part {
            Part::Expert(number, _) if values.len() > columns => (number as usize * columns, columns),
            Part::Stack(count, _) if values.len() > columns => (0, count as usize * columns),
            _ => (0, columns),
        };
        let part = values.get(begin..begin + length).ok_or_else(|| PassError::Importance {
            tensor: self.id.to_string(),
            problem: format!("importance of {} values does not fit {columns} columns", values.len()),
        })?;
        Ok(Some(Arc::from(part)))
    }
}

/// Rows of a weight without its first, or all of two weights in turns.
struct Rows<'a> {
    checkpoint: &'a Checkpoint,
    id: WeightId,
    skip: u64,
    beside: Option<WeightId>,
}

impl Rows<'_> {
    /// Which rows of which weights these are, and the first one's place among them.
    fn parts(&self, rows: &Range<u64>) -> Vec<(WeightId, Range<u64>, usize)> {
        let Some(beside) = self.beside else {
            return vec![(self.id, rows.start + self.skip..rows.end + self.skip, 0)];
        };
        let odd = (rows.start % 2) as usize;
        vec![
            (self.id, rows.start.div_ceil(2)..rows.end.div_ceil(2), odd),
            (beside, rows.start / 2..rows.end / 2, 1 - odd),
        ]
    }
}

impl RowSource for Rows<'_> {
    fn read(&self, rows: Range<u64>, out: &mut [f32]) -> Result<(), BoxError> {
        let columns = out.len() / (rows.end - rows.start).max(1) as usize;
        for (id, part, first) in self.parts(&rows) {
            let weight = self.checkpoint.weight(id)?;
            if self.beside.is_none() {
                weight.read(part, out)?;
                continue;
            }
            let mut values = vec![0.0; (part.end - part.start) as usize * columns];
            weight.read(part, &mut values)?;
            let places = out.chunks_exact_mut(columns.max(1)).skip(first).step_by(2);
            places.zip(values.chunks_exact(columns.max(1))).for_each(|(out, row)| out.copy_from_slice(row));
        }
        Ok(())
    }

    fn release(&self, rows: Range<u64>) {
        for (id, part, _) in self.parts(&rows) {
            if let Ok(weight) = self.checkpoint.weight(id) {
                weight.release_rows(part);
            }
        }
    }
}

/// Codes, scales and zero points of rows.
struct Blocks {
    format: Format,
    columns: usize,
    /// Rows of a matrix: each of a stack has its own row of `importance`.
    rows: usize,
    importance: Option<Arc<[f32]>>,
}

impl Blocks {
    /// Appends the bytes of one matrix's rows to the outputs'.
    fn encode_part(&self, matrix: usize, rows: &[f32], outputs: &mut [Vec<u8>; 3]) -> Result<(), BoxError> {
        let own = matrix * self.columns..(matrix + 1) * self.columns;
        let importance = self.importance.as_deref().map(|all| all.get(own).ok_or("importance of fewer rows"));
        let encoded =
            grouped::encode(self.format, rows, self.columns, importance.transpose()?, Fit::LeastHarm)?;
        let groups = encoded.scales.len() / (rows.len() / self.columns).max(1);
        let [codes, scales, points] = outputs;
        self.pack(&encoded.codes, self.columns, codes);
        scales.extend(encoded.scales.iter().flat_map(|scale| scale.to_le_bytes()));
        if self.format.levels.has_offset() {
            let offsets: Vec<u8> = encoded.offsets.iter().map(|&point| point as u8).collect();
            self.pack(&offsets, groups, points);
        }
        Ok(())
    }

    /// Appends rows of `width` codes, each of which begins with a byte of its own.
    fn pack(&self, codes: &[u8], width: usize, out: &mut Vec<u8>) {
        let bits = self.format.levels.bits();
        let together = if (width * bits as usize).is_multiple_of(8) { codes.len() } else { width };
        codes.chunks(together.max(1)).for_each(|rows| out.extend(grouped::pack(rows, bits)));
    }
}

impl Encoder for Blocks {
    fn encode(&self, first_row: u64, rows: &[f32], outputs: &mut [&mut [u8]]) -> Result<(), BoxError> {
        let mut made = [0, 1, 2].map(|i| Vec::with_capacity(outputs.get(i).map_or(0, |output| output.len())));
        let (mut row, mut rest) = (first_row as usize, rows);
        while !rest.is_empty() {
            let left = (self.rows - row % self.rows) * self.columns;
            let (now, later) = rest.split_at(left.min(rest.len()));
            self.encode_part(row / self.rows, now, &mut made)?;
            (row, rest) = (row + now.len() / self.columns, later);
        }
        for (bytes, output) in made.iter().zip(outputs) {
            if output.len() != bytes.len() {
                return Err("an output of another size".into());
            }
            output.copy_from_slice(bytes);
        }
        Ok(())
    }
}

/// Codes around zero and one scale for each row.
struct Channels {
    bits: u8,
    columns: usize,
    importance: Option<Arc<[f32]>>,
    compensator: Option<Compensator>,
}

impl Encoder for Channels {
    fn memory(&self) -> u64 {
        self.compensator.as_ref().map_or(0, Compensator::memory)
    }

    fn row_group(&self) -> u64 {
        if self.bits == 4 && self.columns % 2 == 1 { 2 } else { 1 }
    }

    fn encode(&self, _: u64, rows: &[f32], outputs: &mut [&mut [u8]]) -> Result<(), BoxError> {
        let [codes, scales] = outputs else { return Err("codes and scales are two outputs".into()) };
        let importance = self.importance.as_deref();
        let encoded = match &self.compensator {
            None => channels::encode(rows, self.columns, self.bits, importance),
            Some(compensator) => {
                channels::encode_compensated(rows, self.columns, self.bits, importance, compensator)?
            }
        };
        let packed = grouped::pack(&encoded.codes, self.bits.into());
        if packed.len() > codes.len() || encoded.scales.len() * 4 > scales.len() {
            return Err("outputs of another size".into());
        }
        codes[..packed.len()].copy_from_slice(&packed);
        for (scale, out) in encoded.scales.iter().zip(scales.as_chunks_mut::<4>().0) {
            *out = scale.to_le_bytes();
        }
        Ok(())
    }
}

impl Encoder for Encoding {
    fn encode(&self, _: u64, rows: &[f32], outputs: &mut [&mut [u8]]) -> Result<(), BoxError> {
        let [out] = outputs else { return Err("a table is one output".into()) };
        self.encode_into(rows, out);
        Ok(())
    }
}

/// The element type of floats stored so.
pub(super) fn element_type(dtype: DType) -> drophammer_formats::onnx::ElementType {
    drophammer_formats::onnx::ElementType::from_dtype(dtype).unwrap_or_default()
}
