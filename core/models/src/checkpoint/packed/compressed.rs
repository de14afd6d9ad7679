//! compressed-tensors' `pack-quantized` integers: `weight_packed [rows, columns · bits / 32]`, lowest bits first, offset by
//! half their range, and `weight_scale [rows, groups]`.

use std::ops::Range;

use drophammer_formats::{DType, Source, TensorInfo};

use super::{check_words, part, plane, words, wrong};
use crate::checkpoint::stored::{Stored, decode};
use crate::error::Result;

#[derive(Debug)]
pub(super) struct Compressed {
    weights: TensorInfo,
    scales: TensorInfo,
    bits: u32,
    rows: u64,
    columns: u64,
    groups: u64,
}

impl Compressed {
    pub(super) fn open(source: &Source, module: &str, bits: u32) -> Result<Self> {
        let weights = part(source, format!("{module}.weight_packed"))?;
        let scales = part(source, format!("{module}.weight_scale"))?;
        check_words(&weights)?;
        if source.tensor(&format!("{module}.weight_zero_point")).is_some() {
            return Err(wrong(&weights, "has zero points, which are not read yet; symmetric weights are"));
        }
        if !matches!(bits, 4 | 8) {
            return Err(wrong(&weights, format!("has {bits} bits per weight; 4 and 8 are read")));
        }
        let [rows, packed] = plane(&weights)?;
        let [scale_rows, groups] = plane(&scales)?;
        let columns =
            packed.checked_mul(u64::from(32 / bits)).ok_or_else(|| wrong(&weights, "is too large"))?;
        if scale_rows != rows || groups == 0 || !columns.is_multiple_of(groups) {
            return Err(wrong(&scales, format!("does not divide a weight of {rows} × {columns}")));
        }
        Ok(Self { weights, scales, bits, rows, columns, groups })
    }
}

impl Stored for Compressed {
    fn extent(&self) -> [u64; 3] {
        [1, self.rows, self.columns]
    }

    fn read(&self, source: &Source, _: u64, rows: Range<u64>, out: &mut [f32]) -> Result<()> {
        let per_word = (32 / self.bits) as usize;
        let packed = self.columns / per_word as u64;
        let (mask, half) = ((1u64 << self.bits) - 1, (1u32 << (self.bits - 1)) as f32);
        let mut scales = vec![0.0; self.groups as usize];
        for (row, line) in rows.zip(out.chunks_exact_mut(self.columns as usize)) {
            decode(source, &self.scales, row * self.groups, self.groups, &mut scales)?;
            let words = words(source, &self.weights, row * packed, packed)?;
            let group = (self.columns / self.groups) as usize;
            for (column, value) in line.iter_mut().enumerate() {
                let word = u64::from(words[column / per_word]);
                let integer = (word >> (column % per_word * self.bits as usize) & mask) as f32;
                *value = scales[column / group] * (integer - half);
            }
        }
        Ok(())
    }

    fn dtype(&self) -> DType {
        self.scales.dtype
    }

    fn tensors(&self) -> Vec<&TensorInfo> {
        vec![&self.weights, &self.scales]
    }
}
