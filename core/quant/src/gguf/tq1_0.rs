//! TQ1_0: 256 ternary weights, five to a byte, with one scale.
//!
//! ```text
//! q: 32 + 16 bytes | h: 4 bytes | d d        54 bytes; weight = d · (trit - 1)
//! ```
//! A byte holds five base-3 digits as the fraction `⌈256 · 0.t0t1t2t3t4₃⌉`, so that multiplying by 3 brings the digits out one
//! after the other. Digit `n` of `q[m]` is weight `32·n + m` for the first 32 bytes, `160 + 16·n + m` for the next 16; digit
//! `n` of `h[m]` (which holds four) is weight `240 + 4·n + m`.

use bytemuck::{Pod, Zeroable};
use drophammer_formats::DType;

use super::tq2_0::ternary;
use crate::codec::BlockFormat;
use crate::half_float::Half;
use crate::simd::Level;
use crate::weights::Weights;

/// A block of TQ1_0.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct BlockTq1_0 {
    /// Five weights per byte.
    pub qs: [u8; 48],
    /// Four weights per byte.
    pub qh: [u8; 4],
    /// Scale.
    pub d: Half,
}

/// First weight, bytes and digits of each part of a block.
const PARTS: [(usize, usize, usize); 3] = [(0, 32, 5), (160, 16, 5), (240, 4, 4)];

/// The weight that digit `n` of byte `m` of a part stands for, for all parts in order.
#[inline(always)]
fn for_each_byte(mut visit: impl FnMut(usize, usize, usize, usize)) {
    let mut byte = 0;
    for (first, bytes, digits) in PARTS {
        for m in 0..bytes {
            visit(byte, first + m, bytes, digits);
            byte += 1;
        }
    }
}

pub(crate) struct Tq1_0;

impl BlockFormat for Tq1_0 {
    const DTYPE: DType = DType::Tq1_0;
    type Block = BlockTq1_0;

    fn encode(level: Level, rows: &[f32], weights: Weights<'_>, out: &mut [BlockTq1_0]) {
        ternary(level, rows, weights, out.len(), |i, d, quants| {
            let block = &mut out[i];
            let mut bytes = [0u8; 52];
            for_each_byte(|byte, first, stride, digits| {
                let mut number = 0u32;
                for n in 0..5 {
                    number = number * 3 + if n < digits { u32::from(quants[first + n * stride]) } else { 0 };
                }
                bytes[byte] = (number * 256).div_ceil(243) as u8;
            });
            block.qs.copy_from_slice(&bytes[..48]);
            block.qh.copy_from_slice(&bytes[48..]);
            block.d = d;
        });
    }

    #[inline(always)]
    fn decode(block: &BlockTq1_0, out: &mut [f32]) {
        const POWERS: [u8; 5] = [1, 3, 9, 27, 81];
        let d = block.d.to_f32();
        let mut bytes = [0u8; 52];
        bytes[..48].copy_from_slice(&block.qs);
        bytes[48..].copy_from_slice(&block.qh);
        for_each_byte(|byte, first, stride, digits| {
            for n in 0..digits {
                let fraction = bytes[byte].wrapping_mul(POWERS[n]);
                let trit = (u16::from(fraction) * 3) >> 8;
                out[first + n * stride] = (i32::from(trit) - 1) as f32 * d;
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::Tq1_0;
    crate::testing::codec_tests!(Tq1_0);
}
