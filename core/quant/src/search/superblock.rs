//! Scales of K-quants: 256 weights share two half-precision numbers, and each sub-block's own scale is a small multiple
//! of them.
//!
//! Sub-blocks are fitted alone first. Then the shared scale is set from the largest, every sub-block tries the
//! multiples around its wish with its weights rounded anew, and the shared scale is refitted to the outcome; the last
//! two steps repeat while they help.

use super::affine::{self, Line};
use super::grid::Grid;
use super::symmetric;
use crate::lanes::{LANES, Lanes};
use crate::simd::Kernel;
use crate::weights::{Row, Tile, vectors};

/// Times the shared scales are refitted.
const REFITS: usize = 2;

/// The scales of one tile of sub-blocks, each lane a sub-block, `LANES / SUBS` super-blocks side by side.
#[derive(Clone, Copy)]
pub(crate) struct Affine<L> {
    /// The super-block's half-precision scale.
    pub(crate) d: L,
    /// The super-block's half-precision scale of offsets.
    pub(crate) dmin: L,
    /// The sub-block's multiple of `d`.
    pub(crate) scale: L,
    /// The sub-block's multiple of `dmin`.
    pub(crate) min: L,
}

impl<L: Lanes> Affine<L> {
    /// The line weights are rounded to, computed as the decoder does.
    #[inline(always)]
    pub(crate) fn line(&self) -> Line<L> {
        Line { d: self.d * self.scale, m: L::zero() - self.dmin * self.min }
    }

    #[inline(always)]
    fn select(mask: L::Mask, yes: Self, no: Self) -> Self {
        Self {
            d: L::select(mask, yes.d, no.d),
            dmin: L::select(mask, yes.dmin, no.dmin),
            scale: L::select(mask, yes.scale, no.scale),
            min: L::select(mask, yes.min, no.min),
        }
    }
}

/// Applies `f` to the lanes of each super-block and spreads its result over them.
#[inline(always)]
fn per_superblock<L: Lanes>(v: L, subs: usize, f: impl Fn(&[f32]) -> f32) -> L {
    let mut lanes = v.to_array();
    for lanes in lanes.chunks_exact_mut(subs) {
        let result = f(lanes);
        lanes.fill(result);
    }
    L::load(&lanes)
}

/// The largest value.
#[inline(always)]
fn largest(lanes: &[f32]) -> f32 {
    lanes.iter().fold(0.0, |a, &b| if b > a { b } else { a })
}

/// The value of largest magnitude, with its sign.
#[inline(always)]
fn largest_magnitude(lanes: &[f32]) -> f32 {
    lanes.iter().fold(0.0f32, |a, &b| if b.abs() > a.abs() { b } else { a })
}

/// The sum, left to right.
#[inline(always)]
fn total(lanes: &[f32]) -> f32 {
    lanes.iter().fold(0.0, |a, &b| a + b)
}

/// The search for the scales of sub-blocks with offsets, `subs` to a block.
pub(crate) struct WithOffsets<'a> {
    pub(crate) tile: &'a mut Tile,
    /// The largest quant.
    pub(crate) n: f32,
    /// The largest multiple.
    pub(crate) levels: f32,
    pub(crate) subs: usize,
}

/// Scales as bytes and floats.
pub(crate) struct WithOffsetsFound {
    pub(crate) d: Row,
    pub(crate) dmin: Row,
    pub(crate) scale: [u8; LANES],
    pub(crate) min: [u8; LANES],
}

impl Kernel for WithOffsets<'_> {
    type Output = WithOffsetsFound;

    #[inline(always)]
    fn run<L: Lanes>(self) -> WithOffsetsFound {
        let Self { tile, n, levels, subs } = self;
        let (x, w) = (vectors::<L>(&tile.x), vectors::<L>(&tile.w));
        let found = affine(&x, &w, n, levels, subs, tile.weighted);
        affine::write_codes(&x, n, found.line(), &mut tile.codes);
        WithOffsetsFound {
            d: found.d.to_array(),
            dmin: found.dmin.to_array(),
            scale: found.scale.to_bytes(),
            min: found.min.to_bytes(),
        }
    }
}

