//! GPTQ (Frantar et al., 2022), as AutoGPTQ and GPTQModel store it.
//!
//! ```text
//! qweight [inputs / n, outputs]  n values of one column per word, lowest bits first
//! qzeros  [groups, outputs / n]  n columns per word; one less than the zero point in version 1
//! scales  [groups, outputs]
//! g_idx   [inputs]               the group of each input
//! weight[o, i] = scales[g, o] · (q[i, o] − zero[g, o])
//! ```

use std::ops::Range;

use drophammer_formats::{DType, Source, TensorInfo};

use super::{check_words, part, plane, words, wrong};
use crate::checkpoint::stored::{Stored, decode};
use crate::error::Result;

#[derive(Debug)]
pub(super) struct Gptq {
    weights: TensorInfo,
    zeros: TensorInfo,
    scales: TensorInfo,
    groups: Option<TensorInfo>,
    bits: u32,
    zero_offset: u32,
    inputs: u64,
    outputs: u64,
    group: u64,
}

impl Gptq {
    pub(super) fn open(
        source: &Source,
        module: &str,
        bits: u32,
        group: Option<u64>,
        zero_offset: u32,
    ) -> Result<Self> {
        let named = |suffix: &str| part(source, format!("{module}.{suffix}"));
        let (weights, zeros, scales) = (named("qweight")?, named("qzeros")?, named("scales")?);
        if !matches!(bits, 2 | 4 | 8) {
            return Err(wrong(&weights, format!("has {bits} bits per weight; 2, 4 and 8 are read")));
        }
        check_words(&weights)?;
        check_words(&zeros)?;
        let per_word = u64::from(32 / bits);
        let [packed, outputs] = plane(&weights)?;
        let inputs = packed.checked_mul(per_word).ok_or_else(|| wrong(&weights, "is too large"))?;
        let group = group.unwrap_or(inputs).max(1);
        let count = inputs.div_ceil(group);
        if plane(&scales)? != [count, outputs] || !outputs.is_multiple_of(per_word) {
            return Err(wrong(&scales, format!("does not hold {count} groups of {outputs} scales")));
        }
        if plane(&zeros)? != [count, outputs / per_word] {
            return Err(wrong(&zeros, format!("does not hold {count} groups of {outputs} zero points")));
        }
        let groups = source.tensor(&format!("{module}.g_idx")).cloned();
        if let Some(groups) = &groups
            && (groups.elements() != inputs || groups.dtype != DType::I32)
        {
            return Err(wrong(groups, format!("does not hold {inputs} 32-bit group numbers")));
        }
        Ok(Self { weights, zeros, scales, groups, bits, zero_offset, inputs, outputs, group })
    }

    /// Scales and zero points of some outputs in every group: `[groups, outputs]`.
    fn grids(&self, source: &Source, rows: &Range<u64>) -> Result<(Vec<f32>, Vec<f32>)> {
        let count = self.inputs.div_ceil(self.group);
        let (height, per_word) = ((rows.end - rows.start) as usize, u64::from(32 / self.bits));
        let (mut scales, mut zeros) = (Vec::new(), Vec::new());
        for group in 0..count {
            let mut line = vec![0.0; height];
            decode(source, &self.scales, group * self.outputs + rows.start, height as u64, &mut line)?;
            scales.extend(line);
            let (first, end) = (rows.start / per_word, rows.end.div_ceil(per_word));
            let packed = words(source, &self.zeros, group * (self.outputs / per_word) + first, end - first)?;
            zeros.extend(rows.clone().map(|row| {
                let word = packed[(row / per_word - first) as usize];
                (self.value(word, row % per_word) + self.zero_offset) as f32
            }));
        }
        Ok((scales, zeros))
    }

    fn value(&self, word: u32, place: u64) -> u32 {
        word >> (place as u32 * self.bits) & ((1 << self.bits) - 1)
    }
}

impl Stored for Gptq {
    fn extent(&self) -> [u64; 3] {
        [1, self.outputs, self.inputs]
    }

    fn read(&self, source: &Source, _: u64, rows: Range<u64>, out: &mut [f32]) -> Result<()> {
        let (scales, zeros) = self.grids(source, &rows)?;
        let (height, width) = ((rows.end - rows.start) as usize, self.inputs as usize);
        let group_of = match &self.groups {
            Some(groups) => words(source, groups, 0, self.inputs)?.into_iter().map(u64::from).collect(),
            None => (0..self.inputs).map(|input| input / self.group).collect::<Vec<_>>(),
        };
        let count = self.inputs.div_ceil(self.group);
        if let Some(bad) = group_of.iter().find(|&&group| group >= count) {
            let named = self.groups.as_ref().unwrap_or(&self.weights);
            return Err(wrong(named, format!("names group {bad} of {count}")));
        }
        let per_word = u64::from(32 / self.bits);
        for line in 0..self.inputs / per_word {
            let packed = words(source, &self.weights, line * self.outputs + rows.start, height as u64)?;
            for place in 0..per_word {
                let input = line * per_word + place;
                let grid = group_of[input as usize] as usize * height;
                for (row, &word) in packed.iter().enumerate() {
                    let value = self.value(word, place) as f32;
                    out[row * width + input as usize] = scales[grid + row] * (value - zeros[grid + row]);
                }
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
