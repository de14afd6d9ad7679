//! How much each weight's error matters, and blocks laid out one per lane.

use crate::lanes::{LANES, Lanes, transpose};
use crate::simd::{self, Kernel, Level};

/// Importance of the columns, brought to a mean of one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Weights<'a> {
    columns: Option<&'a [f32]>,
    gain: f32,
    /// How large weights count more where no column's importance is known.
    by_size: Option<Worth>,
}

/// How much more than others a weight counts by its size: `1 + share · x²/σ²`, σ being its block's root mean square, or the root of that.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Worth {
    share: f32,
    root: bool,
}

impl Worth {
    /// Where nothing else is known: large weights meet strong activations more often than not.
    pub(crate) const WHOLE: Self = Self { share: 1.0, root: false };
    /// The same, less so.
    pub(crate) const ROOT: Self = Self { share: 1.0, root: true };
    /// Where a column's importance is known: what is large in a matrix was made so by training, and its error is worth a little more
    /// than its column tells. (ggml multiplies by `sqrt(2σ² + x²)`.)
    const BESIDE_IMPORTANCE: Self = Self { share: 0.25, root: true };
}

/// What even an unimportant column counts, so that a block met by no activation is still encoded sensibly.
const FLOOR: f32 = 1e-4;

impl<'a> Weights<'a> {
    /// `None`, or importance that is zero everywhere, weighs all columns alike.
    pub(crate) fn new(importance: Option<&'a [f32]>) -> Self {
        let even = Self { columns: None, gain: 1.0, by_size: None };
        let Some(columns) = importance else { return even };
        let mean = columns.iter().map(|&x| f64::from(x)).sum::<f64>() / columns.len() as f64;
        let gain = (1.0 / mean) as f32;
        if gain.is_finite() && gain > 0.0 { Self { columns: Some(columns), gain, ..even } } else { even }
    }

    /// The same; where it weighs all columns alike, weights count by their size.
    pub(crate) fn or_by_size(self, size: Worth) -> Self {
        Self { by_size: self.columns.is_none().then_some(size), ..self }
    }

    /// Whether all columns weigh alike.
    pub(crate) fn are_even(&self) -> bool {
        self.columns.is_none()
    }

    /// Whether `elements` are rows of this width.
    pub(crate) fn fit(&self, elements: usize) -> bool {
        self.columns.is_none_or(|columns| elements.is_multiple_of(columns.len()))
    }
}

/// Multiplies every block's weights by what its elements' sizes are worth.
struct FavourLarge<'a> {
    x: &'a [Row],
    w: &'a mut [Row],
    worth: Worth,
}

impl Kernel for FavourLarge<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let Self { x, w, worth } = self;
        // Relative to the block's largest, so that no square overflows; then to the block's own sum, so that no block counts more
        // than by its columns.
        let mut largest = L::zero();
        for x in x {
            largest = largest.max(L::load(x).abs());
        }
        let negligible = largest.lt(L::splat(f32::MIN_POSITIVE));
        let unit = L::select(negligible, L::zero(), L::splat(1.0) / largest);
        let mut squares = L::zero();
        for x in x {
            let u = L::load(x) * unit;
            squares = squares + u * u;
        }
        let nonzero = L::zero().lt(squares);
        let gain = L::select(nonzero, L::splat(x.len() as f32) / squares, L::zero()) * L::splat(worth.share);
        let one = L::splat(1.0);
        for (w, x) in w.iter_mut().zip(x) {
            let u = L::load(x) * unit;
            let counts = one + u * u * gain;
            let counts = if worth.root { counts.sqrt() } else { counts };
            (L::load(w) * counts).store(w);
        }
    }
}

/// One number per lane.
pub(crate) type Row = [f32; LANES];

/// Up to 16 blocks laid side by side: block `b` in lane `b` of every row.
pub(crate) struct Tile {
    /// Row `j` holds element `j` of every block; missing blocks are zero.
    pub(crate) x: Vec<Row>,
    /// Its weight.
    pub(crate) w: Vec<Row>,
    /// Whether weights differ.
    pub(crate) weighted: bool,
    /// Whether they differ by their columns: what is largest may hardly count, and more clipping must be tried.
    pub(crate) by_column: bool,
    /// The code of every element, which a search fills in.
    pub(crate) codes: Vec<[u8; LANES]>,
    /// Room for [`Tile::lines`].
    lines: Vec<u8>,
    level: Level,
}

