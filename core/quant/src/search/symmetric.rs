//! `x ≈ d·q` with `q` on a [`Grid`].

use super::grid::Grid;
use crate::grouped::ScaleType;
use crate::lanes::{LANES, Lanes};
use crate::simd::Kernel;
use crate::weights::{Row, Tile, vectors};

/// Below this magnitude a block counts as zero: its scale would vanish in half precision anyway.
pub(crate) const NEGLIGIBLE: f32 = 1e-15;

/// Candidate scales tried together, so that their independent sums hide each other's latency.
const ABREAST: usize = 2;

/// The element of largest magnitude in every lane, with its sign; 0 where all are negligible.
#[inline(always)]
pub(crate) fn extreme<L: Lanes>(x: &[L]) -> L {
    let (mut extreme, mut magnitude) = (L::zero(), L::splat(NEGLIGIBLE));
    for &x in x {
        let larger = magnitude.lt(x.abs());
        extreme = L::select(larger, x, extreme);
        magnitude = L::select(larger, x.abs(), magnitude);
    }
    extreme
}

/// The scale `d` that makes `Σ w (x - d·q)²` smallest over the grid's rungs, in every lane; 0 for zero blocks. Weights of one
/// are not multiplied with where `weighted` is false: given as a literal, it makes a kernel of its own.
#[inline(always)]
pub(crate) fn fit<L: Lanes>(x: &[L], w: &[L], grid: impl Grid, weighted: bool) -> L {
    let reference = grid.reference(extreme(x));
    let unit = reference.recip_or_zero();
    let (mut best_uq, mut best_qq) = (L::zero(), L::splat(1.0));
    for rungs in grid.rungs(weighted).chunks_exact(ABREAST) {
        let mut uq = [L::zero(); ABREAST];
        let mut qq = [L::zero(); ABREAST];
        for j in 0..x.len() {
            let u = x[j] * unit;
            for (k, rung) in rungs.iter().enumerate() {
                let q = grid.nearest(u * L::splat(grid.target(*rung)));
                let wq = if weighted { w[j] * q } else { q };
                uq[k] = uq[k] + wq * u;
                qq[k] = qq[k] + wq * q;
            }
        }
        for k in 0..ABREAST {
            // The error is Σwu² - uq²/qq, so the larger quotient wins; compared without dividing.
            let better = (best_uq * best_uq * qq[k]).lt(uq[k] * uq[k] * best_qq);
            best_uq = L::select(better, uq[k], best_uq);
            best_qq = L::select(better, qq[k], best_qq);
        }
    }
    (best_uq / best_qq) * reference
}

/// What a given scale costs and which scale its quants would prefer.
#[derive(Clone, Copy)]
pub(crate) struct Trial<L> {
    /// `Σ w (x - d·q)²`.
    pub(crate) error: L,
    /// `Σ w x q`.
    pub(crate) xq: L,
    /// `Σ w q²`.
    pub(crate) qq: L,
}

/// Rounds every element to scale `d`; `weighted` as in [`fit`].
#[inline(always)]
pub(crate) fn try_scale<L: Lanes>(x: &[L], w: &[L], grid: impl Grid, d: L, weighted: bool) -> Trial<L> {
    let inverse = d.recip_or_zero();
    let mut trial = Trial { error: L::zero(), xq: L::zero(), qq: L::zero() };
    for j in 0..x.len() {
        let q = grid.nearest(x[j] * inverse);
        let miss = x[j] - d * q;
        let (wq, wm) = if weighted { (w[j] * q, w[j] * miss) } else { (q, miss) };
        trial.error = trial.error + wm * miss;
        trial.xq = trial.xq + wq * x[j];
        trial.qq = trial.qq + wq * q;
    }
    trial
}

/// The search for the scale of blocks with one of their own, as its type stores it: the fitted one (refitted once to the
/// quants it gives, where weights differ) or the plain one, whichever truly loses least.
pub(crate) struct OwnScale<'a, G> {
    pub(crate) tile: &'a mut Tile,
    pub(crate) grid: G,
    pub(crate) stored: ScaleType,
}

impl<G: Grid> Kernel for OwnScale<'_, G> {
    type Output = Row;

    #[inline(always)]
    fn run<L: Lanes>(self) -> Row {
        let Self { tile, grid, stored } = self;
        let (x, w) = (vectors::<L>(&tile.x), vectors::<L>(&tile.w));
        let plain = grid.reference(extreme(&x)) * L::splat(1.0 / grid.plain_target());
        let candidates = [plain, fit(&x, &w, grid, tile.weighted)];
        let (mut best, mut least) = (L::zero(), L::splat(f32::INFINITY));
        let mut refitted = plain;
        for round in 0..if tile.weighted { 3 } else { 2 } {
            let d = stored.round_lanes(if round < 2 { candidates[round] } else { refitted });
            let trial = try_scale(&x, &w, grid, d, tile.weighted);
            let better = if round == 0 { L::zero().lt(L::splat(1.0)) } else { trial.error.lt(least) };
            best = L::select(better, d, best);
            least = L::select(better, trial.error, least);
            refitted = trial.xq * trial.qq.recip_or_zero();
        }
        write_codes(&x, grid, best, &mut tile.codes);
        best.to_array()
    }
}

/// The choice among given scales; says which was best.
pub(crate) struct AmongScales<'a, G> {
    pub(crate) tile: &'a mut Tile,
    pub(crate) grid: G,
    pub(crate) candidates: &'a [Row],
}

impl<G: Grid> Kernel for AmongScales<'_, G> {
    type Output = [u8; LANES];

    #[inline(always)]
    fn run<L: Lanes>(self) -> [u8; LANES] {
        let Self { tile, grid, candidates } = self;
        let (x, w) = (vectors::<L>(&tile.x), vectors::<L>(&tile.w));
        let (mut best, mut place) = (L::zero(), L::zero());
        let mut least = L::splat(f32::INFINITY);
        for (i, candidate) in candidates.iter().enumerate() {
            let d = L::load(candidate);
            let error = try_scale(&x, &w, grid, d, true).error;
            let better = if i == 0 { L::zero().lt(L::splat(1.0)) } else { error.lt(least) };
            least = L::select(better, error, least);
            best = L::select(better, d, best);
            place = L::select(better, L::splat(i as f32), place);
        }
        write_codes(&x, grid, best, &mut tile.codes);
        place.to_bytes()
    }
}

/// Writes the codes of all elements at scale `d`.
#[inline(always)]
pub(crate) fn write_codes<L: Lanes>(x: &[L], grid: impl Grid, d: L, codes: &mut [[u8; LANES]]) {
    let inverse = d.recip_or_zero();
    for (codes, x) in codes.iter_mut().zip(x) {
        *codes = grid.code(*x * inverse).to_bytes();
    }
}
