//! What is counted while a model runs: how strongly the inputs of its matrices are used, and together with which.
//!
//! All threads count, each its own columns. Matrices that read the same rows are counted once.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use drophammer_quant::compensate::{Products, WINDOW};

use crate::kernels::outer::{TILE, add_products, lay_panels, squares};
use crate::kernels::{LANES, Path};
use crate::threads::Member;

/// Rows that are added up in single precision before they join the sums; as many as stay near.
const BLOCK: usize = 128;

/// Sums over the inputs of matrices, by the number of the matrix that they are counted for.
pub(crate) struct Observer(Vec<Option<Input>>);

/// Sums over the rows that a matrix is multiplied with.
struct Input {
    width: usize,
    rows: AtomicU64,
    /// Whether products are asked for.
    products: bool,
    /// Sixteen columns each. One thread adds to a panel at a time.
    panels: Vec<Mutex<Panel>>,
}

#[derive(Default)]
struct Panel {
    squares: [f64; LANES],
    /// Tiles of products with this panel and all later ones of its window; empty until one is counted.
    products: Vec<f32>,
}

impl Observer {
    /// Counts for these matrices, by number and columns; for those in `products` also the products of columns.
    pub(crate) fn new(inputs: impl Iterator<Item = (usize, usize)>, products: &[usize]) -> Self {
        let mut all = Vec::new();
        for (number, width) in inputs {
            all.resize_with(all.len().max(number + 1), || None);
            let panels = (0..width.div_ceil(LANES)).map(|_| Mutex::default()).collect();
            let products = products.contains(&number);
            all[number] = Some(Input { width, rows: AtomicU64::new(0), products, panels });
        }
        Self(all)
    }

    /// Counts rows that a matrix is multiplied with. Every thread calls this, and adds its share.
    pub(crate) fn count(
        &self,
        path: Path,
        matrix: usize,
        rows: &[f32],
        member: Member<'_>,
        room: &mut Vec<f32>,
    ) {
        let Some(input) = self.0.get(matrix).and_then(Option::as_ref) else { return };
        if member.index == 0 {
            input.rows.fetch_add((rows.len() / input.width) as u64, Ordering::Relaxed);
        }
        for block in rows.chunks(BLOCK * input.width) {
            for begin in (0..input.width).step_by(WINDOW) {
                let end = (begin + WINDOW).min(input.width);
                input.count_window(path, block, begin..end, member, room);
            }
        }
    }

    /// How many rows a matrix was multiplied with, and the sums of their squares by column.
    pub(crate) fn squares(&self, matrix: usize) -> (u64, Vec<f32>) {
        let Some(input) = self.0.get(matrix).and_then(Option::as_ref) else { return (0, Vec::new()) };
        let panels = input.panels.iter().flat_map(|panel| lock(panel).squares);
        (input.rows.load(Ordering::Relaxed), panels.take(input.width).map(|sum| sum as f32).collect())
    }

    /// Sums of products as [`Products`] has them, nothing left of the diagonal's tiles; empty where none were counted.
    pub(crate) fn products(&self, matrix: usize) -> Vec<f32> {
        let Some(input) = self.0.get(matrix).and_then(Option::as_ref) else { return Vec::new() };
        if !input.products || input.rows.load(Ordering::Relaxed) == 0 {
            return Vec::new();
        }
        let mut out = vec![0.0; Products::len(input.width)];
        let mut rest = out.as_mut_slice();
        for begin in (0..input.width).step_by(WINDOW) {
            let width = WINDOW.min(input.width - begin);
            let (window, later) = rest.split_at_mut(width * width);
            rest = later;
            let panels = &input.panels[begin / LANES..(begin + width).div_ceil(LANES)];
            for (number, panel) in panels.iter().enumerate() {
                for (tile, sums) in lock(panel).products.chunks_exact(TILE).enumerate() {
                    let (top, left) = (number * LANES, (number + tile) * LANES);
                    let columns = LANES.min(width - left);
                    let rows = sums.chunks_exact(LANES).take(width - top);
                    for (row, sums) in rows.enumerate() {
                        window[(top + row) * width + left..][..columns].copy_from_slice(&sums[..columns]);
                    }
                }
            }
        }
        out
    }
}

impl Input {
    fn count_window(
        &self,
        path: Path,
        rows: &[f32],
        columns: std::ops::Range<usize>,
        member: Member<'_>,
        room: &mut Vec<f32>,
    ) {
        let panels = &self.panels[columns.start / LANES..columns.end.div_ceil(LANES)];
        if self.products {
            lay_panels(rows, self.width, columns.clone(), room);
        }
        let each = rows.len() / self.width * LANES;
        for (number, panel) in panels.iter().enumerate() {
            // Earlier panels have more tiles: threads take turns there and back, so that all have as many.
            let turn = number % (2 * member.count);
            if turn.min(2 * member.count - 1 - turn) != member.index {
                continue;
            }
            let squares = squares(path, rows, self.width, columns.start + number * LANES);
            let mut panel = lock(panel);
            panel.squares.iter_mut().zip(squares).for_each(|(sum, square)| *sum += f64::from(square));
            if self.products {
                let right = &room[number * each..];
                panel.products.resize((panels.len() - number) * TILE, 0.0);
                add_products(path, &right[..each], right, &mut panel.products);
            }
        }
    }
}

fn lock(panel: &Mutex<Panel>) -> std::sync::MutexGuard<'_, Panel> {
    panel.lock().unwrap_or_else(PoisonError::into_inner)
}
