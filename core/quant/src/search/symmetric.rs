//! `x ≈ d·q` with `q` in `-n..=n-1`.

use crate::lanes::Lanes;

/// Below this magnitude a block counts as zero: its scale would vanish in half precision anyway.
pub(crate) const NEGLIGIBLE: f32 = 1e-15;

/// Candidate scales tried together, so that their independent sums hide each other's latency.
const ABREAST: usize = 4;

/// How far beyond `n` the value of largest magnitude is placed, candidate by candidate: negative shrinks the grid around all
/// values, positive clips the largest to make the grid finer for the rest.
pub(crate) type Ladder = [f32; 20];

/// From slightly wide to clipping, for grids of 3 to 6 bits.
pub(crate) const LADDER: Ladder = [
    -0.9, -0.75, -0.6, -0.45, -0.3, -0.15, 0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.75, 0.9, 1.1, 1.3, 1.5, 1.75,
    2.0,
];

/// The element of largest magnitude in every lane, with its sign; 0 where all are negligible.
#[inline(always)]
pub(crate) fn extreme<L: Lanes, const N: usize>(x: &[L; N]) -> L {
    let (mut extreme, mut magnitude) = (L::zero(), L::splat(NEGLIGIBLE));
    for &x in x {
        let larger = magnitude.lt(x.abs());
        extreme = L::select(larger, x, extreme);
        magnitude = L::select(larger, x.abs(), magnitude);
    }
    extreme
}

/// The scale `d` that makes `Σ w (x - d·q)²` smallest over the ladder, in every lane; 0 for zero blocks.
#[inline(always)]
pub(crate) fn fit<L: Lanes, const N: usize, const WEIGHTED: bool>(
    x: &[L; N],
    w: &[L; N],
    n: f32,
    ladder: &Ladder,
) -> L {
    let extreme = extreme(x);
    // In units of minus the extreme, that element is -1 and meets the longer end of the grid.
    let unit = L::zero() - extreme.recip_or_zero();
    let mut u = [L::zero(); N];
    for j in 0..N {
        u[j] = x[j] * unit;
    }
    let (mut best_xq, mut best_qq) = (L::zero(), L::splat(1.0));
    for rungs in ladder.chunks_exact(ABREAST) {
        let mut xq = [L::zero(); ABREAST];
        let mut qq = [L::zero(); ABREAST];
        for j in 0..N {
            for (k, rung) in rungs.iter().enumerate() {
                let q = (u[j] * L::splat(n + rung)).round().clamp(-n, n - 1.0);
                let wq = if WEIGHTED { w[j] * q } else { q };
                xq[k] = xq[k] + wq * u[j];
                qq[k] = qq[k] + wq * q;
            }
        }
        for k in 0..ABREAST {
            // The error is Σwx² - xq²/qq, so the larger quotient wins; compared without dividing.
            let better = (best_xq * best_xq * qq[k]).lt(xq[k] * xq[k] * best_qq);
            best_xq = L::select(better, xq[k], best_xq);
            best_qq = L::select(better, qq[k], best_qq);
        }
    }
    (best_xq / best_qq) * (L::zero() - extreme)
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
pub(crate) fn try_scale<L: Lanes, const N: usize, const WEIGHTED: bool>(
    x: &[L; N],
    w: &[L; N],
    n: f32,
    d: L,
) -> Trial<L> {
    let inverse = d.recip_or_zero();
    let mut trial = Trial { error: L::zero(), xq: L::zero(), qq: L::zero() };
    for j in 0..N {
        let q = (x[j] * inverse).round().clamp(-n, n - 1.0);
        let miss = x[j] - d * q;
        let (wq, wm) = if WEIGHTED { (w[j] * q, w[j] * miss) } else { (q, miss) };
        trial.error = trial.error + wm * miss;
        trial.xq = trial.xq + wq * x[j];
        trial.qq = trial.qq + wq * q;
    }
    trial
}

/// The half-precision scale for a block with one scale of its own: the fitted one, refitted once to the quants it gives,
/// or the plain one that maps the extreme to the end of the grid, whichever truly loses least.
#[inline(always)]
pub(crate) fn half_scale<L: Lanes, const N: usize, const WEIGHTED: bool>(
    x: &[L; N],
    w: &[L; N],
    n: f32,
) -> L {
    let mut best_d = (extreme(x) * L::splat(-1.0 / n)).saturating_f16();
    let mut best = try_scale::<L, N, WEIGHTED>(x, w, n, best_d);
    let mut d = fit::<L, N, WEIGHTED>(x, w, n, &LADDER).saturating_f16();
    for _ in 0..2 {
        let trial = try_scale::<L, N, WEIGHTED>(x, w, n, d);
        let better = trial.error.lt(best.error);
        best_d = L::select(better, d, best_d);
        best.error = L::select(better, trial.error, best.error);
        d = (trial.xq * trial.qq.recip_or_zero()).saturating_f16();
    }
    best_d
}
