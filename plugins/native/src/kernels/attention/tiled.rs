//! Attention of a prompt by tiles of AMX: keys and values of [`words`](super::words), brought to bfloat16 once for a page and many
//! queries, and so queries and what they weigh values by; scores, softmax and sums as floats.
//!
//! Queries come in groups of as many as a tile has rows. Two groups are worked on together, as products of tiles take them.

use super::words::{pairs, power, scales};
use super::{HeadTask, LANES, PAGE, PageOfHead, Query, VECTORS};
use crate::kernels::isa::amx::{Configured, Multiply, ROW, ROWS, TILE, Tiled};
use crate::kernels::isa::{self, TileKernel};
use crate::kernels::tile::BLOCK;
use crate::kernels::tile::scaled::{Bfloats, Numbers, times};
use crate::memory::Aligned;

/// Most groups that go through the pages together.
pub(crate) const GROUPS: usize = 16;
/// Queries of a group.
pub(crate) const GROUP: usize = ROWS;
/// Groups, and vectors, that are multiplied at once.
const TOGETHER: usize = 2;
/// Floats of a tile of sums.
const SUMS: usize = ROWS * LANES;
/// Tiles that a group's weights of a page are.
const WEIGHT_STEPS: usize = PAGE / BLOCK;
/// Below every score.
const LOWEST: f32 = -1e30;

/// One thread's room.
pub(crate) struct Room {
    /// Keys of a page: `[PAGE / 16][key width / 32][16 pairs of columns][16 slots][2]`.
    keys: Aligned<u8>,
    /// Values of a page: `[value width / 16][PAGE / 32][16 pairs of slots][16 columns][2]`.
    values: Aligned<u8>,
    /// `[groups][key width / 32][16 queries][32 columns]`.
    queries: Aligned<u8>,
    /// `[two groups][PAGE / 32][16 queries][32 slots]`.
    weights: Aligned<u8>,
    /// Scores of two groups: `[PAGE / 32][two groups][two vectors][16 queries][16 slots]`; then sums with values.
    products: Aligned<f32>,
    /// `[groups][value width / 16][16 queries][16 columns]`.
    sums: Aligned<f32>,
    /// Of every query the largest score and the sum of weights.
    largest: Aligned<f32>,
    totals: Aligned<f32>,
}

impl Room {
    /// For keys and values of up to so many numbers.
    pub(crate) fn new(key_width: usize, value_width: usize) -> Self {
        let (steps, vectors) = (key_width.div_ceil(BLOCK), value_width.div_ceil(LANES));
        Self {
            keys: Aligned::zeroed(VECTORS * steps * TILE),
            values: Aligned::zeroed(vectors * WEIGHT_STEPS * TILE),
            queries: Aligned::zeroed(GROUPS * steps * TILE),
            weights: Aligned::zeroed(TOGETHER * WEIGHT_STEPS * TILE),
            products: Aligned::zeroed(VECTORS * TOGETHER * SUMS),
            sums: Aligned::zeroed(GROUPS * vectors * SUMS),
            largest: Aligned::zeroed(GROUPS * GROUP),
            totals: Aligned::zeroed(GROUPS * GROUP),
        }
    }
}

/// Attends over `pages` of words for up to [`GROUPS`] groups of [`GROUP`] queries; those of no token have a null `q`.
///
/// # Safety
/// As for [`attend`](super::attend); there are tiles.
///
/// # Panics
/// If there are more, or keys or values are wider than the room.
pub(crate) unsafe fn attend(task: HeadTask<'_>, pages: impl Iterator<Item = PageOfHead>, room: &mut Room) {
    let by = std::marker::PhantomData::<Configured>;
    // SAFETY: the caller's promise.
    unsafe { isa::run_tiles(ByTiles { task, pages, room, by }) }
}

pub(super) struct ByTiles<'a, P, M> {
    pub(super) task: HeadTask<'a>,
    pub(super) pages: P,
    pub(super) room: &'a mut Room,
    pub(super) by: std::marker::PhantomData<M>,
}

