//! The executor: all threads walk the same list of steps, share each step's work, and meet after it.
#![allow(unsafe_code)] // threads write disjoint parts of shared buffers; each block says which

use drophammer_models::graph::{Gating, Index};
use drophammer_models::rope::{Rope, RopeLayout, RopeTable};

use super::experts::{ExpertRoom, route};
use super::matrix::Matrix;
use super::step::{Attention, Buffer, Domain, Experts, Norm, Product, Rotate, Step, Value};
use crate::cache::{Cache, Place};
use crate::kernels::activation::{Panels, Quantized, Room};
use crate::kernels::attention::{self, HeadTask, QUERIES, Sight};
use crate::kernels::float::{Output, Rows, dot, lay_strip, multiply_strip};
use crate::kernels::rows::{self, Binary};
use crate::kernels::tile::Tiles;
use crate::kernels::tile::multiply::{Unpacked, multiply};
use crate::kernels::{LANES, Path};
use crate::threads::{Member, Pool, Shares};

/// Up to so many tokens rows of weights are multiplied one by one; beyond it pays to lay them in strips.
const FEW_TOKENS: usize = 3;

/// Steps, buffers and weights of a model.
pub(crate) struct Program {
    pub(crate) steps: Vec<Step>,
    pub(crate) buffers: Vec<Buffer>,
    pub(crate) result: Value,
    pub(crate) matrices: Vec<Matrix>,
    pub(crate) vectors: Vec<Vec<f32>>,
    pub(crate) ropes: Vec<Rope>,
}

/// One token of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Token {
    pub(crate) id: u32,
    pub(crate) position: u32,
    pub(crate) sequence: u32,
}

/// Neighbouring tokens of one sequence whose queries are worked on together.
#[derive(Clone, Copy)]
struct Run {
    begin: usize,
    len: usize,
    sequence: u32,
}

/// Sines and cosines of this batch's positions.
struct Rotation {
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
            self.table = self.rope.table(length);
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
struct Scratch {
    /// One token's row, normalized.
    row: Vec<f32>,
    /// Sixteen rows of the widest matrix.
    rows: Vec<f32>,
    /// The same as a strip.
    strip: Vec<f32>,
    attention: attention::Scratch,
    /// One token's activations in eight bits.
    quantized: Quantized,
    unpacked: Unpacked,
}

/// A program with everything it needs to run.
pub(crate) struct Engine {
    program: Program,
    pub(crate) cache: Cache,
    pool: Pool,
    path: Path,
    /// Most tokens of one run.
    chunk: usize,
    buffers: Vec<Vec<f32>>,
    scratch: Vec<Scratch>,
    rotations: Vec<Rotation>,
    quantized: Quantized,
    experts: Option<ExpertRoom>,
    places: Vec<Place>,
    runs: Vec<Run>,
}

impl Engine {
    /// Room for `chunk` tokens at once.
    pub(crate) fn new(program: Program, cache: Cache, pool: Pool, path: Path, chunk: usize) -> Self {
        let columns = program.matrices.iter().map(|matrix| matrix.columns).max().unwrap_or(0);
        let tiled =
            program.matrices.iter().filter(|m| m.tiles().is_some()).map(|m| m.columns).max().unwrap_or(0);
        let values = (0..cache.layers()).map(|layer| cache.layer(layer).value_width).max().unwrap_or(0);
        let external =
            |buffer: usize| buffer == program.result.index && program.result.domain == Domain::Outputs;
        Self {
            buffers: program
                .buffers
                .iter()
                .enumerate()
                .map(|(i, buffer)| if external(i) { Vec::new() } else { vec![0.0; buffer.width * chunk] })
                .collect(),
            scratch: (0..pool.threads())
                .map(|_| Scratch {
                    row: vec![0.0; columns],
                    rows: vec![0.0; columns * LANES],
                    strip: vec![0.0; columns * LANES],
                    attention: attention::Scratch::new(values),
                    quantized: Quantized::new(tiled.min(1), tiled),
                    unpacked: Unpacked::new(tiled, chunk),
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
            quantized: Quantized::new(if tiled > 0 { chunk } else { 0 }, tiled),
            experts: ExpertRoom::for_steps(&program.steps, chunk),
            places: Vec::with_capacity(chunk),
            runs: Vec::with_capacity(chunk),
            program,
            cache,
            pool,
            path,
            chunk,
        }
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
        self.runs.clear();
        for (t, token) in tokens.iter().enumerate() {
            match self.runs.last_mut() {
                Some(run) if run.sequence == token.sequence && run.len < QUERIES => run.len += 1,
                _ => self.runs.push(Run { begin: t, len: 1, sequence: token.sequence }),
            }
        }
        for rotation in &mut self.rotations {
            rotation.prepare(tokens);
        }
        let result = self.program.result;
        let mut pointers: Vec<*mut f32> = Vec::with_capacity(self.buffers.len());
        pointers.extend(self.buffers.iter_mut().map(Vec::as_mut_ptr));
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
            rotations: &self.rotations,
            quantized: self.quantized.room(),
            experts: self.experts.as_mut().map(ExpertRoom::shared),
            buffers: Pointers(&pointers),
        };
        let scratch = Shares::new(&mut self.scratch);
        self.pool.run(&|member| {
            // SAFETY: each thread takes its own.
            let scratch = unsafe { &mut scratch.part(member.index, 1)[0] };
            for step in &frame.program.steps {
                frame.step(step, member, scratch);
                member.barrier();
            }
        });
        if result.domain == Domain::Tokens {
            let (rows, width) = (&self.buffers[result.index], result.width);
            for (out, &t) in out.chunks_exact_mut(width).zip(outputs) {
                out.copy_from_slice(&rows[t as usize * width..][..width]);
            }
        }
    }
}

/// Where buffers begin. Shared by threads that write disjoint parts.
struct Pointers<'a>(&'a [*mut f32]);

// SAFETY: `Frame`'s steps say which thread writes what; barriers part them.
unsafe impl Sync for Pointers<'_> {}

/// One run, as every thread sees it.
struct Frame<'a> {
    program: &'a Program,
    cache: &'a Cache,
    path: Path,
    tokens: &'a [Token],
    outputs: &'a [u32],
    places: &'a [Place],
    runs: &'a [Run],
    rotations: &'a [Rotation],
    quantized: Room,
    experts: Option<super::experts::SharedRoom<'a>>,
    buffers: Pointers<'a>,
}

