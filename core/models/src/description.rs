//! An architecture as data: everything that distinguishes one decoder or encoder from another.
//!
//! A family's file turns a configuration into a [`Description`]; the [builder](crate::builder) turns a description into
//! [`Graph`](crate::Graph) operations. Nothing else in the project knows how a model is built.

use serde::Serialize;

use crate::config::bad;
use crate::error::Result;

use crate::graph::{Activation, ExpertGroups, Gating, NormKind, Pooling, Scoring};
use crate::rope::Rope;

/// What a model computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ModelKind {
    /// Tokens to the next token's logits, with a key/value cache.
    Decoder,
    /// Tokens to hidden states, all tokens seeing each other.
    Encoder,
}

/// A model, without its weights.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Description {
    /// The family's name, such as `llama`.
    pub family: &'static str,
    /// Decoder or encoder.
    pub kind: ModelKind,
    /// Rows of the token embedding.
    pub vocabulary: u32,
    /// Width of the residual stream.
    pub hidden: u32,
    /// Longest sequence it was made for, in tokens.
    pub context: u32,
    /// From tokens to the first layer.
    pub embedding: Embedding,
    /// Rotations that layers refer to by number.
    pub ropes: Vec<Rope>,
    /// The layers, first to last.
    pub layers: Vec<Layer>,
    /// The norm after the last layer.
    pub final_norm: Option<NormRule>,
    /// Hidden state to logits; `None` for encoders.
    pub head: Option<Head>,
    /// How an encoder's hidden states become one embedding.
    pub pooling: Option<Pooling>,
}

/// From tokens to the first layer.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Embedding {
    /// Multiplies token rows.
    pub scale: f32,
    /// Learned positions.
    pub positions: Option<LearnedPositions>,
    /// Rows of the segment table, 0 where there is none.
    pub token_types: u32,
    /// Applied to the sum.
    pub norm: Option<NormRule>,
}

/// A table of positions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct LearnedPositions {
    /// Its rows.
    pub rows: u32,
    /// The row of position 0.
    pub offset: u32,
}

/// A norm, without its place.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct NormRule {
    /// How it measures.
    pub kind: NormKind,
    /// ε.
    pub epsilon: f32,
    /// Whether it has a gain.
    pub weight: bool,
    /// Whether it adds a bias.
    pub bias: bool,
}

impl NormRule {
    /// Root mean square with a gain.
    pub const fn rms(epsilon: f32) -> Self {
        Self { kind: NormKind::Rms, epsilon, weight: true, bias: false }
    }

    /// Layer normalization with a gain, and perhaps a bias.
    pub const fn layer(epsilon: f32, bias: bool) -> Self {
        Self { kind: NormKind::Layer, epsilon, weight: true, bias }
    }
}

/// One layer.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Layer {
    /// How its blocks and norms are wired.
    pub wiring: Wiring,
    /// Its norms.
    pub norms: LayerNorms,
    /// Multiplies each block's output before it is added to the residual stream.
    pub residual_scale: f32,
    /// The first block.
    pub attention: Attention,
    /// The second.
    pub feed_forward: FeedForward,
}

/// How a layer's blocks are joined.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Wiring {
    /// `h += attention(norm(h)); h += feed_forward(norm(h))`.
    Sequential,
    /// `h += attention(norm(h)) + feed_forward(norm(h))`; without a norm of its own the second reads the first's.
    Parallel,
    /// `h = norm(h + attention(h)); h = norm(h + feed_forward(h))`: BERT.
    PostNorm,
}

/// A layer's norms, each where it exists.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct LayerNorms {
    /// What attention reads.
    pub attention: Option<NormRule>,
    /// Attention's output; in [`Wiring::PostNorm`] the sum with the residual.
    pub attention_output: Option<NormRule>,
    /// What the feed-forward block reads.
    pub feed_forward: Option<NormRule>,
    /// The feed-forward block's output; in [`Wiring::PostNorm`] the sum with the residual.
    pub feed_forward_output: Option<NormRule>,
}

