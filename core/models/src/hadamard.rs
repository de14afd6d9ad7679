//! The residual stream in another basis, in which no single number stands out.
//!
//! Trained models keep a few numbers of the residual stream thousands of times larger than the others, and formats with one scale for
//! all of it lose the others. With an orthogonal matrix `H` the stream `h·H` holds the same: root-mean-square norms measure what they
//! measured, matrices that read it become `W·diag(gain)·H` and those that write it `Hᵀ·W` (Ashkboos et al., "QuaRot", 2024). `H` is a
//! Walsh–Hadamard transform of neighbouring numbers, so an outlier is shared by its block, and weights become as even as noise.
//!
//! Blocks are short, so that rows are still read a few at a time. [`stream`] says which weights touch the stream;
//! [`Checkpoint::spread`](crate::Checkpoint::spread) moves the transform into them.

use crate::description::{Description, NormRule, Wiring};
use crate::fold::folds;
use crate::graph::NormKind;
use crate::inventory::inventory;
use crate::weight::{Role, WeightId};

/// Most numbers that are mixed with each other.
const MOST: usize = 64;

/// How many neighbours of so many numbers are mixed: the largest power of two that divides them, within limits. 1 mixes nothing.
pub(crate) fn block(width: usize) -> usize {
    if width == 0 { 1 } else { (1 << width.trailing_zeros().min(MOST.ilog2())).min(MOST) }
}

/// Mixes rows with each other, `block` neighbours at a time: `H · x`, with `H` its own inverse. `values` holds whole groups of rows of
/// `columns` numbers.
pub(crate) fn mix_rows(values: &mut [f32], columns: usize, block: usize) {
    let columns = columns.max(1);
    for group in values.chunks_exact_mut(block * columns) {
        let mut half = 1;
        while half < block {
            for pair in group.chunks_exact_mut(2 * half * columns) {
                let (first, second) = pair.split_at_mut(half * columns);
                for (a, b) in first.iter_mut().zip(second) {
                    (*a, *b) = (*a + *b, *a - *b);
                }
            }
            half *= 2;
        }
        let scale = 1.0 / (block as f32).sqrt();
        for x in group {
            *x *= scale;
        }
    }
}

/// Mixes the numbers of each row, `block` neighbours at a time: `x · H`. Rows are whole blocks.
pub(crate) fn mix_columns(values: &mut [f32], block: usize) {
    mix_rows(values, 1, block);
}

/// The weights that touch the residual stream.
#[derive(Debug)]
pub(crate) struct Stream {
    /// Norms' gains, and the matrices that read what they scale.
    pub(crate) read: Vec<(WeightId, Vec<WeightId>)>,
    /// Tables whose rows are put on the stream.
    pub(crate) tables: Vec<WeightId>,
    /// Matrices whose outputs are added to it, and their biases.
    pub(crate) written: Vec<WeightId>,
    /// The model as it is then: norms without gains, and a head of its own.
    pub(crate) description: Description,
}

/// What touches a model's stream; `None` where something on it is not the same in any basis: norms that subtract means, norms of what
/// is written.
pub(crate) fn stream(description: &Description) -> Option<Stream> {
    let plain = |rule: NormRule| rule.kind == NormKind::Rms && rule.weight && !rule.bias;
    let fits = |rule: Option<NormRule>| rule.is_some_and(plain);
    if description.embedding.norm.is_some() || !fits(description.final_norm) {
        return None;
    }
    let mut bare = description.clone();
    if let Some(head) = &mut bare.head {
        head.tied = false;
    }
    let mut read = Vec::new();
    for fold in folds(&bare) {
        let scales =
            |id: &&WeightId| matches!(id.role, Role::AttentionNorm | Role::FeedForwardNorm | Role::FinalNorm);
        let norm = fold.producers.first().filter(scales).copied();
        read.extend(norm.map(|norm| (norm, fold.consumers)));
    }
    for layer in &mut bare.layers {
        let norms = &mut layer.norms;
        let shared = layer.wiring == Wiring::Parallel && norms.feed_forward.is_none();
        let of_writers = norms.attention_output.is_some() || norms.feed_forward_output.is_some();
        let of_readers = fits(norms.attention) && (shared || fits(norms.feed_forward));
        if layer.wiring == Wiring::PostNorm || of_writers || !of_readers {
            return None;
        }
        for rule in [&mut norms.attention, &mut norms.feed_forward].into_iter().flatten() {
            rule.weight = false;
        }
    }
    if let Some(rule) = &mut bare.final_norm {
        rule.weight = false;
    }
    let (mut tables, mut written) = (Vec::new(), Vec::new());
    for weight in inventory(&bare) {
        match weight.id.role {
            Role::TokenEmbedding | Role::PositionEmbedding | Role::TokenTypeEmbedding => {
                tables.push(weight.id);
            }
            Role::AttentionOutput | Role::Down | Role::ExpertDown | Role::SharedDown => {
                written.push(weight.id);
            }
            _ => {}
        }
    }
    Some(Stream { read, tables, written, description: bare })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_powers_of_two_that_divide_the_width() {
        let due = [(576, 64), (4096, 64), (48, 16), (896, 64), (30, 2), (7, 1), (0, 1)];
        assert_eq!(due.map(|(width, _)| (width, block(width))), due);
    }

    #[test]
    fn mixing_shares_an_outlier_and_twice_mixes_nothing() {
        let mut row = [0.0f32; 64];
        row[5] = 800.0;
        let before = row;
        mix_columns(&mut row, 64);
        assert!(row.iter().all(|x| x.abs() == 100.0));
        mix_columns(&mut row, 64);
        assert!(row.iter().zip(&before).all(|(a, b)| (a - b).abs() < 1e-3));
    }

    #[test]
    fn rows_are_mixed_as_columns_of_the_transposed() {
        let matrix: Vec<f32> = (0..8 * 3).map(|i| ((i * 37 % 11) as f32).sin()).collect();
        let transposed = |m: &[f32], rows: usize, columns: usize| -> Vec<f32> {
            (0..columns)
                .flat_map(|c| (0..rows).map(move |r| (r, c)))
                .map(|(r, c)| m[r * columns + c])
                .collect()
        };
        let mut rows = matrix.clone();
        mix_rows(&mut rows, 3, 4);
        let mut columns = transposed(&matrix, 8, 3);
        mix_columns(&mut columns, 4);
        assert_eq!(transposed(&rows, 8, 3), columns);
    }
}
