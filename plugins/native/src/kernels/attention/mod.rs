//! Attention over pages of keys and values, with a running softmax: memory for one page of scores, whatever the length.
//!
//! A page holds [`PAGE`] positions of one key/value head: as floats, halves and bytes, which are multiplied as floats, or as
//! [`words`], which are multiplied as they are, or for many tokens of a prompt by tiles where there is AMX. Keys lie
//! *across*, `[key width][PAGE]`, so that a vector holds one component of sixteen keys and scores need no horizontal sums;
//! values lie along, `[PAGE][value stride]`.
//! (Running softmax: Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018.)

#[cfg(target_arch = "x86_64")]
pub(crate) mod tiled;
mod words;

use super::isa::{self, Isa, Kernel, LANES, Path};
use crate::memory::Aligned;
pub(crate) use words::{put_key, put_value};

/// Positions per page: as many as a validity mask has bits.
pub(crate) const PAGE: usize = 64;
const VECTORS: usize = PAGE / LANES;
/// Queries that are worked on together: of one head over neighbouring tokens, of heads that share keys, or both.
pub(crate) const QUERIES: usize = 16;

/// How cached numbers are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stored {
    /// float32.
    Float,
    /// binary16.
    Half,
    /// Fourteen bits, with scales as those of bytes: see [`words`].
    Word,
    /// Eight bits, with a float32 scale for every position: behind all keys of a page that of each, and likewise behind its
    /// values.
    Byte,
}

impl Stored {
    /// Bytes of a page of numbers, `width` for each position, of one head.
    pub(crate) const fn page_bytes(self, width: usize) -> usize {
        match self {
            Stored::Float => PAGE * width * 4,
            Stored::Half => PAGE * width * 2,
            Stored::Word => PAGE * (words::code_bytes(width) + SCALE_BYTES),
            Stored::Byte => PAGE * (width + SCALE_BYTES),
        }
    }
}

/// Bytes of a scale of [`Stored::Word`] and [`Stored::Byte`].
pub(crate) const SCALE_BYTES: usize = 4;

// The same as constants: what kernels are compiled for.
const FLOAT: u8 = 0;
const HALF: u8 = 1;
const BYTE: u8 = 2;
const WORD: u8 = 3;

/// One page of one head, as attention reads it.
#[derive(Clone, Copy)]
pub(crate) struct PageOfHead {
    /// `[key width][PAGE]`.
    pub(crate) keys: *const u8,
    /// `[PAGE][value stride]`.
    pub(crate) values: *const u8,
    /// Position of its first slot.
    pub(crate) first: u32,
    /// Which slots hold something.
    pub(crate) valid: u64,
}

/// What a query may see.
#[derive(Clone, Copy)]
pub(crate) struct Sight {
    /// First visible position.
    pub(crate) from: u32,
    /// Last visible position.
    pub(crate) to: u32,
}

impl Sight {
    /// The visible slots of a page that begins at `first`.
    fn of_page(self, first: u32) -> u64 {
        let below = |position: u32| {
            // Slots before `position`.
            let n = position.saturating_sub(first);
            if n >= PAGE as u32 { u64::MAX } else { (1u64 << n) - 1 }
        };
        below(self.to.saturating_add(1)) & !below(self.from)
    }
}

/// Shape of an attention and what it is asked.
#[derive(Clone, Copy)]
pub(crate) struct HeadTask<'a> {
    pub(crate) stored: Stored,
    pub(crate) key_width: usize,
    pub(crate) value_width: usize,
    /// Elements between the values of neighbouring slots; a multiple of 16.
    pub(crate) value_stride: usize,
    pub(crate) scale: f32,
    pub(crate) softcap: Option<f32>,
    /// At most [`QUERIES`]; by tiles, whole groups of [`tiled::GROUP`].
    pub(crate) queries: &'a [Query],
}

/// One query: a token in one head.
#[derive(Clone, Copy)]
pub(crate) struct Query {
    /// `key_width` floats.
    pub(crate) q: *const f32,
    /// Room for `value_width` floats.
    pub(crate) out: *mut f32,
    pub(crate) sight: Sight,
    pub(crate) sink: Option<f32>,
}

