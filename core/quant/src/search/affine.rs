//! `x ≈ d·q + m` with `q` in `0..=n`.

use super::symmetric::NEGLIGIBLE;
use crate::grouped::ScaleType;
use crate::lanes::{LANES, Lanes};
use crate::simd::Kernel;
use crate::weights::{Row, Tile, vectors};

const ABREAST: usize = 4;

/// How often a scale beside a zero point is tried and fitted anew.
const ROUNDS: usize = 2;

/// How far the top of the range is placed beyond `n`, candidate by candidate; negative widens the grid. The first twelve
/// come within a percent of what forty reach on even weights; where weights differ in importance, more clipping must be tried.
const LADDER: [f32; 32] = [
    0.2, -0.3, 0.6, -0.9, 0.0, 0.4, -0.45, -1.0, 0.8, -0.7, -0.15, 1.0, 1.2, 0.1, 0.3, 0.5, 0.7, 1.4, 1.7,
    2.2, -0.8, -0.6, -0.37, -0.22, -0.07, 0.05, 0.15, 0.9, 0.65, 0.25, 2.8, 3.6,
];

/// A scale and an offset per lane.
#[derive(Clone, Copy)]
pub(crate) struct Line<L> {
    /// Step between levels.
    pub(crate) d: L,
    /// Value of level 0.
    pub(crate) m: L,
}

/// The rungs worth trying where weights differ, and where they do not.
pub(crate) fn rungs(weighted: bool) -> &'static [f32] {
    if weighted { &LADDER } else { &LADDER[..12] }
}

