//! Matrix products of a graph, on all threads: sixteen columns of the result at a time, as in reference mode.
#![allow(unsafe_code)] // threads write disjoint columns of one result; the block says which

use std::ops::Range;

use super::tensor::{Fault, Tensor};
use crate::kernels::float::{Output, Rows, lay_strip, multiply_strip};
use crate::kernels::{LANES, Path};
use crate::model::matrix::Matrix;
use crate::threads::{Pool, Shares};

/// What is multiplied: so many matrices of so many rows, each with one of so many columns.
#[derive(Clone, Copy)]
struct Sizes {
    batches: usize,
    rows: usize,
    depth: usize,
    columns: usize,
}

/// Lays some columns of a batch's second factor side by side, `[depth][16]`; the last argument is room to decode them in.
type Lay<'a> = dyn Fn(usize, Range<usize>, &mut [f32], &mut [f32]) + Sync + 'a;

fn multiply(pool: &mut Pool, path: Path, x: &[f32], sizes: Sizes, lay: &Lay<'_>) -> Vec<f32> {
    let Sizes { batches, rows, depth, columns } = sizes;
    assert_eq!(x.len(), batches * rows * depth);
    let strips = columns.div_ceil(LANES);
    let mut out = vec![0.0; batches * rows * columns];
    let shares = Shares::new(&mut out);
    pool.run(batches * rows * depth * columns, &|member| {
        let [mut strip, mut room] = [0, 1].map(|_| vec![0.0; depth * LANES]);
        for number in member.share(batches * strips, 1) {
            let (batch, first) = (number / strips, number % strips * LANES);
            let width = LANES.min(columns - first);
            lay(batch, first..first + width, &mut strip, &mut room);
            let x = Rows { begin: x[batch * rows * depth..].as_ptr(), stride: depth };
            let begin = shares.begin().wrapping_add(batch * rows * columns + first);
            // SAFETY: `x` holds a batch's rows; these columns of it are this thread's, and inside of the result.
            unsafe {
                let out = Output { begin, stride: columns, accumulate: false };
                multiply_strip(path, &strip, x, out, rows, width);
            }
        }
    });
    out
}

/// `x · Wᵀ` for a matrix of weights.
pub(super) fn by_weights(pool: &mut Pool, path: Path, x: &Tensor, w: &Matrix) -> Result<Tensor, Fault> {
    if x.width() != w.columns {
        return Err(format!("{:?} times {} × {}", x.shape(), w.rows, w.columns));
    }
    let numbers = x.need_floats()?;
    let sizes = Sizes { batches: 1, rows: numbers.len() / w.columns, depth: w.columns, columns: w.rows };
    let out = multiply(pool, path, numbers, sizes, &|_, rows, strip, room| {
        let room = &mut room[..rows.len() * w.columns];
        for (row, out) in rows.zip(room.chunks_exact_mut(w.columns)) {
            w.decode_row(path, row, out);
        }
        lay_strip(room, w.columns, strip);
    });
    let mut shape = x.shape().to_vec();
    shape.pop();
    shape.push(w.rows);
    Tensor::made(shape, out)
}

/// `a · b` of the last two dimensions, for each of those before; a `b` of two dimensions is everyone's.
pub(super) fn of_values(pool: &mut Pool, path: Path, a: &Tensor, b: &Tensor) -> Result<Tensor, Fault> {
    let refused = || format!("{:?} times {:?}", a.shape(), b.shape());
    let ([outer @ .., rows, depth], [beyond @ .., same, columns]) = (a.shape(), b.shape()) else {
        return Err(refused());
    };
    if depth != same || !(beyond.is_empty() || outer == beyond) || depth * columns == 0 {
        return Err(refused());
    }
    let (depth, columns) = (*depth, *columns);
    let sizes = Sizes { batches: outer.iter().product(), rows: *rows, depth, columns };
    let (shared, values) = (beyond.is_empty(), b.need_floats()?);
    let out = multiply(pool, path, a.need_floats()?, sizes, &|batch, range, strip, _| {
        let values = &values[if shared { 0 } else { batch } * depth * columns..][..depth * columns];
        for (row, strip) in values.chunks_exact(columns).zip(strip.chunks_exact_mut(LANES)) {
            strip.fill(0.0);
            strip[..range.len()].copy_from_slice(&row[range.clone()]);
        }
    });
    let mut shape = a.shape().to_vec();
    shape.pop();
    shape.push(columns);
    Tensor::made(shape, out)
}
