//! `x ≈ d·q + m` with `q` in `0..=n`.

use super::symmetric::NEGLIGIBLE;
use crate::lanes::Lanes;

const ABREAST: usize = 4;

/// How far the top of the range is placed beyond `n`, candidate by candidate; negative widens the grid.
pub(crate) type Ladder = [f32; 20];

/// From wide to clipping.
pub(crate) const LADDER: Ladder = [
    -0.8, -0.6, -0.4, -0.2, -0.1, 0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.15, 1.3, 1.5, 1.75,
];

/// A scale and an offset per lane.
#[derive(Clone, Copy)]
pub(crate) struct Line<L> {
    /// Step between levels.
    pub(crate) d: L,
    /// Value of level 0.
    pub(crate) m: L,
}

/// The line that makes `Σ w (x - d·q - m)²` smallest over the ladder. With `NEGATIVE`, `m` is at most 0.
#[inline(always)]
pub(crate) fn fit<L: Lanes, const WEIGHTED: bool, const NEGATIVE: bool>(
    x: &[L],
    w: &[L],
    n: f32,
    ladder: &Ladder,
) -> Line<L> {
    let (mut low, mut high) = (x[0], x[0]);
    for &x in x {
        low = low.min(x);
        high = high.max(x);
    }
    if NEGATIVE {
        low = low.min(L::zero());
    }
    let range = high - low;
    let flat = range.lt(L::splat(NEGLIGIBLE));
    let unit = L::select(flat, L::zero(), range.recip_or_zero());
    // u runs over 0..=1; sums of it stay well conditioned wherever the block lies.
    let (mut sw, mut su, mut suu) = (L::zero(), L::zero(), L::zero());
    for j in 0..x.len() {
        let u = (x[j] - low) * unit;
        let wu = if WEIGHTED { w[j] * u } else { u };
        sw = sw + if WEIGHTED { w[j] } else { L::splat(1.0) };
        su = su + wu;
        suu = suu + wu * u;
    }
    let offset = low * unit;
    let (mut best_a, mut best_b, mut best) = (L::splat(1.0 / n), L::zero(), L::splat(f32::MAX));
    for rungs in ladder.chunks_exact(ABREAST) {
        let mut sq = [L::zero(); ABREAST];
        let mut sqq = [L::zero(); ABREAST];
        let mut suq = [L::zero(); ABREAST];
        for j in 0..x.len() {
            let u = (x[j] - low) * unit;
            for (k, rung) in rungs.iter().enumerate() {
                let q = (u * L::splat(n + rung)).round().min(L::splat(n));
                let wq = if WEIGHTED { w[j] * q } else { q };
                sq[k] = sq[k] + wq;
                sqq[k] = sqq[k] + wq * q;
                suq[k] = suq[k] + wq * u;
            }
        }
        for k in 0..ABREAST {
            let spread = sw * sqq[k] - sq[k] * sq[k];
            let inverse = spread.recip_or_zero();
            // Where all quants are one, only the slope through zero can be told.
            let same = spread.lt(sw * sqq[k] * L::splat(1e-6));
            let slope = suq[k] * sqq[k].recip_or_zero();
            let mut a = L::select(same, slope, (sw * suq[k] - su * sq[k]) * inverse);
            let mut b = L::select(same, L::zero(), (sqq[k] * su - sq[k] * suq[k]) * inverse);
            if NEGATIVE {
                // Where the offset would be positive it is 0, that is -offset in u, and the slope is refitted.
                let above = L::zero().lt(b + offset);
                let slope = (suq[k] + offset * sq[k]) * sqq[k].recip_or_zero();
                a = L::select(above, slope, a);
                b = L::select(above, L::zero() - offset, b);
            }
            // Σw(u - aq - b)², expanded so that it holds for any a and b.
            let two = L::splat(2.0);
            let error = suu + a * (a * sqq[k] - two * suq[k]) + b * (b * sw - two * su + two * a * sq[k]);
            let better = error.lt(best);
            best = L::select(better, error, best);
            best_a = L::select(better, a, best_a);
            best_b = L::select(better, b, best_b);
        }
    }
    let d = L::select(flat, L::zero(), best_a * range);
    let m = L::select(flat, low, best_b * range + low);
    // Rounding may leave a trace above zero.
    Line { d, m: if NEGATIVE { m.min(L::zero()) } else { m } }
}

