//! NVFP4: 64 weights as 4-bit floats (E2M1); each 16 have a scale that is an unsigned 8-bit float (E4M3).
//!
//! ```text
//! s0 s1 s2 s3 | q: 4 × 8 bytes        36 bytes; weight 16·b + j = s[b] · e2m1[q]
//! ```
//! In the 8 bytes of sub-block `b`, weight `j` is in the low and weight `j + 8` in the high nibble of byte `j`.

use bytemuck::{Pod, Zeroable};
use drophammer_formats::DType;

use super::mxfp4::{E2M1_DOUBLED, largest_magnitudes};
use crate::codec::BlockFormat;
use crate::lanes::LANES;
use crate::plain::f32_to_f8_e4m3;
use crate::search::grid::E2m1;
use crate::search::symmetric::AmongScales;
use crate::simd::{self, Level};
use crate::weights::{Tile, Weights};

/// Weights in a sub-block, and sub-blocks in a block.
const N: usize = 16;
const SUBS: usize = 4;

/// Half of the value of an unsigned E4M3 byte; 0 for the code of NaN, and the unused sign bit is ignored, as in
/// GGUF.
#[inline(always)]
pub fn ue4m3_half_to_f32(byte: u8) -> f32 {
    if byte == 0 || byte == 0x7f {
        return 0.0;
    }
    let (exponent, mantissa) = (u32::from(byte >> 3 & 0x0f), u32::from(byte & 7));
    if exponent == 0 {
        // mantissa · 2^-9, halved
        mantissa as f32 * f32::from_bits((127 - 10) << 23)
    } else {
        f32::from_bits((exponent + 127 - 8) << 23 | mantissa << 20)
    }
}

/// A block of NVFP4.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct BlockNvfp4 {
    /// Scales.
    pub d: [u8; SUBS],
    /// 4-bit floats.
    pub qs: [u8; 32],
}

pub(crate) struct Nvfp4;

impl BlockFormat for Nvfp4 {
    const DTYPE: DType = DType::Nvfp4;
    type Block = BlockNvfp4;

    /// The scale that puts the largest magnitude on 6 is the plain choice; neighbouring scales often lose less.
    fn encode(level: Level, rows: &[f32], weights: Weights<'_>, out: &mut [BlockNvfp4]) {
        let mut tile = Tile::new(level, N);
        for (i, blocks) in out.chunks_mut(LANES / SUBS).enumerate() {
            tile.load(rows, weights, i * LANES * N);
            let plain = largest_magnitudes(&tile.x).map(|x| i32::from(f32_to_f8_e4m3(x / 6.0)));
            let steps = [0, -1, 1, -2, 2, 3, 4];
            let code = |lane: usize, step: i32| (plain[lane] + step).clamp(0, 0x7e) as u8;
            let candidates =
                steps.map(|step| std::array::from_fn(|lane| 2.0 * ue4m3_half_to_f32(code(lane, step))));
            let best = simd::run(level, AmongScales { tile: &mut tile, grid: E2m1, candidates: &candidates });
            for (k, block) in blocks.iter_mut().enumerate() {
                for b in 0..SUBS {
                    let lane = k * SUBS + b;
                    block.d[b] = code(lane, steps[usize::from(best[lane])]);
                    for (j, byte) in block.qs[b * N / 2..][..N / 2].iter_mut().enumerate() {
                        *byte = tile.codes[j][lane] | tile.codes[j + N / 2][lane] << 4;
                    }
                }
            }
        }
    }

    #[inline(always)]
    fn decode(block: &BlockNvfp4, out: &mut [f32]) {
        for (b, (qs, out)) in block.qs.chunks_exact(N / 2).zip(out.chunks_exact_mut(N)).enumerate() {
            let d = ue4m3_half_to_f32(block.d[b]);
            let (low, high) = out.split_at_mut(N / 2);
            for ((&q, low), high) in qs.iter().zip(low).zip(high) {
                *low = f32::from(E2M1_DOUBLED[usize::from(q & 0x0f)]) * d;
                *high = f32::from(E2M1_DOUBLED[usize::from(q >> 4)]) * d;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Nvfp4;
    crate::testing::codec_tests!(Nvfp4);
}