/// An attention block.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Attention {
    /// Query heads.
    pub heads: u32,
    /// Key/value heads; divides `heads`.
    pub kv_heads: u32,
    /// Width of a query's and a key's head.
    pub key_width: u32,
    /// Width of a value's head.
    pub value_width: u32,
    /// Whether queries, keys and values have a bias.
    pub input_bias: bool,
    /// Whether the output has one.
    pub output_bias: bool,
    /// Normalization of queries and keys.
    pub query_key_norm: Option<QueryKeyNorm>,
    /// The number of its rotation in [`Description::ropes`]; `None` rotates nothing.
    pub rope: Option<usize>,
    /// Multiplies `q·k`.
    pub scale: f32,
    /// Bounds scores by tanh.
    pub softcap: Option<f32>,
    /// How many positions a token sees, itself included; `None` = all. Encoders: half to each side.
    pub window: Option<u32>,
    /// Whether heads have an extra logit.
    pub sinks: bool,
    /// Keys and values come from a compressed state.
    pub latent: Option<Latent>,
}

/// Normalization of queries and keys.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct QueryKeyNorm {
    /// Which norm.
    pub rule: NormRule,
    /// What is normalized together.
    pub span: NormSpan,
    /// Whether it comes after the rotation rather than before.
    pub after_rotation: bool,
}

/// What a query/key norm normalizes together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum NormSpan {
    /// Each head, all with the same gain.
    Head,
    /// Each head with its own gain.
    EachHead,
    /// All heads at once.
    Whole,
}

/// Sizes of latent attention (DeepSeek-V2, 2024).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Latent {
    /// Queries are compressed to this width first.
    pub query_rank: Option<u32>,
    /// Width of the compressed key/value state.
    pub rank: u32,
    /// Width of a key head's plain part; the rotated part is the rest of [`Attention::key_width`].
    pub plain_width: u32,
}

/// A feed-forward block.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub enum FeedForward {
    /// `down(gate ⊙ up)`.
    Gated {
        /// Inner width.
        width: u32,
        /// How gate and up meet.
        gating: Gating,
        /// Whether all three matrices have a bias.
        bias: bool,
    },
    /// `down(activation(up))`.
    Plain {
        /// Inner width.
        width: u32,
        /// Between the two.
        activation: Activation,
        /// Whether both matrices have a bias.
        bias: bool,
    },
    /// Several, of which each token uses a few.
    Experts(Experts),
}

/// A mixture of experts.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Experts {
    /// How many.
    pub count: u32,
    /// How many a token uses.
    pub used: u32,
    /// Inner width of one.
    pub width: u32,
    /// How gate and up meet.
    pub gating: Gating,
    /// Router logits to scores.
    pub scoring: Scoring,
    /// Whether chosen scores are divided by their sum.
    pub normalize: bool,
    /// Multiplies their weights.
    pub scale: f32,
    /// Whether scores are corrected while choosing.
    pub correction: bool,
    /// Choice in two steps.
    pub groups: Option<ExpertGroups>,
    /// Whether router and experts have biases.
    pub bias: bool,
    /// The expert that every token uses.
    pub shared: Option<SharedExpert>,
}

/// The expert that every token uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct SharedExpert {
    /// Inner width.
    pub width: u32,
    /// Whether a token says how much of it to take.
    pub scored: bool,
}

/// Hidden state to logits.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Head {
    /// Whether it is the token embedding.
    pub tied: bool,
    /// Whether it has a bias.
    pub bias: bool,
    /// Multiplies logits.
    pub scale: f32,
    /// Bounds logits by tanh.
    pub softcap: Option<f32>,
}

impl Attention {
    /// The usual scale of heads this wide.
    pub fn usual_scale(key_width: u32) -> f32 {
        f64::from(key_width).sqrt().recip() as f32
    }
}

/// What families change in all layers at once.
impl Description {
    /// Other norms where there are norms.
    #[must_use]
    pub fn with_norms(mut self, rule: NormRule) -> Self {
        for layer in &mut self.layers {
            let norms = &mut layer.norms;
            for norm in [
                &mut norms.attention,
                &mut norms.attention_output,
                &mut norms.feed_forward,
                &mut norms.feed_forward_output,
            ] {
                *norm = norm.map(|_| rule);
            }
        }
        self.final_norm = self.final_norm.map(|_| rule);
        self
    }

    /// Norms of both blocks' outputs, in addition or (`only`) instead.
    #[must_use]
    pub fn with_output_norms(mut self, only: bool) -> Self {
        for layer in &mut self.layers {
            let norms = &mut layer.norms;
            norms.attention_output = norms.attention;
            norms.feed_forward_output = norms.feed_forward;
            if only {
                (norms.attention, norms.feed_forward) = (None, None);
            }
        }
        self
    }

