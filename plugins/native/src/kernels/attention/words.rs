//! Attention over keys and values of fourteen bits: products of words, of which an instruction does twice as many as of floats.
//!
//! Keys and values keep a scale for each position. A query, and what it weighs the values of a page by, get their codes when
//! they are asked for: as many bits as sums of products in 32 bits allow. All this depends on nothing but the query and what it
//! sees, so a token's numbers are the same whichever tokens are worked on with it.
//!
//! Columns of keys, and slots of values, go in pairs as [`Isa::words`] orders those of activations:
//!
//! ```text
//! keys:    columns 0 2: slot 0 | slot 1 | … | slot 63 || columns 1 3: slot 0 | … || columns 4 6 …   then scales of the 64 slots
//! values:  slots 0 2: column 0 | column 1 | …         || slots 1 3: column 0 | … || slots 4 6 …     then scales of the 64 slots
//! ```

use super::{Attend, LANES, PAGE, PageOfHead, QUERIES, VECTORS, WORD};
use crate::kernels::isa::Isa;
use crate::kernels::rows::{largest_magnitude, nearest};
use crate::memory::Aligned;

/// Largest magnitude of a code of a key or a value.
const LIMIT: f32 = 8191.0;
/// Largest magnitude of a code that they are multiplied by.
const OWN_LIMIT: f32 = 32767.0;
/// What magnitudes of these add up to at most, before each is rounded: times [`LIMIT`] still 32 bits.
const SUM_LIMIT: f32 = 261_500.0;
/// Rows without a larger magnitude, or scale, count as zeros: its inverse would overflow.
const NOTHING: f32 = 1e-30;
/// Columns that [`Isa::words`] takes.
const COLUMNS: usize = 2 * LANES;
/// Pairs of slots.
const SLOTS: usize = PAGE / 2;

/// Pairs of so many columns.
pub(super) const fn pairs(columns: usize) -> usize {
    columns.next_multiple_of(4) / 2
}

/// Bytes of the codes of so many columns in one slot.
pub(super) const fn code_bytes(columns: usize) -> usize {
    pairs(columns) * 4
}

/// Scales of a page, from that of `slot` on, behind codes of so many columns.
#[inline(always)]
#[allow(clippy::cast_ptr_alignment)] // pages begin at cache lines
pub(super) fn scales(page: *mut u8, columns: usize, slot: usize) -> *mut f32 {
    page.wrapping_add(PAGE * code_bytes(columns)).cast::<f32>().wrapping_add(slot)
}

/// Where a column of a key, or a slot of a value, is among the words of pairs that are `apart` words from each other.
const fn place(index: usize, apart: usize) -> usize {
    2 * apart * (index / 4 * 2 + index % 2) + index / 2 % 2
}

/// Codes of one block of queries.
pub(super) struct Codes {
    /// One query, with zeros behind.
    query: Aligned<f32>,
    /// `[queries][width]`, in pairs.
    queries: Aligned<u32>,
    /// Words of a query.
    width: usize,
    /// What products with a query's codes, times a key's scale, are scores by.
    scales: [f32; QUERIES],
    /// `[queries][slots]`, in pairs.
    weights: Aligned<u32>,
    weight_scales: [f32; QUERIES],
    /// Sums of weights so far, `[queries][LANES]`.
    totals: Aligned<f32>,
}

impl Codes {
    pub(super) fn new(key_width: usize) -> Self {
        let width = key_width.next_multiple_of(COLUMNS) / 2;
        Self {
            query: Aligned::zeroed(2 * width),
            queries: Aligned::zeroed(QUERIES * width),
            width,
            scales: [0.0; QUERIES],
            weights: Aligned::zeroed(QUERIES * SLOTS),
            weight_scales: [0.0; QUERIES],
            totals: Aligned::zeroed(QUERIES * LANES),
        }
    }

    /// How wide keys may be.
    pub(super) fn key_width(&self) -> usize {
        2 * self.width
    }
}

/// Writes a key into its slot of a page.
///
/// # Safety
/// The page is there, and nobody else uses the slot.
pub(crate) unsafe fn put_key(key: &[f32], page: *mut u8, slot: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        let scale = put(key, |column| page.cast::<i16>().add(place(column, PAGE) + 2 * slot));
        *scales(page, key.len(), slot) = scale;
    }
}

/// Writes a value into its slot of a page; neighbouring slots are `stride` numbers apart.
///
/// # Safety
/// As for [`put_key`].
pub(crate) unsafe fn put_value(value: &[f32], page: *mut u8, slot: usize, stride: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        let scale = put(value, |column| page.cast::<i16>().add(place(slot, stride) + 2 * column));
        *scales(page, stride, slot) = scale;
    }
}

