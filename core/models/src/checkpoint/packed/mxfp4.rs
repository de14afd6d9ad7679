//! gpt-oss's experts: MXFP4 blocks of 32 and their scales in two tensors.
//!
//! ```text
//! *_blocks [experts, rows, blocks, 16]  two E2M1 numbers per byte, the even one in the low half
//! *_scales [experts, rows, blocks]      E8M0
//! ```

use std::ops::Range;

use drophammer_formats::{DType, Source, TensorInfo};

use super::{part, wrong};
use crate::checkpoint::stored::{Stored, elements};
use crate::error::Result;

/// The numbers of E2M1.
pub(super) const E2M1: [f32; 16] =
    [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];

/// A power of two from its biased exponent.
pub(super) fn e8m0(byte: u8) -> f32 {
    (f64::from(byte) - 127.0).exp2() as f32
}

#[derive(Debug)]
pub(super) struct Mxfp4 {
    blocks: TensorInfo,
    scales: TensorInfo,
    extent: [u64; 3],
}

impl Mxfp4 {
    pub(super) fn open(source: &Source, module: &str) -> Result<Self> {
        let blocks = part(source, format!("{module}_blocks"))?;
        let scales = part(source, format!("{module}_scales"))?;
        let [outer @ .., rows, across, 16] = blocks.shape.as_slice() else {
            return Err(wrong(
                &blocks,
                format!("has shape {:?}, not [experts, rows, blocks, 16]", blocks.shape),
            ));
        };
        let extent = [outer.iter().product(), *rows, across.saturating_mul(32)];
        if blocks.dtype != DType::U8
            || scales.dtype != DType::U8
            || scales.elements().checked_mul(16) != Some(blocks.elements())
        {
            return Err(wrong(&scales, "does not hold one byte per block"));
        }
        Ok(Self { blocks, scales, extent })
    }
}

impl Stored for Mxfp4 {
    fn extent(&self) -> [u64; 3] {
        self.extent
    }

    fn read(&self, source: &Source, matrix: u64, rows: Range<u64>, out: &mut [f32]) -> Result<()> {
        let [_, height, columns] = self.extent;
        let first = (matrix * height + rows.start) * (columns / 32);
        let count = (rows.end - rows.start) * (columns / 32);
        let scales = elements(source, &self.scales, first, count)?;
        let blocks = elements(source, &self.blocks, first * 16, count * 16)?;
        for ((out, bytes), &scale) in out.chunks_exact_mut(32).zip(blocks.chunks_exact(16)).zip(scales) {
            let scale = e8m0(scale);
            for (pair, byte) in out.chunks_exact_mut(2).zip(bytes) {
                pair[0] = E2M1[usize::from(byte & 15)] * scale;
                pair[1] = E2M1[usize::from(byte >> 4)] * scale;
            }
        }
        Ok(())
    }

    fn dtype(&self) -> DType {
        DType::Mxfp4
    }

    fn tensors(&self) -> Vec<&TensorInfo> {
        vec![&self.blocks, &self.scales]
    }
}
