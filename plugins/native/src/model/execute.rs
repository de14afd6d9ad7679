//! The executor: all threads walk the same list of steps, share each step's work, and meet after it.
#![allow(unsafe_code)] // threads write disjoint parts of shared buffers; each block says which

use std::sync::Arc;
use std::time::Instant;

use drophammer_models::graph::Index;
use drophammer_models::rope::{Rope, RopeTable};

use super::experts::ExpertRoom;
use super::forms::{Forms, Rooms, widest};
use super::matrix::Matrix;
use super::products::{Halves, Linear};
use super::runs::{Run, Span, find_runs, find_spans};
use super::step::{Buffer, Domain, Norm, Rotate, Step, Value};
use crate::ahead::Ahead;
use crate::cache::{Cache, Place};
use crate::kernels::attention;
use crate::kernels::rotate::rotate_head;
use crate::kernels::rows;
use crate::kernels::tile::multiply::Unpacked;
#[cfg(target_arch = "x86_64")]
use crate::kernels::tile::tiled;
use crate::kernels::tile::{Takes, fixed, floats};
use crate::kernels::{LANES, Path, ask_ahead};
use crate::memory::Aligned;
use crate::observer::Observer;
use crate::profile::Clock;
use crate::threads::{Member, Pool, Shares};

/// Steps, buffers and weights of a model.
pub(crate) struct Program {
    pub(crate) steps: Vec<Step>,
    pub(crate) buffers: Vec<Buffer>,
    pub(crate) result: Value,
    pub(crate) matrices: Vec<Matrix>,
    pub(crate) vectors: Vec<Vec<f32>>,
    pub(crate) ropes: Vec<Rope>,
}

impl Program {
    /// Of the widest products that are gated; 0 without any.
    fn gated_width(&self) -> usize {
        let widths = self.steps.iter().map(|step| match step {
            Step::Linear { products, gating: Some(_), .. } => products[0].out.width,
            Step::Experts(experts) => experts.width,
            _ => 0,
        });
        widths.max().unwrap_or(0)
    }
}

/// One token of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Token {
    pub(crate) id: u32,
    pub(crate) position: u32,
    pub(crate) sequence: u32,
}

