//! The trait a backend implements once to get every architecture.
//!
//! # The contract
//!
//! A [`Value`](Graph::Value) is a batch of activations: for every token of the step one row of `width` numbers. How a
//! backend lays it out (`[tokens, width]`, `[batch, time, width]`, a node of a graph) is its own business; the
//! builder never asks. Heads lie side by side in a row: head `h` of width `w` is columns `h·w .. (h+1)·w`.
//!
//! The step's inputs (token ids, positions, sequence ids) and the key/value cache are the backend's: the builder names
//! them by [`Index`] and by [`AttentionSpec::layer`]. So the same builder executes eagerly, one step per call,
//! and emits a graph, called once.
//!
//! Weights are named by [`WeightId`](crate::WeightId), never by a source's name; a backend asks the
//! checkpoint for their data. Sizes stand in the operands, so an emitter needs no weights at hand.
//!
//! Operations are as large as backends fuse. Two have default bodies that spell them out in smaller ones
//! ([`Graph::linears`], [`Graph::latent_attention`]): override them where a runtime has something better.

use serde::Serialize;

use crate::rope::Rope;
use crate::weight::WeightId;

/// What a backend does with an architecture.
pub trait Graph {
    /// Activations: one row per token. Cloning is cheap (a handle).
    type Value: Clone;
    /// Why an operation could not be done.
    type Error;

    /// The builder enters a part of the model: for names of emitted nodes, for logs.
    fn enter(&mut self, _scope: Scope) {}

    /// Rows of a table: `[tokens, table.width]`.
    ///
    /// # Errors
    /// The backend's.
    fn embedding(&mut self, table: &Table, index: Index) -> Result<Self::Value, Self::Error>;

    /// `x · Wᵀ + b`.
    ///
    /// # Errors
    /// The backend's.
    fn linear(&mut self, x: &Self::Value, linear: &Linear) -> Result<Self::Value, Self::Error>;

    /// Several [`Graph::linear`] of the same input, which a backend may do as one.
    ///
    /// # Errors
    /// The backend's.
    fn linears<const N: usize>(
        &mut self,
        x: &Self::Value,
        linears: &[Linear; N],
    ) -> Result<[Self::Value; N], Self::Error> {
        let values = linears.iter().map(|linear| self.linear(x, linear)).collect::<Result<Vec<_>, _>>()?;
        Ok(values.try_into().unwrap_or_else(|_| unreachable!("one value per operand")))
    }

    /// Root-mean-square or layer normalization of each row, or of each of [`Norm::groups`] equal parts of it.
    ///
    /// # Errors
    /// The backend's.
    fn norm(&mut self, x: &Self::Value, norm: &Norm) -> Result<Self::Value, Self::Error>;