/// # Safety
/// `to` gives a place for each number.
#[inline(always)]
unsafe fn put(x: &[f32], to: impl Fn(usize) -> *mut i16) -> f32 {
    let largest = largest_magnitude(x);
    let inverse = if largest > NOTHING { LIMIT / largest } else { 0.0 };
    for (i, x) in x.iter().enumerate() {
        // SAFETY: the caller's promise.
        unsafe { *to(i) = nearest(x * inverse) };
    }
    largest / LIMIT
}

/// The scale of codes of numbers whose largest magnitude and sum of magnitudes are given.
#[inline(always)]
fn scale_of(largest: f32, sum: f32) -> f32 {
    let (of_one, of_all) = (largest * (1.0 / OWN_LIMIT), sum * (1.0 / SUM_LIMIT));
    if of_one > of_all { of_one } else { of_all }
}

/// What numbers are multiplied by to become codes of a scale.
#[inline(always)]
fn inverse(scale: f32) -> f32 {
    if scale > NOTHING { 1.0 / scale } else { 0.0 }
}

/// Writes numbers' codes, in pairs.
///
/// # Safety
/// There is room for sixteen words; the processor has the instructions.
#[inline(always)]
unsafe fn put_codes<I: Isa>([low, high]: [I::F; 2], inverse: I::F, out: *mut u32) {
    // SAFETY: the caller's promise.
    unsafe {
        let words = I::words([I::round(I::mul(low, inverse)), I::round(I::mul(high, inverse))]);
        out.copy_from_nonoverlapping(words.as_ptr(), words.len());
    }
}

/// Up to four rows as four: what is made of a row is the same bits, whatever is beside it.
#[inline(always)]
unsafe fn as_four<I: Isa, const Q: usize>(rows: [I::F; Q]) -> [I::F; 4] {
    // SAFETY: the caller promises the instruction set.
    let mut four = [unsafe { I::splat(0.0) }; 4];
    four[..Q].copy_from_slice(&rows);
    four
}

/// 2ˣ of x ≤ 0, relative error below 3e-6: fewer terms than [`Isa::exp`] has. Tiny far below.
///
/// # Safety
/// The processor has the instructions.
#[inline(always)]
pub(super) unsafe fn power<I: Isa>(x: I::F) -> I::F {
    // SAFETY: the caller's promise.
    unsafe {
        let x = I::max(x, I::splat(-126.0));
        let n = I::round(x);
        let r = I::sub(x, n);
        // Of the polynomials of its degree the one that is off least on −½ ..= ½.
        let mut p = I::splat(9.570_102e-3);
        for c in [5.591_786e-2, 0.240_247_45, 0.693_121_8, 0.999_999_3] {
            p = I::fma(p, r, I::splat(c));
        }
        I::mul(p, I::power_of_two(n))
    }
}

