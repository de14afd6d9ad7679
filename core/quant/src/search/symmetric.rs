//! `x ≈ d·q` with `q` on a [`Grid`].

use super::grid::Grid;
use crate::lanes::Lanes;

/// Below this magnitude a block counts as zero: its scale would vanish in half precision anyway.
pub(crate) const NEGLIGIBLE: f32 = 1e-15;

/// Candidate scales tried together, so that their independent sums hide each other's latency.
const ABREAST: usize = 4;

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

/// The scale `d` that makes `Σ w (x - d·q)²` smallest over the grid's targets, in every lane; 0 for zero blocks.
#[inline(always)]
pub(crate) fn fit<L: Lanes, const WEIGHTED: bool>(x: &[L], w: &[L], grid: impl Grid) -> L {
    let reference = grid.reference(extreme(x));
    let unit = reference.recip_or_zero();
    let (mut best_uq, mut best_qq) = (L::zero(), L::splat(1.0));
    for targets in grid.targets().chunks_exact(ABREAST) {
        let mut uq = [L::zero(); ABREAST];
        let mut qq = [L::zero(); ABREAST];
        for j in 0..x.len() {
            let u = x[j] * unit;
            for (k, target) in targets.iter().enumerate() {
                let q = grid.nearest(u * L::splat(*target));
                let wq = if WEIGHTED { w[j] * q } else { q };
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

/// Rounds every element to scale `d`.
#[inline(always)]
pub(crate) fn try_scale<L: Lanes, const WEIGHTED: bool>(x: &[L], w: &[L], grid: impl Grid, d: L) -> Trial<L> {
    let inverse = d.recip_or_zero();
    let mut trial = Trial { error: L::zero(), xq: L::zero(), qq: L::zero() };
    for j in 0..x.len() {
        let q = grid.nearest(x[j] * inverse);
        let miss = x[j] - d * q;
        let (wq, wm) = if WEIGHTED { (w[j] * q, w[j] * miss) } else { (q, miss) };
        trial.error = trial.error + wm * miss;
        trial.xq = trial.xq + wq * x[j];
        trial.qq = trial.qq + wq * q;
    }
    trial
}

/// The scale for a block with one of its own, as `stored` rounds it: the fitted one, refitted once to the quants it gives,
/// or the plain one, whichever truly loses least.
#[inline(always)]
pub(crate) fn stored_scale<L: Lanes, const WEIGHTED: bool>(
    x: &[L],
    w: &[L],
    grid: impl Grid,
    stored: impl Fn(L) -> L,
) -> L {
    let mut best_d = stored(grid.reference(extreme(x)) * L::splat(1.0 / grid.plain_target()));
    let mut least = try_scale::<L, WEIGHTED>(x, w, grid, best_d).error;
    let mut d = stored(fit::<L, WEIGHTED>(x, w, grid));
    for _ in 0..2 {
        let trial = try_scale::<L, WEIGHTED>(x, w, grid, d);
        let better = trial.error.lt(least);
        best_d = L::select(better, d, best_d);
        least = L::select(better, trial.error, least);
        d = stored(trial.xq * trial.qq.recip_or_zero());
    }
    best_d
}

/// [`stored_scale`] in half precision.
#[inline(always)]
pub(crate) fn half_scale<L: Lanes, const WEIGHTED: bool>(x: &[L], w: &[L], grid: impl Grid) -> L {
    stored_scale::<L, WEIGHTED>(x, w, grid, L::saturating_f16)
}
