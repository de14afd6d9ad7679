//! Scaling columns before they are rounded: the model's folds, searched one after another and moved into its weights.

use std::collections::BTreeMap;

use drophammer_models::fold::{Fold, folds};
use drophammer_models::{Checkpoint, WeightId};
use drophammer_quant::compensate::Compensator;
use drophammer_quant::equalize::{Found, Reader, Rounding, search};
use drophammer_quant::pass::Importance;
use drophammer_sdk::{BackendError, ErrorCode, JobContext, LogLevel, Result};

use crate::failure;

/// Rows of each matrix that are rounded with every candidate.
const SAMPLED_ROWS: u64 = 96;

/// How a model's columns were scaled, and what that means for its statistics.
#[derive(Debug, Default)]
pub struct Scaling {
    /// Scales of matrices' columns, by GGUF name.
    scales: BTreeMap<String, Vec<f32>>,
    /// Places where columns can be scaled, and in how many of them they are.
    counts: [usize; 2],
}

/// Looks for scales wherever the model has room for them, given how each weight will be rounded (`None`: it is not). `importance`
/// is of the model as it is, by GGUF names. Gives the model with its columns scaled, which computes what it did before.
///
/// # Errors
/// No statistics, weights that cannot be read or rounded, and cancellation.
pub fn equalize(
    mut checkpoint: Checkpoint,
    importance: &BTreeMap<String, Importance>,
    rounding: impl Fn(WeightId) -> Option<Box<dyn Rounding>>,
    job: &dyn JobContext,
) -> Result<(Checkpoint, Scaling)> {
    if importance.is_empty() {
        let message = "scaling columns by their activations needs an importance matrix, and there is none";
        return Err(BackendError::new(ErrorCode::InvalidRequest, message)
            .with_help("Collect one with `drophammer imatrix SOURCE -o FILE`, or give --auto-imatrix."));
    }
    let folds = folds(checkpoint.description());
    let mut scaling = Scaling { counts: [folds.len(), 0], ..Scaling::default() };
    for (number, fold) in folds.iter().enumerate() {
        job.check()?;
        let subject = fold.consumers.first().map(ToString::to_string).unwrap_or_default();
        job.progress("scale", &subject, number as u64, folds.len() as u64);
        let Some(found) = scales_of(&checkpoint, fold, importance, &rounding, job)? else { continue };
        let place = checkpoint.source().root().to_owned();
        checkpoint =
            checkpoint.scaled(fold, &found.scales).map_err(|error| failure::of_model(&place, &error))?;
        scaling.counts[1] += 1;
        for &id in &fold.consumers {
            // Fused matrices are told once.
            if let Some(name) = checkpoint.gguf_name(id) {
                scaling.scales.insert(name, fold.spread(&found.scales));
            }
        }
    }
    job.log(LogLevel::Info, &scaling.note());
    Ok((checkpoint, scaling))
}

fn scales_of(
    checkpoint: &Checkpoint,
    fold: &Fold,
    importance: &BTreeMap<String, Importance>,
    rounding: &impl Fn(WeightId) -> Option<Box<dyn Rounding>>,
    job: &dyn JobContext,
) -> Result<Option<Found>> {
    let columns = fold.width * fold.readers;
    let named = |id: &WeightId| importance.get(&checkpoint.gguf_name(*id)?);
    let Some(weights) = fold.consumers.iter().find_map(named).and_then(|found| shared(&found.0, columns))
    else {
        return Ok(None);
    };
    let rounded: Vec<(WeightId, Box<dyn Rounding>)> =
        fold.consumers.iter().filter_map(|&id| Some((id, rounding(id)?))).collect();
    let readers = rounded
        .iter()
        .map(|(id, rounding)| Ok(Reader { rows: sample(checkpoint, *id)?, rounding: rounding.as_ref() }))
        .collect::<Result<Vec<_>>>()?;
    if readers.is_empty() {
        return Ok(None);
    }
    let scale_of: Vec<usize> = (0..columns).map(|column| fold.scale_of(column)).collect();
    let threads = job.budgets().threads.max(1) as usize;
    search(&readers, &weights, &scale_of, threads).map_err(|error| {
        let subject = fold.consumers.first().map(ToString::to_string).unwrap_or_default();
        BackendError::new(ErrorCode::InvalidInput, format!("scaling the columns of {subject}: {error}"))
    })
}

/// One weight per column; of stacked matrices, whose columns are scaled alike, the mean.
fn shared(weights: &[f32], columns: usize) -> Option<Vec<f32>> {
    if columns == 0 || weights.is_empty() || !weights.len().is_multiple_of(columns) {
        return None;
    }
    let matrices = weights.len() / columns;
    let mean = |column| weights.iter().skip(column).step_by(columns).sum::<f32>() / matrices as f32;
    Some((0..columns).map(mean).collect())
}

/// Some rows of a weight, evenly spread.
fn sample(checkpoint: &Checkpoint, id: WeightId) -> Result<Vec<f32>> {
    let in_model = |error| failure::of_model(checkpoint.source().root(), &error);
    let weight = checkpoint.weight(id).map_err(in_model)?;
    let (rows, columns) = (weight.rows(), weight.columns() as usize);
    let count = SAMPLED_ROWS.min(rows);
    let mut out = vec![0.0; count as usize * columns];
    for (number, out) in (0..count).zip(out.chunks_exact_mut(columns.max(1))) {
        let row = number * rows / count;
        weight.read(row..row + 1, out).map_err(in_model)?;
    }
    weight.release();
    Ok(out)
}

impl Scaling {
    /// Statistics as the scaled columns have them, from those of the model as it was.
    pub fn importance(&self, before: &BTreeMap<String, Importance>) -> BTreeMap<String, Importance> {
        let scaled = |name: &String, weights: &Importance| match self.scales.get(name) {
            Some(scales) => {
                Importance(weights.0.iter().zip(scales.iter().cycle()).map(|(w, s)| w / (s * s)).collect())
            }
            None => weights.clone(),
        };
        before.iter().map(|(name, weights)| (name.clone(), scaled(name, weights))).collect()
    }

    /// What makes up for a matrix's errors, from what did so for the matrix as it was.
    pub fn compensator(&self, matrix: &str, before: Compensator) -> Compensator {
        match self.scales.get(matrix) {
            Some(scales) => before.scaled(scales.clone()),
            None => before,
        }
    }

    /// What was done, in words.
    pub fn note(&self) -> String {
        let [places, scaled] = self.counts;
        format!("columns are scaled in {scaled} of {places} places, which what writes them makes up for")
    }
}
