//! Products of many tokens with strips of halves by tiles of AMX: those of [`fixed`], bit for bit.
//!
//! Of codes of fourteen and of thirteen bits the upper ones and the lower seven are multiplied as bytes, both with both, and put
//! together in 32 bits. From a scale of activations to the next, which is a whole tile, sums leave the tiles through memory.
//!
//! (Codes of quantized weights gain nothing: they have a scale for every 32 columns, and what vectors do with each, at half
//! their speed while tiles work, takes as long as their own products.)

use super::{BLOCK, Tiles, fixed};
use crate::kernels::LANES;
use crate::kernels::activation::{Panels, TILED_PANEL, WORD_BLOCKS};
use crate::kernels::float::Output;
use crate::kernels::isa::TileKernel;
use crate::kernels::isa::amx::{self, Configured, ROW, ROWS, Tiled};

/// Bytes of a tile.
const TILE: usize = ROWS * ROW;

/// Strips of halves times all panels.
pub(super) struct Fixed<'a> {
    pub(super) tiles: &'a Tiles,
    pub(super) x: Panels,
    pub(super) strips: std::ops::Range<usize>,
    pub(super) out: Output,
    pub(super) room: &'a mut fixed::Apart,
}

impl TileKernel for Fixed<'_> {
    #[inline(always)]
    unsafe fn run<I: Tiled>(mut self) {
        // SAFETY: the caller's promise.
        unsafe {
            let configured = Configured::new();
            for strip in self.strips.clone() {
                self.unpack::<I>(strip);
                for index in 0..self.x.count() {
                    self.panel::<I>(strip, index);
                }
            }
            drop(configured);
        }
    }
}

impl Fixed<'_> {
    /// Takes the words of a strip apart: for every 64 columns a tile of upper bits and one of lower bits.
    #[inline(always)]
    unsafe fn unpack<I: Tiled>(&mut self, strip: usize) {
        let tile = self.tiles.strip(strip)[fixed::SCALES..].as_ptr();
        let to = self.room.planes.as_mut_ptr();
        // SAFETY: the strip holds `columns` columns; the room is for as many.
        unsafe {
            for four in 0..self.x.columns / 4 {
                let words = tile.add(2 * four * ROW);
                let [high, low] = I::planes([I::load_b(words), I::load_b(words.add(ROW))]);
                let to = to.add(four / ROWS * 2 * TILE + four % ROWS * ROW);
                I::store_b(to, high);
                I::store_b(to.add(TILE), low);
            }
        }
    }

    /// A strip times a panel.
    #[inline(always)]
    unsafe fn panel<I: Tiled>(&mut self, strip: usize, index: usize) {
        let x = self.x.at(index);
        let count = x.columns / BLOCK / WORD_BLOCKS;
        let planes = self.room.planes.as_ptr();
        let sums_of_tiles = self.room.sums.as_mut_ptr();
        // SAFETY: the room holds the strip, the panel its tokens; `out` has room for these.
        unsafe {
            let out = Output { begin: self.out.begin.add(strip * LANES), ..self.out };
            out.fetch(index * TILED_PANEL..index * TILED_PANEL + x.tokens);
            let mut sums = [I::splat(0.0); TILED_PANEL];
            for at in 0..=count {
                if at < count {
                    let x = x.codes.cast::<u8>().cast_const().add(at * 2 * TILE);
                    let w = planes.add(at * 2 * TILE);
                    amx::planes([x, x.add(TILE)], [w, w.add(TILE)], places(sums_of_tiles, at));
                }
                if at > 0 {
                    let [high, middle, low] = places(sums_of_tiles, at - 1);
                    let factors = x.scales.add((at - 1) * WORD_BLOCKS * TILED_PANEL);
                    for (m, sum) in sums.iter_mut().enumerate() {
                        let m16 = m * LANES;
                        let made = I::joined(high.add(m16), middle.add(m16), low.add(m16));
                        *sum = I::fma(made, I::splat(*factors.add(m)), *sum);
                    }
                }
            }
            let scales = I::load(self.tiles.strip(strip).as_ptr().cast());
            let rows = LANES.min(self.tiles.rows() - strip * LANES);
            for (m, sum) in sums.into_iter().enumerate().take(x.tokens) {
                out.put::<I>(index * TILED_PANEL + m, rows, I::mul(sum, scales));
            }
        }
    }
}

/// Where the `at`th products' three tiles of sums go, apart from those of its neighbours.
#[inline(always)]
fn places(sums: *mut i32, at: usize) -> [*mut i32; 3] {
    let first = sums.wrapping_add(at % 2 * 3 * LANES * TILED_PANEL);
    [first, first.wrapping_add(LANES * TILED_PANEL), first.wrapping_add(2 * LANES * TILED_PANEL)]
}
