//! Mixtures of experts: routing, and the chosen experts' products gathered in one operation each.

use drophammer_models::graph::{ExpertGroups, ExpertSpec, Linear, Routing, Scoring};
use drophammer_sdk::Result;

use super::step::{Step, gate};
use super::weights::Matrix;
use crate::runtime::{Activation, Array, Binary, Type};

impl Step<'_> {
    /// The chosen experts' weighted sum, `[tokens, width]`.
    pub(super) fn mix(&self, x: &Array, spec: &ExpertSpec) -> Result<Array> {
        let [count, width] = [0, 1].map(|axis| x.dims().get(axis).copied().unwrap_or(0));
        let logits = self.product(x, &spec.router)?;
        let (chosen, weights) = self.route(&logits, &spec.routing)?;
        let rows = x.reshape(&[count, 1, 1, width])?;
        let up = self.stacked(&rows, &spec.up, &chosen)?;
        let product = gate(&self.stacked(&rows, &spec.gate, &chosen)?, &up, spec.gating)?;
        let down = self.stacked(&product, &spec.down, &chosen)?;
        let used = spec.routing.used as i32;
        let down = down.reshape(&[count, used, spec.down.outputs as i32])?;
        let weights = weights.astype(self.weights.kind)?.reshape(&[count, used, 1])?;
        down.mul(&weights)?.sum(1, false)
    }

    /// Each row times the matrices of its experts: `[tokens, used, 1, outputs]`.
    fn stacked(&self, x: &Array, linear: &Linear, chosen: &Array) -> Result<Array> {
        let y = match self.weights.matrix(linear.weight)? {
            Matrix::Plain { columns, .. } => x.gather_matmul(columns, chosen)?,
            Matrix::Packed(packed) => x.gather_quantized_matmul(packed, chosen)?,
        };
        let Some(bias) = linear.bias else { return Ok(y) };
        let dims = y.dims();
        y.add(&self.weights.vector(bias)?.take(chosen, 0)?.reshape(&dims)?)
    }

    /// Which experts each token uses, and how much, both `[tokens, used]`.
    fn route(&self, logits: &Array, routing: &Routing) -> Result<(Array, Array)> {
        let logits = logits.astype(Type::F32)?;
        let scores = match routing.scoring {
            Scoring::Softmax => logits.softmax()?,
            Scoring::Sigmoid => logits.activate(Activation::Sigmoid)?,
            Scoring::SoftmaxOfChosen => logits,
        };
        let mut ranks = scores.clone();
        if let Some(correction) = routing.correction {
            ranks = ranks.add(&self.weights.vector(correction)?.astype(Type::F32)?)?;
        }
        if let Some(groups) = routing.groups {
            ranks = of_best_groups(&ranks, groups, routing.experts as i32)?;
        }
        let chosen = ranks.largest(routing.used as i32)?;
        let mut weights = scores.take_along(&chosen, -1)?;
        if routing.scoring == Scoring::SoftmaxOfChosen {
            weights = weights.softmax()?;
        }
        if routing.normalize {
            let sum = weights.sum(1, true)?.clip(f32::MIN_POSITIVE, f32::INFINITY)?;
            weights = weights.binary(Binary::Divide, &sum)?;
        }
        if routing.scale != 1.0 {
            weights = weights.scale(routing.scale)?;
        }
        Ok((chosen, weights))
    }
}

/// Ranks with those outside the best groups out of the race.
fn of_best_groups(ranks: &Array, groups: ExpertGroups, experts: i32) -> Result<Array> {
    let (count, size) = (groups.count as i32, experts / groups.count.max(1) as i32);
    let tokens = ranks.dims()[0];
    let grouped = ranks.reshape(&[tokens, count, size])?;
    let best = grouped.sort()?.slice(2, size - groups.best as i32, size)?.sum(2, false)?;
    // The least score that a used group has.
    let least = best.sort()?.slice(1, count - groups.used as i32, count - groups.used as i32 + 1)?;
    let out = best.less(&least)?.reshape(&[tokens, count, 1])?;
    // `only_where` keeps where its condition holds: the race goes on where not less.
    let zero = grouped.scale(0.0)?;
    let penalty = zero.add_scalar(f32::MIN)?.only_where(&out, 0.0)?;
    grouped.add(&penalty)?.reshape(&[tokens, experts])
}
