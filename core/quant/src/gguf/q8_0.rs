//! Q8_0: 32 weights of 8 bits with one scale.
//!
//! ```text
//! d d | q0 q1 … q31        34 bytes; weight j = d · q[j]
//! ```

use bytemuck::{Pod, Zeroable};
use drophammer_formats::DType;

use crate::codec::BlockFormat;
use crate::half_float::Half;
use crate::lanes::Lanes;
use crate::simd::{self, Kernel, Level};
use crate::weights::Weights;

/// Weights in a block.
const N: usize = 32;

/// A block of Q8_0.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct BlockQ8_0 {
    /// Scale.
    pub d: Half,
    /// Quants.
    pub qs: [i8; N],
}

/// The encoder.
struct Encode<'a> {
    rows: &'a [f32],
    out: &'a mut [BlockQ8_0],
}

impl Kernel for Encode<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let Self { rows, out } = self;
        for (x, block) in rows.chunks_exact(N).zip(out) {
            let mut magnitude = 0.0f32;
            for &x in x {
                let x = x.abs();
                magnitude = if x > magnitude { x } else { magnitude };
            }
            block.d = Half::from_f32(magnitude / 127.0);
            let d = block.d.to_f32();
            let inverse = if d == 0.0 { 0.0 } else { 1.0 / d };
            let mut qs = [0i8; N];
            for half in 0..2 {
                let mut values = [0.0f32; 16];
                values.copy_from_slice(&x[16 * half..16 * half + 16]);
                let shifted =
                    (L::load(&values) * L::splat(inverse)).round().clamp(-127.0, 127.0) + L::splat(128.0);
                for (q, byte) in qs[16 * half..].iter_mut().zip(shifted.to_bytes()) {
                    *q = (byte ^ 0x80) as i8;
                }
            }
            block.qs = qs;
        }
    }
}

pub(crate) struct Q8_0;

impl BlockFormat for Q8_0 {
    const DTYPE: DType = DType::Q8_0;
    type Block = BlockQ8_0;

    const TOP: u8 = 254;

    fn recode(block: &mut Self::Block, codes: &[u8]) {
        for (q, code) in block.qs.iter_mut().zip(codes) {
            *q = (i16::from(*code) - 127) as i8;
        }
    }

    /// With 127 steps to each side no scale does measurably better than the plain one; but rounding to the
    /// *stored* scale, not to the one before it was halved, does.
    fn encode(level: Level, rows: &[f32], _: Weights<'_>, out: &mut [BlockQ8_0]) {
        simd::run(level, Encode { rows, out });
    }

    #[inline(always)]
    fn decode(block: &BlockQ8_0, out: &mut [f32]) {
        let d = block.d.to_f32();
        for (out, &q) in out.iter_mut().zip(&block.qs) {
            *out = f32::from(q) * d;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Q8_0;
    crate::testing::codec_tests!(Q8_0);
}
