//! Scales by search, sixteen groups at a time.

use super::{Encoded, Format, Levels, NF4_LEVELS, ScaleType};
use crate::gguf::{code_e2m1, nearest_e2m1};
use crate::lanes::{LANES, Lanes};
use crate::plain::f32_to_f8_e4m3;
use crate::search::affine::{self, Line};
use crate::search::grid::{Centred, Grid};
use crate::search::symmetric;
use crate::simd::Kernel;
use crate::weights::Weights;

/// Rows to encode.
pub(super) struct Search<'a> {
    pub(super) format: Format,
    pub(super) rows: &'a [f32],
    pub(super) group: usize,
    pub(super) weights: Weights<'a>,
}

impl Kernel for Search<'_> {
    type Output = Encoded;

    #[inline(always)]
    fn run<L: Lanes>(self) -> Encoded {
        let Self { format, rows, group, weights } = self;
        let groups = rows.len() / group;
        let mut out = Encoded {
            codes: vec![0; rows.len()],
            scales: vec![0.0; groups],
            offsets: vec![0.0; if format.levels.has_offset() { groups } else { 0 }],
        };
        let mut tile = (vec![L::zero(); group], vec![L::splat(1.0); group]);
        for first in (0..groups).step_by(LANES) {
            weights.gather(rows, first * group, group, &mut tile.0, &mut tile.1);
            let lanes = LANES.min(groups - first);
            let mut put = Put { out: &mut out, first, lanes, group };
            match format.levels {
                Levels::Affine { bits } => affine_groups(&tile.0, &tile.1, bits, format.scale, &mut put),
                Levels::ZeroPoint { bits } => {
                    zero_point_groups(&tile.0, &tile.1, bits, format.scale, &mut put);
                }
                Levels::Signed { bits } => {
                    let half = (1u32 << (bits - 1)) as f32;
                    let grid = Centred(half);
                    scaled_groups(&tile.0, &tile.1, grid, format.scale, &mut put, |u: L| {
                        grid.nearest(u) + L::splat(half)
                    });
                }
                Levels::Nf4 => {
                    scaled_groups(&tile.0, &tile.1, Nf4Grid, format.scale, &mut put, |u: L| {
                        Nf4Grid::index(u)
                    });
                }
                Levels::E2m1 => {
                    scaled_groups(&tile.0, &tile.1, E2m1Grid, format.scale, &mut put, |u: L| {
                        code_e2m1(u * L::splat(2.0))
                    });
                }
                Levels::E4m3 => {
                    scaled_groups(&tile.0, &tile.1, E4m3Grid, format.scale, &mut put, |u: L| {
                        L::load(&u.to_array().map(|u| f32::from(f32_to_f8_e4m3(u))))
                    });
                }
            }
        }
        out
    }
}

/// Where the results of one tile go.
struct Put<'a> {
    out: &'a mut Encoded,
    first: usize,
    lanes: usize,
    group: usize,
}

impl Put<'_> {
    #[inline(always)]
    fn scales<L: Lanes>(&mut self, scales: L, offsets: Option<L>) {
        let range = self.first..self.first + self.lanes;
        self.out.scales[range.clone()].copy_from_slice(&scales.to_array()[..self.lanes]);
        if let Some(offsets) = offsets {
            self.out.offsets[range].copy_from_slice(&offsets.to_array()[..self.lanes]);
        }
    }

    #[inline(always)]
    fn codes<L: Lanes>(&mut self, j: usize, codes: L) {
        let bytes = codes.to_bytes();
        for lane in 0..self.lanes {
            self.out.codes[(self.first + lane) * self.group + j] = bytes[lane];
        }
    }
}

#[inline(always)]
fn stored<L: Lanes>(scale: ScaleType) -> impl Fn(L) -> L {
    move |v: L| L::load(&v.to_array().map(|x| scale.round(x)))
}

