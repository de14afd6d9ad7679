//! Matrix products of a step: who multiplies which rows, and in which form.
#![allow(unsafe_code)] // threads write disjoint rows of shared buffers; each block says which

use std::ops::Range;

use drophammer_models::graph::Gating;

use super::execute::{Frame, Scratch};
use super::forms::Form;
use super::matrix::Matrix;
use super::runs::Span;
use super::step::{Domain, Norm, Product, Value};
use crate::kernels::LANES;
use crate::kernels::float::{Output, Rows, dot, lay_strip, multiply_strip};
use crate::kernels::rows::{self, Binary};
use crate::kernels::tile::multiply::multiply;
#[cfg(target_arch = "x86_64")]
use crate::kernels::tile::tiled;
use crate::kernels::tile::{Takes, Tiles, fixed, floats, plain};
use crate::memory::Aligned;
use crate::threads::Member;

/// Up to so many tokens rows of weights are multiplied one by one; beyond it pays to lay them in strips.
const FEW_TOKENS: usize = 3;

/// Strips of both halves after which rows are gated, of more than a few tokens: what was written side by side is in a near cache then.
const GATED_STRIPS: usize = 8;

/// With at least so many tokens for each, threads share tokens, not rows of weights: what a thread quantizes, reads and writes then
/// stays in its core's caches, which is worth more than unpacking weights in one place.
const OWN_TOKENS: usize = 96;

/// One matrix product. The output's rows and the input's lie in buffers that hold `tokens` of them.
#[derive(Clone, Copy)]
pub(super) struct Work<'a> {
    pub(super) matrix: &'a Matrix,
    pub(super) bias: Option<&'a [f32]>,
    pub(super) x: Rows,
    pub(super) form: Form,
    pub(super) tokens: usize,
    pub(super) out: *mut f32,
    pub(super) out_stride: usize,
    /// Whether products are added to what is there.
    pub(super) accumulate: bool,
}

impl Work<'_> {
    /// The same for some tokens, whole panels but for the last.
    fn of_tokens(self, tokens: &Range<usize>) -> Self {
        Self {
            x: Rows { begin: self.x.begin.wrapping_add(tokens.start * self.x.stride), ..self.x },
            form: self.form.part(tokens),
            tokens: tokens.len(),
            out: self.out.wrapping_add(tokens.start * self.out_stride),
            ..self
        }
    }
}

/// One thread's room for both halves of what is gated.
pub(crate) struct Halves(Aligned<f32>);

impl Halves {
    /// For products up to `width` wide of up to `tokens` tokens.
    pub(crate) fn new(width: usize, tokens: usize) -> Self {
        let width = width.next_multiple_of(LANES);
        let few = width * tokens.min(FEW_TOKENS);
        Self(Aligned::zeroed(2 * few.max(width.min(GATED_STRIPS * LANES) * tokens)))
    }

    /// Of so many strips, how many are gated together in some rows.
    fn strips(strips: usize, rows: usize) -> usize {
        strips.clamp(1, if rows > FEW_TOKENS { GATED_STRIPS } else { usize::MAX })
    }
}

/// Products of the same rows, with what was joined to them before and after: [`Step::Linear`](super::step::Step::Linear).
#[derive(Clone, Copy)]
pub(super) struct Linear<'a> {
    pub(super) x: Value,
    pub(super) norm: Option<&'a Norm>,
    pub(super) products: &'a [Product],
    pub(super) gating: Option<Gating>,
}

