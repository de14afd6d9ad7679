//! The `Graph` of one step: some tokens of some sequences, every operation lazy.

use drophammer_models::WeightId;
use drophammer_models::description::Description;
use drophammer_models::graph::{
    self, AttentionSpec, ExpertSpec, Gating, Graph, Index, Linear, Norm, NormKind, Pooling, RopeSpec, Table,
};
use drophammer_sdk::{BackendError, ErrorCode, Result};

use super::cache::{Kept, Sequence};
use super::rotation::Rotation;
use super::weights::{Matrix, Weights};
use crate::runtime::{Activation, Array, Arrays, Type};

/// A model's rotations, by their number, as far as they were needed.
pub(crate) type Rotations = Vec<Option<Rotation>>;

/// Tokens of one sequence in a step.
pub(crate) struct Segment {
    pub(crate) sequence: u32,
    /// Their rows, ascending.
    pub(crate) rows: Vec<i32>,
    pub(crate) positions: Vec<u32>,
}

/// Everything of a step that is not a value.
pub(crate) struct Step<'a> {
    pub(crate) arrays: Arrays,
    pub(crate) weights: &'a Weights,
    pub(crate) rotations: &'a mut Rotations,
    pub(crate) sequences: &'a mut [Sequence],
    pub(crate) segments: Vec<Segment>,
    pub(crate) kept: Kept,
    pub(crate) encoder: bool,
    /// Whether computing begins before all is built.
    pub(crate) ahead: bool,
    /// Longest sequence after this step.
    pub(crate) length: u32,
    tokens: Array,
    positions: Vec<u32>,
    /// The position of the first row, where rows are consecutive positions.
    consecutive: Option<i32>,
    position_array: Option<Array>,
    /// Cosines and sines of this step's positions, by rotation: a processor's `rope` makes them anew for every layer.
    waves: Vec<Option<[Array; 2]>>,
    /// Rows whose outputs are wanted; `None` = all.
    outputs: Option<Vec<i32>>,
    /// Which keys a sequence's queries see, by segment and window.
    pub(super) masks: Vec<(usize, Option<u32>, Array)>,
}

/// Activations, `[tokens, width]`, or as `[1, heads, tokens, width of a head]`.
#[derive(Clone)]
pub(crate) struct Value {
    array: Array,
    heads: Option<(i32, i32)>,
}

/// A step's tokens, as they come in.
pub(crate) struct Tokens<'a> {
    pub(crate) ids: &'a [u32],
    pub(crate) positions: &'a [u32],
    pub(crate) sequences: &'a [u32],
    pub(crate) outputs: &'a [u32],
}

/// What a step works on.
pub(crate) struct Parts<'a> {
    pub(crate) weights: &'a Weights,
    pub(crate) rotations: &'a mut Rotations,
    pub(crate) sequences: &'a mut [Sequence],
    pub(crate) kept: Kept,
    pub(crate) encoder: bool,
    pub(crate) ahead: bool,
}

impl<'a> Step<'a> {
    pub(crate) fn new(arrays: Arrays, tokens: &Tokens<'_>, parts: Parts<'a>) -> Result<Self> {
        let count = tokens.ids.len();
        let mut segments: Vec<Segment> = Vec::new();
        for (row, (&sequence, &position)) in (0..).zip(tokens.sequences.iter().zip(tokens.positions)) {
            match segments.iter_mut().find(|segment| segment.sequence == sequence) {
                Some(segment) => {
                    segment.rows.push(row);
                    segment.positions.push(position);
                }
                None => segments.push(Segment { sequence, rows: vec![row], positions: vec![position] }),
            }
        }
        let ids: Vec<i32> = tokens.ids.iter().map(|id| *id as i32).collect();
        let all = tokens.outputs.len() == count;
        Ok(Self {
            arrays,
            weights: parts.weights,
            rotations: parts.rotations,
            sequences: parts.sequences,
            segments,
            kept: parts.kept,
            encoder: parts.encoder,
            ahead: parts.ahead,
            length: tokens.positions.iter().max().map_or(0, |last| last + 1),
            tokens: arrays.integers(&ids, &[count as i32])?,
            positions: tokens.positions.to_vec(),
            consecutive: run(tokens.positions),
            position_array: None,
            waves: Vec::new(),
            outputs: (!all).then(|| tokens.outputs.iter().map(|row| *row as i32).collect()),
            masks: Vec::new(),
        })
    }

