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

/// One matrix, or one of a stack.
#[derive(Debug)]
pub(super) struct Matrix {
    pub(super) id: WeightId,
    /// Which one of how many.
    pub(super) expert: Option<(u32, u32)>,
    pub(super) rows: u64,
    pub(super) columns: u64,
    pub(super) storage: Storage,
    /// Places of the layout: the numbers; for blocks codes, scales and perhaps zero points.
    pub(super) outputs: Vec<usize>,
    /// The encoding of the whole matrix, where it has one.
    pub(super) encoding: Option<Encoding>,
}

impl Matrix {
    fn first_row(&self) -> u64 {
        self.expert.map_or(0, |(number, _)| u64::from(number) * self.rows)
    }

    pub(super) fn item<'a>(
        &self,
        checkpoint: &'a Checkpoint,
        importances: &Importances,
        products: Option<Arc<Products>>,
    ) -> Result<Item<'a>, PassError> {
        let rows = Rows { checkpoint, id: self.id, skip: self.first_row() };
        let name = match self.expert {
            Some((number, _)) => format!("{} of expert {number}", self.id),
            None => self.id.to_string(),
        };
        let output = self.outputs.first().copied().unwrap_or_default();
        match self.storage {
            Storage::Float(dtype) => {
                let decl = TensorDecl::new(&name, dtype, vec![self.rows, self.columns]);
                Item::quantize(output, &decl, rows, None)
            }
            Storage::Blocks { bits, block, symmetric } => {
                let levels = if symmetric { Levels::Signed { bits } } else { Levels::ZeroPoint { bits } };
                let encoder = Blocks {
                    format: Format { levels, group: Some(block), scale: ScaleType::F32 },
                    columns: self.columns as usize,
                    importance: self.importance(checkpoint, importances)?,
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

    /// This matrix's part of the statistics, where its columns are those that they tell of.
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
        let begin = match self.expert {
            Some((number, _)) if values.len() > columns => number as usize * columns,
            _ => 0,
        };
        let part = values.get(begin..begin + columns).ok_or_else(|| PassError::Importance {
            tensor: self.id.to_string(),
            problem: format!("importance of {} values does not fit {columns} columns", values.len()),
        })?;
        Ok(Some(Arc::from(part)))
    }
}

/// Rows of a weight, without its first.
struct Rows<'a> {
    checkpoint: &'a Checkpoint,
    id: WeightId,
    skip: u64,
}

impl RowSource for Rows<'_> {
    fn read(&self, rows: Range<u64>, out: &mut [f32]) -> Result<(), BoxError> {
        let weight = self.checkpoint.weight(self.id)?;
        Ok(weight.read(rows.start + self.skip..rows.end + self.skip, out)?)
    }

    fn release(&self, rows: Range<u64>) {
        if let Ok(weight) = self.checkpoint.weight(self.id) {
            weight.release_rows(rows.start + self.skip..rows.end + self.skip);
        }
    }
}

/// Codes, scales and zero points of rows.
struct Blocks {
    format: Format,
    columns: usize,
    importance: Option<Arc<[f32]>>,
}

impl Encoder for Blocks {
    fn encode(&self, _: u64, rows: &[f32], outputs: &mut [&mut [u8]]) -> Result<(), BoxError> {
        let bits = self.format.levels.bits();
        let encoded =
            grouped::encode(self.format, rows, self.columns, self.importance.as_deref(), Fit::LeastError)?;
        let groups = encoded.scales.len() / (rows.len() / self.columns).max(1);
        let mut outputs = outputs.iter_mut();
        let mut put = |bytes: Vec<u8>| -> Result<(), BoxError> {
            let output = outputs.next().ok_or("one output too few")?;
            if output.len() != bytes.len() {
                return Err("an output of another size".into());
            }
            output.copy_from_slice(&bytes);
            Ok(())
        };
        let packed = |codes: &[u8], row: usize| -> Vec<u8> {
            codes.chunks_exact(row).flat_map(|row| grouped::pack(row, bits)).collect()
        };
        put(packed(&encoded.codes, self.columns))?;
        put(encoded.scales.iter().flat_map(|scale| scale.to_le_bytes()).collect())?;
        if self.format.levels.has_offset() {
            let points: Vec<u8> = encoded.offsets.iter().map(|&point| point as u8).collect();
            put(packed(&points, groups))?;
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