impl<P: Iterator<Item = PageOfHead>, M: Multiply> TileKernel for ByTiles<'_, P, M> {
    #[inline(always)]
    unsafe fn run<I: Tiled>(mut self) {
        let (groups, vectors) = (self.groups(), self.vectors());
        assert!(
            groups <= GROUPS
                && self.task.queries.len().is_multiple_of(GROUP)
                && VECTORS * self.steps() * TILE <= self.room.keys.len()
                && vectors * WEIGHT_STEPS * TILE <= self.room.values.len()
                && self.task.value_stride >= vectors * LANES
        );
        self.room.largest.fill(LOWEST);
        self.room.totals.fill(0.0);
        self.room.sums[..groups * vectors * SUMS].fill(0.0);
        // SAFETY: the caller's promise; the room was checked.
        unsafe {
            let by = M::begin();
            self.round_queries::<I>();
            while let Some(page) = self.pages.next() {
                self.page::<I>(&by, &page);
            }
            self.finish::<I>();
        }
    }
}

impl<P: Iterator<Item = PageOfHead>, M: Multiply> ByTiles<'_, P, M> {
    fn groups(&self) -> usize {
        self.task.queries.len() / GROUP
    }

    /// Products of tiles that a score takes.
    fn steps(&self) -> usize {
        self.task.key_width.div_ceil(BLOCK)
    }

    fn vectors(&self) -> usize {
        self.task.value_width.div_ceil(LANES)
    }

    /// Lays the queries out as tiles, times the scale of scores.
    #[inline(always)]
    unsafe fn round_queries<I: Tiled>(&mut self) {
        let (width, steps) = (self.task.key_width, self.steps());
        for (at, query) in self.task.queries.iter().enumerate() {
            // SAFETY: a query has `width` floats; the room holds its group's tiles.
            unsafe {
                let scale = I::splat(self.task.scale);
                let to = self.room.queries.as_mut_ptr().add(at / GROUP * steps * TILE + at % GROUP * ROW);
                for step in 0..steps {
                    let part = [0, LANES].map(|half| {
                        let from = step * BLOCK + half;
                        match width.saturating_sub(from).min(LANES) {
                            0 => I::splat(0.0),
                            _ if query.q.is_null() => I::splat(0.0),
                            n => I::mul(I::load_first(query.q.add(from), n), scale),
                        }
                    });
                    I::store_b(to.add(step * TILE), I::bfloats(part));
                }
            }
        }
    }

    /// Brings a page's keys to bfloat16.
    #[inline(always)]
    unsafe fn lay_keys<I: Tiled>(&mut self, page: &PageOfHead) {
        let (steps, fours) = (self.steps(), pairs(self.task.key_width) / 2);
        // SAFETY: a page holds words of so many columns; the room those and what fills the last tiles up, which stays zero.
        unsafe {
            let own = scales(page.keys.cast_mut(), self.task.key_width, 0);
            for vector in 0..VECTORS {
                let scale = I::load(own.add(vector * LANES));
                let to = self.room.keys.as_mut_ptr().add(vector * steps * TILE);
                for four in 0..fours {
                    let words = page.keys.add((four * 2 * PAGE + vector * LANES) * 4);
                    let words = [I::load_b(words), I::load_b(words.add(PAGE * 4))];
                    <Bfloats as Numbers<I>>::put(
                        to.add(four * 2 * ROW),
                        times::<I>(I::columns_of_words(words), [scale; 4]),
                    );
                }
            }
        }
    }

    /// Brings a page's values to bfloat16.
    #[inline(always)]
    unsafe fn lay_values<I: Tiled>(&mut self, page: &PageOfHead) {
        let (stride, vectors) = (self.task.value_stride, self.vectors());
        // SAFETY: a page holds words of so many slots and columns, and so does the room.
        unsafe {
            let own = scales(page.values.cast_mut(), stride, 0);
            for four in 0..PAGE / 4 {
                let scale = std::array::from_fn(|slot| I::splat(*own.add(four * 4 + slot)));
                for vector in 0..vectors {
                    let words = page.values.add((four * 2 * stride + vector * LANES) * 4);
                    let words = [I::load_b(words), I::load_b(words.add(stride * 4))];
                    let to = self.room.values.as_mut_ptr().add(vector * WEIGHT_STEPS * TILE);
                    <Bfloats as Numbers<I>>::put(
                        to.add(four * 2 * ROW),
                        times::<I>(I::columns_of_words(words), scale),
                    );
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn page<I: Tiled>(&mut self, by: &M, page: &PageOfHead) {
        let sees = |query: &Query| {
            if query.q.is_null() { 0 } else { query.sight.of_page(page.first) & page.valid }
        };
        let queries = self.task.queries;
        let (steps, vectors) = (self.steps(), self.vectors());
        // SAFETY: groups and vectors stay below their bounds.
        unsafe {
            self.lay_keys::<I>(page);
            self.lay_values::<I>(page);
            for first in (0..self.groups()).step_by(TOGETHER) {
                let last = (first + TOGETHER).min(self.groups()) - 1;
                let mut visible = [[0u64; GROUP]; TOGETHER];
                for (group, visible) in (first..=last).zip(&mut visible) {
                    for (query, visible) in queries[group * GROUP..].iter().zip(visible) {
                        *visible = sees(query);
                    }
                }
                if visible.iter().flatten().all(|visible| *visible == 0) {
                    continue;
                }
                // What there is only one of is multiplied twice.
                let x = [first, last].map(|group| self.room.queries.as_ptr().add(group * steps * TILE));
                for two in 0..VECTORS / TOGETHER {
                    let w =
                        [0, 1].map(|one| self.room.keys.as_ptr().add((two * TOGETHER + one) * steps * TILE));
                    let out = self.room.products.as_mut_ptr().add(two * TOGETHER * TOGETHER * SUMS);
                    by.products::<I>(x, w, steps, out);
                }
                let mut factors = [[1f32; GROUP]; TOGETHER];
                for group in first..=last {
                    let of_two = group - first;
                    factors[of_two] = self.weigh::<I>(group, of_two, &visible[of_two]);
                }
                let to_group = WEIGHT_STEPS * TILE;
                let x = [0, last - first].map(|of_two| self.room.weights.as_ptr().add(of_two * to_group));
                for vector in (0..vectors).step_by(TOGETHER) {
                    let end = (vector + TOGETHER).min(vectors) - 1;
                    let w = [vector, end].map(|v| self.room.values.as_ptr().add(v * WEIGHT_STEPS * TILE));
                    by.products::<I>(x, w, WEIGHT_STEPS, self.room.products.as_mut_ptr());
                    for (of_two, group) in (first..=last).enumerate() {
                        for v in vector..=end {
                            let new = of_two * TOGETHER + v - vector;
                            self.add::<I>(group * vectors + v, new, &factors[of_two]);
                        }
                    }
                }
            }
        }
    }

    /// Turns a group's scores into weights; gives back what sums so far are to be multiplied by.
    #[inline(always)]
    unsafe fn weigh<I: Tiled>(
        &mut self,
        group: usize,
        of_two: usize,
        visible: &[u64; GROUP],
    ) -> [f32; GROUP] {
        let cap = self.task.softcap;
        let room = &mut *self.room;
        let mut factors = [1f32; GROUP];
        // SAFETY: the room holds two groups' scores and weights.
        unsafe {
            let scores = room.products.as_mut_ptr();
            let at = |row: usize, vector: usize| {
                let tile = vector / TOGETHER * TOGETHER * TOGETHER + of_two * TOGETHER + vector % TOGETHER;
                scores.add(tile * SUMS + row * LANES)
            };
            let hidden = |row: usize, vector: usize| (!visible[row] >> (vector * LANES)) as u16;
            // One thing after another for all rows, which wait for nothing of each other.
            let mut tops = [LOWEST; GROUP];
            for (row, top) in tops.iter_mut().enumerate() {
                let mut most = I::splat(LOWEST);
                for vector in 0..VECTORS {
                    let mut score = I::load(at(row, vector));
                    if let Some(cap) = cap {
                        score = I::mul(I::splat(cap), I::tanh(I::div(score, I::splat(cap))));
                    }
                    if hidden(row, vector) != 0 {
                        score = I::replaced(score, hidden(row, vector), LOWEST);
                    }
                    if cap.is_some() || hidden(row, vector) != 0 {
                        I::store(at(row, vector), score);
                    }
                    most = I::max(most, score);
                }
                *top = I::largest(most);
            }
            let before = room.largest.as_mut_ptr().add(group * GROUP);
            let new = I::max(I::load(before), I::load(tops.as_ptr()));
            let factor = I::exp(I::sub(I::load(before), new));
            I::store(factors.as_mut_ptr(), factor);
            I::store(before, new);
            I::store(tops.as_mut_ptr(), new);
            let log2e = I::splat(std::f32::consts::LOG2_E);
            let mut sums = [0f32; GROUP];
            for (row, sum) in sums.iter_mut().enumerate() {
                let top = I::splat(-tops[row] * std::f32::consts::LOG2_E);
                let mut total = I::splat(0.0);
                let mut weights = [I::splat(0.0); VECTORS];
                for (vector, out) in weights.iter_mut().enumerate() {
                    let mut weight = power::<I>(I::fma(I::load(at(row, vector)), log2e, top));
                    if hidden(row, vector) != 0 {
                        weight = I::replaced(weight, hidden(row, vector), 0.0);
                    }
                    total = I::add(total, weight);
                    *out = weight;
                }
                *sum = I::sum(total);
                let to = room.weights.as_mut_ptr().add(of_two * WEIGHT_STEPS * TILE + row * ROW);
                for (step, two) in weights.chunks_exact(2).enumerate() {
                    I::store_b(to.add(step * TILE), I::bfloats([two[0], two[1]]));
                }
            }
            let totals = room.totals.as_mut_ptr().add(group * GROUP);
            I::store(totals, I::fma(I::load(totals), factor, I::load(sums.as_ptr())));
        }
        factors
    }

    /// Adds a tile of products to one of sums, whose rows are multiplied by their factors.
    #[inline(always)]
    unsafe fn add<I: Tiled>(&mut self, sums: usize, new: usize, factors: &[f32; GROUP]) {
        // SAFETY: the room holds both.
        unsafe {
            let sums = self.room.sums.as_mut_ptr().add(sums * SUMS);
            let new = self.room.products.as_ptr().add(new * SUMS);
            for (row, factor) in factors.iter().enumerate() {
                let at = row * LANES;
                let sum = I::fma(I::load(sums.add(at)), I::splat(*factor), I::load(new.add(at)));
                I::store(sums.add(at), sum);
            }
        }
    }

    /// Sums of weighed values over sums of weights.
    #[inline(always)]
    unsafe fn finish<I: Tiled>(&mut self) {
        let vectors = self.vectors();
        for (at, query) in self.task.queries.iter().enumerate().filter(|(_, query)| !query.q.is_null()) {
            let factor = super::share(self.room.largest[at], self.room.totals[at], query.sink);
            let (group, row) = (at / GROUP, at % GROUP);
            for vector in 0..vectors {
                // SAFETY: the query has room for its value.
                unsafe {
                    let tile = (group * vectors + vector) * SUMS;
                    let sum = I::load(self.room.sums.as_ptr().add(tile + row * LANES));
                    let n = (self.task.value_width - vector * LANES).min(LANES);
                    I::store_first(query.out.add(vector * LANES), n, I::mul(sum, I::splat(factor)));
                }
            }
        }
    }
}
