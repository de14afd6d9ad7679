//! How much each weight's error matters, and blocks laid out one per lane.

use crate::lanes::{LANES, Lanes};

/// Importance of the columns, brought to a mean of one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Weights<'a> {
    columns: Option<&'a [f32]>,
    gain: f32,
}

/// What even an unimportant column counts, so that a block met by no activation is still encoded sensibly.
const FLOOR: f32 = 1e-4;

impl<'a> Weights<'a> {
    /// `None`, or importance that is zero everywhere, weighs all columns alike.
    pub(crate) fn new(importance: Option<&'a [f32]>) -> Self {
        let Some(columns) = importance else { return Self { columns: None, gain: 1.0 } };
        let mean = columns.iter().map(|&x| f64::from(x)).sum::<f64>() / columns.len() as f64;
        let gain = (1.0 / mean) as f32;
        if gain.is_finite() && gain > 0.0 {
            Self { columns: Some(columns), gain }
        } else {
            Self { columns: None, gain: 1.0 }
        }
    }

    /// Whether `elements` are rows of this width.
    pub(crate) fn fit(&self, elements: usize) -> bool {
        self.columns.is_none_or(|columns| elements.is_multiple_of(columns.len()))
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
    /// The code of every element, which a search fills in.
    pub(crate) codes: Vec<[u8; LANES]>,
}

impl Tile {
    /// Room for blocks of `length` elements.
    pub(crate) fn new(length: usize) -> Self {
        Self {
            x: vec![[0.0; LANES]; length],
            w: vec![[1.0; LANES]; length],
            weighted: false,
            codes: vec![[0; LANES]; length],
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
        for (lane, block) in blocks.enumerate() {
            for (row, x) in self.x.iter_mut().zip(block) {
                row[lane] = *x;
            }
            if let Some(columns) = weights.columns {
                let first = (start + lane * length) % columns.len();
                for (row, w) in self.w.iter_mut().zip(&columns[first..first + length]) {
                    row[lane] = w * weights.gain + FLOOR;
                }
            }
        }
        self.weighted = weights.columns.is_some();
    }

    /// The codes of one block, in order.
    pub(crate) fn codes_of<const N: usize>(&self, lane: usize) -> [u8; N] {
        std::array::from_fn(|j| self.codes[j][lane])
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
