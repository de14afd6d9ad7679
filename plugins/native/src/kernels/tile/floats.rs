//! Products of many tokens by vectors of floats, where these are faster than integers: on AVX-512 without VNNI codes whose products
//! sixteen bits cannot sum (those that reach 128, and of iq2 and iq3_xxs) take as many instructions, and scales and outliers besides.
//!
//! As with [`tiled`](super::tiled) scales go into weights, once for a prompt, and sums need none; but neither weights nor activations are
//! rounded. Sums are added in another order than elsewhere.

use super::scaled::{Floats, lay};
use super::{BLOCK, Tiles};
use crate::kernels::activation::{FLOAT_PANEL, Panels};
use crate::kernels::float::Output;
use crate::kernels::isa::{self, Isa, Kernel, Path};
use crate::kernels::{LANES, prefetch};
use crate::memory::Aligned;

/// Strips that are multiplied at once: with a panel's tokens as many sums as registers hold.
const TOGETHER: usize = 2;
/// Columns, whole blocks of every type, after which sums go to their outputs: so many of some hundred tokens, and of the strips, stay in
/// a core's own caches while strip after strip is multiplied. The same for any number of tokens, so that sums are.
const NEAR: usize = 768;

/// Floats of weights that are asked for ahead: a panel after another, they come from a core's second cache.
const AHEAD: usize = 32 * LANES;

/// One thread's room for weights as floats.
pub(crate) struct Room(Aligned<f32>);

impl Room {
    /// For matrices of any size, or for none.
    pub(crate) fn new(any: bool) -> Self {
        Self(Aligned::zeroed(if any { TOGETHER * NEAR * LANES } else { 0 }))
    }
}

/// Multiplies strips of a matrix: all tokens of `x`, rows of `strips`.
///
/// # Safety
/// `x` holds floats of as many columns as the matrix has; `out` has room for each token's rows of these strips, which no other thread uses
/// meanwhile.
pub(crate) unsafe fn multiply(
    path: Path,
    tiles: &Tiles,
    x: Panels,
    strips: std::ops::Range<usize>,
    out: Output,
    room: &mut Room,
) {
    assert_eq!(tiles.columns(), x.columns);
    assert!(!room.0.is_empty());
    // SAFETY: the caller's promise.
    unsafe { isa::run(path, Product { tiles, x, strips, out, room }) }
}

struct Product<'a> {
    tiles: &'a Tiles,
    x: Panels,
    strips: std::ops::Range<usize>,
    out: Output,
    room: &'a mut Room,
}

impl Kernel for Product<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<I: Isa>(self) {
        // SAFETY: the caller's promise; the room holds two strips of so many columns.
        unsafe {
            for begin in (0..self.x.columns).step_by(NEAR) {
                let columns = begin..(begin + NEAR).min(self.x.columns);
                for first in self.strips.clone().step_by(I::STRIPS) {
                    if I::STRIPS == 2 && first + 1 < self.strips.end {
                        self.strips::<I, 2>(first, columns.clone());
                    } else {
                        self.strips::<I, 1>(first, columns.clone());
                    }
                }
            }
        }
    }
}