impl Frame<'_> {
    /// All rows, span by span.
    pub(super) fn linear(&self, linear: Linear<'_>, member: Member<'_>, scratch: &mut Scratch) {
        self.span_by_span(linear.x.domain, member, |span| self.span(span, linear, member, scratch));
    }

    /// Works on the rows of each span in the same rooms, one after the other.
    pub(super) fn span_by_span(&self, domain: Domain, member: Member<'_>, mut work: impl FnMut(&Span)) {
        for (number, span) in self.spans(domain).iter().enumerate() {
            if number > 0 {
                // What the one before put there has been read.
                member.barrier();
            }
            work(span);
        }
    }

    /// The rows of one span. One token's row every thread normalizes and quantizes for itself, which takes less than waiting for
    /// another.
    fn span(&self, span: &Span, linear: Linear<'_>, member: Member<'_>, scratch: &mut Scratch) {
        let Linear { x, norm, products, gating } = linear;
        let (first, tokens, columns) = (span.rows.start, span.rows.len(), x.width);
        let takes = |form| {
            products.iter().any(|p| self.program.matrices[p.matrix].takes(self.path, span.many) == form)
        };
        let mut input = Rows { begin: self.begin(x).wrapping_add(first * columns), stride: columns };
        let own = tokens == 1;
        let share_tokens = tokens >= OWN_TOKENS * member.count;
        let rooms = if own { scratch.forms.rooms() } else { self.forms };
        let form = rooms.form(self.path, 0, tokens, columns, takes);
        let (rows, panel) = (form.rows(), form.panel());
        if own {
            if let Some(norm) = norm {
                self.norm_row(norm, first, &mut scratch.row[..columns]);
                input.begin = scratch.row.as_ptr();
            }
            // SAFETY: the row is this thread's own, or written before the last barrier.
            unsafe { form.put(self.path, 0, Some(std::slice::from_raw_parts(input.begin, columns))) };
        } else {
            for row in member.share(rows.max(tokens), panel) {
                let at = (first + row) * columns;
                if let Some(norm) = norm.filter(|_| row < tokens) {
                    // SAFETY: each row is one thread's.
                    self.norm_row(norm, first + row, unsafe { self.write(x, at, columns) });
                }
                // SAFETY: as above; rows beyond the tokens fill a panel up.
                unsafe { form.put(self.path, row, (row < tokens).then(|| self.read(x, at, columns))) };
            }
            let others_read = !share_tokens || self.observer.is_some();
            if others_read && (norm.is_some() || rows > 0) {
                member.barrier();
            }
        }
        if let Some(observer) = self.observer {
            // SAFETY: rows were finished before the last barrier (one token's is this thread's own).
            let rows = unsafe { std::slice::from_raw_parts(input.begin, tokens * columns) };
            observer.count(self.path, products[0].matrix, rows, member, &mut scratch.counted);
        }
        let to = |out: Value| self.begin(out).wrapping_add(first * out.width);
        let of = |product: &Product, out: *mut f32| Work {
            matrix: &self.program.matrices[product.matrix],
            bias: self.vector(product.bias),
            x: input,
            form,
            tokens,
            out,
            out_stride: product.out.width,
            accumulate: product.accumulate,
        };
        scratch.unpacked.forget();
        let my_tokens = if share_tokens { member.share(tokens, panel) } else { 0..tokens };
        if let Some(gating) = gating {
            // Both halves' same rows are one thread's, which then gates them, in the place of the first.
            let (gate, up) = (&products[0], &products[1]);
            let halves = [gate, up].map(|half| of(half, to(gate.out)).of_tokens(&my_tokens));
            let all = gate.out.width.div_ceil(LANES);
            let strips = if share_tokens { 0..all } else { member.share(all, 1) };
            self.gated(gating, &halves, strips, scratch);
            return;
        }
        let work = products.iter().map(|product| of(product, to(product.out)));
        if share_tokens {
            for work in work.map(|work| work.of_tokens(&my_tokens)) {
                let strips = 0..work.matrix.rows.div_ceil(LANES);
                self.strips(&work, strips, scratch);
            }
        } else {
            self.multiply(work, member, scratch);
        }
    }

    /// Two products of the same rows, some strips of them, which become one in the place of both.
    pub(super) fn gated(
        &self,
        gating: Gating,
        work: &[Work<'_>; 2],
        strips: Range<usize>,
        scratch: &mut Scratch,
    ) {
        let Work { out, out_stride: width, tokens: rows, .. } = work[0];
        let group = Halves::strips(strips.len(), rows);
        let stride = group * LANES;
        let halves = scratch.halves.0.as_mut_ptr();
        let halves = [halves, halves.wrapping_add(rows * stride)];
        assert!(2 * rows * stride <= scratch.halves.0.len());
        for first in strips.clone().step_by(group) {
            let group = first..(first + group).min(strips.end);
            let (begin, end) = (group.start * LANES, (group.end * LANES).min(width));
            for (work, half) in work.iter().zip(halves) {
                let work = Work { out: half.wrapping_sub(begin), out_stride: stride, ..*work };
                self.strips(&work, group.clone(), scratch);
            }
            for row in 0..rows {
                let [gate, up] = halves.map(|half| half.wrapping_add(row * stride));
                let out = out.wrapping_add(row * width + begin);
                // SAFETY: the halves are this thread's, and so are these numbers of the row.
                unsafe { rows::binary(self.path, Binary::Gated(gating), gate, up, out, end - begin) };
            }
        }
    }

    /// Multiplies, sixteen rows of weights at a time; all products' strips together are shared by the threads.
    pub(super) fn multiply<'w>(
        &self,
        work: impl Iterator<Item = Work<'w>> + Clone,
        member: Member<'_>,
        scratch: &mut Scratch,
    ) {
        let strips = work.map(|work| (work.matrix.rows.div_ceil(LANES), work));
        for (mine, work) in member.share_of_each(strips) {
            self.strips(&work, mine, scratch);
        }
    }

    fn strips(&self, work: &Work<'_>, strips: Range<usize>, scratch: &mut Scratch) {
        match work.matrix.tiles() {
            Some(tiles) => self.tiles(work, tiles, strips, scratch),
            None => strips.for_each(|strip| self.strip(work, strip, scratch)),
        }
    }

    fn tiles(&self, work: &Work<'_>, tiles: &Tiles, strips: Range<usize>, scratch: &mut Scratch) {
        let rows = strips.start * LANES..(strips.end * LANES).min(work.matrix.rows);
        let out = Output { begin: work.out, stride: work.out_stride, accumulate: work.accumulate };
        // SAFETY: these strips' outputs are this thread's; the panels were quantized before the last barrier.
        unsafe {
            let Form { codes, words, scaled } = work.form;
            match tiles.takes(self.path, scaled.is_some()) {
                #[cfg(target_arch = "x86_64")]
                Takes::Scaled
                    if let Some(x) = scaled
                        && self.path.has_tiles() =>
                {
                    tiled::multiply(tiles, x, strips, out, &mut scratch.tiled);
                }
                Takes::Scaled if let Some(x) = scaled => {
                    floats::multiply(self.path, tiles, x, strips, out, &mut scratch.floats);
                }
                Takes::Codes if let Some(x) = codes => {
                    multiply(self.path, tiles, x, strips, out, &mut scratch.unpacked);
                }
                Takes::Words if let Some(x) = words => {
                    fixed::multiply(self.path, tiles, x, strips, out, &mut scratch.fixed);
                }
                _ => plain::multiply(self.path, tiles, work.x, work.tokens, strips, out),
            }
        };
        if let Some(bias) = work.bias {
            for t in 0..work.tokens {
                for r in rows.clone() {
                    // SAFETY: as above.
                    unsafe { *work.out.wrapping_add(t * work.out_stride + r) += bias[r] };
                }
            }
        }
    }

    fn strip(&self, work: &Work<'_>, strip: usize, scratch: &mut Scratch) {
        let Work { matrix, x, tokens, out_stride, .. } = *work;
        if tokens == 0 {
            return;
        }
        let (first, columns) = (strip * LANES, matrix.columns);
        let rows = LANES.min(matrix.rows - first);
        let out = work.out.wrapping_add(first);
        if tokens <= FEW_TOKENS {
            for r in 0..rows {
                let row = &mut scratch.rows[..columns];
                matrix.decode_row(self.path, first + r, row);
                for t in 0..tokens {
                    // SAFETY: inputs are whole rows; this output is this strip's.
                    unsafe {
                        let x = std::slice::from_raw_parts(x.begin.add(t * x.stride), columns);
                        let out = out.add(t * out_stride + r);
                        let before = if work.accumulate { *out } else { 0.0 };
                        *out = before + dot(self.path, row, x);
                    }
                }
            }
        } else {
            for r in 0..rows {
                matrix.decode_row(self.path, first + r, &mut scratch.rows[r * columns..][..columns]);
            }
            let strip = &mut scratch.strip[..columns * LANES];
            lay_strip(&scratch.rows[..rows * columns], columns, strip);
            // SAFETY: inputs are whole rows; these outputs are this strip's.
            unsafe {
                let out = Output { begin: out, stride: out_stride, accumulate: work.accumulate };
                multiply_strip(self.path, strip, x, out, tokens, rows);
            }
        }
        if let Some(bias) = work.bias {
            for t in 0..tokens {
                for (r, bias) in bias[first..first + rows].iter().enumerate() {
                    // SAFETY: as above.
                    unsafe { *out.add(t * out_stride + r) += bias };
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_room_for_halves_holds_those_of_any_rows_up_to_its_own_and_any_strips() {
        for width in [1, 16, 17, 64, 96, 128, 130, 1536] {
            for tokens in [1, 2, 3, 4, 7, 512] {
                let room = Halves::new(width, tokens);
                for (rows, strips) in
                    (1..=tokens).flat_map(|r| (0..=width.div_ceil(LANES)).map(move |s| (r, s)))
                {
                    let needed = 2 * rows * Halves::strips(strips, rows) * LANES;
                    assert!(needed <= room.0.len(), "{width} {tokens}: {rows} {strips}");
                }
            }
        }
    }
}
