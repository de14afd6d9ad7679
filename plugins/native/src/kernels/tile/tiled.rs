//! Products of many tokens by tiles of AMX, whatever type the weights are of: weights with their scales and activations as
//! bfloat16, sums as floats.
//!
//! A tile multiplies four times as many columns in a cycle as vectors do, but what vectors have to do for each scale of 32 columns
//! would take longer than that: so scales go into weights, once for a prompt, and a row's sum over all columns stays in its tile. Both
//! sides lose what eight bits do not hold, as they do in every framework that computes in bfloat16; sums are rounded in another order
//! than elsewhere. (Codes and their scales by tiles, bit for bit as [`multiply`](super::multiply) has them, gained nothing.)

use super::scaled::{Bfloats, lay};
use super::{BLOCK, Tiles};
use crate::kernels::LANES;
use crate::kernels::activation::{Panels, TILED_PANEL};
use crate::kernels::float::Output;
use crate::kernels::isa::amx::{Configured, Multiply, ROWS, TILE, Tiled};
use crate::kernels::isa::{self, TileKernel};
use crate::memory::Aligned;

/// Strips, and panels, that are multiplied at once: every tile that is loaded is used so many times.
const TOGETHER: usize = 2;
/// Columns, whole blocks of every type, after which sums go to their outputs: so many of some hundred tokens stay in a core's own cache
/// while strip after strip is multiplied by them. The same for any number of tokens, so that sums are.
const NEAR: usize = 1024;

/// One thread's room for weights as tiles, and for sums.
pub(crate) struct Room {
    weights: Aligned<u8>,
    sums: Aligned<f32>,
}

impl Room {
    /// For matrices of up to `columns` columns.
    pub(crate) fn new(columns: usize) -> Self {
        Self {
            weights: Aligned::zeroed(TOGETHER * columns * LANES * 2),
            sums: Aligned::zeroed(TOGETHER * TOGETHER * TILED_PANEL * LANES),
        }
    }
}

/// Multiplies strips of a matrix: all tokens of `x`, rows of `strips`.
///
/// # Safety
/// There are tiles; `x` was rounded, with as many columns as the matrix has, which the room is for; `out` has room for each token's rows
/// of these strips, which no other thread uses meanwhile.
pub(crate) unsafe fn multiply(
    tiles: &Tiles,
    x: Panels,
    strips: std::ops::Range<usize>,
    out: Output,
    room: &mut Room,
) {
    assert_eq!(tiles.columns(), x.columns);
    let by = std::marker::PhantomData::<Configured>;
    // SAFETY: the caller's promise.
    unsafe { isa::run_tiles(Product { tiles, x, strips, out, room, by }) }
}

struct Product<'a, M> {
    tiles: &'a Tiles,
    x: Panels,
    strips: std::ops::Range<usize>,
    out: Output,
    room: &'a mut Room,
    by: std::marker::PhantomData<M>,
}

impl<M: Multiply> TileKernel for Product<'_, M> {
    #[inline(always)]
    unsafe fn run<I: Tiled>(self) {
        let weights = self.room.weights.as_mut_ptr();
        // SAFETY: the caller's promise.
        unsafe {
            let by = M::begin();
            for begin in (0..self.x.columns).step_by(NEAR) {
                let columns = begin..(begin + NEAR).min(self.x.columns);
                let to_strip = columns.len() * LANES * 2;
                for first in self.strips.clone().step_by(TOGETHER) {
                    let count = TOGETHER.min(self.strips.end - first);
                    for strip in 0..count {
                        lay::<I, Bfloats>(
                            self.tiles,
                            first + strip,
                            columns.clone(),
                            weights.add(strip * to_strip),
                        );
                    }
                    // What there is only one of is multiplied twice.
                    let w = [weights.cast_const(), weights.add((count - 1) * to_strip)];
                    for panel in (0..self.x.count()).step_by(TOGETHER) {
                        self.products::<I>(&by, first, count, panel, &columns, w);
                    }
                }
            }
        }
    }
}