/// The line that makes `Σ w (x - d·q - m)²` smallest over the ladder. With `negative`, `m` is at most 0.
#[inline(always)]
pub(crate) fn fit<L: Lanes>(x: &[L], w: &[L], n: f32, ladder: &[f32], negative: bool) -> Line<L> {
    let (mut low, mut high) = (x[0], x[0]);
    for &x in x {
        low = low.min(x);
        high = high.max(x);
    }
    if negative {
        low = low.min(L::zero());
    }
    let range = high - low;
    let flat = range.lt(L::splat(NEGLIGIBLE));
    let unit = L::select(flat, L::zero(), range.recip_or_zero());
    // u runs over 0..=1; sums of it stay well conditioned wherever the block lies.
    let (mut sw, mut su, mut suu) = (L::zero(), L::zero(), L::zero());
    for j in 0..x.len() {
        let u = (x[j] - low) * unit;
        let wu = w[j] * u;
        sw = sw + w[j];
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
                let wq = w[j] * q;
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
            if negative {
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
    Line { d, m: if negative { m.min(L::zero()) } else { m } }
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

/// All sums with every element rounded to the line.
#[inline(always)]
pub(crate) fn try_line<L: Lanes>(x: &[L], w: &[L], n: f32, line: Line<L>) -> Trial<L> {
    let inverse = line.d.recip_or_zero();
    let zero = L::zero();
    let mut trial = Trial { error: zero, w: zero, x: zero, q: zero, qq: zero, xq: zero };
    for j in 0..x.len() {
        let q = ((x[j] - line.m) * inverse).round().clamp(0.0, n);
        let miss = x[j] - (line.d * q + line.m);
        let w = w[j];
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

/// The search for step and offset of blocks with their own, as their type stores them: the fitted line (refitted once to the
/// quants it gives), the plain one from lowest to highest, or the one that hits the larger end and zero exactly, as
/// libmlx has it; whichever truly loses least.
pub(crate) struct OwnLine<'a> {
    pub(crate) tile: &'a mut Tile,
    /// The largest code.
    pub(crate) top: f32,
    pub(crate) stored: ScaleType,
}

impl Kernel for OwnLine<'_> {
    type Output = Line<Row>;

    #[inline(always)]
    fn run<L: Lanes>(self) -> Line<Row> {
        let Self { tile, top, stored } = self;
        let (x, w) = (vectors::<L>(&tile.x), vectors::<L>(&tile.w));
        let (low, high) = range(&x);
        let plain = Line { d: (high - low) * L::splat(1.0 / top), m: low };
        let candidates = [plain, anchored(low, high, top), fit(&x, &w, top, rungs(tile.weighted), false)];
        let (mut best, mut least) = (plain, L::splat(f32::INFINITY));
        let mut refitted = plain;
        for round in 0..if tile.weighted { 6 } else { 4 } {
            let line = if round < 3 { candidates[round] } else { refitted };
            let line = Line { d: stored.round_lanes(line.d), m: stored.round_lanes(line.m) };
            let trial = try_line(&x, &w, top, line);
            let better = if round == 0 { L::zero().lt(L::splat(1.0)) } else { trial.error.lt(least) };
            least = L::select(better, trial.error, least);
            best = Line { d: L::select(better, line.d, best.d), m: L::select(better, line.m, best.m) };
            refitted = trial.refit();
        }
        write_codes(&x, top, best, &mut tile.codes);
        Line { d: best.d.to_array(), m: best.m.to_array() }
    }
}

/// The lowest and the highest element of every lane.
#[inline(always)]
fn range<L: Lanes>(x: &[L]) -> (L, L) {
    let (mut low, mut high) = (x[0], x[0]);
    for &x in x {
        low = low.min(x);
        high = high.max(x);
    }
    (low, high)
}

/// The line of libmlx's rule: see `grouped::owner`.
#[inline(always)]
fn anchored<L: Lanes>(low: L, high: L, top: f32) -> Line<L> {
    let mirrored = high.abs().lt(low.abs());
    let width = ((high - low) * L::splat(1.0 / top)).max(L::splat(1e-7));
    let step = L::select(mirrored, width, L::zero() - width);
    let edge = L::select(mirrored, low, high);
    let at_edge = (edge / step).clamp(-4e6, 4e6).round();
    let hit = L::zero().lt(at_edge.abs());
    Line { d: L::select(hit, edge / at_edge, step), m: L::select(hit, edge, L::zero()) }
}

/// Writes the codes of all elements on a line.
#[inline(always)]
pub(crate) fn write_codes<L: Lanes>(x: &[L], top: f32, line: Line<L>, codes: &mut [[u8; LANES]]) {
    let inverse = line.d.recip_or_zero();
    for (codes, x) in codes.iter_mut().zip(x) {
        *codes = ((*x - line.m) * inverse).round().clamp(0.0, top).to_bytes();
    }
}

/// The search for `x ≈ scale · (code - zero)`; gives the scale and the zero point. Scales are fitted anew beside each whole zero point,
/// so that few rungs do where columns weigh alike.
pub(crate) struct ZeroPoint<'a> {
    pub(crate) tile: &'a mut Tile,
    /// The largest code.
    pub(crate) top: f32,
    pub(crate) stored: ScaleType,
}

impl Kernel for ZeroPoint<'_> {
    type Output = (Row, Row);

    #[inline(always)]
    fn run<L: Lanes>(self) -> (Row, Row) {
        let Self { tile, top, stored } = self;
        let (x, w) = (vectors::<L>(&tile.x), vectors::<L>(&tile.w));
        let (low, high) = range(&x);
        let (low, high) = (low.min(L::zero()), high.max(L::zero()));
        // NNCF's rule is the first candidate.
        let plain = stored.round_lanes((high - low) * L::splat(1.0 / top));
        let plain_zero = (L::zero() - low * plain.recip_or_zero()).round().clamp(0.0, top);
        let (mut best, mut best_zero) = (plain, plain_zero);
        let mut least = zero_point_trial(&x, &w, top, plain, plain_zero).0;
        let rungs = if tile.by_column { &LADDER[..] } else { &LADDER[..ABREAST] };
        let fitted = fit(&x, &w, top, rungs, false);
        let wish = (L::zero() - fitted.m * fitted.d.recip_or_zero()).clamp(-4e6, 4e6).round();
        let (zero, mut d) = preferred_zero(&x, &w, top, fitted.d, wish);
        for _ in 0..ROUNDS {
            d = stored.round_lanes(d);
            let (error, refitted) = zero_point_trial(&x, &w, top, d, zero);
            let better = error.lt(least);
            least = L::select(better, error, least);
            best = L::select(better, d, best);
            best_zero = L::select(better, zero, best_zero);
            d = refitted;
        }
        let inverse = best.recip_or_zero();
        for (codes, x) in tile.codes.iter_mut().zip(&x) {
            *codes = ((*x * inverse).round() + best_zero).clamp(0.0, top).to_bytes();
        }
        (best.to_array(), best_zero.to_array())
    }
}

/// Of `wish` and its neighbours, the zero point that loses least after its codes at scale `d` chose a scale, and their codes another one;
/// and that scale.
#[inline(always)]
fn preferred_zero<L: Lanes>(x: &[L], w: &[L], top: f32, d: L, wish: L) -> (L, L) {
    let mut zeros = [wish; 3];
    for (zero, step) in zeros.iter_mut().zip([0.0, -1.0, 1.0]) {
        *zero = (*zero + L::splat(step)).clamp(0.0, top);
    }
    let mut scales = [d; 3];
    let mut explained = [L::zero(); 3];
    for _ in 0..2 {
        let mut inverse = scales;
        for inverse in &mut inverse {
            *inverse = inverse.recip_or_zero();
        }
        let (mut xq, mut qq) = ([L::zero(); 3], [L::zero(); 3]);
        for j in 0..x.len() {
            // Side by side, so that their sums hide each other's latency.
            for k in 0..3 {
                let rounded = (x[j] * inverse[k]).round();
                let q = rounded.max(L::zero() - zeros[k]).min(L::splat(top) - zeros[k]);
                let wq = w[j] * q;
                xq[k] = xq[k] + wq * x[j];
                qq[k] = qq[k] + wq * q;
            }
        }
        for k in 0..3 {
            scales[k] = xq[k] * qq[k].recip_or_zero();
            explained[k] = xq[k] * scales[k];
        }
    }
    let (mut zero, mut scale, mut most) = (zeros[0], scales[0], explained[0]);
    for k in 1..3 {
        // The error is Σwx² less what is explained.
        let better = most.lt(explained[k]);
        zero = L::select(better, zeros[k], zero);
        scale = L::select(better, scales[k], scale);
        most = L::select(better, explained[k], most);
    }
    (zero, scale)
}

/// The error of a scale and zero point, and the scale that the codes would prefer.
#[inline(always)]
fn zero_point_trial<L: Lanes>(x: &[L], w: &[L], top: f32, d: L, zero: L) -> (L, L) {
    let inverse = d.recip_or_zero();
    // What codes of 0 and of `top` stand for, in steps.
    let (low, high) = (L::zero() - zero, L::splat(top) - zero);
    let (mut error, mut xq, mut qq) = (L::zero(), L::zero(), L::zero());
    for j in 0..x.len() {
        let q = (x[j] * inverse).round().max(low).min(high);
        let miss = x[j] - d * q;
        let wq = w[j] * q;
        error = error + w[j] * miss * miss;
        xq = xq + wq * x[j];
        qq = qq + wq * q;
    }
    (error, xq * qq.recip_or_zero())
}
