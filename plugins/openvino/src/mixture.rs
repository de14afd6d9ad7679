//! Which weights a scheme with a ratio leaves to the backup format.
//!
//! What a weight loses in either format is measured on a sample of its rows: the squared error as a part of the weight's own
//! squares, columns counting by how strongly calibration saw them used, where that is known. Those for which the backup's
//! bytes save most of it get them.

use std::collections::HashSet;

use drophammer_forge::failure;
use drophammer_models::{Checkpoint, WeightId, WeightShape};
use drophammer_quant::grouped::{self, Fit};
use drophammer_sdk::{BackendError, ErrorCode, Result};

use crate::encoder::fit;
use crate::scheme::{Scheme, Storage};
use crate::statistics::Statistics;

/// Rows of a weight that are looked at.
const SAMPLED_ROWS: u64 = 32;

/// A weight that may have either format.
struct Candidate {
    id: WeightId,
    parameters: u64,
    /// What the backup saves, as a part of the weight's squares.
    saved: f64,
}

/// The weights that stay in the backup format: at most the scheme's ratio of the parameters that may have four bits has them.
///
/// # Errors
/// When rows cannot be read.
pub(crate) fn sensitive(
    checkpoint: &Checkpoint,
    scheme: &Scheme,
    weights: &[WeightShape],
    statistics: &Statistics,
) -> Result<HashSet<WeightId>> {
    if !scheme.is_mixed() {
        return Ok(HashSet::new());
    }
    let open: Vec<_> = weights.iter().filter_map(|weight| Some((weight, scheme.choice(weight)?))).collect();
    let candidate = |(weight, [usual, backup]): &(&WeightShape, [Storage; 2])| {
        let sample = Sample::of(checkpoint, weight, statistics)?;
        let saved = sample.loss(*usual)? - sample.loss(*backup)?;
        Ok(Candidate { id: weight.id, parameters: weight.shape.iter().product(), saved })
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let candidates = std::thread::scope(|scope| {
        let parts = open.chunks(open.len().div_ceil(threads).max(1));
        let parts: Vec<_> =
            parts.map(|part| scope.spawn(move || part.iter().map(candidate).collect())).collect();
        let join = |part: std::thread::ScopedJoinHandle<'_, Result<Vec<Candidate>>>| match part.join() {
            Ok(found) => found,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        parts.into_iter().map(join).collect::<Result<Vec<_>>>()
    })?;
    let candidates = candidates.into_iter().flatten().collect();
    Ok(chosen(candidates, scheme.ratio))
}

/// Those that save most per parameter, until no more than `ratio` of all parameters are left.
fn chosen(mut candidates: Vec<Candidate>, ratio: f64) -> HashSet<WeightId> {
    let all: u64 = candidates.iter().map(|candidate| candidate.parameters).sum();
    let rate = |candidate: &Candidate| candidate.saved / candidate.parameters.max(1) as f64;
    candidates.sort_by(|a, b| rate(b).total_cmp(&rate(a)));
    let mut left = all as f64;
    let taken = candidates.iter().take_while(|candidate| {
        let more = left > ratio * all as f64;
        left -= candidate.parameters as f64;
        more
    });
    taken.map(|candidate| candidate.id).collect()
}

/// Some rows of a weight.
struct Sample {
    id: WeightId,
    columns: usize,
    rows: Vec<f32>,
    /// For each row, how much its columns count.
    importance: Option<Vec<f32>>,
}

impl Sample {
    fn of(checkpoint: &Checkpoint, weight: &WeightShape, statistics: &Statistics) -> Result<Self> {
        let in_model =
            |error: drophammer_models::Error| failure::of_model(checkpoint.source().root(), &error);
        let stored = checkpoint.weight(weight.id).map_err(in_model)?;
        let (all, columns) = (stored.rows(), stored.columns() as usize);
        let taken = SAMPLED_ROWS.min(all);
        let known = statistics.of(weight.id);
        let mut rows = vec![0.0; taken as usize * columns];
        let mut importance = known.as_ref().map(|_| Vec::with_capacity(rows.len()));
        for (number, row) in (0..taken).zip(rows.chunks_exact_mut(columns.max(1))) {
            // In the middle of equal parts.
            let place = (2 * number + 1) * all / (2 * taken);
            stored.read(place..place + 1, row).map_err(in_model)?;
            stored.release_rows(place..place + 1);
            if let (Some(known), Some(importance)) = (&known, &mut importance) {
                let matrices = (known.len() / columns).max(1);
                let matrix = (place * matrices as u64 / all.max(1)) as usize;
                importance.extend_from_slice(&known[matrix * columns..][..columns]);
            }
        }
        Ok(Self { id: weight.id, columns, rows, importance })
    }

    /// The part of the weight's squares that is lost when it is stored so.
    fn loss(&self, storage: Storage) -> Result<f64> {
        let Storage::Grouped(format) = storage else { return Ok(0.0) };
        let failed = |error: grouped::GroupError| {
            BackendError::new(ErrorCode::InvalidInput, format!("{}: {error}", self.id))
        };
        // Where eight bits lose a hundredth of what four do, a search for their scales would not change who is chosen.
        let fit = if format.levels.bits() < 8 { fit(format) } else { Fit::Owner };
        let (mut lost, mut whole) = (0.0, 0.0);
        for (number, row) in self.rows.chunks_exact(self.columns.max(1)).enumerate() {
            let importance =
                self.importance.as_ref().map(|all| &all[number * self.columns..][..self.columns]);
            let encoded = grouped::encode(format, row, self.columns, importance, fit);
            let back = encoded.and_then(|encoded| grouped::decode(format, &encoded, self.columns));
            for (column, (x, back)) in row.iter().zip(back.map_err(failed)?).enumerate() {
                let weight = importance.map_or(1.0, |importance| f64::from(importance[column]));
                lost += weight * f64::from(x - back).powi(2);
                whole += weight * f64::from(*x).powi(2);
            }
        }
        Ok(if whole > 0.0 { lost / whole } else { 0.0 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use drophammer_models::Role;

    #[test]
    fn bytes_go_where_they_save_most_and_the_ratio_holds() {
        let candidate = |layer, parameters, saved| Candidate { id: Role::Query.of(layer), parameters, saved };
        let all = || vec![candidate(0, 100, 0.01), candidate(1, 10, 0.01), candidate(2, 100, 0.03)];
        let layers = |ratio| {
            let mut layers: Vec<_> = chosen(all(), ratio).into_iter().filter_map(|id| id.layer).collect();
            layers.sort_unstable();
            layers
        };
        assert!(layers(1.0).is_empty());
        assert_eq!(layers(0.97), [1]);
        assert_eq!(layers(0.9), [1, 2]);
        assert_eq!(layers(0.5), [1, 2]);
        assert_eq!(layers(0.0), [0, 1, 2]);
    }
}
