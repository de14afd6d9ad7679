//! Scales by search, sixteen groups at a time.

use super::{Encoded, Format, Levels, ScaleType};
use crate::lanes::LANES;
use crate::search::affine::{Line, OwnLine, ZeroPoint};
use crate::search::grid::{Centred, E2m1, E4m3, Grid, Nf4};
use crate::search::symmetric::{AmongScales, OwnScale};
use crate::simd::{self, Level};
use crate::weights::{Row, Tile, Weights};

/// Encodes groups by search.
pub(super) fn encode(
    level: Level,
    format: Format,
    rows: &[f32],
    group: usize,
    weights: Weights<'_>,
) -> Encoded {
    let groups = rows.len() / group;
    let mut out = Encoded {
        codes: vec![0; rows.len()],
        scales: Vec::with_capacity(groups),
        offsets: Vec::with_capacity(if format.levels.has_offset() { groups } else { 0 }),
    };
    let stored = format.scale;
    let mut tile = Tile::new(level, group);
    for first in (0..groups).step_by(LANES) {
        let lanes = LANES.min(groups - first);
        tile.load(rows, weights, first * group);
        let (scales, offsets) = match format.levels {
            Levels::Affine { bits } => {
                let line = OwnLine { tile: &mut tile, top: top(bits), stored };
                let Line { d, m } = simd::run(level, line);
                (d, Some(m))
            }
            Levels::ZeroPoint { bits } => {
                let (d, zero) = simd::run(level, ZeroPoint { tile: &mut tile, top: top(bits), stored });
                (d, Some(zero))
            }
            Levels::Signed { bits } => {
                (scales(level, &mut tile, Centred((1u32 << (bits - 1)) as f32), stored), None)
            }
            Levels::Nf4 => (scales(level, &mut tile, Nf4, stored), None),
            Levels::E2m1 => (scales(level, &mut tile, E2m1, stored), None),
            Levels::E4m3 => (scales(level, &mut tile, E4m3, stored), None),
        };
        out.scales.extend_from_slice(&scales[..lanes]);
        out.offsets.extend(offsets.iter().flat_map(|offsets| &offsets[..lanes]));
        out.codes[first * group..(first + lanes) * group].copy_from_slice(&tile.lines()[..lanes * group]);
    }
    out
}

/// The largest code of so many bits.
fn top(bits: u8) -> f32 {
    ((1u32 << bits) - 1) as f32
}

/// Scales without offsets. Of powers of two only the plain one and its neighbours are worth trying.
fn scales(level: Level, tile: &mut Tile, grid: impl Grid, stored: ScaleType) -> Row {
    if stored != ScaleType::E8M0 {
        return simd::run(level, OwnScale { tile, grid, stored });
    }
    let mut largest = [0.0f32; LANES];
    for row in &tile.x {
        for lane in 0..LANES {
            largest[lane] = largest[lane].max(row[lane].abs());
        }
    }
    let candidates = [1.0, 0.5, 2.0].map(|factor| {
        largest
            .map(|x| if x == 0.0 { 0.0 } else { stored.round((x / grid.plain_target()).max(1e-30) * factor) })
    });
    let best = simd::run(level, AmongScales { tile, grid, candidates: &candidates });
    std::array::from_fn(|lane| candidates[usize::from(best[lane])][lane])
}