/// The search for the scales of sub-blocks without offsets, `subs` to a block; gives the unit and the multiples plus
/// `levels`.
pub(crate) struct WithoutOffsets<'a, G> {
    pub(crate) tile: &'a mut Tile,
    pub(crate) grid: G,
    /// Multiples run from `-levels` to `levels - 1`.
    pub(crate) levels: f32,
    pub(crate) subs: usize,
}

impl<G: Grid> Kernel for WithoutOffsets<'_, G> {
    type Output = (Row, [u8; LANES]);

    #[inline(always)]
    fn run<L: Lanes>(self) -> (Row, [u8; LANES]) {
        let Self { tile, grid, levels, subs } = self;
        let (x, w) = (vectors::<L>(&tile.x), vectors::<L>(&tile.w));
        let found = if tile.weighted {
            symmetric(&x, &w, grid, levels, subs, true)
        } else {
            symmetric(&x, &w, grid, levels, subs, false)
        };
        symmetric::write_codes(&x, grid, found.d * found.scale, &mut tile.codes);
        (found.d.to_array(), (found.scale + L::splat(levels)).to_bytes())
    }
}

/// Scales for `x ≈ d·scale·q - dmin·min` with `q` in `0..=n`, `scale` and `min` in `0..=levels`.
#[inline(always)]
fn affine<L: Lanes>(x: &[L], w: &[L], n: f32, levels: f32, subs: usize, weighted: bool) -> Affine<L> {
    let wish = affine::fit(x, w, n, affine::rungs(weighted), true);
    let top = L::splat(1.0 / levels);
    let d = (per_superblock(wish.d, subs, largest) * top).saturating_f16();
    let dmin = (per_superblock(L::zero() - wish.m, subs, largest) * top).saturating_f16();
    let start = Affine {
        d,
        dmin,
        scale: (wish.d * d.recip_or_zero()).round().clamp(0.0, levels),
        min: (L::zero() - wish.m * dmin.recip_or_zero()).round().clamp(0.0, levels),
    };
    let (mut best, mut error) = neighbours(x, w, n, levels, start);
    let mut least = per_superblock(error, subs, total);
    for _ in 0..REFITS {
        let refitted = refit(x, w, n, subs, best);
        let next;
        (next, error) = neighbours(x, w, n, levels, refitted);
        let sum = per_superblock(error, subs, total);
        let better = sum.lt(least);
        least = L::select(better, sum, least);
        best = Affine::select(better, next, best);
    }
    best
}

/// The best of the multiples at and next to the given ones, and its error.
#[inline(always)]
fn neighbours<L: Lanes>(x: &[L], w: &[L], n: f32, levels: f32, start: Affine<L>) -> (Affine<L>, L) {
    const STEPS: [f32; 3] = [0.0, -1.0, 1.0];
    let (mut best, mut least) = (start, L::splat(f32::INFINITY));
    for step in STEPS {
        let scale = (start.scale + L::splat(step)).clamp(0.0, levels);
        let d = start.d * scale;
        let inverse = d.recip_or_zero();
        let mut mins = [L::zero(); 3];
        let mut offsets = [L::zero(); 3];
        let mut errors = [L::zero(); 3];
        for (k, step) in STEPS.iter().enumerate() {
            mins[k] = (start.min + L::splat(*step)).clamp(0.0, levels);
            offsets[k] = start.dmin * mins[k];
        }
        for j in 0..x.len() {
            for k in 0..3 {
                let shifted = x[j] + offsets[k];
                let q = (shifted * inverse).round().clamp(0.0, n);
                let miss = shifted - d * q;
                errors[k] = errors[k] + w[j] * miss * miss;
            }
        }
        for k in 0..3 {
            let better = errors[k].lt(least);
            least = L::select(better, errors[k], least);
            best.scale = L::select(better, scale, best.scale);
            best.min = L::select(better, mins[k], best.min);
        }
    }
    (best, least)
}