impl Query {
    /// Of no token.
    pub(crate) const NONE: Self =
        Self { q: std::ptr::null(), out: std::ptr::null_mut(), sight: Sight { from: 0, to: 0 }, sink: None };
}

/// Room for one block of queries. One per thread.
pub(crate) struct Scratch {
    scores: Aligned<f32>,
    sums: Aligned<f32>,
    stride: usize,
    codes: words::Codes,
}

impl Scratch {
    /// For keys and values of up to so many numbers.
    pub(crate) fn new(key_width: usize, value_width: usize) -> Self {
        let stride = value_width.next_multiple_of(LANES);
        Self {
            scores: Aligned::zeroed(QUERIES * PAGE),
            sums: Aligned::zeroed(QUERIES * stride),
            stride,
            codes: words::Codes::new(key_width),
        }
    }
}

struct Attend<'a, P> {
    task: HeadTask<'a>,
    pages: P,
    scratch: &'a mut Scratch,
}

#[inline(always)]
unsafe fn load<I: Isa, const STORED: u8>(p: *const u8, index: usize) -> I::F {
    // SAFETY: the caller promises 16 elements at `index`.
    unsafe {
        match STORED {
            HALF => I::load_half(p.cast::<u16>().add(index)),
            BYTE => I::load_signed_bytes(p.cast::<i8>().add(index)),
            _ => I::load(p.cast::<f32>().add(index)),
        }
    }
}