    pub(crate) fn count(&self) -> i32 {
        self.positions.len() as i32
    }

    /// Forgets what sequences already hold of the positions to come.
    pub(crate) fn expect(&mut self) -> Result<()> {
        for segment in &self.segments {
            let (first, last) = (segment.positions.iter().min(), segment.positions.iter().max());
            if let (Some(first), Some(last)) = (first, last) {
                self.sequences[segment.sequence as usize].expect(self.arrays, *first, *last)?;
            }
        }
        Ok(())
    }

    /// Its tokens by sequence; values and masks are let go.
    pub(crate) fn into_segments(self) -> Vec<Segment> {
        self.segments
    }

    /// Builds the model's operations for this step.
    pub(crate) fn build(&mut self, description: &Description) -> Result<Array> {
        let value = if self.encoder {
            drophammer_models::build_encoder(self, description)?
        } else {
            drophammer_models::build_decoder(self, description)?
        };
        self.rows(&value)
    }

    /// A value as `[tokens, width]`.
    pub(super) fn rows(&self, value: &Value) -> Result<Array> {
        match value.heads {
            None => Ok(value.array.clone()),
            Some((heads, width)) => {
                value.array.transpose(&[0, 2, 1, 3])?.reshape(&[self.count(), heads * width])
            }
        }
    }

    /// A value as `[1, heads, tokens, width of a head]`.
    pub(super) fn heads(&self, value: &Value, heads: u32, width: u32) -> Result<Array> {
        let (heads, width) = (heads as i32, width as i32);
        if value.heads == Some((heads, width)) {
            return Ok(value.array.clone());
        }
        self.rows(value)?.reshape(&[1, self.count(), heads, width])?.transpose(&[0, 2, 1, 3])
    }

    pub(super) fn of_heads(array: Array, heads: u32, width: u32) -> Value {
        Value { array, heads: Some((heads as i32, width as i32)) }
    }

    /// The step's positions plus a constant, `[tokens]`.
    fn positions(&mut self, offset: u32) -> Result<Array> {
        let shifted: Vec<i32> = self.positions.iter().map(|position| (position + offset) as i32).collect();
        self.arrays.integers(&shifted, &[self.count()])
    }

    pub(super) fn product(&self, x: &Array, linear: &Linear) -> Result<Array> {
        let bias = linear.bias.map(|bias| self.weights.vector(bias)).transpose()?;
        let mut y = match (self.weights.matrix(linear.weight)?, bias) {
            (Matrix::Plain { columns, .. }, Some(bias)) => x.matmul_add(columns, bias)?,
            (Matrix::Plain { columns, .. }, None) => x.matmul(columns)?,
            (Matrix::Packed(packed), Some(bias)) => x.quantized_matmul(packed, true)?.add(bias)?,
            (Matrix::Packed(packed), None) => x.quantized_matmul(packed, true)?,
        };
        for thin in self.weights.adapters(linear.weight) {
            y = y.add(&x.matmul(&thin.down)?.matmul(&thin.up)?)?;
        }
        Ok(y)
    }

    fn vector(&self, id: Option<WeightId>) -> Result<Option<&Array>> {
        id.map(|id| self.weights.vector(id)).transpose()
    }
}

/// The first of consecutive numbers.
fn run(positions: &[u32]) -> Option<i32> {
    let first = *positions.first()?;
    (first..).zip(positions).all(|(due, position)| due == *position).then_some(first as i32)
}

impl From<Array> for Value {
    fn from(array: Array) -> Self {
        Self { array, heads: None }
    }
}

/// libmlx's function of one number.
pub(super) fn activation(activation: graph::Activation) -> Activation {
    match activation {
        graph::Activation::Silu => Activation::Silu,
        graph::Activation::Gelu => Activation::Gelu,
        graph::Activation::GeluTanh => Activation::GeluTanh,
        graph::Activation::Relu => Activation::Relu,
        graph::Activation::ReluSquared => Activation::ReluSquared,
        graph::Activation::Sigmoid => Activation::Sigmoid,
        graph::Activation::Tanh => Activation::Tanh,
    }
}

/// The product of a gated unit's halves.
pub(super) fn gate(gate: &Array, up: &Array, gating: Gating) -> Result<Array> {
    match gating {
        Gating::By(what) => gate.activate(activation(what))?.mul(up),
        Gating::Clamped { alpha, limit } => {
            let g = gate.clip(f32::NEG_INFINITY, limit)?;
            let up = up.clip(-limit, limit)?.add_scalar(1.0)?;
            let sigmoid = g.scale(alpha)?.activate(Activation::Sigmoid)?;
            g.mul(&sigmoid)?.mul(&up)
        }
    }
}

