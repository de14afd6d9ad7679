//! Names of weights that no source chose: a role and, inside layers, the layer's number.

use std::fmt;

use serde::Serialize;

/// What a weight is for. One name per purpose, whatever a source calls it, fuses it with or cuts it into.
///
/// Matrices are `[outputs, inputs]`, row-major; stacked experts `[experts, outputs, inputs]`; norms and biases vectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub enum Role {
    /// `[vocabulary, hidden]`.
    TokenEmbedding,
    /// `[positions, hidden]`, learned.
    PositionEmbedding,
    /// `[types, hidden]`, encoders' segment embedding.
    TokenTypeEmbedding,
    /// The norm right after the embedding.
    EmbeddingNorm,
    /// The norm after the last layer.
    FinalNorm,
    /// `[vocabulary, hidden]`: hidden state to logits. Resolves to [`Role::TokenEmbedding`]'s data where they are tied.
    Head,

    /// The norm whose output attention reads.
    AttentionNorm,
    /// `[heads · key width, hidden]` (or `[.., query rank]` in latent attention with compressed queries).
    Query,
    /// `[kv heads · key width, hidden]`.
    Key,
    /// `[kv heads · value width, hidden]`.
    Value,
    /// `[hidden, heads · value width]`.
    AttentionOutput,
    /// Applied to queries before rotation.
    QueryNorm,
    /// Applied to keys before rotation.
    KeyNorm,
    /// `[heads]`: one extra logit per head in the softmax.
    AttentionSinks,
    /// The norm of attention's output (before the residual sum, or after it in post-norm encoders).
    AttentionOutputNorm,

    /// `[query rank, hidden]`, latent attention.
    QueryDown,
    /// `[query rank]`.
    QueryDownNorm,
    /// `[latent rank, hidden]`: the compressed key/value state.
    LatentDown,
    /// `[latent rank]`.
    LatentNorm,
    /// `[rotary width, hidden]`: the part of the key that is rotated, shared by all heads.
    KeyRotary,
    /// `[heads · plain key width, latent rank]`.
    KeyUp,
    /// `[heads · value width, latent rank]`.
    ValueUp,

    /// The norm whose output the feed-forward block reads.
    FeedForwardNorm,
    /// `[width, hidden]`: the activated half of a gated block.
    Gate,
    /// `[width, hidden]`: the other half; the only input matrix of a plain block.
    Up,
    /// `[hidden, width]`.
    Down,
    /// The norm of the feed-forward block's output (before the residual sum, or after it in post-norm encoders).
    FeedForwardOutputNorm,

    /// `[experts, hidden]`.
    Router,
    /// `[experts]`: added to scores for choosing only.
    RouterCorrection,
    /// `[experts, width, hidden]`.
    ExpertGate,
    /// `[experts, width, hidden]`.
    ExpertUp,
    /// `[experts, hidden, width]`.
    ExpertDown,
    /// `[width, hidden]`: the expert every token uses.
    SharedGate,
    /// `[width, hidden]`.
    SharedUp,
    /// `[hidden, width]`.
    SharedDown,
    /// `[1, hidden]`: how much of the shared expert a token takes, before the sigmoid.
    SharedScore,
}

/// The matrix (or a norm's gain) or the vector added after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub enum Part {
    /// What is multiplied.
    Weight,
    /// What is added.
    Bias,
}

/// One weight of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct WeightId {
    /// The layer it belongs to, `None` outside layers.
    pub layer: Option<u32>,
    /// Its purpose.
    pub role: Role,
    /// Weight or bias.
    pub part: Part,
}

impl Role {
    /// The weight of this role outside layers.
    pub const fn global(self) -> WeightId {
        WeightId { layer: None, role: self, part: Part::Weight }
    }

    /// The weight of this role in a layer.
    pub const fn of(self, layer: u32) -> WeightId {
        WeightId { layer: Some(layer), role: self, part: Part::Weight }
    }

    /// The weight of this role, in a layer where one is given.
    pub const fn at(self, layer: Option<u32>) -> WeightId {
        WeightId { layer, role: self, part: Part::Weight }
    }

    /// Whether its weight is one matrix per expert.
    pub const fn is_stacked(self) -> bool {
        matches!(self, Role::ExpertGate | Role::ExpertUp | Role::ExpertDown)
    }
}

impl WeightId {
    /// Whether it is a vector (or one per head or expert) rather than a matrix: biases, norms, sinks, corrections.
    pub const fn is_vector(self) -> bool {
        matches!(self.part, Part::Bias)
            || matches!(
                self.role,
                Role::EmbeddingNorm
                    | Role::FinalNorm
                    | Role::AttentionNorm
                    | Role::AttentionOutputNorm
                    | Role::FeedForwardNorm
                    | Role::FeedForwardOutputNorm
                    | Role::QueryNorm
                    | Role::KeyNorm
                    | Role::QueryDownNorm
                    | Role::LatentNorm
                    | Role::AttentionSinks
                    | Role::RouterCorrection
            )
    }

    /// The bias beside this weight.
    #[must_use]
    pub const fn bias(self) -> WeightId {
        WeightId { part: Part::Bias, ..self }
    }
}

impl fmt::Display for WeightId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(layer) = self.layer {
            write!(f, "layer {layer} ")?;
        }
        write!(f, "{:?}", self.role)?;
        if self.part == Part::Bias { f.write_str(" bias") } else { Ok(()) }
    }
}
