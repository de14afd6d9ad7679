//! A graph that executes in float32, as plainly as it can be written: what every operation of [`Graph`] means.
//!
//! It runs one sequence of tokens at positions 0, 1, 2 … in one step, so it needs no cache.

#![allow(dead_code, clippy::unwrap_used)] // each test binary uses its part, and stops at the first surprise

use drophammer_models::graph::{
    Activation, AttentionSpec, ExpertSpec, Gating, Graph, Index, Linear, Norm, NormKind, Pooling, RopeSpec,
    Routing, Scoring, Table,
};
use drophammer_models::rope::RopeLayout;
use drophammer_models::{Checkpoint, Error, WeightId};

/// One row per token.
#[derive(Debug, Clone)]
pub(crate) struct Rows {
    pub width: usize,
    pub data: Vec<f32>,
}

impl Rows {
    fn new(width: usize, data: Vec<f32>) -> Self {
        assert_eq!(data.len() % width, 0);
        Self { width, data }
    }

    fn iter(&self) -> std::slice::ChunksExact<'_, f32> {
        self.data.chunks_exact(self.width)
    }

    fn map(&self, f: impl Fn(f32) -> f32) -> Self {
        Self::new(self.width, self.data.iter().map(|&x| f(x)).collect())
    }
}

/// Executes one sequence.
pub(crate) struct Reference<'a> {
    pub checkpoint: &'a Checkpoint,
    pub tokens: &'a [u32],
}

impl Reference<'_> {
    /// All of a weight, as floats.
    fn weight(&self, id: WeightId) -> Result<Vec<f32>, Error> {
        let values = self.checkpoint.weight(id)?.to_vec()?;
        assert!(values.iter().all(|value| value.is_finite()), "{id} holds what is no number");
        Ok(values)
    }

    fn apply(x: &[f32], weight: &[f32], bias: Option<&[f32]>) -> Vec<f32> {
        let products = weight.chunks_exact(x.len()).map(|row| dot(x, row));
        match bias {
            Some(bias) => products.zip(bias).map(|(product, bias)| product + bias).collect(),
            None => products.collect(),
        }
    }
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn softmax(x: &mut [f32]) {
    let most = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    for x in x.iter_mut() {
        *x = (*x - most).exp();
    }
    let sum: f32 = x.iter().sum();
    for x in x {
        *x /= sum;
    }
}

/// The error function to float32's precision: its series.
fn erf(x: f64) -> f64 {
    if x.abs() > 5.0 {
        return x.signum();
    }
    let (mut term, mut sum) = (x, x);
    for n in 1..200 {
        term *= -x * x / f64::from(n);
        sum += term / f64::from(2 * n + 1);
    }
    sum * 2.0 / std::f64::consts::PI.sqrt()
}

fn activate(activation: Activation, x: f32) -> f32 {
    match activation {
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::Gelu => (f64::from(x) * 0.5 * (1.0 + erf(f64::from(x) / 2f64.sqrt()))) as f32,
        Activation::GeluTanh => 0.5 * x * (1.0 + (0.797_884_6 * (x + 0.044_715 * x * x * x)).tanh()),
        Activation::Relu => x.max(0.0),
        Activation::ReluSquared => x.max(0.0).powi(2),
        Activation::Sigmoid => 1.0 / (1.0 + (-x).exp()),
        Activation::Tanh => x.tanh(),
    }
}

fn gate(gating: Gating, gate: f32, up: f32) -> f32 {
    match gating {
        Gating::By(activation) => activate(activation, gate) * up,
        Gating::Clamped { alpha, limit } => {
            let (gate, up) = (gate.min(limit), up.clamp(-limit, limit));
            (up + 1.0) * gate / (1.0 + (-alpha * gate).exp())
        }
    }
}

/// Router logits to (expert, weight).
fn route(routing: &Routing, logits: &[f32], correction: Option<&[f32]>) -> Vec<(usize, f32)> {
    let mut scores = logits.to_vec();
    match routing.scoring {
        Scoring::Softmax => softmax(&mut scores),
        Scoring::Sigmoid => scores.iter_mut().for_each(|x| *x = activate(Activation::Sigmoid, *x)),
        Scoring::SoftmaxOfChosen => {}
    }
    let mut choice = scores.clone();
    if let Some(correction) = correction {
        choice.iter_mut().zip(correction).for_each(|(score, correction)| *score += correction);
    }
    if let Some(groups) = routing.groups {
        let size = choice.len() / groups.count as usize;
        let group_score = |group: &[f32]| -> f32 {
            let mut sorted = group.to_vec();
            sorted.sort_by(|a, b| b.total_cmp(a));
            sorted.iter().take(groups.best as usize).sum()
        };
        let mut order: Vec<usize> = (0..groups.count as usize).collect();
        let group_scores: Vec<f32> = choice.chunks(size).map(group_score).collect();
        order.sort_by(|&a, &b| group_scores[b].total_cmp(&group_scores[a]));
        for &dropped in &order[groups.used as usize..] {
            choice[dropped * size..(dropped + 1) * size].fill(f32::NEG_INFINITY);
        }
    }
    let mut order: Vec<usize> = (0..choice.len()).collect();
    order.sort_by(|&a, &b| choice[b].total_cmp(&choice[a]));
    order.truncate(routing.used as usize);
    let mut weights: Vec<f32> = order.iter().map(|&expert| scores[expert]).collect();
    if routing.scoring == Scoring::SoftmaxOfChosen {
        softmax(&mut weights);
    }
    if routing.normalize {
        let sum: f32 = weights.iter().sum();
        for weight in &mut weights {
            *weight /= sum;
        }
    }
    order.into_iter().zip(weights.into_iter().map(|weight| weight * routing.scale)).collect()
}

