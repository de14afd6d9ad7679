//! Blocks of 32 with a scale of their own whose weights all count alike: encoded nearly as fast as memory is read.
//!
//! The types with such blocks are chosen for speed, and their owner only rounds them. Here the scale (and offset) that the rounded
//! weights prefer replaces the plain one, and weights are rounded again, to what is stored. Blocks lie as they are in the row:
//! laying them side by side, as the searches for uneven weights do, would take longer than this.

use super::symmetric::NEGLIGIBLE;
use crate::lanes::{LANES, Lanes};
use crate::simd::{self, Kernel, Level};
use crate::weights::Row;

/// Weights in a block.
pub(crate) const N: usize = 32;

/// Encodes `rows` on a grid of `2n` levels around zero: `put` gets each block's scale and codes, and a block to fill.
pub(crate) fn scaled<B>(
    level: Level,
    rows: &[f32],
    n: f32,
    out: &mut [B],
    put: impl Fn(&mut B, f32, &[u8; N]),
) {
    let mut codes = [[0; N]; LANES];
    for (x, out) in rows.as_chunks::<N>().0.chunks(LANES).zip(out.chunks_mut(LANES)) {
        let d = simd::run(level, EvenScale { blocks: Blocks { x, codes: &mut codes }, n });
        for ((block, codes), d) in out.iter_mut().zip(&codes).zip(d) {
            put(block, d, codes);
        }
    }
}

/// Encodes `rows` on a grid of levels from 0 to `n` above an offset: `put` gets each block's scale, offset and codes.
pub(crate) fn offset<B>(
    level: Level,
    rows: &[f32],
    n: f32,
    out: &mut [B],
    put: impl Fn(&mut B, [f32; 2], &[u8; N]),
) {
    let mut codes = [[0; N]; LANES];
    for (x, out) in rows.as_chunks::<N>().0.chunks(LANES).zip(out.chunks_mut(LANES)) {
        let [d, m] = simd::run(level, EvenLine { blocks: Blocks { x, codes: &mut codes }, n });
        for (((block, codes), d), m) in out.iter_mut().zip(&codes).zip(d).zip(m) {
            put(block, [d, m], codes);
        }
    }
}

/// Up to sixteen blocks of a row, and the codes found for them.
struct Blocks<'a> {
    x: &'a [[f32; N]],
    codes: &'a mut [[u8; N]; LANES],
}

/// Both halves of a block. (Written out, here and below: a closure over vectors would be compiled without their instructions.)
#[inline(always)]
fn halves<L: Lanes>(block: &[f32; N]) -> (L, L) {
    let (halves, _) = block.as_chunks::<LANES>();
    (L::load(&halves[0]), L::load(&halves[1]))
}

/// Stores the codes of both halves of a block.
#[inline(always)]
fn store<L: Lanes>(low: L, high: L, codes: &mut [u8; N]) {
    let (halves, _) = codes.as_chunks_mut::<LANES>();
    halves[0] = low.to_bytes();
    halves[1] = high.to_bytes();
}

/// The lowest and the highest weight of every block.
#[inline(always)]
fn ranges<L: Lanes>(blocks: &[[f32; N]]) -> (L, L) {
    let (mut low, mut high) = ([0.0; LANES], [0.0; LANES]);
    for (b, block) in blocks.iter().enumerate() {
        let (x, y) = halves::<L>(block);
        high[b] = x.max(y).largest();
        low[b] = 0.0 - (L::zero() - x.min(y)).largest();
    }
    (L::load(&low), L::load(&high))
}

/// `x ≈ d·(code - n)` with codes from 0 to `2n - 1`; gives `d` as half precision stores it.
struct EvenScale<'a> {
    blocks: Blocks<'a>,
    n: f32,
}

/// Where candidates place the value of largest magnitude beyond `-n`; the first is the owner's.
const RUNGS: [f32; 2] = [0.0, 0.6];