impl Product<'_> {
    /// Some columns of `S` strips from `first` times all panels.
    #[inline(always)]
    unsafe fn strips<I: Isa, const S: usize>(&self, first: usize, columns: std::ops::Range<usize>) {
        let weights = self.room.0.as_ptr().cast_mut();
        // SAFETY: the caller's promise.
        unsafe {
            for s in 0..S {
                lay::<I, Floats<S>>(self.tiles, first + s, columns.clone(), weights.add(s * LANES).cast());
            }
            for token in (0..self.x.tokens).step_by(I::FLOAT_ROWS) {
                match I::FLOAT_ROWS {
                    12 => self.block::<I, S, 12>(first, columns.clone(), weights, token),
                    6 => self.block::<I, S, 6>(first, columns.clone(), weights, token),
                    _ => self.block::<I, S, 2>(first, columns.clone(), weights, token),
                }
            }
        }
    }

    /// The same times `M` tokens of a panel.
    #[inline(always)]
    unsafe fn block<I: Isa, const S: usize, const M: usize>(
        &self,
        first: usize,
        columns: std::ops::Range<usize>,
        mut weights: *const f32,
        token: usize,
    ) {
        let tokens = M.min(self.x.tokens - token);
        // SAFETY: the panel holds the tokens, or zeros in their places; `out` has their rows.
        unsafe {
            let accumulate = self.out.accumulate || columns.start > 0;
            let out = Output { accumulate, ..self.out }.at_row(first * LANES);
            out.fetch(token..token + tokens);
            let panel = self.x.at(token / FLOAT_PANEL).codes.cast::<f32>().cast_const();
            let mut x = panel.add(columns.start * FLOAT_PANEL + token % FLOAT_PANEL * BLOCK);
            let mut sums = [[I::splat(0.0); M]; S];
            for _ in 0..columns.len() / BLOCK {
                for column in 0..BLOCK {
                    let mut w = [I::splat(0.0); S];
                    for (s, w) in w.iter_mut().enumerate() {
                        *w = I::load(weights.add(s * LANES));
                        prefetch(weights.wrapping_add(s * LANES + AHEAD).cast());
                    }
                    weights = weights.add(S * LANES);
                    for m in 0..M {
                        let x = I::splat(*x.add(m * BLOCK + column));
                        for (sums, w) in sums.iter_mut().zip(w) {
                            sums[m] = I::fma(x, w, sums[m]);
                        }
                    }
                }
                x = x.add(FLOAT_PANEL * BLOCK);
            }
            for (s, sums) in sums.into_iter().enumerate() {
                let rows = LANES.min(self.tiles.rows() - (first + s) * LANES);
                let out = out.at_row(s * LANES);
                for (m, sum) in sums.into_iter().enumerate().take(tokens) {
                    out.put::<I>(token + m, rows, sum);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use drophammer_formats::DType;

    use super::super::{TYPES, product, random, random_tiles};
    use super::*;
    use crate::kernels::activation::Quantized;

    #[test]
    fn products_of_every_type_on_every_path_are_those_of_the_weights_that_it_stands_for() {
        let mut state = 11;
        for &dtype in TYPES.iter().chain(&[DType::F16, DType::BF16]) {
            for (rows, columns, tokens) in [(16, 256, 12), (40, 1024, 5), (23, 768, 31)] {
                let x: Vec<f32> = (0..tokens * columns).map(|_| random(&mut state, 9.0)).collect();
                let (tiles, weights) = random_tiles(dtype, rows, columns, &mut state);
                for path in Path::all().into_iter().filter(|path| !path.has_tiles()) {
                    let mut room = Room::new(true);
                    // SAFETY (of both): one thread; `product` has the sizes.
                    let out = product(
                        Quantized::scaled(path, tokens, columns),
                        FLOAT_PANEL,
                        &tiles,
                        &x,
                        |panels, row, x| unsafe { panels.put_scaled(path, row, x) },
                        |x, strips, out| unsafe { multiply(path, &tiles, x, strips, out, &mut room) },
                    );
                    for (at, got) in out.into_iter().enumerate() {
                        let (token, row) = (at / rows, at % rows);
                        let terms = x[token * columns..].iter().zip(&weights[row]);
                        let terms = terms.map(|(x, w)| f64::from(*x) * f64::from(*w));
                        let (exact, size) = terms.fold((0.0, 0.0), |(s, a), x| (s + x, a + x.abs()));
                        // Halves are laid out as fixed-point numbers of fourteen bits.
                        let allowed = if TYPES.contains(&dtype) { 2e-6 } else { 1e-3 } * size;
                        let got = f64::from(got);
                        assert!(
                            (got - exact).abs() <= allowed,
                            "{dtype} {path:?} {token} {row}: {got}, exactly {exact}"
                        );
                    }
                }
            }
        }
    }
}
