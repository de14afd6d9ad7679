//! What all logits of a token have in common, told apart from them.
//!
//! Half precision keeps eleven bits of a number, and those of large logits go to what they share: where the largest are about 20, two
//! that are 0.01 apart may become one. Nothing depends on the shared part, so a vector `c` is looked for with which `h·c` is near the
//! largest logit of any hidden state `h`; the head without it gives small numbers where they matter, and `h·c`, another output of the
//! graph, is added to them in float32 where the graph is run.

use std::path::Path;

use drophammer_models::Checkpoint;
use drophammer_models::export::onnx::Weights;
use drophammer_sdk::{BackendError, ErrorCode, JobContext, Result};

use crate::calibrate::Samples;
use crate::floats::{Floats, float_graph};
use crate::scheme::Scheme;

/// Most samples that are run for it.
pub(crate) const SAMPLES: usize = 8;
/// How much a large vector is shunned, in mean squares of a hidden number: its own rounding would cost what is won.
const RIDGE: f64 = 1.0;
/// Steps of the solver; each finds one more direction.
const STEPS: usize = 64;

/// Whether a model's logits become halves, and can be told apart from a common part.
pub(crate) fn is_told_apart(checkpoint: &Checkpoint, scheme: &Scheme) -> bool {
    let head = checkpoint.description().head;
    scheme.weights == Weights::Floats && head.is_some_and(|head| head.softcap.is_none() && head.scale != 0.0)
}

/// The vector, and what it is good for in words.
///
/// # Errors
/// When the float graph cannot be written or run.
pub(crate) fn of_logits(
    checkpoint: &Checkpoint,
    samples: &Samples,
    scheme: &Scheme,
    place: &Path,
    job: &dyn JobContext,
) -> Result<(Vec<f32>, String)> {
    let lost = |what: &str| BackendError::new(ErrorCode::Failed, format!("the float graph gives no {what}"));
    let export = float_graph(checkpoint)?;
    let hidden = export.last_hidden().ok_or_else(|| lost("hidden states"))?;
    let (vocabulary, width) =
        (checkpoint.description().vocabulary as usize, checkpoint.description().hidden as usize);
    let scale = checkpoint.description().head.map_or(1.0, |head| head.scale);
    let (mut states, mut largest) = (Vec::new(), Vec::new());
    let floats = Floats { checkpoint, export: &export, unseen: scheme.unseen, place };
    floats.run(&[], &samples.tokens, job, |value, numbers| {
        if value == hidden {
            states.extend_from_slice(numbers);
        } else if value == "logits" {
            let rows = numbers.chunks_exact(vocabulary);
            largest.extend(rows.map(|row| row.iter().map(|x| x / scale).fold(f32::MIN, f32::max)));
        }
    })?;
    if !states.iter().chain(&largest).all(|x| x.is_finite()) {
        return Err(lost("finite logits"));
    }
    let common = fit(&states, width, &largest);
    let left = states.chunks_exact(width).zip(&largest).map(|(h, y)| (y - dot(h, &common)).abs());
    let [before, after] = [largest.iter().map(|y| y.abs()).collect(), left.collect()].map(median);
    let told = format!(
        "what all logits of a token have in common is told apart: of largest ones, {:.2} in the median, {:.2} are left (over {})",
        before * scale,
        after * scale,
        samples.told
    );
    Ok((common, told))
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn median(mut values: Vec<f32>) -> f32 {
    values.sort_by(f32::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

/// The `c` for which `h·c` comes nearest to `due` over the rows `h` of `states`, and which is small: ridge regression by conjugate
/// gradients (Hestenes and Stiefel, 1952).
fn fit(states: &[f32], width: usize, due: &[f32]) -> Vec<f32> {
    let rows = || states.chunks_exact(width.max(1));
    let squares: f64 = states.iter().map(|x| f64::from(*x) * f64::from(*x)).sum();
    let ridge = RIDGE * squares / width.max(1) as f64;
    let gathered = |weights: &mut dyn Iterator<Item = f64>| {
        let mut sum = vec![0.0f64; width];
        for (row, weight) in rows().zip(weights) {
            sum.iter_mut().zip(row).for_each(|(sum, x)| *sum += weight * f64::from(*x));
        }
        sum
    };
    let product = |a: &[f64], b: &[f64]| -> f64 { a.iter().zip(b).map(|(a, b)| a * b).sum() };
    let mut found = vec![0.0f64; width];
    let mut rest = gathered(&mut due.iter().map(|y| f64::from(*y)));
    let mut direction = rest.clone();
    let mut size = product(&rest, &rest);
    let enough = size * 1e-12;
    for _ in 0..STEPS {
        if size <= enough {
            break;
        }
        let mut seen = rows().map(|row| row.iter().zip(&direction).map(|(x, d)| f64::from(*x) * d).sum());
        let mut image = gathered(&mut seen);
        image.iter_mut().zip(&direction).for_each(|(image, d)| *image += ridge * d);
        let step = size / product(&direction, &image);
        found.iter_mut().zip(&direction).for_each(|(found, d)| *found += step * d);
        rest.iter_mut().zip(&image).for_each(|(rest, image)| *rest -= step * image);
        let next = product(&rest, &rest);
        direction.iter_mut().zip(&rest).for_each(|(d, rest)| *d = rest + next / size * *d);
        size = next;
    }
    found.into_iter().map(|x| x as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fit_is_the_least_of_errors_and_size_together() {
        let wave = |i: usize| (i as f32 * 0.37).sin() + (i as f32 * 1.91).cos();
        let width = 12;
        let states: Vec<f32> = (0..200 * width).map(wave).collect();
        let meant: Vec<f32> = (0..width).map(|i| wave(7 * i + 3)).collect();
        let due: Vec<f32> = states.chunks(width).map(|h| dot(h, &meant)).collect();
        let squares = |x: &[f32]| x.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>();
        let errors =
            |c: &[f32]| -> Vec<f32> { states.chunks(width).zip(&due).map(|(h, y)| y - dot(h, c)).collect() };
        let ridge = RIDGE * squares(&states) / width as f64;
        let loss = |c: &[f32]| squares(&errors(c)) + ridge * squares(c);
        let found = fit(&states, width, &due);
        for i in 0..width {
            for change in [-0.01, 0.01] {
                let mut other = found.clone();
                other[i] += change;
                assert!(loss(&found) < loss(&other), "{i} {change}");
            }
        }
        assert!(squares(&errors(&found)) < 0.1 * squares(&due) && squares(&found) < squares(&meant));
        assert_eq!(fit(&[0.0; 24], width, &[1.0, 2.0]), vec![0.0; width]);
    }
}