/// `cap · tanh(x / cap)`.
pub(super) fn softcap(x: &Array, cap: f32) -> Result<Array> {
    x.scale(1.0 / cap)?.activate(Activation::Tanh)?.scale(cap)
}

impl Graph for Step<'_> {
    type Value = Value;
    type Error = BackendError;

    fn embedding(&mut self, table: &Table, index: Index) -> Result<Value> {
        let indices = match index {
            Index::Tokens => self.tokens.clone(),
            Index::Positions { offset } => self.positions(offset)?,
            Index::TokenTypes => self.arrays.zeros(&[self.count()], Type::I32)?,
        };
        Ok(match self.weights.matrix(table.weight)? {
            Matrix::Plain { rows, .. } => rows.take(&indices, 0)?,
            Matrix::Packed(packed) => {
                packed.each(|part| part.take(&indices, 0))?.dequantize(self.weights.kind)?
            }
        }
        .into())
    }

    fn linear(&mut self, x: &Value, linear: &Linear) -> Result<Value> {
        Ok(self.product(&self.rows(x)?, linear)?.into())
    }

    fn linears<const N: usize>(&mut self, x: &Value, linears: &[Linear; N]) -> Result<[Value; N]> {
        let x = self.rows(x)?;
        let values: Vec<Value> =
            linears.iter().map(|linear| Ok(self.product(&x, linear)?.into())).collect::<Result<_>>()?;
        values.try_into().map_err(|_| BackendError::new(ErrorCode::Failed, "one value per operand"))
    }

    fn norm(&mut self, x: &Value, norm: &Norm) -> Result<Value> {
        let x = self.rows(x)?;
        let count = x.dims().first().copied().unwrap_or(0);
        let (groups, width) = (norm.groups as i32, norm.width as i32);
        let grouped = groups > 1;
        let parts = if grouped { x.reshape(&[count, groups, width])? } else { x };
        let (weight, bias) = (self.vector(norm.weight)?, self.vector(norm.bias)?);
        // A gain for each group is applied after a norm without any.
        let (inner_weight, inner_bias) = if norm.per_group { (None, None) } else { (weight, bias) };
        let mut y = match norm.kind {
            NormKind::Layer => parts.layer_norm(inner_weight, inner_bias, norm.epsilon)?,
            NormKind::Rms => {
                let y = parts.rms_norm(inner_weight, norm.epsilon)?;
                match inner_bias {
                    Some(bias) => y.add(bias)?,
                    None => y,
                }
            }
        };
        if norm.per_group {
            let shaped = |vector: &Array| vector.reshape(&[groups, width]);
            if let Some(weight) = weight {
                y = y.mul(&shaped(weight)?)?;
            }
            if let Some(bias) = bias {
                y = y.add(&shaped(bias)?)?;
            }
        }
        Ok(if grouped { y.reshape(&[count, groups * width])? } else { y }.into())
    }

    fn rope(&mut self, x: &Value, spec: &RopeSpec<'_>) -> Result<Value> {
        let x = self.heads(x, spec.heads, spec.head_width)?;
        if self.rotations.len() <= spec.index {
            self.rotations.resize_with(spec.index + 1, || None);
        }
        let fits = self.rotations[spec.index].as_ref().is_some_and(|rotation| rotation.fits(self.length));
        if !fits {
            self.rotations[spec.index] = Some(Rotation::new(self.arrays, spec.rope, self.length)?);
        }
        if self.consecutive.is_none() && self.position_array.is_none() {
            self.position_array = Some(self.positions(0)?);
        }
        let Some(rotation) = &self.rotations[spec.index] else {
            return Err(BackendError::new(ErrorCode::Failed, "a rotation was lost"));
        };
        let waves = if self.ahead && !rotation.pairs {
            if self.waves.len() <= spec.index {
                self.waves.resize(spec.index + 1, None);
            }
            if self.waves[spec.index].is_none() {
                let waves = rotation.waves(self.arrays, &self.positions, self.weights.kind)?;
                self.waves[spec.index] = Some(waves);
            }
            self.waves[spec.index].as_ref()
        } else {
            None
        };
        let (start, width, all) = (spec.start as i32, rotation.width, spec.head_width as i32);
        // Only what lies before the rotated numbers is cut off: libmlx leaves those behind them alone.
        let turned = if start > 0 { x.slice(3, start, all)? } else { x.clone() };
        let turned = magnify(self.arrays, &turned, rotation, all - start)?;
        let speed = rotation.speed();
        let turned = match (waves, self.consecutive, &self.position_array) {
            (Some(waves), ..) => turned.rotate(waves, width)?,
            (None, Some(first), _) => turned.rope(width, rotation.pairs, speed, first, None)?,
            // One token after another as a batch, each with its own position.
            (None, None, positions) => turned
                .transpose(&[2, 1, 0, 3])?
                .rope(width, rotation.pairs, speed, 0, positions.as_ref())?
                .transpose(&[2, 1, 0, 3])?,
        };
        let whole =
            if start > 0 { self.arrays.concatenate(&[x.slice(3, 0, start)?, turned], 3)? } else { turned };
        Ok(Self::of_heads(whole, spec.heads, spec.head_width))
    }

    fn attention(&mut self, q: &Value, k: &Value, v: &Value, spec: &AttentionSpec) -> Result<Value> {
        self.attend(q, k, v, spec)
    }

    fn join_heads(&mut self, per_head: &Value, shared: &Value, heads: u32) -> Result<Value> {
        let count = self.count();
        let own = self.rows(per_head)?;
        let width = own.dims().get(1).copied().unwrap_or(0) / heads.max(1) as i32;
        let shared = self.rows(shared)?;
        let extra = shared.dims().get(1).copied().unwrap_or(0);
        let own = self.heads(per_head, heads, width as u32)?;
        let shared = shared.reshape(&[1, 1, count, extra])?;
        let copies = vec![shared; heads as usize];
        let shared = self.arrays.concatenate(&copies, 1)?;
        Ok(Self::of_heads(self.arrays.concatenate(&[own, shared], 3)?, heads, (width + extra) as u32))
    }

    fn activate(&mut self, x: &Value, what: graph::Activation) -> Result<Value> {
        Ok(self.rows(x)?.activate(activation(what))?.into())
    }

    fn gated(&mut self, g: &Value, up: &Value, gating: Gating) -> Result<Value> {
        Ok(gate(&self.rows(g)?, &self.rows(up)?, gating)?.into())
    }

    fn experts(&mut self, x: &Value, spec: &ExpertSpec) -> Result<Value> {
        Ok(self.mix(&self.rows(x)?, spec)?.into())
    }

    fn add(&mut self, a: &Value, b: &Value) -> Result<Value> {
        Ok(self.rows(a)?.add(&self.rows(b)?)?.into())
    }

    fn mul(&mut self, a: &Value, b: &Value) -> Result<Value> {
        Ok(self.rows(a)?.mul(&self.rows(b)?)?.into())
    }

    fn scale(&mut self, x: &Value, factor: f32) -> Result<Value> {
        Ok(self.rows(x)?.scale(factor)?.into())
    }

    fn softcap(&mut self, x: &Value, cap: f32) -> Result<Value> {
        Ok(softcap(&self.rows(x)?, cap)?.into())
    }

    fn wanted(&mut self, x: &Value) -> Result<Value> {
        let x = self.rows(x)?;
        Ok(match self.outputs.as_deref() {
            None => x,
            // Nothing is read then; one row keeps shapes sensible.
            Some([]) => x.slice(0, 0, 1)?,
            Some([one]) => x.slice(0, *one, one + 1)?,
            Some(rows) => x.take(&self.arrays.integers(rows, &[rows.len() as i32])?, 0)?,
        }
        .into())
    }

    fn pool(&mut self, _: &Value, _: Pooling) -> Result<Value> {
        Err(BackendError::new(ErrorCode::UnsupportedInput, "pooling is the host's"))
    }
}

/// Multiplies the rotated numbers by what sines and cosines are multiplied by.
fn magnify(arrays: Arrays, x: &Array, rotation: &Rotation, width: i32) -> Result<Array> {
    if rotation.magnitude == 1.0 {
        return Ok(x.clone());
    }
    if rotation.width == width {
        return x.scale(rotation.magnitude);
    }
    let turned = x.slice(3, 0, rotation.width)?.scale(rotation.magnitude)?;
    arrays.concatenate(&[turned, x.slice(3, rotation.width, width)?], 3)
}