/// Sums over a block rounded to a given line.
#[derive(Clone, Copy)]
pub(crate) struct Trial<L> {
    /// `Σ w (x - d·q - m)²`.
    pub(crate) error: L,
    /// `Σ w`.
    pub(crate) w: L,
    /// `Σ w x`.
    pub(crate) x: L,
    /// `Σ w q`.
    pub(crate) q: L,
    /// `Σ w q²`.
    pub(crate) qq: L,
    /// `Σ w x q`.
    pub(crate) xq: L,
}

impl<L: Lanes> Trial<L> {
    /// The line these quants would prefer.
    #[inline(always)]
    pub(crate) fn refit(&self) -> Line<L> {
        let inverse = (self.w * self.qq - self.q * self.q).recip_or_zero();
        Line {
            d: (self.w * self.xq - self.x * self.q) * inverse,
            m: (self.qq * self.x - self.q * self.xq) * inverse,
        }
    }
}

/// `Σ w (x - d·q - m)²` with every element rounded to the line.
#[inline(always)]
pub(crate) fn error<L: Lanes, const WEIGHTED: bool>(x: &[L], w: &[L], n: f32, line: Line<L>) -> L {
    let inverse = line.d.recip_or_zero();
    let mut error = L::zero();
    for j in 0..x.len() {
        let q = ((x[j] - line.m) * inverse).round().clamp(0.0, n);
        let miss = x[j] - (line.d * q + line.m);
        error = error + if WEIGHTED { w[j] * miss } else { miss } * miss;
    }
    error
}

/// All sums with every element rounded to the line.
#[inline(always)]
pub(crate) fn try_line<L: Lanes, const WEIGHTED: bool>(x: &[L], w: &[L], n: f32, line: Line<L>) -> Trial<L> {
    let inverse = line.d.recip_or_zero();
    let zero = L::zero();
    let mut trial = Trial { error: zero, w: zero, x: zero, q: zero, qq: zero, xq: zero };
    for j in 0..x.len() {
        let q = ((x[j] - line.m) * inverse).round().clamp(0.0, n);
        let miss = x[j] - (line.d * q + line.m);
        let w = if WEIGHTED { w[j] } else { L::splat(1.0) };
        let wq = w * q;
        trial.error = trial.error + w * miss * miss;
        trial.w = trial.w + w;
        trial.x = trial.x + w * x[j];
        trial.q = trial.q + wq;
        trial.qq = trial.qq + wq * q;
        trial.xq = trial.xq + wq * x[j];
    }
    trial
}

/// Step and offset for a block with its own, as `stored` rounds them: the fitted line, refitted once to the quants it
/// gives, or the plain one from lowest to highest, whichever truly loses least.
#[inline(always)]
pub(crate) fn stored_line<L: Lanes, const WEIGHTED: bool>(
    x: &[L],
    w: &[L],
    n: f32,
    stored: impl Fn(L) -> L,
) -> Line<L> {
    let (mut low, mut high) = (x[0], x[0]);
    for &x in x {
        low = low.min(x);
        high = high.max(x);
    }
    let round = |line: Line<L>| Line { d: stored(line.d), m: stored(line.m) };
    let mut best = round(Line { d: (high - low) * L::splat(1.0 / n), m: low });
    let mut least = error::<L, WEIGHTED>(x, w, n, best);
    let mut line = round(fit::<L, WEIGHTED, false>(x, w, n, &LADDER));
    for _ in 0..2 {
        let trial = try_line::<L, WEIGHTED>(x, w, n, line);
        let better = trial.error.lt(least);
        least = L::select(better, trial.error, least);
        best = Line { d: L::select(better, line.d, best.d), m: L::select(better, line.m, best.m) };
        line = round(trial.refit());
    }
    best
}

/// [`stored_line`] in half precision.
#[inline(always)]
pub(crate) fn half_line<L: Lanes, const WEIGHTED: bool>(x: &[L], w: &[L], n: f32) -> Line<L> {
    stored_line::<L, WEIGHTED>(x, w, n, L::saturating_f16)
}