    /// Biases of queries, keys and values; of attention's output; of the feed-forward block.
    #[must_use]
    pub fn with_biases(mut self, inputs: bool, output: bool, inner: bool) -> Self {
        for layer in &mut self.layers {
            layer.attention.input_bias = inputs;
            layer.attention.output_bias = output;
            match &mut layer.feed_forward {
                FeedForward::Gated { bias, .. } | FeedForward::Plain { bias, .. } => *bias = inner,
                FeedForward::Experts(experts) => experts.bias = inner,
            }
        }
        self
    }

    /// A block without a gate.
    #[must_use]
    pub fn with_plain_feed_forward(mut self, activation: Activation) -> Self {
        for layer in &mut self.layers {
            if let FeedForward::Gated { width, bias, .. } = layer.feed_forward {
                layer.feed_forward = FeedForward::Plain { width, activation, bias };
            }
        }
        self
    }

    /// Blocks side by side; with one norm for both, or (`own_norm`) one each.
    #[must_use]
    pub fn with_parallel_blocks(mut self, own_norm: bool) -> Self {
        for layer in &mut self.layers {
            layer.wiring = Wiring::Parallel;
            layer.norms.feed_forward = layer.norms.feed_forward.filter(|_| own_norm);
        }
        self
    }

    /// Norms of queries and keys.
    #[must_use]
    pub fn with_query_key_norm(mut self, rule: NormRule, span: NormSpan) -> Self {
        for layer in &mut self.layers {
            layer.attention.query_key_norm = Some(QueryKeyNorm { rule, span, after_rotation: false });
        }
        self
    }

    /// Whether logits come from the token embedding.
    #[must_use]
    pub fn with_tied_head(mut self, tied: bool) -> Self {
        if let Some(head) = &mut self.head {
            head.tied = tied;
        }
        self
    }
}

impl Description {
    /// The window of sliding layers, where any has one.
    pub fn window(&self) -> Option<u32> {
        self.layers.iter().find_map(|layer| layer.attention.window)
    }

    /// The mixture of the first layer that has one; all are alike.
    pub fn experts(&self) -> Option<&Experts> {
        self.layers.iter().find_map(|layer| match &layer.feed_forward {
            FeedForward::Experts(experts) => Some(experts),
            _ => None,
        })
    }
}

impl Description {
    /// Checks what the builder and backends take for granted: sizes that fit together and into 32 bits.
    ///
    /// # Errors
    /// [`Error::BadValue`](crate::Error::BadValue) names the first that does not.
    pub fn check(&self) -> Result<()> {
        for layer in &self.layers {
            let attention = &layer.attention;
            let fault = |key, value: u32, problem: &str| Err(bad(key, &value.into(), problem));
            let Attention { heads, kv_heads, key_width, value_width, .. } = *attention;
            if kv_heads == 0 || !heads.is_multiple_of(kv_heads) {
                return fault("num_key_value_heads", kv_heads, &format!("does not divide the {heads} heads"));
            }
            if key_width == 0 || value_width == 0 {
                return fault("head_dim", key_width, "must be at least 1");
            }
            if heads.checked_mul(key_width.max(value_width)).is_none() {
                return fault("num_attention_heads", heads, "together with the head's width too large");
            }
            if attention.window == Some(0) {
                return fault("sliding_window", 0, "must be at least 1");
            }
            if let Some(rope) = attention.rope.and_then(|index| self.ropes.get(index))
                && rope.start + rope.width > key_width
            {
                return fault("partial_rotary_factor", rope.width, "more than the head's width");
            }
            if let Some(latent) = attention.latent
                && latent.plain_width >= key_width
            {
                return fault(
                    "qk_rope_head_dim",
                    key_width - latent.plain_width.min(key_width),
                    "must be at least 1",
                );
            }
            if let FeedForward::Experts(experts) = &layer.feed_forward {
                experts.check()?;
            }
        }
        Ok(())
    }
}

impl Experts {
    fn check(&self) -> Result<()> {
        if self.used == 0 || self.used > self.count {
            return Err(bad("num_experts_per_tok", &self.used.into(), &format!("of {} experts", self.count)));
        }
        if self.count.checked_mul(self.width).is_none() {
            return Err(bad("num_experts", &self.count.into(), "together with their width too large"));
        }
        match self.groups {
            Some(groups)
                if groups.count == 0
                    || !self.count.is_multiple_of(groups.count)
                    || groups.used == 0
                    || groups.used > groups.count
                    || groups.best == 0
                    || groups.best > self.count / groups.count =>
            {
                Err(bad("n_group", &groups.count.into(), &format!("does not group {} experts", self.count)))
            }
            _ => Ok(()),
        }
    }
}