/// Sines and cosines of this batch's positions.
pub(super) struct Rotation {
    rope: Rope,
    table: RopeTable,
    /// Sequence length the table is for.
    length: u32,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl Rotation {
    fn prepare(&mut self, tokens: &[Token]) {
        let length = tokens.iter().map(|token| token.position + 1).max().unwrap_or(1);
        if self.rope.threshold().is_some_and(|threshold| length.max(self.length) > threshold)
            && length != self.length
        {
            self.rope.stretch(&mut self.table, length);
            self.length = length;
        }
        let half = self.table.frequencies.len();
        for (t, token) in tokens.iter().enumerate() {
            for (i, frequency) in self.table.frequencies.iter().enumerate() {
                let angle = token.position as f32 * frequency;
                let (sin, cos) = angle.sin_cos();
                self.cos[t * half + i] = cos * self.table.magnitude;
                self.sin[t * half + i] = sin * self.table.magnitude;
            }
        }
    }

    fn of(&self, token: usize) -> (&[f32], &[f32]) {
        let half = self.table.frequencies.len();
        (&self.cos[token * half..][..half], &self.sin[token * half..][..half])
    }
}

/// One thread's room.
pub(super) struct Scratch {
    /// One token's row, normalized.
    pub(super) row: Vec<f32>,
    /// Sixteen rows of the widest matrix.
    pub(super) rows: Vec<f32>,
    /// The same as a strip.
    pub(super) strip: Vec<f32>,
    pub(super) attention: attention::Scratch,
    /// One token's row in the forms that matrices take.
    pub(super) forms: Forms,
    pub(super) unpacked: Unpacked,
    pub(super) fixed: fixed::Room,
    pub(super) halves: Halves,
    #[cfg(target_arch = "x86_64")]
    pub(super) tiled: tiled::Room,
    pub(super) floats: floats::Room,
    #[cfg(target_arch = "x86_64")]
    pub(super) attention_tiles: attention::tiled::Room,
    /// What statistics are counted from.
    pub(super) counted: Vec<f32>,
}

/// A program with everything it needs to run.
pub(crate) struct Engine {
    program: Program,
    pub(crate) cache: Cache,
    pool: Pool,
    path: Path,
    ahead: Ahead,
    /// Most tokens of one run.
    chunk: usize,
    buffers: Vec<Aligned<f32>>,
    scratch: Vec<Scratch>,
    rotations: Vec<Rotation>,
    forms: Forms,
    experts: Option<ExpertRoom>,
    places: Vec<Place>,
    runs: Vec<Run>,
    /// Tokens of [`Domain::Late`], and the same in runs.
    late: Vec<u32>,
    late_runs: Vec<Run>,
    /// Of every domain's rows.
    spans: [Vec<Span>; 3],
    pointers: Pointers,
    /// Whoever counts what matrices are multiplied with.
    pub(crate) observer: Option<Arc<Observer>>,
    /// Whoever times the steps.
    pub(crate) clock: Option<Arc<Clock>>,
}

impl Engine {
    /// Room for `chunk` tokens at once.
    pub(crate) fn new(program: Program, cache: Cache, pool: Pool, path: Path, chunk: usize) -> Self {
        let columns = program.matrices.iter().map(|matrix| matrix.columns).max().unwrap_or(0);
        let taking = |form| widest(path, program.matrices.iter(), form, false);
        let forms = |rows: usize| Forms::new(path, rows, program.matrices.iter());
        let layers = || (0..cache.layers()).map(|layer| cache.layer(layer));
        let keys = layers().map(|layer| layer.key_width).max().unwrap_or(0);
        let values = layers().map(|layer| layer.value_width).max().unwrap_or(0);
        #[cfg(target_arch = "x86_64")]
        let tiled = |width: usize| if path.has_tiles() { width } else { 0 };
        let external =
            |buffer: usize| buffer == program.result.index && program.result.domain == Domain::Outputs;
        Self {
            buffers: program
                .buffers
                .iter()
                .enumerate()
                .map(|(i, buffer)| Aligned::zeroed(if external(i) { 0 } else { buffer.width * chunk }))
                .collect(),
            scratch: (0..pool.threads())
                .map(|_| Scratch {
                    row: vec![0.0; columns],
                    rows: vec![0.0; columns * LANES],
                    strip: vec![0.0; columns * LANES],
                    attention: attention::Scratch::new(keys, values),
                    forms: forms(1),
                    unpacked: Unpacked::new(taking(Takes::Codes), chunk),
                    fixed: fixed::Room::new(taking(Takes::Words)),
                    halves: Halves::new(program.gated_width(), chunk),
                    #[cfg(target_arch = "x86_64")]
                    tiled: tiled::Room::new(tiled(columns)),
                    floats: floats::Room::new(path.prefers_floats()),
                    #[cfg(target_arch = "x86_64")]
                    attention_tiles: attention::tiled::Room::new(tiled(keys), tiled(values)),
                    counted: Vec::new(),
                })
                .collect(),
            rotations: program
                .ropes
                .iter()
                .map(|rope| {
                    let table = rope.table(1);
                    let angles = table.frequencies.len() * chunk;
                    Rotation {
                        rope: rope.clone(),
                        table,
                        length: 1,
                        cos: vec![0.0; angles],
                        sin: vec![0.0; angles],
                    }
                })
                .collect(),
            forms: forms(chunk),
            experts: ExpertRoom::for_program(&program, path, chunk),
            places: Vec::with_capacity(chunk),
            runs: Vec::with_capacity(chunk),
            late: Vec::with_capacity(chunk),
            late_runs: Vec::with_capacity(chunk),
            spans: std::array::from_fn(|_| Vec::with_capacity(chunk)),
            pointers: Pointers(Vec::with_capacity(program.buffers.len())),
            observer: None,
            clock: None,
            program,
            cache,
            pool,
            path,
            ahead: Ahead::new(),
            chunk,
        }
    }

    /// Puts a matrix in the place of another of the same shape; gives back the other.
    pub(crate) fn exchange(&mut self, number: usize, matrix: Matrix) -> Matrix {
        std::mem::replace(&mut self.program.matrices[number], matrix)
    }