impl Graph for Reference<'_> {
    type Value = Rows;
    type Error = Error;

    fn embedding(&mut self, table: &Table, index: Index) -> Result<Rows, Error> {
        let (weight, width) = (self.weight(table.weight)?, table.width as usize);
        let rows = self.tokens.iter().zip(0..).flat_map(|(&token, position)| {
            let row = match index {
                Index::Tokens => token,
                Index::Positions { offset } => position + offset,
                Index::TokenTypes => 0,
            };
            weight[row as usize * width..][..width].to_vec()
        });
        Ok(Rows::new(width, rows.collect()))
    }

    fn linear(&mut self, x: &Rows, linear: &Linear) -> Result<Rows, Error> {
        assert_eq!(x.width, linear.inputs as usize, "{}", linear.weight);
        let weight = self.weight(linear.weight)?;
        let bias = linear.bias.map(|bias| self.weight(bias)).transpose()?;
        let rows = x.iter().flat_map(|x| Self::apply(x, &weight, bias.as_deref())).collect();
        Ok(Rows::new(linear.outputs as usize, rows))
    }

    fn norm(&mut self, x: &Rows, norm: &Norm) -> Result<Rows, Error> {
        let (width, groups) = (norm.width as usize, norm.groups as usize);
        assert_eq!(x.width, width * groups);
        let weight = norm.weight.map(|weight| self.weight(weight)).transpose()?;
        let bias = norm.bias.map(|bias| self.weight(bias)).transpose()?;
        let mut y = x.clone();
        for (part, x) in y.data.chunks_exact_mut(width).enumerate() {
            let mean = match norm.kind {
                NormKind::Layer => x.iter().sum::<f32>() / width as f32,
                NormKind::Rms => 0.0,
            };
            for x in x.iter_mut() {
                *x -= mean;
            }
            let square = dot(x, x) / width as f32;
            let inverse = 1.0 / (square + norm.epsilon).sqrt();
            let own = if norm.per_group { part % groups * width } else { 0 };
            for (i, x) in x.iter_mut().enumerate() {
                *x *= inverse * weight.as_ref().map_or(1.0, |weight| weight[own + i]);
                *x += bias.as_ref().map_or(0.0, |bias| bias[own + i]);
            }
        }
        Ok(y)
    }

    fn rope(&mut self, x: &Rows, spec: &RopeSpec<'_>) -> Result<Rows, Error> {
        let table = spec.rope.table(self.tokens.len() as u32);
        let (head, start, half) =
            (spec.head_width as usize, spec.start as usize, spec.rope.width as usize / 2);
        assert_eq!((x.width, table.frequencies.len()), (head * spec.heads as usize, half));
        let mut y = x.clone();
        for (position, row) in y.data.chunks_exact_mut(x.width).enumerate() {
            for head in row.chunks_exact_mut(head) {
                for (i, frequency) in table.frequencies.iter().enumerate() {
                    let (first, second) = match spec.rope.layout {
                        RopeLayout::Halves => (start + i, start + i + half),
                        RopeLayout::Pairs => (start + 2 * i, start + 2 * i + 1),
                    };
                    let (sin, cos) = (position as f32 * frequency).sin_cos();
                    let (a, b) = (head[first], head[second]);
                    head[first] = (a * cos - b * sin) * table.magnitude;
                    head[second] = (b * cos + a * sin) * table.magnitude;
                }
            }
        }
        Ok(y)
    }

    fn attention(&mut self, q: &Rows, k: &Rows, v: &Rows, spec: &AttentionSpec) -> Result<Rows, Error> {
        let [heads, kv_heads] = [spec.heads, spec.kv_heads].map(|x| x as usize);
        let [key, value] = [spec.key_width, spec.value_width].map(|x| x as usize);
        assert_eq!([q.width, k.width, v.width], [heads * key, kv_heads * key, kv_heads * value]);
        let sinks = spec.sinks.map(|sinks| self.weight(sinks)).transpose()?;
        let sees = |at: usize, other: usize| match (spec.causal, spec.window.map(|window| window as usize)) {
            (true, window) => other <= at && window.is_none_or(|window| at - other < window),
            (false, window) => window.is_none_or(|window| at.abs_diff(other) <= window / 2),
        };
        let mut y = vec![0.0; self.tokens.len() * heads * value];
        for at in 0..self.tokens.len() {
            for head in 0..heads {
                let own = head / (heads / kv_heads);
                let query = &q.data[at * q.width + head * key..][..key];
                let seen: Vec<usize> = (0..self.tokens.len()).filter(|&other| sees(at, other)).collect();
                let mut scores: Vec<f32> = seen
                    .iter()
                    .map(|other| {
                        let score = dot(query, &k.data[other * k.width + own * key..][..key]) * spec.scale;
                        spec.softcap.map_or(score, |cap| cap * (score / cap).tanh())
                    })
                    .collect();
                scores.extend(sinks.as_ref().map(|sinks| sinks[head]));
                softmax(&mut scores);
                let y = &mut y[(at * heads + head) * value..][..value];
                for (other, score) in seen.iter().zip(&scores) {
                    let values = &v.data[other * v.width + own * value..][..value];
                    y.iter_mut().zip(values).for_each(|(y, value)| *y += score * value);
                }
            }
        }
        Ok(Rows::new(heads * value, y))
    }

    fn join_heads(&mut self, per_head: &Rows, shared: &Rows, heads: u32) -> Result<Rows, Error> {
        let width = per_head.width / heads as usize;
        let mut y = Vec::new();
        for (row, shared) in per_head.iter().zip(shared.iter()) {
            for head in row.chunks_exact(width) {
                y.extend_from_slice(head);
                y.extend_from_slice(shared);
            }
        }
        Ok(Rows::new(heads as usize * (width + shared.width), y))
    }

    fn activate(&mut self, x: &Rows, activation: Activation) -> Result<Rows, Error> {
        Ok(x.map(|x| activate(activation, x)))
    }

    fn gated(&mut self, gate_half: &Rows, up: &Rows, gating: Gating) -> Result<Rows, Error> {
        let data = gate_half.data.iter().zip(&up.data).map(|(&g, &u)| gate(gating, g, u)).collect();
        Ok(Rows::new(up.width, data))
    }

    fn experts(&mut self, x: &Rows, spec: &ExpertSpec) -> Result<Rows, Error> {
        let logits = self.linear(x, &spec.router)?;
        let correction = spec.routing.correction.map(|correction| self.weight(correction)).transpose()?;
        let stacks = [&spec.gate, &spec.up, &spec.down];
        let [gates, ups, downs] = stacks.map(|linear| {
            (self.weight(linear.weight).unwrap(), linear.bias.map(|bias| self.weight(bias).unwrap()), *linear)
        });
        let apply =
            |(weight, bias, linear): &(Vec<f32>, Option<Vec<f32>>, Linear), expert: usize, x: &[f32]| {
                let (rows, size) = (linear.outputs as usize, (linear.outputs * linear.inputs) as usize);
                let bias = bias.as_ref().map(|bias| &bias[expert * rows..][..rows]);
                Self::apply(x, &weight[expert * size..][..size], bias)
            };
        let mut y = vec![0.0; x.data.len()];
        for ((x, logits), y) in x.iter().zip(logits.iter()).zip(y.chunks_exact_mut(x.width)) {
            for (expert, share) in route(&spec.routing, logits, correction.as_deref()) {
                let (gates, ups) = (apply(&gates, expert, x), apply(&ups, expert, x));
                let inner: Vec<f32> =
                    gates.iter().zip(&ups).map(|(&g, &u)| gate(spec.gating, g, u)).collect();
                let out = apply(&downs, expert, &inner);
                y.iter_mut().zip(out).for_each(|(y, out)| *y += share * out);
            }
        }
        Ok(Rows::new(x.width, y))
    }

    fn add(&mut self, a: &Rows, b: &Rows) -> Result<Rows, Error> {
        assert_eq!(a.width, b.width);
        Ok(Rows::new(a.width, a.data.iter().zip(&b.data).map(|(a, b)| a + b).collect()))
    }

    fn mul(&mut self, a: &Rows, b: &Rows) -> Result<Rows, Error> {
        assert!(b.width == a.width || b.width == 1);
        let each = a.width / b.width;
        Ok(Rows::new(a.width, a.data.iter().enumerate().map(|(i, a)| a * b.data[i / each]).collect()))
    }

    fn scale(&mut self, x: &Rows, factor: f32) -> Result<Rows, Error> {
        Ok(x.map(|x| x * factor))
    }

    fn softcap(&mut self, x: &Rows, cap: f32) -> Result<Rows, Error> {
        Ok(x.map(|x| cap * (x / cap).tanh()))
    }

    fn pool(&mut self, x: &Rows, pooling: Pooling) -> Result<Rows, Error> {
        let tokens = x.iter().len();
        let row = match pooling {
            Pooling::First => x.data[..x.width].to_vec(),
            Pooling::Last => x.data[(tokens - 1) * x.width..].to_vec(),
            Pooling::Mean => {
                (0..x.width).map(|i| x.iter().map(|row| row[i]).sum::<f32>() / tokens as f32).collect()
            }
        };
        Ok(Rows::new(x.width, row))
    }
}
