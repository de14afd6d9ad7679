//! Rows of weights as the constants of an IR file: packed codes, packed offsets, scales.

use std::sync::Arc;

use drophammer_models::Weight;
use drophammer_quant::compensate::Compensator;
use drophammer_quant::grouped::{self, Encoded, Fit, Format, Levels, ScaleType, pack};
use drophammer_quant::pass::{BoxError, Encoder, Output, RowSource};
use half::f16;

use crate::graph::Planned;
use crate::scheme::Storage;

/// Encodes whole rows with a grouped format.
pub(crate) struct GroupedEncoder {
    format: Format,
    columns: usize,
    rows: u64,
    rows_together: u64,
    /// A number per column that says how much it counts, one matrix of a stack after another.
    importance: Option<Arc<[f32]>>,
    /// What makes later columns make up for the errors of earlier ones.
    compensator: Option<Compensator>,
}

/// How many rows fill whole bytes in every constant: 1, or 2 where codes or offsets of one row end within a byte.
pub(crate) fn rows_together(format: Format, columns: u64) -> u64 {
    let bits = u64::from(format.levels.bits());
    let groups = columns / format.group.map_or(columns, u64::from).max(1);
    let odd = !(columns * bits).is_multiple_of(8)
        || (format.levels.has_offset() && !(groups * bits).is_multiple_of(8));
    if odd { 2 } else { 1 }
}

/// Bytes that `rows` rows take in each constant.
pub(crate) fn bytes_of(format: Format, columns: u64, rows: u64) -> Vec<u64> {
    let bits = u64::from(format.levels.bits());
    let groups = columns / format.group.map_or(columns, u64::from).max(1);
    let mut bytes = vec![(rows * columns * bits).div_ceil(8)];
    if format.levels.has_offset() {
        bytes.push((rows * groups * bits).div_ceil(8));
    }
    bytes.push(rows * groups * if format.scale == ScaleType::E8M0 { 1 } else { 2 });
    bytes
}

/// How scales are found. With eight bits all weights lose as good as nothing, however they count.
pub(crate) fn fit(format: Format) -> Fit {
    if format.levels.bits() < 8 { Fit::LeastHarm } else { Fit::LeastError }
}

impl GroupedEncoder {
    /// For a weight of `rows` rows.
    pub(crate) fn new(format: Format, [rows, columns]: [u64; 2], importance: Option<Arc<[f32]>>) -> Self {
        let rows_together = rows_together(format, columns);
        Self { format, columns: columns as usize, rows, rows_together, importance, compensator: None }
    }

    /// The same, with errors made up for.
    pub(crate) fn compensated(self, compensator: Option<Compensator>) -> Self {
        let compensator = compensator.filter(|_| self.format.levels.top_code() > 0);
        Self { compensator: compensator.map(|compensator| compensator.of_rows(self.rows)), ..self }
    }

    /// The outputs of an item for a weight whose constants begin with tensor `first`.
    pub(crate) fn outputs(&self, first: usize) -> Vec<Output> {
        let bytes = bytes_of(self.format, self.columns as u64, self.rows_together);
        bytes.iter().zip(first..).map(|(&group_bytes, tensor)| Output { tensor, group_bytes }).collect()
    }
}

impl Encoder for GroupedEncoder {
    fn memory(&self) -> u64 {
        self.compensator.as_ref().map_or(0, Compensator::memory)
    }

    fn row_group(&self) -> u64 {
        self.rows_together
    }

    fn encode(&self, first_row: u64, rows: &[f32], outputs: &mut [&mut [u8]]) -> Result<(), BoxError> {
        let bits = self.format.levels.bits();
        let mut encoded = self.codes(first_row, rows)?;
        if let Some(compensator) = &self.compensator {
            compensator.improve_grouped(self.format, rows, &mut encoded)?;
        }
        if matches!(self.format.levels, Levels::Signed { .. }) {
            let sign = 1u8 << (bits - 1);
            encoded.codes.iter_mut().for_each(|code| *code ^= sign);
        }
        let (codes, rest) = outputs.split_first_mut().ok_or("no room for codes")?;
        fill(codes, &pack(&encoded.codes, bits))?;
        let (scales, offsets) = rest.split_last_mut().ok_or("no room for scales")?;
        if let Some(offsets) = offsets.first_mut() {
            let whole: Vec<u8> = encoded.offsets.iter().map(|&offset| offset as u8).collect();
            fill(offsets, &pack(&whole, bits))?;
        }
        let stored: Vec<u8> = match self.format.scale {
            ScaleType::E8M0 => encoded.scales.iter().map(|&scale| ScaleType::E8M0.to_byte(scale)).collect(),
            _ => encoded.scales.iter().flat_map(|&scale| f16::from_f32(scale).to_le_bytes()).collect(),
        };
        fill(scales, &stored)
    }
}

