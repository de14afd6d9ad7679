//! AWQ (Lin et al., 2023), as AutoAWQ's `gemm` version stores it.
//!
//! ```text
//! qweight [inputs, outputs / 8]  8 columns per word; nibble n holds column 0 2 4 6 1 3 5 7 [n]
//! qzeros  [groups, outputs / 8]  the same order
//! scales  [groups, outputs]
//! weight[o, i] = scales[g, o] · (q[i, o] − zero[g, o])
//! ```

use std::ops::Range;

use drophammer_formats::{DType, Source, TensorInfo};

use super::{check_words, part, plane, words, wrong};
use crate::checkpoint::stored::{Stored, decode};
use crate::error::Result;

/// The nibble that holds each column of eight.
const NIBBLE: [u32; 8] = [0, 4, 1, 5, 2, 6, 3, 7];

#[derive(Debug)]
pub(super) struct Awq {
    weights: TensorInfo,
    zeros: TensorInfo,
    scales: TensorInfo,
    inputs: u64,
    outputs: u64,
    group: u64,
}

impl Awq {
    pub(super) fn open(source: &Source, module: &str, bits: u32, group: Option<u64>) -> Result<Self> {
        let named = |suffix: &str| part(source, format!("{module}.{suffix}"));
        let (weights, zeros, scales) = (named("qweight")?, named("qzeros")?, named("scales")?);
        if bits != 4 {
            return Err(wrong(&weights, format!("has {bits} bits per weight; AWQ is read with 4")));
        }
        check_words(&weights)?;
        check_words(&zeros)?;
        let [inputs, packed] = plane(&weights)?;
        let outputs = packed.checked_mul(8).ok_or_else(|| wrong(&weights, "is too large"))?;
        let group = group.unwrap_or(inputs).max(1);
        let count = inputs.div_ceil(group);
        if plane(&scales)? != [count, outputs] {
            return Err(wrong(
                &scales,
                format!(
                    "does not hold {count} groups of {outputs} scales (is this AutoAWQ's `gemm` version?)"
                ),
            ));
        }
        if plane(&zeros)? != [count, packed] {
            return Err(wrong(&zeros, format!("does not hold {count} groups of {outputs} zero points")));
        }
        Ok(Self { weights, zeros, scales, inputs, outputs, group })
    }

    /// Values of one line of a packed tensor for some outputs.
    fn line(&self, source: &Source, tensor: &TensorInfo, line: u64, rows: &Range<u64>) -> Result<Vec<f32>> {
        let (first, end) = (rows.start / 8, rows.end.div_ceil(8));
        let packed = words(source, tensor, line * (self.outputs / 8) + first, end - first)?;
        let value = |row: u64| packed[(row / 8 - first) as usize] >> (4 * NIBBLE[(row % 8) as usize]) & 15;
        Ok(rows.clone().map(|row| value(row) as f32).collect())
    }
}

impl Stored for Awq {
    fn extent(&self) -> [u64; 3] {
        [1, self.outputs, self.inputs]
    }

    fn read(&self, source: &Source, _: u64, rows: Range<u64>, out: &mut [f32]) -> Result<()> {
        let height = rows.end - rows.start;
        let mut scales = vec![0.0; height as usize];
        let mut zeros = Vec::new();
        for input in 0..self.inputs {
            if input % self.group == 0 {
                let group = input / self.group;
                decode(source, &self.scales, group * self.outputs + rows.start, height, &mut scales)?;
                zeros = self.line(source, &self.zeros, group, &rows)?;
            }
            let values = self.line(source, &self.weights, input, &rows)?;
            for (row, ((value, zero), scale)) in values.iter().zip(&zeros).zip(&scales).enumerate() {
                out[row * self.inputs as usize + input as usize] = scale * (value - zero);
            }
        }
        Ok(())
    }

    fn dtype(&self) -> DType {
        self.scales.dtype
    }

    fn is_column_major(&self) -> bool {
        true
    }

    fn tensors(&self) -> Vec<&TensorInfo> {
        vec![&self.weights, &self.zeros, &self.scales]
    }
}