    /// Floats per output row.
    pub(crate) fn output_width(&self) -> usize {
        self.program.result.width
    }

    /// Most tokens of one run.
    pub(crate) fn chunk(&self) -> usize {
        self.chunk
    }

    /// Runs up to a chunk of tokens; writes the rows of those in `outputs` (ascending).
    ///
    /// # Panics
    /// If there are more tokens than a chunk, or `out` has another size.
    pub(crate) fn run(&mut self, tokens: &[Token], outputs: &[u32], out: &mut [f32]) {
        assert!(tokens.len() <= self.chunk && out.len() == outputs.len() * self.output_width());
        self.places.clear();
        for token in tokens {
            let place = self.cache.reserve(token.sequence, token.position);
            self.places.push(place);
        }
        self.late.clear();
        if self.observer.is_some() {
            self.late.extend(0..tokens.len() as u32);
        } else {
            self.late.extend(outputs);
        }
        let late = self.late.iter().map(|&t| &tokens[t as usize]);
        find_runs(tokens, &mut self.runs);
        find_runs(late.clone(), &mut self.late_runs);
        let [of_tokens, of_late, of_outputs] = &mut self.spans;
        find_spans(tokens, self.path, of_tokens);
        find_spans(late, self.path, of_late);
        find_spans(outputs.iter().map(|&t| &tokens[t as usize]), self.path, of_outputs);
        for rotation in &mut self.rotations {
            rotation.prepare(tokens);
        }
        let result = self.program.result;
        let Pointers(pointers) = &mut self.pointers;
        pointers.clear();
        pointers.extend(self.buffers.iter_mut().map(|buffer| buffer.as_mut_ptr()));
        if result.domain == Domain::Outputs {
            pointers[result.index] = out.as_mut_ptr();
        }
        let frame = Frame {
            program: &self.program,
            cache: &self.cache,
            path: self.path,
            tokens,
            outputs,
            places: &self.places,
            runs: &self.runs,
            late: &self.late,
            late_runs: &self.late_runs,
            spans: &self.spans,
            rotations: &self.rotations,
            forms: self.forms.rooms(),
            experts: self.experts.as_mut().map(ExpertRoom::shared),
            observer: self.observer.as_deref(),
            buffers: &self.pointers,
        };
        let alone = tokens.len() == 1;
        ask_ahead(if alone { self.ahead.asks() } else { self.ahead.choice() });
        let begun = Instant::now();
        let (scratch, clock) = (Shares::new(&mut self.scratch), self.clock.as_deref());
        self.pool.run(tokens.len(), &|member| {
            // SAFETY: each thread takes its own.
            let scratch = unsafe { &mut scratch.part(member.index, 1)[0] };
            let clock = clock.filter(|_| member.index == 0);
            let mut since = clock.map(|_| Instant::now());
            for (number, step) in frame.program.steps.iter().enumerate() {
                frame.step(step, member, scratch);
                member.barrier();
                if let (Some(clock), Some(since)) = (clock, &mut since) {
                    *since = clock.count(number, *since, frame.arithmetic(step), frame.cost(step));
                }
            }
        });
        if alone {
            self.ahead.done(begun.elapsed());
        }
        if result.domain == Domain::Tokens {
            let (rows, width) = (&self.buffers[result.index], result.width);
            for (out, &t) in out.chunks_exact_mut(width).zip(outputs) {
                out.copy_from_slice(&rows[t as usize * width..][..width]);
            }
        }
    }
}

/// Where buffers begin. Shared by threads that write disjoint parts.
pub(super) struct Pointers(Vec<*mut f32>);

// SAFETY: `Frame`'s steps say which thread writes what; barriers part them.
unsafe impl Sync for Pointers {}
// SAFETY: used only while a run borrows the engine, whose buffers they are.
unsafe impl Send for Pointers {}

/// One run, as every thread sees it.
pub(super) struct Frame<'a> {
    pub(super) program: &'a Program,
    pub(super) cache: &'a Cache,
    pub(super) path: Path,
    pub(super) tokens: &'a [Token],
    pub(super) outputs: &'a [u32],
    pub(super) places: &'a [Place],
    runs: &'a [Run],
    late: &'a [u32],
    late_runs: &'a [Run],
    spans: &'a [Vec<Span>; 3],
    pub(super) rotations: &'a [Rotation],
    pub(super) forms: Rooms,
    pub(super) experts: Option<super::experts::SharedRoom<'a>>,
    pub(super) observer: Option<&'a Observer>,
    pub(super) buffers: &'a Pointers,
}