impl Tile {
    /// Room for blocks of `length` elements, laid out with the instructions of `level`.
    pub(crate) fn new(level: Level, length: usize) -> Self {
        Self {
            x: vec![[0.0; LANES]; length],
            w: vec![[1.0; LANES]; length],
            weighted: false,
            by_column: false,
            codes: vec![[0; LANES]; length],
            lines: Vec::new(),
            level,
        }
    }

    /// Lays out the blocks that start at element `start` of `rows`.
    pub(crate) fn load(&mut self, rows: &[f32], weights: Weights<'_>, start: usize) {
        let length = self.x.len();
        let blocks = rows[start..].chunks_exact(length).take(LANES);
        if blocks.len() < LANES {
            self.x.fill([0.0; LANES]);
            self.w.fill([1.0; LANES]);
        }
        let mut lines = [&[][..]; LANES];
        let count = blocks.len();
        for (line, block) in lines.iter_mut().zip(blocks) {
            *line = block;
        }
        side_by_side(&lines[..count], &mut self.x, |x| x);
        if let Some(columns) = weights.columns {
            for (lane, line) in lines[..count].iter_mut().enumerate() {
                let first = (start + lane * length) % columns.len();
                *line = &columns[first..first + length];
            }
            side_by_side(&lines[..count], &mut self.w, |w| w * weights.gain + FLOOR);
            self.favour_large(Worth::BESIDE_IMPORTANCE);
        } else if let Some(size) = weights.by_size {
            self.w.fill([1.0; LANES]);
            self.favour_large(size);
        }
        self.by_column = weights.columns.is_some();
        self.weighted = self.by_column || weights.by_size.is_some();
    }

    /// Multiplies weights by what their size is worth.
    fn favour_large(&mut self, worth: Worth) {
        simd::run(self.level, FavourLarge { x: &self.x, w: &mut self.w, worth });
    }

    /// The codes block after block, each block's in order.
    pub(crate) fn lines(&mut self) -> &[u8] {
        let length = self.codes.len();
        self.lines.resize(LANES * length, 0);
        let (rows, rest) = self.codes.as_chunks::<LANES>();
        for (part, rows) in rows.iter().enumerate() {
            for (lane, codes) in transpose::sixteen(rows).iter().enumerate() {
                self.lines[lane * length + part * LANES..][..LANES].copy_from_slice(codes);
            }
        }
        for (j, row) in rest.iter().enumerate() {
            for (lane, code) in row.iter().enumerate() {
                self.lines[lane * length + rows.len() * LANES + j] = *code;
            }
        }
        &self.lines
    }
}

/// Lays lines side by side: `rows[j][i] = f(lines[i][j])`.
#[inline(always)]
fn side_by_side(lines: &[&[f32]], rows: &mut [Row], f: impl Fn(f32) -> f32) {
    let (fours, rest) = lines.as_chunks::<4>();
    let length = rows.len();
    for (i, lines) in fours.iter().enumerate() {
        let parts = lines.map(|line| line.as_chunks::<4>().0);
        for j in 0..length / 4 {
            let four = transpose::four(parts.map(|part| &part[j]));
            for (row, four) in rows[4 * j..].iter_mut().zip(four) {
                row[4 * i..4 * i + 4].copy_from_slice(&four.map(&f));
            }
        }
        for (lane, line) in lines.iter().enumerate() {
            for j in length / 4 * 4..length {
                rows[j][4 * i + lane] = f(line[j]);
            }
        }
    }
    for (lane, line) in rest.iter().enumerate() {
        for (row, x) in rows.iter_mut().zip(*line) {
            row[4 * fours.len() + lane] = f(*x);
        }
    }
}

/// Rows as vectors.
#[inline(always)]
pub(crate) fn vectors<L: Lanes>(rows: &[Row]) -> Vec<L> {
    let mut out = Vec::with_capacity(rows.len());
    for row in rows {
        out.push(L::load(row));
    }
    out
}