impl<M: Multiply> Product<'_, M> {
    /// `count` strips times two panels, or the last.
    #[inline(always)]
    unsafe fn products<I: Tiled>(
        &self,
        by: &M,
        first: usize,
        count: usize,
        panel: usize,
        columns: &std::ops::Range<usize>,
        w: [*const u8; TOGETHER],
    ) {
        let last = (panel + TOGETHER).min(self.x.count()) - 1;
        let panels = [self.x.at(panel), self.x.at(last)];
        let sums = self.room.sums.as_ptr().cast_mut();
        // SAFETY: the room holds the strips' tiles; panels hold theirs, `out` their tokens' rows.
        unsafe {
            let at = |x: &Panels| x.codes.cast::<u8>().cast_const().add(columns.start / BLOCK * TILE);
            let accumulate = self.out.accumulate || columns.start > 0;
            let out = Output { accumulate, ..self.out };
            for strip in 0..count {
                let out = out.at_row((first + strip) * LANES);
                out.fetch(panel * TILED_PANEL..last * TILED_PANEL + panels[1].tokens);
            }
            by.products::<I>([at(&panels[0]), at(&panels[1])], w, columns.len() / BLOCK, sums);
            for (of_two, (index, x)) in (panel..=last).zip(&panels).enumerate() {
                for strip in 0..count {
                    let rows = LANES.min(self.tiles.rows() - (first + strip) * LANES);
                    let out = out.at_row((first + strip) * LANES);
                    let sums = sums.add((of_two * TOGETHER + strip) * TILED_PANEL * LANES);
                    for m in 0..x.tokens {
                        out.put::<I>(index * TILED_PANEL + m, rows, I::load(sums.add(m * LANES)));
                    }
                }
            }
        }
    }
}

const _: () = assert!(TILED_PANEL == ROWS && LANES == ROWS);

#[cfg(test)]
mod tests {
    use drophammer_formats::DType;

    use super::super::{TYPES, product, random, random_tiles};
    use super::*;
    use crate::kernels::activation::Quantized;
    use crate::kernels::isa::Path;
    use crate::kernels::isa::amx::Emulated;

    /// By tiles where there are any; by vectors that do the same where they know bfloat16; not at all elsewhere.
    fn products_by<M: Multiply>() {
        let mut state = 7u32;
        let types = TYPES.iter().copied().chain([DType::F16, DType::BF16]);
        for (dtype, (rows, columns, tokens)) in
            types.flat_map(|dtype| [(16, 256, 16), (40, 768, 70), (33, 1280, 33)].map(|size| (dtype, size)))
        {
            let x: Vec<f32> = (0..tokens * columns).map(|_| random(&mut state, 9.0)).collect();
            let (tiles, weights) = random_tiles(dtype, rows, columns, &mut state);
            let mut room = Room::new(columns);
            let by = std::marker::PhantomData::<M>;
            // SAFETY (of both): one thread; `product` has the sizes.
            let out = product(
                Quantized::scaled(Path::Amx, tokens, columns),
                TILED_PANEL,
                &tiles,
                &x,
                |panels, row, x| unsafe { panels.round(row, x) },
                |x, strips, out| unsafe {
                    isa::run_tiles(Product { tiles: &tiles, x, strips, out, room: &mut room, by });
                },
            );
            for t in 0..tokens {
                for (r, weights) in weights.iter().enumerate() {
                    let terms = x[t * columns..].iter().zip(weights);
                    let rounded = |x: &f32| f64::from(half::bf16::from_f32(*x));
                    let terms = terms.map(|(x, w)| rounded(x) * rounded(w));
                    let (exact, sizes, most) =
                        terms.fold((0.0, 0.0, 0f64), |(s, a, m), x| (s + x, a + x.abs(), m.max(x.abs())));
                    // A weight may be a float's last bit off and then round to its other neighbour; sums are of floats.
                    let allowed = most / 64.0 + 1e-5 * sizes;
                    let got = f64::from(out[t * rows + r]);
                    assert!((got - exact).abs() <= allowed, "{dtype} {t} {r}: {got}, exactly {exact}");
                }
            }
        }
    }

    #[test]
    fn products_by_tiles_are_those_of_numbers_rounded_to_bfloat16() {
        if std::is_x86_feature_detected!("avx512bf16") && Path::all().contains(&Path::Avx512Vnni) {
            products_by::<Emulated>();
        }
        if Path::all().contains(&Path::Amx) {
            products_by::<Configured>();
        }
    }
}