impl Frame<'_> {
    pub(super) fn rows(&self, domain: Domain) -> usize {
        match domain {
            Domain::Tokens => self.tokens.len(),
            Domain::Late => self.late.len(),
            Domain::Outputs => self.outputs.len(),
        }
    }

    /// The token that a row belongs to.
    pub(super) fn token(&self, domain: Domain, row: usize) -> usize {
        match domain {
            Domain::Tokens => row,
            Domain::Late => self.late[row] as usize,
            Domain::Outputs => self.outputs[row] as usize,
        }
    }

    /// Rows in runs. Outputs have none: attention comes before.
    pub(super) fn runs(&self, domain: Domain) -> &[Run] {
        match domain {
            Domain::Tokens => self.runs,
            Domain::Late => self.late_runs,
            Domain::Outputs => &[],
        }
    }

    /// Rows in spans.
    pub(super) fn spans(&self, domain: Domain) -> &[Span] {
        let [of_tokens, of_late, of_outputs] = self.spans;
        match domain {
            Domain::Tokens => of_tokens,
            Domain::Late => of_late,
            Domain::Outputs => of_outputs,
        }
    }

    pub(super) fn begin(&self, value: Value) -> *mut f32 {
        self.buffers.0[value.index]
    }

    /// `len` floats of a value from `at`.
    ///
    /// # Safety
    /// They are inside the value's rows, and no other thread writes them before the next barrier.
    pub(super) unsafe fn read(&self, value: Value, at: usize, len: usize) -> &[f32] {
        debug_assert!(at + len <= self.rows(value.domain) * value.width);
        // SAFETY: the caller's promise; buffers hold a chunk's rows.
        unsafe { std::slice::from_raw_parts(self.begin(value).add(at), len) }
    }

    /// As [`Frame::read`], to write.
    ///
    /// # Safety
    /// No other thread uses them before the next barrier.
    #[allow(clippy::mut_from_ref)]
    pub(super) unsafe fn write(&self, value: Value, at: usize, len: usize) -> &mut [f32] {
        debug_assert!(at + len <= self.rows(value.domain) * value.width);
        // SAFETY: the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.begin(value).add(at), len) }
    }

    pub(super) fn vector(&self, number: Option<usize>) -> Option<&[f32]> {
        number.map(|number| self.program.vectors[number].as_slice())
    }

    fn step(&self, step: &Step, member: Member<'_>, scratch: &mut Scratch) {
        match step {
            Step::Embed { table, index, out } => self.embed(*table, *index, *out, member),
            Step::Linear { x, norm, products, gating } => {
                let linear = Linear { x: *x, norm: norm.as_ref(), products, gating: *gating };
                self.linear(linear, member, scratch);
            }
            Step::Norm(norm) => {
                for row in member.share(self.rows(norm.x.domain), 1) {
                    // SAFETY: each row is one thread's.
                    let out = unsafe { self.write(norm.out, row * norm.out.width, norm.out.width) };
                    self.norm_row(norm, row, out);
                }
            }
            Step::Rope(rotate) => {
                for part in member.share(self.rows(rotate.x.domain) * rotate.heads, 1) {
                    // SAFETY: each head of each row is one thread's.
                    unsafe { self.rotate(rotate, rotate.x, part / rotate.heads, part % rotate.heads) };
                }
            }
            Step::Attention(attention) => self.attention(attention, member, scratch),
            Step::JoinHeads { per_head, shared, heads, out } => {
                let (own, more) = (per_head.width / heads, shared.width);
                for part in member.share(self.rows(out.domain) * heads, 1) {
                    // SAFETY: each head of each row is one thread's.
                    unsafe {
                        let out = self.write(*out, part * (own + more), own + more);
                        out[..own].copy_from_slice(self.read(*per_head, part * own, own));
                        out[own..].copy_from_slice(self.read(*shared, part / heads * more, more));
                    }
                }
            }
            Step::Unary { x, what, out } => {
                let share = member.share(self.rows(x.domain) * x.width, LANES);
                // SAFETY: each element is one thread's.
                unsafe {
                    let (x, out) = (self.begin(*x).add(share.start), self.begin(*out).add(share.start));
                    rows::unary(self.path, *what, x, out, share.len());
                }
            }
            Step::Binary { a, b, what, out } => {
                let share = member.share(self.rows(a.domain) * a.width, LANES);
                let at = |value: &Value| self.begin(*value).wrapping_add(share.start);
                // SAFETY: each element is one thread's.
                unsafe { rows::binary(self.path, *what, at(a), at(b), at(out), share.len()) }
            }
            Step::ScaleRows { x, factors, out } => {
                for row in member.share(self.rows(x.domain), 1) {
                    // SAFETY: each row is one thread's.
                    unsafe {
                        let factor = self.read(*factors, row, 1)[0];
                        let at = |value: &Value| self.begin(*value).add(row * value.width);
                        rows::unary(self.path, rows::Unary::Scale(factor), at(x), at(out), x.width);
                    }
                }
            }
            Step::Experts(experts) => self.mixture(experts, member, scratch),
            Step::Wanted { x, out } => {
                let rows = self.rows(out.domain);
                // The rows of `x` are those of `out` or those of all tokens.
                let same = self.rows(x.domain) == rows;
                for row in member.share(rows, 1) {
                    let from = if same { row } else { self.token(out.domain, row) };
                    // SAFETY: each row is one thread's.
                    unsafe {
                        let from = self.read(*x, from * x.width, x.width);
                        self.write(*out, row * x.width, x.width).copy_from_slice(from);
                    }
                }
            }
        }
    }

    fn embed(&self, table: usize, index: Index, out: Value, member: Member<'_>) {
        let matrix = &self.program.matrices[table];
        for (t, token) in self.tokens.iter().enumerate() {
            if t % member.count != member.index {
                continue;
            }
            let row = match index {
                Index::Tokens => token.id as usize,
                Index::Positions { offset } => (token.position + offset) as usize,
                Index::TokenTypes => 0,
            };
            // SAFETY: each row is one thread's.
            let out = unsafe { self.write(out, t * out.width, out.width) };
            // The session has checked ids and positions; a row beyond the table would be its fault, not a crash.
            matrix.decode_row(self.path, row.min(matrix.rows - 1), out);
        }
    }

    /// Rotates one head of one row.
    ///
    /// # Safety
    /// No other thread uses it before the next barrier.
    pub(super) unsafe fn rotate(&self, rotate: &Rotate, x: Value, row: usize, head: usize) {
        let (cos, sin) = self.rotations[rotate.table].of(self.token(x.domain, row));
        let begin = row * x.width + head * rotate.head_width() + rotate.start;
        // SAFETY: the caller's promise.
        let head = unsafe { self.write(x, begin, 2 * cos.len()) };
        rotate_head(self.path, rotate.layout, head, cos, sin);
    }

    pub(super) fn norm_row(&self, norm: &Norm, row: usize, out: &mut [f32]) {
        let (weight, bias) = (self.vector(norm.weight), self.vector(norm.bias));
        let width = norm.width;
        // SAFETY: nobody writes a norm's input during its step.
        let x = unsafe { self.read(norm.x, row * norm.x.width, norm.x.width) };
        for (part, (x, out)) in x.chunks_exact(width).zip(out.chunks_exact_mut(width)).enumerate() {
            let own =
                |v: &'_ [f32]| if norm.per_group { part * width..(part + 1) * width } else { 0..v.len() };
            let (weight, bias) = (weight.map(|w| &w[own(w)]), bias.map(|b| &b[own(b)]));
            rows::norm(self.path, x, weight, bias, norm.epsilon, norm.centred, out);
        }
    }
}
