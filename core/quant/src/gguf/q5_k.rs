//! Q5_K: 256 weights of 5 bits; each 32 have a scale and an offset of 6 bits, multiples of two shared halves.
//!
//! ```text
//! d d | m m | s0 … s11 | h: 32 bytes | q: 4 × 32 bytes        176 bytes
//! weight 32·b + j = d · scale[b] · (q + 16·h) - m · min[b]
//! ```
//! Chunk `c` of `q` holds sub-block `2c` in its low and `2c + 1` in its high nibbles; bit `b` of `h[j]` is the fifth
//! bit of weight `j` in sub-block `b`. The scales are packed as in [Q4_K](super::BlockQ4K).

use bytemuck::{Pod, Zeroable};
use drophammer_formats::DType;

use super::q4_k::{pack_scales_k4, round_pair, scale_min_k4};
use crate::codec::BlockFormat;
use crate::half_float::Half;
use crate::lanes::{LANES, Lanes};
use crate::weights::Weights;

/// Weights in a sub-block, and sub-blocks in a block.
const N: usize = 32;
const SUBS: usize = 8;

/// A block of Q5_K.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct BlockQ5K {
    /// Unit of the scales.
    pub d: Half,
    /// Unit of the offsets.
    pub dmin: Half,
    /// Eight scales and eight offsets of 6 bits: see [`scale_min_k4`].
    pub scales: [u8; 12],
    /// Fifth bits: sub-block `b` in bit `b`.
    pub qh: [u8; 32],
    /// Low four bits in nibbles.
    pub qs: [u8; 128],
}

pub(crate) struct Q5K;

impl BlockFormat for Q5K {
    const DTYPE: DType = DType::Q5K;
    type Block = BlockQ5K;

    #[inline(always)]
    fn encode<L: Lanes>(rows: &[f32], weights: Weights<'_>, out: &mut [BlockQ5K]) {
        for (i, blocks) in out.chunks_mut(LANES / SUBS).enumerate() {
            let rounded = round_pair::<L>(rows, weights, i * LANES * N, 31.0);
            for (k, block) in blocks.iter_mut().enumerate() {
                let lane = k * SUBS;
                block.d = Half::from_f32(rounded.d[lane]);
                block.dmin = Half::from_f32(rounded.dmin[lane]);
                block.scales = pack_scales_k4(&rounded.scales[lane..], &rounded.mins[lane..]);
                block.qh = [0; 32];
                let quants = rounded.quants[lane * N..].chunks_exact(2 * N);
                for (c, (bytes, quants)) in block.qs.chunks_exact_mut(N).zip(quants).enumerate() {
                    for j in 0..N {
                        let (low, high) = (quants[j], quants[j + N]);
                        bytes[j] = (low & 0x0f) | high << 4;
                        block.qh[j] |= ((low >> 4) | (high >> 4) << 1) << (2 * c);
                    }
                }
            }
        }
    }

    #[inline(always)]
    fn decode(block: &BlockQ5K, out: &mut [f32]) {
        let (d, dmin) = (block.d.to_f32(), block.dmin.to_f32());
        for (c, (qs, out)) in block.qs.chunks_exact(N).zip(out.chunks_exact_mut(2 * N)).enumerate() {
            let (low, high) = out.split_at_mut(N);
            let (scale, min) = scale_min_k4(&block.scales, 2 * c);
            let (step, offset) = (d * f32::from(scale), dmin * f32::from(min));
            for ((out, q), h) in low.iter_mut().zip(qs).zip(&block.qh) {
                *out = step * f32::from((q & 0x0f) | ((h >> (2 * c)) & 1) << 4) - offset;
            }
            let (scale, min) = scale_min_k4(&block.scales, 2 * c + 1);
            let (step, offset) = (d * f32::from(scale), dmin * f32::from(min));
            for ((out, q), h) in high.iter_mut().zip(qs).zip(&block.qh) {
                *out = step * f32::from((q >> 4) | ((h >> (2 * c + 1)) & 1) << 4) - offset;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Q5K;
    crate::testing::codec_tests!(Q5K);
}