impl<P: Iterator<Item = PageOfHead>> Attend<'_, P> {
    /// Scores of `Q` queries from `row` against `V` vectors of keys from `vector`.
    #[inline(always)]
    unsafe fn scores<I: Isa, const STORED: u8, const Q: usize, const V: usize>(
        &mut self,
        page: &PageOfHead,
        row: usize,
        vector: usize,
    ) {
        let task = &self.task;
        // SAFETY: rows below the number of queries, vectors below a page's.
        unsafe {
            let acc = self.float_scores::<I, STORED, Q, V>(page, row, vector);
            for (r, acc) in acc.into_iter().enumerate() {
                for (v, mut s) in acc.into_iter().enumerate() {
                    if let Some(cap) = task.softcap {
                        s = I::mul(I::splat(cap), I::tanh(I::div(s, I::splat(cap))));
                    }
                    I::store(
                        self.scratch.scores.as_mut_ptr().add((row + r) * PAGE + (vector + v) * LANES),
                        s,
                    );
                }
            }
        }
    }

    /// Products of queries and keys.
    #[inline(always)]
    unsafe fn float_scores<I: Isa, const STORED: u8, const Q: usize, const V: usize>(
        &self,
        page: &PageOfHead,
        row: usize,
        vector: usize,
    ) -> [[I::F; V]; Q] {
        // SAFETY: the caller's promise.
        unsafe {
            let mut queries = [std::ptr::null(); Q];
            for (q, query) in queries.iter_mut().zip(&self.task.queries[row..]) {
                *q = query.q;
            }
            let mut acc = [[I::splat(0.0); V]; Q];
            for d in 0..self.task.key_width {
                let mut keys = [I::splat(0.0); V];
                for (v, key) in keys.iter_mut().enumerate() {
                    *key = load::<I, STORED>(page.keys, d * PAGE + (vector + v) * LANES);
                }
                for (q, acc) in queries.iter().zip(&mut acc) {
                    let q = I::splat(*q.add(d));
                    for (acc, key) in acc.iter_mut().zip(keys) {
                        *acc = I::fma(q, key, *acc);
                    }
                }
            }
            let mut scales = [I::splat(self.task.scale); V];
            if STORED == BYTE {
                let own = page.keys.add(self.task.key_width * PAGE).cast::<f32>();
                for (v, scale) in scales.iter_mut().enumerate() {
                    *scale = I::mul(*scale, I::load(own.add((vector + v) * LANES)));
                }
            }
            for acc in &mut acc {
                for (acc, scale) in acc.iter_mut().zip(scales) {
                    *acc = I::mul(*acc, scale);
                }
            }
            acc
        }
    }

    /// Adds the page's values, weighed, to the sums of `Q` queries, for `V` vectors of the value from `vector`.
    #[inline(always)]
    unsafe fn values<I: Isa, const STORED: u8, const Q: usize, const V: usize>(
        &mut self,
        page: &PageOfHead,
        slots: std::ops::Range<usize>,
        row: usize,
        vector: usize,
    ) {
        if STORED == WORD {
            // SAFETY: the caller's promise.
            return unsafe { self.word_values::<I, Q, V>(page, slots, row, vector) };
        }
        // SAFETY: rows below the number of queries; vectors below the value's stride; slots below a page's.
        unsafe {
            let weights = self.scratch.scores.as_ptr();
            let stride = self.scratch.stride;
            let sums = self.scratch.sums.as_mut_ptr().add(row * stride + vector * LANES);
            let mut acc = [[I::splat(0.0); V]; Q];
            for (r, acc) in acc.iter_mut().enumerate() {
                for (v, acc) in acc.iter_mut().enumerate() {
                    *acc = I::load(sums.add(r * stride + v * LANES));
                }
            }
            for slot in slots {
                let mut values = [I::splat(0.0); V];
                for (v, value) in values.iter_mut().enumerate() {
                    *value =
                        load::<I, STORED>(page.values, slot * self.task.value_stride + (vector + v) * LANES);
                }
                for (r, acc) in acc.iter_mut().enumerate() {
                    let p = I::splat(*weights.add((row + r) * PAGE + slot));
                    for (acc, value) in acc.iter_mut().zip(values) {
                        *acc = I::fma(p, value, *acc);
                    }
                }
            }
            for (r, acc) in acc.into_iter().enumerate() {
                for (v, acc) in acc.into_iter().enumerate() {
                    I::store(sums.add(r * stride + v * LANES), acc);
                }
            }
        }
    }

    /// Hides what a row does not see of its scores, and multiplies its sums by what a new largest score makes of them.
    #[inline(always)]
    unsafe fn hide<I: Isa>(&mut self, row: usize, visible: u64, largest: &mut f32, total: &mut f32) {
        // SAFETY: a row of the scratch.
        unsafe {
            let scores = self.scratch.scores.as_mut_ptr().add(row * PAGE);
            let mut top = I::splat(f32::NEG_INFINITY);
            for v in 0..VECTORS {
                let mut score = I::load(scores.add(v * LANES));
                let hidden = (!visible >> (v * LANES)) as u16;
                if hidden != 0 {
                    score = I::replaced(score, hidden, f32::NEG_INFINITY);
                    I::store(scores.add(v * LANES), score);
                }
                top = I::max(top, score);
            }
            let top = I::largest(top).max(*largest);
            if *largest != top {
                let factor = (*largest - top).exp();
                *largest = top;
                *total *= factor;
                self.rescale::<I>(row, factor);
            }
        }
    }

    /// Multiplies a row's sums by what a new largest score makes of them.
    #[inline(always)]
    unsafe fn rescale<I: Isa>(&mut self, row: usize, factor: f32) {
        let stride = self.scratch.stride;
        // SAFETY: a row of the scratch.
        unsafe {
            let sums = self.scratch.sums.as_mut_ptr().add(row * stride);
            for v in 0..stride / LANES {
                let p = sums.add(v * LANES);
                I::store(p, I::mul(I::load(p), I::splat(factor)));
            }
        }
    }

    /// Turns a row of scores, the largest so far of which is `top`, into weights; returns their sum.
    #[inline(always)]
    unsafe fn soften<I: Isa>(&mut self, row: usize, visible: u64, top: f32) -> f32 {
        // SAFETY: a row of the scratch.
        unsafe {
            let scores = self.scratch.scores.as_mut_ptr().add(row * PAGE);
            let mut sum = I::splat(0.0);
            for v in 0..VECTORS {
                let mut weight = I::exp(I::sub(I::load(scores.add(v * LANES)), I::splat(top)));
                let hidden = (!visible >> (v * LANES)) as u16;
                if hidden != 0 {
                    // `exp` of −∞ is clamped to a tiny number: what is hidden weighs nothing at all.
                    weight = I::replaced(weight, hidden, 0.0);
                }
                I::store(scores.add(v * LANES), weight);
                sum = I::add(sum, weight);
            }
            I::sum(sum)
        }
    }

    #[inline(always)]
    unsafe fn page<I: Isa, const STORED: u8, const Q: usize, const V: usize>(
        &mut self,
        page: PageOfHead,
        largest: &mut [f32; QUERIES],
        totals: &mut [f32; QUERIES],
    ) {
        let queries = self.task.queries.len();
        let mut visible = [0u64; QUERIES];
        for (visible, query) in visible.iter_mut().zip(self.task.queries) {
            *visible = query.sight.of_page(page.first) & page.valid;
        }
        if STORED == WORD {
            // SAFETY: the caller's promise.
            return unsafe { self.word_page::<I, Q, V>(&page, &visible[..queries], largest) };
        }
        let any = visible.iter().fold(0, |any, v| any | v);
        if any == 0 {
            return;
        }
        let slots = any.trailing_zeros() as usize..PAGE - any.leading_zeros() as usize;
        let vectors = slots.start / LANES..slots.end.div_ceil(LANES);
        // SAFETY: rows, vectors and slots stay below their bounds.
        unsafe {
            let mut row = 0;
            while row < queries {
                let block = (queries - row).min(Q);
                for vector in (vectors.start / V * V..vectors.end).step_by(V) {
                    // Few queries too take several vectors at once: alone each sum would wait for itself.
                    match block {
                        1 => self.scores::<I, STORED, 1, V>(&page, row, vector),
                        2 => self.scores::<I, STORED, 2, V>(&page, row, vector),
                        3 => self.scores::<I, STORED, 3, V>(&page, row, vector),
                        _ => self.scores::<I, STORED, Q, V>(&page, row, vector),
                    }
                }
                row += block;
            }
            // One thing after another for all rows, which wait for nothing of each other.
            for row in (0..queries).filter(|row| visible[*row] != 0) {
                self.hide::<I>(row, visible[row], &mut largest[row], &mut totals[row]);
            }
            for row in 0..queries {
                if visible[row] == 0 {
                    // Nothing new for this query: its weights of this page are zero.
                    self.scratch.scores[row * PAGE..(row + 1) * PAGE].fill(0.0);
                } else {
                    totals[row] += self.soften::<I>(row, visible[row], largest[row]);
                }
            }
            if STORED == BYTE {
                // What a value's codes are to be multiplied by goes to its weight.
                let scales = page.values.add(self.task.value_stride * PAGE).cast::<f32>();
                for (at, weight) in self.scratch.scores[..queries * PAGE].iter_mut().enumerate() {
                    *weight *= *scales.add(at % PAGE);
                }
            }
            let width = self.task.value_width.div_ceil(LANES);
            let mut row = 0;
            while row < queries {
                let block = (queries - row).min(Q);
                match block {
                    1 => self.block_values::<I, STORED, 1, V>(&page, slots.clone(), row, width),
                    2 => self.block_values::<I, STORED, 2, V>(&page, slots.clone(), row, width),
                    3 => self.block_values::<I, STORED, 3, V>(&page, slots.clone(), row, width),
                    _ => self.block_values::<I, STORED, Q, V>(&page, slots.clone(), row, width),
                }
                row += block;
            }
        }
    }

    /// [`Attend::values`] for all `width` vectors of the value.
    #[inline(always)]
    unsafe fn block_values<I: Isa, const STORED: u8, const Q: usize, const V: usize>(
        &mut self,
        page: &PageOfHead,
        slots: std::ops::Range<usize>,
        row: usize,
        width: usize,
    ) {
        let mut vector = 0;
        // SAFETY: the caller's promise.
        unsafe {
            while vector + V <= width {
                self.values::<I, STORED, Q, V>(page, slots.clone(), row, vector);
                vector += V;
            }
            while vector < width {
                self.values::<I, STORED, Q, 1>(page, slots.clone(), row, vector);
                vector += 1;
            }
        }
    }

    #[inline(always)]
    unsafe fn all<I: Isa, const STORED: u8, const Q: usize, const V: usize>(&mut self) {
        let queries = self.task.queries.len();
        let mut largest = [f32::NEG_INFINITY; QUERIES];
        let mut totals = [0f32; QUERIES];
        let stride = self.scratch.stride;
        self.scratch.sums[..queries * stride].fill(0.0);
        // SAFETY: the caller's promise.
        unsafe {
            if STORED == WORD {
                self.fix_queries::<I>();
            }
            while let Some(page) = self.pages.next() {
                self.page::<I, STORED, Q, V>(page, &mut largest, &mut totals);
            }
            if STORED == WORD {
                self.word_totals::<I>(&mut totals);
            }
            for (row, query) in self.task.queries.iter().enumerate() {
                let factor = share(largest[row], totals[row], query.sink);
                let mut at = 0;
                while at < self.task.value_width {
                    let sum = I::load(self.scratch.sums.as_ptr().add(row * stride + at));
                    I::store_first(
                        query.out.add(at),
                        (self.task.value_width - at).min(LANES),
                        I::mul(sum, I::splat(factor)),
                    );
                    at += LANES;
                }
            }
        }
    }
}