impl Frame<'_> {
    fn rows(&self, domain: Domain) -> usize {
        match domain {
            Domain::Tokens => self.tokens.len(),
            Domain::Outputs => self.outputs.len(),
        }
    }

    fn begin(&self, value: Value) -> *mut f32 {
        self.buffers.0[value.index]
    }

    /// `len` floats of a value from `at`.
    ///
    /// # Safety
    /// They are inside the value's rows, and no other thread writes them before the next barrier.
    unsafe fn read(&self, value: Value, at: usize, len: usize) -> &[f32] {
        debug_assert!(at + len <= self.rows(value.domain) * value.width);
        // SAFETY: the caller's promise; buffers hold a chunk's rows.
        unsafe { std::slice::from_raw_parts(self.begin(value).add(at), len) }
    }

    /// As [`Frame::read`], to write.
    ///
    /// # Safety
    /// No other thread uses them before the next barrier.
    #[allow(clippy::mut_from_ref)]
    unsafe fn write(&self, value: Value, at: usize, len: usize) -> &mut [f32] {
        debug_assert!(at + len <= self.rows(value.domain) * value.width);
        // SAFETY: the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.begin(value).add(at), len) }
    }

    fn vector(&self, number: Option<usize>) -> Option<&[f32]> {
        number.map(|number| self.program.vectors[number].as_slice())
    }

    fn step(&self, step: &Step, member: Member<'_>, scratch: &mut Scratch) {
        match step {
            Step::Embed { table, index, out } => self.embed(*table, *index, *out, member),
            Step::Linear { x, norm, products, gating } => {
                self.linear(*x, norm.as_ref(), products, *gating, member, scratch);
            }
            Step::Norm(norm) => {
                for row in member.share(self.rows(norm.x.domain), 1) {
                    // SAFETY: each row is one thread's.
                    let out = unsafe { self.write(norm.out, row * norm.out.width, norm.out.width) };
                    self.norm_row(norm, row, out);
                }
            }
            Step::Rope(rotate) => {
                for part in member.share(self.tokens.len() * rotate.heads, 1) {
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
                for row in member.share(self.outputs.len(), 1) {
                    // SAFETY: each row is one thread's.
                    unsafe {
                        let from = self.read(*x, self.outputs[row] as usize * x.width, x.width);
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

    /// Rotates one head of one token.
    ///
    /// # Safety
    /// No other thread uses it before the next barrier.
    unsafe fn rotate(&self, rotate: &Rotate, x: Value, token: usize, head: usize) {
        let (cos, sin) = self.rotations[rotate.table].of(token);
        let begin = token * x.width + head * rotate.head_width() + rotate.start;
        // SAFETY: the caller's promise.
        let head = unsafe { self.write(x, begin, 2 * cos.len()) };
        match rotate.layout {
            RopeLayout::Halves => rows::rotate_halves(head, cos, sin),
            RopeLayout::Pairs => rows::rotate_pairs(head, cos, sin),
        }
    }

    fn norm_row(&self, norm: &Norm, row: usize, out: &mut [f32]) {
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

    /// Products of the same rows, with what was joined to them before and after.
    ///
    /// One token's row every thread normalizes and quantizes for itself, which takes less than waiting for another.
    fn linear(
        &self,
        x: Value,
        norm: Option<&Norm>,
        products: &[Product],
        gating: Option<Gating>,
        member: Member<'_>,
        scratch: &mut Scratch,
    ) {
        let (tokens, columns) = (self.rows(x.domain), x.width);
        let tiled = products.iter().any(|p| self.program.matrices[p.matrix].tiles().is_some());
        let mut input = Rows { begin: self.begin(x), stride: columns };
        let panels = if tokens == 1 {
            if let Some(norm) = norm {
                self.norm_row(norm, 0, &mut scratch.row[..columns]);
                input.begin = scratch.row.as_ptr();
            }
            let panels = tiled.then(|| scratch.quantized.room().panels(self.path, 1, columns));
            if let Some(panels) = panels {
                // SAFETY: the row is this thread's own.
                unsafe {
                    panels.quantize(self.path, 0, Some(std::slice::from_raw_parts(input.begin, columns)));
                };
            }
            panels
        } else {
            let panels = tiled.then(|| self.quantized.panels(self.path, tokens, columns));
            for row in member.share(panels.map_or(tokens, |panels| panels.rows()), 1) {
                if let Some(norm) = norm.filter(|_| row < tokens) {
                    // SAFETY: each row is one thread's.
                    self.norm_row(norm, row, unsafe { self.write(x, row * columns, columns) });
                }
                if let Some(panels) = panels {
                    // SAFETY: each row is one thread's; rows beyond the tokens fill a panel up.
                    unsafe {
                        let x = (row < tokens).then(|| self.read(x, row * columns, columns));
                        panels.quantize(self.path, row, x);
                    }
                }
            }
            if norm.is_some() || tiled {
                member.barrier();
            }
            panels
        };
        let work = products.iter().map(|product| {
            let matrix = &self.program.matrices[product.matrix];
            Work {
                matrix,
                bias: self.vector(product.bias),
                x: input,
                panels,
                tokens,
                out: self.begin(product.out),
                out_stride: product.out.width,
                accumulate: product.accumulate,
            }
        });
        let Some(gating) = gating else { return self.multiply(work, member, scratch) };
        // Both halves' same rows are one thread's, which then gates them.
        let rows = products[0].out.width;
        let strips = member.share(rows.div_ceil(LANES), 1);
        for work in work {
            self.strips(&work, strips.clone(), scratch);
        }
        let (gate, up) = (self.begin(products[0].out), self.begin(products[1].out));
        let (begin, end) = (strips.start * LANES, (strips.end * LANES).min(rows));
        for t in 0..if begin < end { tokens } else { 0 } {
            let at = t * rows + begin;
            // SAFETY: these rows of both halves are this thread's.
            unsafe {
                let (gate, up) = (gate.add(at), up.add(at));
                rows::binary(self.path, Binary::Gated(gating), gate, up, gate, end - begin);
            }
        }
    }

    /// Multiplies, sixteen rows of weights at a time; all products' strips together are shared by the threads.
    fn multiply<'w>(
        &self,
        work: impl Iterator<Item = Work<'w>> + Clone,
        member: Member<'_>,
        scratch: &mut Scratch,
    ) {
        let strips = |work: &Work<'_>| work.matrix.rows.div_ceil(LANES);
        let share = member.share(work.clone().map(|work| strips(&work)).sum(), 1);
        let mut first = 0;
        for work in work {
            let end = first + strips(&work);
            let mine = share.start.clamp(first, end) - first..share.end.clamp(first, end) - first;
            self.strips(&work, mine, scratch);
            first = end;
        }
    }

    fn strips(&self, work: &Work<'_>, strips: std::ops::Range<usize>, scratch: &mut Scratch) {
        match (work.matrix.tiles(), work.panels) {
            (Some(tiles), Some(panels)) => self.tiles(work, tiles, panels, strips, scratch),
            _ => strips.for_each(|strip| self.strip(work, strip, scratch)),
        }
    }

    fn tiles(
        &self,
        work: &Work<'_>,
        tiles: &Tiles,
        panels: Panels,
        strips: std::ops::Range<usize>,
        scratch: &mut Scratch,
    ) {
        let rows = strips.start * LANES..(strips.end * LANES).min(work.matrix.rows);
        let out = Output { begin: work.out, stride: work.out_stride, accumulate: work.accumulate };
        // SAFETY: these strips' outputs are this thread's; the panels were quantized before the last barrier.
        unsafe { multiply(self.path, tiles, panels, strips, out, &mut scratch.unpacked) };
        if let Some(bias) = work.bias {
            for t in 0..work.tokens {
                for r in rows.clone() {
                    // SAFETY: as above.
                    unsafe { *work.out.add(t * work.out_stride + r) += bias[r] };
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

    fn attention(&self, attention: &Attention, member: Member<'_>, scratch: &mut Scratch) {
        let Attention { q, k, v, out, layer, heads, kv_heads, .. } = *attention;
        let shape = self.cache.layer(layer);
        let mine = |items: usize| (member.index..items).step_by(member.count);
        for item in mine(self.runs.len() * kv_heads) {
            let (run, head) = (&self.runs[item / kv_heads], item % kv_heads);
            for t in run.begin..run.begin + run.len {
                // SAFETY: each token's slot of each head is one thread's; keys and values are only read here.
                unsafe {
                    if let Some(rotate) = &attention.rotate_k {
                        self.rotate(rotate, k, t, head);
                    }
                    let key = self.read(k, t * k.width + head * shape.key_width, shape.key_width);
                    let value = self.read(v, t * v.width + head * shape.value_width, shape.value_width);
                    self.cache.write(self.path, layer, head, self.places[t], key, value);
                }
            }
        }
        member.barrier();
        let sinks = self.vector(attention.sinks);
        // Neighbouring items cost alike and go to different threads.
        for item in mine(self.runs.len() * heads) {
            let (run, head) = (&self.runs[item / heads], item % heads);
            if let Some(rotate) = &attention.rotate_q {
                for t in run.begin..run.begin + run.len {
                    // SAFETY: each head of each row is one thread's.
                    unsafe { self.rotate(rotate, q, t, head) };
                }
            }
            let mut sights = [Sight { from: 0, to: 0 }; QUERIES];
            for (sight, token) in sights.iter_mut().zip(&self.tokens[run.begin..run.begin + run.len]) {
                *sight = sees(token.position, attention.window, attention.causal);
            }
            let sights = &sights[..run.len];
            let from = sights.iter().map(|sight| sight.from).min().unwrap_or(0);
            let to = sights.iter().map(|sight| sight.to).max().unwrap_or(0);
            let task = HeadTask {
                stored: self.cache.stored(),
                key_width: shape.key_width,
                value_width: shape.value_width,
                value_stride: shape.value_stride(),
                scale: attention.scale,
                softcap: attention.softcap,
                sink: sinks.map(|sinks| sinks[head]),
                q: self.begin(q).wrapping_add(run.begin * q.width + head * shape.key_width),
                q_stride: q.width,
                sights,
                out: self.begin(out).wrapping_add(run.begin * out.width + head * shape.value_width),
                out_stride: out.width,
            };
            let pages = self.cache.pages(run.sequence, layer, head / (heads / kv_heads), from, to);
            // SAFETY: queries were written before the step; each head of each run is one thread's output.
            unsafe { attention::attend(self.path, task, pages, &mut scratch.attention) };
        }
    }

    fn mixture(&self, step: &Experts, member: Member<'_>, scratch: &mut Scratch) {
        let Some(room) = &self.experts else { return };
        let (tokens, used) = (self.rows(step.x.domain), step.routing.used as usize);
        let (hidden, width) = (step.x.width, step.width);
        if member.index == 0 {
            // SAFETY: the other threads wait at the barrier below.
            unsafe {
                let logits = self.read(step.logits, 0, tokens * step.logits.width);
                route(logits, &step.routing, self.vector(step.correction), room.plan());
            }
        }
        member.barrier();
        // SAFETY: written before the barrier, only read after it.
        let plan = unsafe { room.plan() };
        for (slot, choice) in plan.choices.iter().enumerate() {
            if slot % member.count == member.index {
                // SAFETY: each slot is one thread's.
                unsafe {
                    let x = self.read(step.x, choice.token as usize * hidden, hidden);
                    room.x.part(slot * hidden, hidden).copy_from_slice(x);
                }
            }
        }
        member.barrier();
        let input = |begin: *mut f32, width: usize, slot: usize| Rows {
            begin: begin.wrapping_add(slot * width),
            stride: width,
        };
        let halves =
            [(&step.gate, &step.gate_bias, room.gate.begin()), (&step.up, &step.up_bias, room.up.begin())];
        let work = halves.iter().flat_map(|(matrices, biases, out)| {
            plan.experts().map(move |(expert, slots)| Work {
                matrix: &self.program.matrices[matrices[expert]],
                bias: self.vector(biases.get(expert).copied()),
                x: input(room.x.begin(), hidden, slots.start),
                panels: None,
                tokens: slots.len(),
                out: out.wrapping_add(slots.start * width),
                out_stride: width,
                accumulate: false,
            })
        });
        self.multiply(work, member, scratch);
        member.barrier();
        let share = member.share(tokens * used * width, LANES);
        let (gate, up) =
            (room.gate.begin().wrapping_add(share.start), room.up.begin().wrapping_add(share.start));
        // SAFETY: each element is one thread's.
        unsafe { rows::binary(self.path, Binary::Gated(step.gating), gate, up, gate, share.len()) };
        member.barrier();
        let work = plan.experts().map(|(expert, slots)| Work {
            matrix: &self.program.matrices[step.down[expert]],
            bias: self.vector(step.down_bias.get(expert).copied()),
            x: input(room.gate.begin(), width, slots.start),
            panels: None,
            tokens: slots.len(),
            out: room.x.begin().wrapping_add(slots.start * hidden),
            out_stride: hidden,
            accumulate: false,
        });
        self.multiply(work, member, scratch);
        member.barrier();
        let share = member.share(tokens, 1);
        for token in share.clone() {
            // SAFETY: each row is one thread's.
            unsafe { self.write(step.out, token * hidden, hidden).fill(0.0) };
        }
        for (slot, choice) in plan.choices.iter().enumerate() {
            if share.contains(&(choice.token as usize)) {
                // SAFETY: each row is one thread's; slots are only read.
                unsafe {
                    let y = &room.x.whole()[slot * hidden..][..hidden];
                    let out = self.write(step.out, choice.token as usize * hidden, hidden);
                    rows::add_scaled(self.path, y, choice.weight, out);
                }
            }
        }
    }
}

/// One matrix product. The output's rows and the input's lie in buffers that hold `tokens` of them.
#[derive(Clone, Copy)]
struct Work<'a> {
    matrix: &'a Matrix,
    bias: Option<&'a [f32]>,
    x: Rows,
    /// The same rows in eight bits, where the matrix is tiled.
    panels: Option<Panels>,
    tokens: usize,
    out: *mut f32,
    out_stride: usize,
    /// Whether products are added to what is there.
    accumulate: bool,
}

fn sees(position: u32, window: Option<u32>, causal: bool) -> Sight {
    match (causal, window) {
        (true, None) => Sight { from: 0, to: position },
        (true, Some(window)) => Sight { from: (position + 1).saturating_sub(window), to: position },
        (false, None) => Sight { from: 0, to: u32::MAX },
        (false, Some(window)) => {
            Sight { from: position.saturating_sub(window / 2), to: position.saturating_add(window / 2) }
        }
    }
}