impl<P: Iterator<Item = PageOfHead>> Attend<'_, P> {
    /// Makes the codes of all queries.
    ///
    /// # Safety
    /// The processor has the instructions.
    #[inline(always)]
    pub(super) unsafe fn fix_queries<I: Isa>(&mut self) {
        let (width, codes) = (self.task.key_width, &mut self.scratch.codes);
        let columns = width.next_multiple_of(COLUMNS);
        codes.query[width..columns].fill(0.0);
        codes.totals.fill(0.0);
        for (row, query) in self.task.queries.iter().enumerate() {
            // SAFETY: a query has `width` floats, the room as many and those that fill them up.
            unsafe {
                codes.query.as_mut_ptr().copy_from_nonoverlapping(query.q, width);
                let query = codes.query.as_ptr();
                let (mut top, mut sum) = (I::splat(0.0), I::splat(0.0));
                for at in (0..columns).step_by(LANES) {
                    let x = I::abs(I::load(query.add(at)));
                    (top, sum) = (I::max(top, x), I::add(sum, x));
                }
                let out = codes.queries.as_mut_ptr().add(row * codes.width);
                let own = scale_of(I::largest(top), I::sum(sum));
                let inverse = I::splat(inverse(own));
                for at in (0..columns).step_by(COLUMNS) {
                    let (low, high) = (I::load(query.add(at)), I::load(query.add(at + LANES)));
                    put_codes::<I>([low, high], inverse, out.add(at / 2));
                }
                codes.scales[row] = own * self.task.scale;
            }
        }
    }

    /// A page for all queries, of which `visible` says what slots each sees.
    ///
    /// # Safety
    /// As for [`Attend::word_rows`].
    #[inline(always)]
    pub(super) unsafe fn word_page<I: Isa, const Q: usize, const V: usize>(
        &mut self,
        page: &PageOfHead,
        visible: &[u64],
        largest: &mut [f32; QUERIES],
    ) {
        for (block, visible) in visible.chunks(Q).enumerate() {
            let row = block * Q;
            // SAFETY: the caller's promise.
            unsafe {
                match *visible {
                    [a] => self.word_rows::<I, 1, V>(page, row, [a], largest),
                    [a, b] => self.word_rows::<I, 2, V>(page, row, [a, b], largest),
                    [a, b, c] => self.word_rows::<I, 3, V>(page, row, [a, b, c], largest),
                    [a, b, c, d] => self.word_rows::<I, 4, V>(page, row, [a, b, c, d], largest),
                    _ => unreachable!("a block of more queries"),
                }
            }
        }
    }

    /// Sums of all weights.
    ///
    /// # Safety
    /// The processor has the instructions.
    #[inline(always)]
    pub(super) unsafe fn word_totals<I: Isa>(&self, totals: &mut [f32; QUERIES]) {
        for (lanes, total) in self.scratch.codes.totals.chunks_exact(LANES).zip(totals) {
            // SAFETY: sixteen of them.
            *total = unsafe { I::sum(I::load(lanes.as_ptr())) };
        }
    }

    /// A page for `Q` queries from `row`, of which `visible` says what slots each sees: scores, what they weigh the page's values by, and
    /// these added to the sums. All of that stays in registers but for codes of weights.
    ///
    /// # Safety
    /// Rows below the number of queries; the page holds keys and values; the processor has the instructions.
    #[inline(always)]
    unsafe fn word_rows<I: Isa, const Q: usize, const V: usize>(
        &mut self,
        page: &PageOfHead,
        row: usize,
        visible: [u64; Q],
        largest: &mut [f32; QUERIES],
    ) {
        let any = visible.iter().fold(0, |any, v| any | v);
        if any == 0 {
            return;
        }
        let whole = visible.iter().all(|visible| *visible == u64::MAX);
        let slots = any.trailing_zeros() as usize..PAGE - any.leading_zeros() as usize;
        let vectors = slots.start / LANES..slots.end.div_ceil(LANES);
        // SAFETY: the caller's promise; vectors and slots stay below a page's.
        unsafe {
            let mut scores = [[I::splat(0.0); VECTORS]; Q];
            for vector in (vectors.start / V * V..vectors.end).step_by(V) {
                // Few queries too take several vectors at once: alone each sum would wait for itself.
                self.word_scores::<I, Q, V>(page, row, vector, &mut scores);
            }
            // One thing after another for all rows, which wait for nothing of each other.
            let mut tops = [I::splat(f32::NEG_INFINITY); Q];
            for ((scores, visible), top) in scores.iter_mut().zip(visible).zip(&mut tops) {
                for (v, score) in scores.iter_mut().enumerate() {
                    if let Some(cap) = self.task.softcap {
                        *score = I::mul(I::splat(cap), I::tanh(I::div(*score, I::splat(cap))));
                    }
                    if !whole {
                        *score = I::replaced(*score, (!visible >> (v * LANES)) as u16, f32::NEG_INFINITY);
                    }
                    *top = I::max(*top, *score);
                }
            }
            let mut tops = I::largest_of_four(as_four::<I, Q>(tops));
            for (q, top) in tops[..Q].iter_mut().enumerate() {
                let largest = &mut largest[row + q];
                if *top > *largest {
                    let factor = (*largest - *top).exp();
                    self.rescale::<I>(row + q, factor);
                    let totals = self.scratch.codes.totals.as_mut_ptr().add((row + q) * LANES);
                    I::store(totals, I::mul(I::load(totals), I::splat(factor)));
                    *largest = *top;
                }
                *top = -*largest * std::f32::consts::LOG2_E;
            }
            let value_scales = scales(page.values.cast_mut(), self.task.value_stride, 0);
            let log2e = I::splat(std::f32::consts::LOG2_E);
            let (mut most, mut sums) = ([I::splat(0.0); Q], [I::splat(0.0); Q]);
            let codes = &mut self.scratch.codes;
            for (q, (scores, visible)) in scores.iter_mut().zip(visible).enumerate() {
                let top = I::splat(tops[q]);
                let mut sum = I::splat(0.0);
                for (v, score) in scores.iter_mut().enumerate() {
                    let mut weight = power::<I>(I::fma(*score, log2e, top));
                    if !whole {
                        // What is hidden weighs nothing at all.
                        weight = I::replaced(weight, (!visible >> (v * LANES)) as u16, 0.0);
                    }
                    sum = I::add(sum, weight);
                    *score = I::mul(weight, I::load(value_scales.add(v * LANES)));
                    sums[q] = I::add(sums[q], *score);
                    most[q] = I::max(most[q], *score);
                }
                let totals = codes.totals.as_mut_ptr().add((row + q) * LANES);
                I::store(totals, I::add(I::load(totals), sum));
            }
            let most = I::largest_of_four(as_four::<I, Q>(most));
            let sums = I::sum_of_four(as_four::<I, Q>(sums));
            let mut inverses = [0f32; Q];
            for q in 0..Q {
                let scale = scale_of(most[q], sums[q]);
                codes.weight_scales[row + q] = scale;
                inverses[q] = inverse(scale);
            }
            for (q, scores) in scores.into_iter().enumerate() {
                let inverse = I::splat(inverses[q]);
                let out = codes.weights.as_mut_ptr().add((row + q) * SLOTS);
                for two in 0..VECTORS / 2 {
                    let pair = [scores[2 * two], scores[2 * two + 1]];
                    put_codes::<I>(pair, inverse, out.add(two * LANES));
                }
            }
            let width = self.task.value_width.div_ceil(LANES);
            self.block_values::<I, WORD, Q, V>(page, slots, row, width);
        }
    }

    /// Scores of `V` vectors of keys from `vector`.
    ///
    /// # Safety
    /// As for [`Attend::word_rows`].
    #[inline(always)]
    unsafe fn word_scores<I: Isa, const Q: usize, const V: usize>(
        &self,
        page: &PageOfHead,
        row: usize,
        vector: usize,
        scores: &mut [[I::F; VECTORS]; Q],
    ) {
        let codes = &self.scratch.codes;
        // SAFETY: the caller's promise.
        unsafe {
            let queries = codes.queries.as_ptr().add(row * codes.width).cast::<i32>();
            let mut acc = [[I::zero_i(); V]; Q];
            for pair in 0..pairs(self.task.key_width) {
                let mut keys = [I::splat_b(0); V];
                for (v, key) in keys.iter_mut().enumerate() {
                    *key = I::load_b(page.keys.add((pair * PAGE + (vector + v) * LANES) * 4));
                }
                for (q, acc) in acc.iter_mut().enumerate() {
                    let query = *queries.add(q * codes.width + pair);
                    for (acc, key) in acc.iter_mut().zip(keys) {
                        *acc = I::dot_words(*acc, key, query);
                    }
                }
            }
            let scales = scales(page.keys.cast_mut(), self.task.key_width, vector * LANES);
            for (q, (scores, acc)) in scores.iter_mut().zip(acc).enumerate() {
                let scale = I::splat(codes.scales[row + q]);
                for (v, (score, acc)) in scores[vector..].iter_mut().zip(acc).enumerate() {
                    *score = I::mul(I::to_float(acc), I::mul(scale, I::load(scales.add(v * LANES))));
                }
            }
        }
    }

    /// Adds what the slots of a page give to the sums, for `V` vectors of the value from `vector`.
    ///
    /// # Safety
    /// As for [`Attend::word_rows`].
    #[inline(always)]
    pub(super) unsafe fn word_values<I: Isa, const Q: usize, const V: usize>(
        &mut self,
        page: &PageOfHead,
        slots: std::ops::Range<usize>,
        row: usize,
        vector: usize,
    ) {
        let (codes, stride) = (&self.scratch.codes, self.scratch.stride);
        // SAFETY: the caller's promise.
        unsafe {
            let weights = codes.weights.as_ptr().add(row * SLOTS).cast::<i32>();
            let mut acc = [[I::zero_i(); V]; Q];
            for pair in slots.start / 4 * 2..pairs(slots.end) {
                let mut values = [I::splat_b(0); V];
                for (v, value) in values.iter_mut().enumerate() {
                    let at = pair * self.task.value_stride + (vector + v) * LANES;
                    *value = I::load_b(page.values.add(at * 4));
                }
                for (q, acc) in acc.iter_mut().enumerate() {
                    let weight = *weights.add(q * SLOTS + pair);
                    for (acc, value) in acc.iter_mut().zip(values) {
                        *acc = I::dot_words(*acc, value, weight);
                    }
                }
            }
            for (q, acc) in acc.into_iter().enumerate() {
                let scale = I::splat(codes.weight_scales[row + q]);
                let sums = self.scratch.sums.as_mut_ptr().add((row + q) * stride + vector * LANES);
                for (v, acc) in acc.into_iter().enumerate() {
                    let sum = sums.add(v * LANES);
                    I::store(sum, I::fma(I::to_float(acc), scale, I::load(sum)));
                }
            }
        }
    }
}