/// What weighed sums are to be multiplied by, when weights add up to `total` beside a largest score of `largest`.
fn share(largest: f32, mut total: f32, sink: Option<f32>) -> f32 {
    let mut factor = 1.0;
    if let Some(sink) = sink {
        // The sink takes part in the sum alone.
        let top = largest.max(sink);
        factor = (largest - top).exp();
        total = total * factor + (sink - top).exp();
    }
    // A query that sees nothing gets zeros.
    if total > 0.0 { factor / total } else { 0.0 }
}

impl<P: Iterator<Item = PageOfHead>> Kernel for Attend<'_, P> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<I: Isa>(mut self) {
        // SAFETY: the caller's promise.
        unsafe {
            match (self.task.stored, I::FLOAT_ROWS >= 12) {
                (Stored::Float, true) => self.all::<I, FLOAT, 4, 4>(),
                (Stored::Float, false) => self.all::<I, FLOAT, 2, 2>(),
                (Stored::Half, true) => self.all::<I, HALF, 4, 4>(),
                (Stored::Half, false) => self.all::<I, HALF, 2, 2>(),
                (Stored::Word, true) => self.all::<I, WORD, 4, 4>(),
                (Stored::Word, false) => self.all::<I, WORD, 2, 2>(),
                (Stored::Byte, true) => self.all::<I, BYTE, 4, 4>(),
                (Stored::Byte, false) => self.all::<I, BYTE, 2, 2>(),
            }
        }
    }
}

/// Attends for up to [`QUERIES`] queries over `pages` of one key/value head.
///
/// # Safety
/// The queries hold and have room for what their documentation says, and no other thread uses that room meanwhile; the pages
/// hold what theirs says.
///
/// # Panics
/// If there are more queries than [`QUERIES`] or keys or values are wider than the scratch.
pub(crate) unsafe fn attend(
    path: Path,
    task: HeadTask<'_>,
    pages: impl Iterator<Item = PageOfHead>,
    scratch: &mut Scratch,
) {
    assert!(
        task.queries.len() <= QUERIES
            && task.key_width <= scratch.codes.key_width()
            && task.value_width <= scratch.stride
            && task.value_stride <= scratch.stride
    );
    // SAFETY: the caller's promise.
    unsafe { isa::run(path, Attend { task, pages, scratch }) }
}

#[cfg(test)]
mod tests;
