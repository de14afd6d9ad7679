//! IQ4_NL: 32 weights of 4 bits on sixteen uneven levels, with one scale.
//!
//! ```text
//! d d | i0/i16 i1/i17 … i15/i31        18 bytes; weight j = d · level[i[j]]
//! ```

use bytemuck::{Pod, Zeroable};
use drophammer_formats::DType;

use crate::codec::BlockFormat;
use crate::grouped::ScaleType;
use crate::half_float::Half;
use crate::lanes::LANES;
use crate::search::grid::NonLinear;
use crate::search::symmetric::OwnScale;
use crate::simd::{self, Level};
use crate::weights::{Tile, Weights};

/// Weights in a block.
const N: usize = 32;

/// The levels of IQ4_NL and IQ4_XS.
pub const IQ4_LEVELS: [i8; 16] = NonLinear::LEVELS;

/// A block of IQ4_NL.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct BlockIq4Nl {
    /// Scale.
    pub d: Half,
    /// Level indices: weight `j` in the low, weight `j + 16` in the high nibble.
    pub qs: [u8; N / 2],
}

pub(crate) struct Iq4Nl;

impl BlockFormat for Iq4Nl {
    const DTYPE: DType = DType::Iq4Nl;
    type Block = BlockIq4Nl;

    fn encode(level: Level, rows: &[f32], weights: Weights<'_>, out: &mut [BlockIq4Nl]) {
        let mut tile = Tile::new(level, N);
        for (i, blocks) in out.chunks_mut(LANES).enumerate() {
            tile.load(rows, weights, i * LANES * N);
            let d = simd::run(level, OwnScale { tile: &mut tile, grid: NonLinear, stored: ScaleType::F16 });
            let lines = tile.lines();
            for (lane, block) in blocks.iter_mut().enumerate() {
                block.d = Half::from_f32(d[lane]);
                let (low, high) = lines[lane * N..(lane + 1) * N].split_at(N / 2);
                for j in 0..N / 2 {
                    block.qs[j] = low[j] | high[j] << 4;
                }
            }
        }
    }

    #[inline(always)]
    fn decode(block: &BlockIq4Nl, out: &mut [f32]) {
        let d = block.d.to_f32();
        let (low, high) = out.split_at_mut(N / 2);
        for ((&q, low), high) in block.qs.iter().zip(low).zip(high) {
            *low = d * f32::from(IQ4_LEVELS[usize::from(q & 0x0f)]);
            *high = d * f32::from(IQ4_LEVELS[usize::from(q >> 4)]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Iq4Nl;
    crate::testing::codec_tests!(Iq4Nl);
}