impl Kernel for EvenScale<'_> {
    type Output = Row;

    #[inline(always)]
    fn run<L: Lanes>(self) -> Row {
        let Self { blocks, n } = self;
        let (low, high) = ranges::<L>(blocks.x);
        let extreme = L::select(high.lt(L::zero() - low), low, high);
        let extreme = L::select(L::splat(NEGLIGIBLE).lt(extreme.abs()), extreme, L::zero());
        let units = extreme.recip_or_zero().to_array();
        let (mut uq, mut qq) = ([[0.0; LANES]; RUNGS.len()], [[0.0; LANES]; RUNGS.len()]);
        for (b, block) in blocks.x.iter().enumerate() {
            let (x, y) = halves::<L>(block);
            let (x, y) = (x * L::splat(units[b]), y * L::splat(units[b]));
            for (k, rung) in RUNGS.iter().enumerate() {
                let target = L::splat(-n - rung);
                let p = (x * target).round().clamp(-n, n - 1.0);
                let q = (y * target).round().clamp(-n, n - 1.0);
                uq[k][b] = (x * p + y * q).sum();
                qq[k][b] = (p * p + q * q).sum();
            }
        }
        let (mut best_uq, mut best_qq) = (L::zero(), L::splat(1.0));
        for k in 0..RUNGS.len() {
            let (uq, qq) = (L::load(&uq[k]), L::load(&qq[k]));
            let better = (best_uq * best_uq * qq).lt(uq * uq * best_qq);
            best_uq = L::select(better, uq, best_uq);
            best_qq = L::select(better, qq, best_qq);
        }
        let d = (best_uq / best_qq * extreme).saturating_f16();
        let inverse = d.recip_or_zero().to_array();
        for (b, block) in blocks.x.iter().enumerate() {
            let (x, y) = halves::<L>(block);
            let (inverse, n) = (L::splat(inverse[b]), L::splat(n));
            let top = n + n - L::splat(1.0);
            let p = ((x * inverse).round() + n).max(L::zero()).min(top);
            let q = ((y * inverse).round() + n).max(L::zero()).min(top);
            store(p, q, &mut blocks.codes[b]);
        }
        d.to_array()
    }
}

/// `x ≈ d·code + m` with codes from 0 to `n`; gives `d` and `m` as half precision stores them.
struct EvenLine<'a> {
    blocks: Blocks<'a>,
    n: f32,
}

impl Kernel for EvenLine<'_> {
    type Output = [Row; 2];

    #[inline(always)]
    fn run<L: Lanes>(self) -> [Row; 2] {
        let Self { blocks, n } = self;
        let (low, high) = ranges::<L>(blocks.x);
        let range = high - low;
        let flat = range.lt(L::splat(NEGLIGIBLE));
        let unit = L::select(flat, L::zero(), range.recip_or_zero());
        let (lows, units) = (low.to_array(), unit.to_array());
        let mut sums = [[0.0; LANES]; 4];
        for (b, block) in blocks.x.iter().enumerate() {
            let (x, y) = halves::<L>(block);
            let (low, unit) = (L::splat(lows[b]), L::splat(units[b]));
            let (x, y) = ((x - low) * unit, (y - low) * unit);
            let (p, q) = ((x * L::splat(n)).round(), (y * L::splat(n)).round());
            sums[0][b] = (x + y).sum();
            sums[1][b] = (p + q).sum();
            sums[2][b] = (p * p + q * q).sum();
            sums[3][b] = (x * p + y * q).sum();
        }
        let (u, q) = (L::load(&sums[0]), L::load(&sums[1]));
        let (qq, uq) = (L::load(&sums[2]), L::load(&sums[3]));
        let count = L::splat(N as f32);
        // Never zero unless the block is flat: the lowest weight has code 0 and the highest n.
        let inverse = (count * qq - q * q).recip_or_zero();
        let slope = (count * uq - u * q) * inverse;
        let start = (qq * u - q * uq) * inverse;
        let d = L::select(flat, L::zero(), slope * range).saturating_f16();
        let m = L::select(flat, low, start * range + low).saturating_f16();
        let (inverse, offset) = (d.recip_or_zero().to_array(), m.to_array());
        for (b, block) in blocks.x.iter().enumerate() {
            let (x, y) = halves::<L>(block);
            let (offset, inverse) = (L::splat(offset[b]), L::splat(inverse[b]));
            let p = ((x - offset) * inverse).round().clamp(0.0, n);
            let q = ((y - offset) * inverse).round().clamp(0.0, n);
            store(p, q, &mut blocks.codes[b]);
        }
        [d.to_array(), m.to_array()]
    }
}