    /// Rotates each of `heads` heads of each row by its token's position.
    ///
    /// # Errors
    /// The backend's.
    fn rope(&mut self, x: &Self::Value, rope: &RopeSpec<'_>) -> Result<Self::Value, Self::Error>;

    /// Softmax attention of this step's queries over the layer's cached and this step's keys and values.
    ///
    /// `q` is `[heads · key_width]`, `k` `[kv_heads · key_width]`, `v` `[kv_heads · value_width]`; the result
    /// `[heads · value_width]`. Query head `h` reads key/value head `h / (heads / kv_heads)`. The cache of
    /// `spec.layer` is the backend's to keep and, with a window, to trim.
    ///
    /// # Errors
    /// The backend's.
    fn attention(
        &mut self,
        q: &Self::Value,
        k: &Self::Value,
        v: &Self::Value,
        spec: &AttentionSpec,
    ) -> Result<Self::Value, Self::Error>;

    /// Attention over a compressed state. `q` holds per head its plain then its rotated part, `latent` is the normalized
    /// compressed state, `key_rotary` the rotated key part that all heads share.
    ///
    /// The default expands keys and values and calls [`Graph::attention`]; a backend may cache `latent` and
    /// `key_rotary` alone instead.
    ///
    /// # Errors
    /// The backend's.
    fn latent_attention(
        &mut self,
        q: &Self::Value,
        latent: &Self::Value,
        key_rotary: &Self::Value,
        spec: &LatentSpec,
    ) -> Result<Self::Value, Self::Error> {
        let plain = self.linear(latent, &spec.key_up)?;
        let k = self.join_heads(&plain, key_rotary, spec.attention.heads)?;
        let v = self.linear(latent, &spec.value_up)?;
        self.attention(q, &k, &v, &spec.attention)
    }

    /// Appends the whole of `shared` to each head of `per_head`: `[heads · (w + s)]` from `[heads · w]` and `[s]`.
    ///
    /// # Errors
    /// The backend's.
    fn join_heads(
        &mut self,
        per_head: &Self::Value,
        shared: &Self::Value,
        heads: u32,
    ) -> Result<Self::Value, Self::Error>;

    /// Element by element.
    ///
    /// # Errors
    /// The backend's.
    fn activate(&mut self, x: &Self::Value, activation: Activation) -> Result<Self::Value, Self::Error>;

    /// A gated unit's product of its two halves.
    ///
    /// # Errors
    /// The backend's.
    fn gated(
        &mut self,
        gate: &Self::Value,
        up: &Self::Value,
        gating: Gating,
    ) -> Result<Self::Value, Self::Error>;

    /// A whole mixture-of-experts block: routing and the chosen experts' weighted sum. A shared expert is built from
    /// the other operations.
    ///
    /// # Errors
    /// The backend's.
    fn experts(&mut self, x: &Self::Value, spec: &ExpertSpec) -> Result<Self::Value, Self::Error>;

    /// Element by element; both of the same width.
    ///
    /// # Errors
    /// The backend's.
    fn add(&mut self, a: &Self::Value, b: &Self::Value) -> Result<Self::Value, Self::Error>;

    /// Element by element; `b` may have width 1, then each row of `a` is multiplied by its one number.
    ///
    /// # Errors
    /// The backend's.
    fn mul(&mut self, a: &Self::Value, b: &Self::Value) -> Result<Self::Value, Self::Error>;

    /// Multiplies by a constant.
    ///
    /// # Errors
    /// The backend's.
    fn scale(&mut self, x: &Self::Value, factor: f32) -> Result<Self::Value, Self::Error>;

    /// `cap · tanh(x / cap)`.
    ///
    /// # Errors
    /// The backend's.
    fn softcap(&mut self, x: &Self::Value, cap: f32) -> Result<Self::Value, Self::Error>;

    /// Keeps the rows whose outputs the caller wants (usually the last of each sequence), before the final norm and
    /// the head. Graphs that give all outputs keep the default.
    ///
    /// # Errors
    /// The backend's.
    fn wanted(&mut self, x: &Self::Value) -> Result<Self::Value, Self::Error> {
        Ok(x.clone())
    }

    /// One row per sequence from one row per token.
    ///
    /// # Errors
    /// The backend's.
    fn pool(&mut self, x: &Self::Value, pooling: Pooling) -> Result<Self::Value, Self::Error>;
}

/// A part of the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Scope {
    /// From tokens to the first layer's input.
    Embedding,
    /// Attention of a layer, with its norms.
    Attention(u32),
    /// Feed-forward block of a layer, with its norms.
    FeedForward(u32),
    /// From the last layer's output to logits or embeddings.
    Head,
}

/// What chooses the rows of a [`Table`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Index {
    /// The step's token ids.
    Tokens,
    /// The step's positions plus a constant.
    Positions {
        /// Added to every position.
        offset: u32,
    },
    /// The step's segment ids; 0 where a caller gives none.
    TokenTypes,
}

/// An embedding table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Table {
    /// `[rows, width]`.
    pub weight: WeightId,
    /// How many entries.
    pub rows: u32,
    /// Width of each.
    pub width: u32,
}

/// A matrix product.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Linear {
    /// `[outputs, inputs]`.
    pub weight: WeightId,
    /// `[outputs]`.
    pub bias: Option<WeightId>,
    /// Width of what comes in.
    pub inputs: u32,
    /// Width of what comes out.
    pub outputs: u32,
}

/// How a norm measures a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum NormKind {
    /// `x / sqrt(mean(x²) + ε)`.
    Rms,
    /// `(x − mean) / sqrt(variance + ε)`.
    Layer,
}

/// A normalization. Weights are *effective*: where a source stores `w` and means `1 + w`, the checkpoint gives `1 + w`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Norm {
    /// How it measures.
    pub kind: NormKind,
    /// ε.
    pub epsilon: f32,
    /// Gain: `[width]`, or `[groups, width]` where [`Norm::per_group`]; `None` = 1.
    pub weight: Option<WeightId>,
    /// Added after the gain, of the gain's shape.
    pub bias: Option<WeightId>,
    /// Width of what is normalized together.
    pub width: u32,
    /// How many such parts a row has, side by side: 1, or the number of heads.
    pub groups: u32,
    /// Whether each group has its own gain.
    pub per_group: bool,
}

/// A rotation of heads.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct RopeSpec<'a> {
    /// Heads in a row.
    pub heads: u32,
    /// Width of one.
    pub head_width: u32,
    /// Where in each head the rotated numbers begin; there are [`Rope::width`] of them.
    pub start: u32,
    /// Its number in [`Description::ropes`](crate::Description::ropes): same number, same tables.
    pub index: usize,
    /// Which part is rotated and how fast.
    pub rope: &'a Rope,
}