/// `x ≈ scale · level`.
#[inline(always)]
fn scaled_groups<L: Lanes>(
    x: &[L],
    w: &[L],
    grid: impl Grid,
    scale: ScaleType,
    put: &mut Put<'_>,
    code: impl Fn(L) -> L,
) {
    let d = match scale {
        // A power of two: the search's wish and its neighbours are all there is to try.
        ScaleType::E8M0 => {
            let wish = symmetric::extreme(x).abs() * L::splat(1.0 / grid.plain_target());
            let (mut best, mut least) = (L::zero(), L::splat(f32::INFINITY));
            for factor in [1.0, 0.5, 2.0] {
                let candidate = L::load(
                    &wish.to_array().map(|x| if x == 0.0 { 0.0 } else { scale.round(x.max(1e-30) * factor) }),
                );
                let error = symmetric::try_scale::<L, true>(x, w, grid, candidate).error;
                let better = error.lt(least);
                least = L::select(better, error, least);
                best = L::select(better, candidate, best);
            }
            best
        }
        _ => symmetric::stored_scale::<L, true>(x, w, grid, stored(scale)),
    };
    put.scales(d, None);
    let inverse = d.recip_or_zero();
    for j in 0..x.len() {
        put.codes(j, code(x[j] * inverse));
    }
}

/// `x ≈ scale · code + offset`.
#[inline(always)]
fn affine_groups<L: Lanes>(x: &[L], w: &[L], bits: u8, scale: ScaleType, put: &mut Put<'_>) {
    let top = ((1u32 << bits) - 1) as f32;
    let searched = affine::stored_line::<L, true>(x, w, top, stored(scale));
    let mut best = searched;
    let mut least = affine::error::<L, true>(x, w, top, searched);
    // libmlx's rule hits the larger end and zero exactly, which a line by least squares need not beat on every group.
    let (mut low, mut high) = (x[0], x[0]);
    for &x in x {
        low = low.min(x);
        high = high.max(x);
    }
    let mirrored = high.abs().lt(low.abs());
    let width = ((high - low) * L::splat(1.0 / top)).max(L::splat(1e-7));
    let step = L::select(mirrored, width, L::zero() - width);
    let edge = L::select(mirrored, low, high);
    let at_edge = (edge / step).round();
    let hit = L::zero().lt(at_edge.abs());
    let round = stored(scale);
    let plain =
        Line { d: round(L::select(hit, edge / at_edge, step)), m: round(L::select(hit, edge, L::zero())) };
    let error = affine::error::<L, true>(x, w, top, plain);
    let better = error.lt(least);
    least = L::select(better, error, least);
    best = Line { d: L::select(better, plain.d, best.d), m: L::select(better, plain.m, best.m) };
    let _ = least;
    put.scales(best.d, Some(best.m));
    let inverse = best.d.recip_or_zero();
    for j in 0..x.len() {
        put.codes(j, ((x[j] - best.m) * inverse).round().clamp(0.0, top));
    }
}

/// `x ≈ scale · (code - zero)`.
#[inline(always)]
fn zero_point_groups<L: Lanes>(x: &[L], w: &[L], bits: u8, scale: ScaleType, put: &mut Put<'_>) {
    let top = ((1u32 << bits) - 1) as f32;
    let round = stored(scale);
    let (mut low, mut high) = (L::zero(), L::zero());
    for &x in x {
        low = low.min(x);
        high = high.max(x);
    }
    let plain = round((high - low) * L::splat(1.0 / top));
    let plain_zero = (L::zero() - low * plain.recip_or_zero()).round().clamp(0.0, top);
    let (mut best, mut best_zero) = (plain, plain_zero);
    let mut least = zero_point_trial(x, w, top, plain, plain_zero).0;
    let fitted = affine::fit::<L, true, false>(x, w, top, &affine::LADDER);
    let wish = (L::zero() - fitted.m * fitted.d.recip_or_zero()).round();
    for step in [0.0, -1.0, 1.0] {
        let zero = (wish + L::splat(step)).clamp(0.0, top);
        let mut d = round(fitted.d);
        for _ in 0..3 {
            let (error, refitted) = zero_point_trial(x, w, top, d, zero);
            let better = error.lt(least);
            least = L::select(better, error, least);
            best = L::select(better, d, best);
            best_zero = L::select(better, zero, best_zero);
            d = round(refitted);
        }
    }
    put.scales(best, Some(best_zero));
    let inverse = best.recip_or_zero();
    for j in 0..x.len() {
        put.codes(j, ((x[j] * inverse).round() + best_zero).clamp(0.0, top));
    }
}

