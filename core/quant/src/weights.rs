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

    /// Whether columns differ.
    #[inline(always)]
    pub(crate) fn vary(&self) -> bool {
        self.columns.is_some()
    }

    /// Lays up to 16 groups of `length`, from element `start` on, into the lanes of `x` and their weights into those of
    /// `w`. Missing groups are zero.
    #[inline(always)]
    pub(crate) fn gather<L: Lanes>(
        &self,
        rows: &[f32],
        start: usize,
        length: usize,
        x: &mut [L],
        w: &mut [L],
    ) {
        let count = LANES.min((rows.len() - start) / length);
        for j in 0..length {
            let mut lanes = [0.0; LANES];
            for lane in 0..count {
                lanes[lane] = rows[start + lane * length + j];
            }
            x[j] = L::load(&lanes);
            if let Some(columns) = self.columns {
                let mut lanes = [1.0; LANES];
                for lane in 0..count {
                    lanes[lane] = columns[(start + lane * length + j) % columns.len()] * self.gain + FLOOR;
                }
                w[j] = L::load(&lanes);
            }
        }
    }

    /// Weight of the element at `index` of the rows.
    #[inline(always)]
    fn slice(&self, index: usize, length: usize) -> &'a [f32] {
        match self.columns {
            Some(columns) => {
                let start = index % columns.len();
                &columns[start..start + length]
            }
            None => &[],
        }
    }
}

/// Up to 16 blocks of `N` values, block `b` in lane `b` of every vector. Missing blocks are zero.
#[derive(Clone, Copy)]
pub(crate) struct Tile<L, const N: usize> {
    /// Element `j` of every block.
    pub(crate) x: [L; N],
    /// Its weight.
    pub(crate) w: [L; N],
}

impl<L: Lanes, const N: usize> Tile<L, N> {
    /// The blocks that start at element `start` of `rows`.
    #[inline(always)]
    pub(crate) fn load(rows: &[f32], weights: Weights<'_>, start: usize) -> Self {
        let mut x = [[0.0f32; LANES]; N];
        let mut w = [[1.0f32; LANES]; N];
        for (lane, block) in rows[start..].chunks_exact(N).take(LANES).enumerate() {
            for j in 0..N {
                x[j][lane] = block[j];
            }
            if weights.vary() {
                let importance = weights.slice(start + lane * N, N);
                for j in 0..N {
                    w[j][lane] = importance[j] * weights.gain + FLOOR;
                }
            }
        }
        let mut tile = Self { x: [L::zero(); N], w: [L::splat(1.0); N] };
        for j in 0..N {
            tile.x[j] = L::load(&x[j]);
            if weights.vary() {
                tile.w[j] = L::load(&w[j]);
            }
        }
        tile
    }
}
