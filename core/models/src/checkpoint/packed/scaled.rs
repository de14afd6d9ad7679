//! FP8 (and int8) weights with scales beside them: one for all, one per row, or one per block of rows and columns
//! (DeepSeek-V3 and compressed-tensors).

use std::ops::Range;

use drophammer_formats::{DType, Source, TensorInfo};

use super::{part, wrong};
use crate::checkpoint::stored::{Stored, decode, matrices};
use crate::error::Result;

#[derive(Debug)]
pub(super) struct Scaled {
    weights: TensorInfo,
    scales: TensorInfo,
    extent: [u64; 3],
    /// Rows and columns that share a scale.
    block: [u64; 2],
}

impl Scaled {
    pub(super) fn open(source: &Source, module: &str, block: [u64; 2]) -> Result<Self> {
        let weights = part(source, format!("{module}.weight"))?;
        let inverse = source.tensor(&format!("{module}.weight_scale_inv")).cloned();
        let scales = inverse.map_or_else(|| part(source, format!("{module}.weight_scale")), Ok)?;
        let extent = matrices(&weights.shape);
        let [count, rows, columns] = extent;
        let found = scales.elements();
        // The same number of scales can mean two things only for one row or column, where they agree.
        let choices = [block, [rows, columns], [1, columns]];
        let fits = |&[high, wide]: &[u64; 2]| {
            high > 0 && wide > 0 && count * rows.div_ceil(high) * columns.div_ceil(wide) == found
        };
        let problem =
            || wrong(&scales, format!("holds {found} scales, which do not divide a weight of {extent:?}"));
        let block = choices.into_iter().find(fits).ok_or_else(problem)?;
        Ok(Self { weights, scales, extent, block })
    }
}

impl Stored for Scaled {
    fn extent(&self) -> [u64; 3] {
        self.extent
    }

    fn read(&self, source: &Source, matrix: u64, rows: Range<u64>, out: &mut [f32]) -> Result<()> {
        let [_, height, columns] = self.extent;
        let [high, wide] = self.block;
        let first = (matrix * height + rows.start) * columns;
        decode(source, &self.weights, first, (rows.end - rows.start) * columns, out)?;
        let (down, across) = (height.div_ceil(high), columns.div_ceil(wide));
        let mut scales = vec![0.0; across as usize];
        for (row, line) in rows.zip(out.chunks_exact_mut(columns as usize)) {
            decode(source, &self.scales, (matrix * down + row / high) * across, across, &mut scales)?;
            for (block, scale) in line.chunks_mut(wide as usize).zip(&scales) {
                for value in block {
                    *value *= scale;
                }
            }
        }
        Ok(())
    }

    fn dtype(&self) -> DType {
        DType::BF16
    }

    fn tensors(&self) -> Vec<&TensorInfo> {
        vec![&self.weights, &self.scales]
    }
}