/// The error of a scale and zero point, and the scale that the codes would prefer.
#[inline(always)]
fn zero_point_trial<L: Lanes>(x: &[L], w: &[L], top: f32, d: L, zero: L) -> (L, L) {
    let inverse = d.recip_or_zero();
    let (mut error, mut xq, mut qq) = (L::zero(), L::zero(), L::zero());
    for j in 0..x.len() {
        let q = ((x[j] * inverse).round() + zero).clamp(0.0, top) - zero;
        let miss = x[j] - d * q;
        let wq = w[j] * q;
        error = error + w[j] * miss * miss;
        xq = xq + wq * x[j];
        qq = qq + wq * q;
    }
    (error, xq * qq.recip_or_zero())
}

/// The levels of NF4.
#[derive(Clone, Copy)]
struct Nf4Grid;

impl Nf4Grid {
    #[inline(always)]
    fn index<L: Lanes>(u: L) -> L {
        let mut sum = L::zero();
        for pair in NF4_LEVELS.windows(2) {
            let above = L::splat(f32::midpoint(pair[0], pair[1])).lt(u);
            sum = L::select(above, sum + L::splat(1.0), sum);
        }
        sum
    }
}

impl Grid for Nf4Grid {
    #[inline(always)]
    fn nearest<L: Lanes>(self, u: L) -> L {
        let mut level = L::splat(NF4_LEVELS[0]);
        for pair in NF4_LEVELS.windows(2) {
            level = L::select(L::splat(f32::midpoint(pair[0], pair[1])).lt(u), L::splat(pair[1]), level);
        }
        level
    }

    #[inline(always)]
    fn targets(self) -> [f32; 20] {
        std::array::from_fn(|i| 0.82 + 0.025 * i as f32)
    }

    #[inline(always)]
    fn reference<L: Lanes>(self, extreme: L) -> L {
        extreme.abs()
    }

    #[inline(always)]
    fn plain_target(self) -> f32 {
        1.0
    }
}

/// The values of a 4-bit float.
#[derive(Clone, Copy)]
struct E2m1Grid;

impl Grid for E2m1Grid {
    #[inline(always)]
    fn nearest<L: Lanes>(self, u: L) -> L {
        let magnitude = nearest_e2m1(u.abs() * L::splat(2.0)) * L::splat(0.5);
        L::select(u.lt(L::zero()), L::zero() - magnitude, magnitude)
    }

    #[inline(always)]
    fn targets(self) -> [f32; 20] {
        std::array::from_fn(|i| 3.8 + 0.2 * i as f32)
    }

    #[inline(always)]
    fn reference<L: Lanes>(self, extreme: L) -> L {
        extreme.abs()
    }

    #[inline(always)]
    fn plain_target(self) -> f32 {
        6.0
    }
}

/// The values of an 8-bit float.
#[derive(Clone, Copy)]
struct E4m3Grid;

impl Grid for E4m3Grid {
    #[inline(always)]
    fn nearest<L: Lanes>(self, u: L) -> L {
        L::load(&u.to_array().map(|u| crate::plain::f8_e4m3_to_f32(f32_to_f8_e4m3(u))))
    }

    #[inline(always)]
    fn targets(self) -> [f32; 20] {
        std::array::from_fn(|i| 256.0 + 12.8 * i as f32)
    }

    #[inline(always)]
    fn reference<L: Lanes>(self, extreme: L) -> L {
        extreme.abs()
    }

    #[inline(always)]
    fn plain_target(self) -> f32 {
        448.0
    }
}