/// An attention.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct AttentionSpec {
    /// Whose cache it uses.
    pub layer: u32,
    /// Query heads.
    pub heads: u32,
    /// Key/value heads; divides `heads`.
    pub kv_heads: u32,
    /// Width of a query's and a key's head.
    pub key_width: u32,
    /// Width of a value's head.
    pub value_width: u32,
    /// Multiplies `q·k`.
    pub scale: f32,
    /// `cap · tanh(scores / cap)` before masking.
    pub softcap: Option<f32>,
    /// How many positions a token sees, itself included; without causality, `window / 2` to each side and itself.
    pub window: Option<u32>,
    /// `[heads]`: an extra logit per head, which takes part in the softmax's sum alone.
    pub sinks: Option<WeightId>,
    /// Whether a token sees only its own and earlier positions.
    pub causal: bool,
}

/// An attention over a compressed state.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct LatentSpec {
    /// The expanded attention: `kv_heads = heads`, `key_width` = plain + rotated.
    pub attention: AttentionSpec,
    /// Latent → every head's plain key part.
    pub key_up: Linear,
    /// Latent → every head's value.
    pub value_up: Linear,
    /// Width of the compressed state.
    pub latent_width: u32,
    /// Width of the rotated key part.
    pub rotary_width: u32,
}

/// A function of one number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Activation {
    /// `x · sigmoid(x)`.
    Silu,
    /// `x · Φ(x)`, by the error function.
    Gelu,
    /// Its approximation by tanh.
    GeluTanh,
    /// `max(x, 0)`.
    Relu,
    /// `max(x, 0)²`.
    ReluSquared,
    /// `1 / (1 + e⁻ˣ)`.
    Sigmoid,
    /// Hyperbolic tangent.
    Tanh,
}

/// How the halves of a gated unit meet.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub enum Gating {
    /// `activation(gate) · up`.
    By(Activation),
    /// `(clamp(up, −limit, limit) + 1) · g · sigmoid(alpha · g)` with `g = min(gate, limit)`: gpt-oss.
    Clamped {
        /// Steepness.
        alpha: f32,
        /// Bound.
        limit: f32,
    },
}

/// How router logits become weights of experts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Scoring {
    /// Softmax over all experts, then the best are chosen.
    Softmax,
    /// The best are chosen, then softmax over them.
    SoftmaxOfChosen,
    /// Sigmoid of each.
    Sigmoid,
}

/// Experts chosen group by group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct ExpertGroups {
    /// Into how many equal groups the experts fall.
    pub count: u32,
    /// How many groups stay.
    pub used: u32,
    /// A group's score is the sum of this many of its best scores (1: its maximum).
    pub best: u32,
}

/// A routing rule: logits → experts and their weights.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Routing {
    /// How many experts there are.
    pub experts: u32,
    /// How many a token uses.
    pub used: u32,
    /// Logits to scores.
    pub scoring: Scoring,
    /// Whether the chosen scores are divided by their sum.
    pub normalize: bool,
    /// Multiplies the weights in the end.
    pub scale: f32,
    /// `[experts]`: added to scores while choosing (and scoring groups), not to the weights.
    pub correction: Option<WeightId>,
    /// Choice in two steps.
    pub groups: Option<ExpertGroups>,
}

/// A mixture of experts.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct ExpertSpec {
    /// Row → one logit per expert.
    pub router: Linear,
    /// Logits → experts and weights.
    pub routing: Routing,
    /// `[experts, width, hidden]` (biases `[experts, width]`); sizes are those of one expert.
    pub gate: Linear,
    /// As `gate`.
    pub up: Linear,
    /// `[experts, hidden, width]`.
    pub down: Linear,
    /// How gate and up meet.
    pub gating: Gating,
}

/// One row per sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Pooling {
    /// The mean over its tokens.
    Mean,
    /// Its first token.
    First,
    /// Its last token.
    Last,
}

impl Pooling {
    /// `<architecture>.pooling_type` in GGUF files.
    pub const fn gguf_id(self) -> u32 {
        match self {
            Pooling::Mean => 1,
            Pooling::First => 2,
            Pooling::Last => 3,
        }
    }

    /// The pooling of a GGUF file's number.
    pub fn from_gguf(id: u64) -> Option<Self> {
        [Pooling::Mean, Pooling::First, Pooling::Last]
            .into_iter()
            .find(|pooling| u64::from(pooling.gguf_id()) == id)
    }
}