/// The shared scales that least squares gives for the present quants and multiples.
#[inline(always)]
fn refit<L: Lanes>(x: &[L], w: &[L], n: f32, subs: usize, scales: Affine<L>) -> Affine<L> {
    let trial = affine::try_line(x, w, n, scales.line());
    let (scale, min) = (scales.scale, scales.min);
    let products = [
        scale * scale * trial.qq,
        scale * min * trial.q,
        min * min * trial.w,
        scale * trial.xq,
        min * trial.x,
    ]
    .map(L::to_array);
    let (mut d, mut dmin) = (scales.d.to_array(), scales.dmin.to_array());
    for start in (0..LANES).step_by(subs) {
        let mut sums = [0.0f64; 5];
        for (sum, product) in sums.iter_mut().zip(&products) {
            for value in &product[start..start + subs] {
                *sum += f64::from(*value);
            }
        }
        let [aa, ab, bb, xa, xb] = sums;
        let spread = aa * bb - ab * ab;
        let (new_d, new_dmin) = if spread > 1e-9 * aa * bb {
            ((xa * bb - xb * ab) / spread, (xa * ab - xb * aa) / spread)
        } else if aa > 0.0 {
            ((xa + f64::from(dmin[start]) * ab) / aa, f64::from(dmin[start]))
        } else {
            continue;
        };
        if new_d > 0.0 && new_dmin >= 0.0 {
            d[start..start + subs].fill(new_d as f32);
            dmin[start..start + subs].fill(new_dmin as f32);
        }
    }
    Affine { d: L::load(&d).saturating_f16(), dmin: L::load(&dmin).saturating_f16(), ..scales }
}

/// The scales of one tile of sub-blocks without offsets.
#[derive(Clone, Copy)]
pub(crate) struct Symmetric<L> {
    /// The super-block's half-precision scale.
    pub(crate) d: L,
    /// The sub-block's multiple of it.
    pub(crate) scale: L,
}

/// Scales for `x ≈ d·scale·q` with `q` on the grid and `scale` in `-levels..=levels-1`.
#[inline(always)]
fn symmetric<L: Lanes>(
    x: &[L],
    w: &[L],
    grid: impl Grid,
    levels: f32,
    subs: usize,
    weighted: bool,
) -> Symmetric<L> {
    let wish = symmetric::fit(x, w, grid, weighted);
    let d = (per_superblock(wish, subs, largest_magnitude) * L::splat(-1.0 / levels)).saturating_f16();
    let start = (wish * d.recip_or_zero()).round().clamp(-levels, levels - 1.0);
    let mut best = Symmetric { d, scale: start };
    let mut next = best;
    let mut least = L::splat(f32::INFINITY);
    // Least squares makes the nearest multiple almost always the best while weights count alike.
    let tries: &[usize] = if weighted { &[1, 3, 3] } else { &[1, 1] };
    for (round, &tries) in tries.iter().enumerate() {
        let (mut error, mut xq, mut qq) = (L::splat(f32::INFINITY), L::zero(), L::zero());
        let centre = next.scale;
        for step in [0.0, -1.0, 1.0].into_iter().take(tries) {
            let scale = (centre + L::splat(step)).clamp(-levels, levels - 1.0);
            let trial = symmetric::try_scale(x, w, grid, next.d * scale, weighted);
            let better = trial.error.lt(error);
            error = L::select(better, trial.error, error);
            next.scale = L::select(better, scale, next.scale);
            xq = L::select(better, scale * trial.xq, xq);
            qq = L::select(better, scale * scale * trial.qq, qq);
        }
        let sum = per_superblock(error, subs, total);
        let better = sum.lt(least);
        least = L::select(better, sum, least);
        best = Symmetric {
            d: L::select(better, next.d, best.d),
            scale: L::select(better, next.scale, best.scale),
        };
        if round == 0 || weighted {
            let (xq, qq) = (per_superblock(xq, subs, total), per_superblock(qq, subs, total));
            let refitted = (xq * qq.recip_or_zero()).saturating_f16();
            next.d = L::select(L::zero().lt(qq), refitted, next.d);
        }
    }
    best
}
