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

use super::{Attend, LANES, PAGE, PageOfHead, QUERIES, VECTORS};
use crate::kernels::isa::Isa;
use crate::kernels::rows::{largest_magnitude, nearest};
use crate::memory::Aligned;

/// Largest magnitude of a code of a key or a value.
const LIMIT: f32 = 8191.0;
/// Largest magnitude of a code that they are multiplied by.
const OWN_LIMIT: f32 = 32767.0;
/// What magnitudes of these add up to at most, before each is rounded: times [`LIMIT`] still 32 bits.
const SUM_LIMIT: f32 = 261_500.0;
/// Rows without a larger magnitude count as zeros: the inverse of their scale would overflow.
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

/// Codes of `columns` numbers, a multiple of [`COLUMNS`], whose largest magnitude and sum of magnitudes are given; gives back
/// their scale.
///
/// # Safety
/// The processor has the instructions; `out` has room for half as many words.
#[inline(always)]
unsafe fn fix<I: Isa>(x: *const f32, columns: usize, largest: f32, sum: f32, out: *mut u32) -> f32 {
    let scale = (largest / OWN_LIMIT).max(sum / SUM_LIMIT);
    // SAFETY: the caller's promise.
    unsafe {
        let inverse = I::splat(if largest > NOTHING { 1.0 / scale } else { 0.0 });
        for at in (0..columns).step_by(COLUMNS) {
            let (low, high) = (I::load(x.add(at)), I::load(x.add(at + LANES)));
            let words = I::words([I::round(I::mul(low, inverse)), I::round(I::mul(high, inverse))]);
            out.add(at / 2).copy_from_nonoverlapping(words.as_ptr(), words.len());
        }
    }
    scale
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
                let own = fix::<I>(query, columns, I::largest(top), I::sum(sum), out);
                codes.scales[row] = own * self.task.scale;
            }
        }
    }

    /// [`Attend::soften`] of all rows, to codes of weights, each times the scale of its value.
    ///
    /// # Safety
    /// As there.
    #[inline(always)]
    pub(super) unsafe fn word_soften<I: Isa>(
        &mut self,
        page: &PageOfHead,
        visible: &[u64],
        largest: &[f32; QUERIES],
        totals: &mut [f32; QUERIES],
    ) {
        // SAFETY: rows of the scratch; scales of 64 slots behind the values.
        unsafe {
            let scales = scales(page.values.cast_mut(), self.task.value_stride, 0);
            let log2e = I::splat(std::f32::consts::LOG2_E);
            // One thing after another for a few rows, which wait for nothing of each other.
            for (few, visible) in visible.chunks(4).enumerate() {
                let mut sums = [[I::splat(0.0); 3]; 4];
                for (row, (visible, sums)) in (4 * few..).zip(visible.iter().zip(&mut sums)) {
                    let scores = self.scratch.scores.as_mut_ptr().add(row * PAGE);
                    let top = I::splat(-largest[row] * std::f32::consts::LOG2_E);
                    for v in 0..VECTORS {
                        let mut weight = power::<I>(I::fma(I::load(scores.add(v * LANES)), log2e, top));
                        let hidden = (!visible >> (v * LANES)) as u16;
                        if hidden != 0 {
                            weight = I::replaced(weight, hidden, 0.0);
                        }
                        let scaled = I::mul(weight, I::load(scales.add(v * LANES)));
                        I::store(scores.add(v * LANES), scaled);
                        *sums = [I::add(sums[0], weight), I::add(sums[1], scaled), I::max(sums[2], scaled)];
                    }
                }
                for (row, sums) in (4 * few..4 * few + visible.len()).zip(&sums) {
                    totals[row] += I::sum(sums[0]);
                    let weights = self.scratch.scores.as_ptr().add(row * PAGE);
                    let codes = &mut self.scratch.codes;
                    let out = codes.weights.as_mut_ptr().add(row * SLOTS);
                    codes.weight_scales[row] =
                        fix::<I>(weights, PAGE, I::largest(sums[2]), I::sum(sums[1]), out);
                }
            }
        }
    }

    /// [`Attend::scores`] in words.
    ///
    /// # Safety
    /// As there.
    #[inline(always)]
    pub(super) unsafe fn word_scores<I: Isa, const Q: usize, const V: usize>(
        &self,
        page: &PageOfHead,
        row: usize,
        vector: usize,
    ) -> [[I::F; V]; Q] {
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
            let mut out = [[I::splat(0.0); V]; Q];
            for (q, (out, acc)) in out.iter_mut().zip(acc).enumerate() {
                let scale = I::splat(codes.scales[row + q]);
                for (v, (out, acc)) in out.iter_mut().zip(acc).enumerate() {
                    *out = I::mul(I::to_float(acc), I::mul(scale, I::load(scales.add(v * LANES))));
                }
            }
            out
        }
    }

    /// [`Attend::values`] in words: adds what the slots of a page give to `sums`.
    ///
    /// # Safety
    /// As there.
    #[inline(always)]
    pub(super) unsafe fn word_values<I: Isa, const Q: usize, const V: usize>(
        &self,
        page: &PageOfHead,
        slots: std::ops::Range<usize>,
        row: usize,
        vector: usize,
        sums: &mut [[I::F; V]; Q],
    ) {
        let codes = &self.scratch.codes;
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
            for (q, (sums, acc)) in sums.iter_mut().zip(acc).enumerate() {
                let scale = I::splat(codes.weight_scales[row + q]);
                for (sum, acc) in sums.iter_mut().zip(acc) {
                    *sum = I::fma(I::to_float(acc), scale, *sum);
                }
            }
        }
    }
}