impl GroupedEncoder {
    /// Codes of rows, by the importance of the matrix of a stack that each lies in.
    fn codes(&self, first_row: u64, rows: &[f32]) -> Result<Encoded, BoxError> {
        let Some(importance) = &self.importance else {
            return Ok(grouped::encode(self.format, rows, self.columns, None, fit(self.format))?);
        };
        let matrices = (importance.len() / self.columns).max(1) as u64;
        let matrix_rows = (self.rows / matrices).max(1);
        let (mut all, mut row, mut rest) = (Encoded::default(), first_row, rows);
        while !rest.is_empty() {
            let until_next = (matrix_rows - row % matrix_rows) as usize;
            let (now, later) = rest.split_at(rest.len().min(until_next * self.columns));
            let matrix = (row / matrix_rows) as usize * self.columns;
            let weights =
                importance.get(matrix..matrix + self.columns).ok_or("importance of fewer matrices")?;
            let encoded = grouped::encode(self.format, now, self.columns, Some(weights), fit(self.format))?;
            all.codes.extend(encoded.codes);
            all.scales.extend(encoded.scales);
            all.offsets.extend(encoded.offsets);
            row += (now.len() / self.columns) as u64;
            rest = later;
        }
        Ok(all)
    }
}

/// Fills the beginning of an output; the last odd row leaves the rest of its bytes alone.
fn fill(output: &mut [u8], bytes: &[u8]) -> Result<(), BoxError> {
    output.get_mut(..bytes.len()).ok_or("more bytes than planned")?.copy_from_slice(bytes);
    Ok(())
}

/// A checkpoint's rows, memory given back behind the pass.
pub(crate) struct Rows<'a>(pub(crate) Weight<'a>);

impl RowSource for Rows<'_> {
    fn read(&self, rows: std::ops::Range<u64>, out: &mut [f32]) -> Result<(), BoxError> {
        Ok(self.0.read(rows, out)?)
    }

    fn release(&self, rows: std::ops::Range<u64>) {
        self.0.release_rows(rows);
    }
}

/// Bytes reserved in the file for each constant of a weight: whole row groups.
pub(crate) fn reserved(planned: &Planned) -> Vec<u64> {
    match planned.storage {
        Storage::Plain(_) => planned.bytes.clone(),
        Storage::Grouped(format) => {
            let [rows, columns] = planned.extent;
            let together = rows_together(format, columns);
            bytes_of(format, columns, together).iter().map(|bytes| bytes * rows.div_ceil(together)).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_rows_are_packed_two_by_two_without_gaps() {
        let format = Format { levels: Levels::ZeroPoint { bits: 4 }, group: Some(3), scale: ScaleType::F16 };
        assert_eq!(rows_together(format, 9), 2);
        let rows: Vec<f32> = (0..27u8).map(|i| f32::from(i % 7) - 3.0).collect();
        let encoder = GroupedEncoder::new(format, [3, 9], None);
        let mut out = [vec![0u8; 18], vec![0u8; 6], vec![0u8; 24]];
        let [codes, offsets, scales] = &mut out;
        encoder.encode(0, &rows, &mut [codes, offsets, scales]).unwrap();
        let encoded = grouped::encode(format, &rows, 9, None, fit(format)).unwrap();
        let nibble = |bytes: &[u8], i: usize| bytes[i / 2] >> (i % 2 * 4) & 15;
        for (i, &code) in encoded.codes.iter().enumerate() {
            assert_eq!(nibble(&out[0], i), code, "code {i}");
        }
        for (i, &offset) in encoded.offsets.iter().enumerate() {
            assert_eq!(f32::from(nibble(&out[1], i)), offset, "offset {i}");
        }
        assert_eq!(f16::from_le_bytes([out[2][4], out[2][5]]).to_f32(), encoded.scales[2]);
    }
}
