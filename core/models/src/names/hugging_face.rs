//! Names that most Hugging Face decoders share. A family's own table comes first and says where it differs.

use super::{Names, at};
use crate::weight::Role;

/// Llama's names, which most families keep.
pub const LLAMA: Names = &[
    (Role::TokenEmbedding, at("model.embed_tokens")),
    (Role::FinalNorm, at("model.norm")),
    (Role::Head, at("lm_head")),
    (Role::AttentionNorm, at("model.layers.{l}.input_layernorm")),
    (Role::Query, at("model.layers.{l}.self_attn.q_proj")),
    (Role::Key, at("model.layers.{l}.self_attn.k_proj")),
    (Role::Value, at("model.layers.{l}.self_attn.v_proj")),
    (Role::AttentionOutput, at("model.layers.{l}.self_attn.o_proj")),
    (Role::QueryNorm, at("model.layers.{l}.self_attn.q_norm")),
    (Role::KeyNorm, at("model.layers.{l}.self_attn.k_norm")),
    (Role::FeedForwardNorm, at("model.layers.{l}.post_attention_layernorm")),
    (Role::Gate, at("model.layers.{l}.mlp.gate_proj")),
    (Role::Up, at("model.layers.{l}.mlp.up_proj")),
    (Role::Down, at("model.layers.{l}.mlp.down_proj")),
];

/// Experts as Qwen and DeepSeek name them: one tensor each, or (newer and MLX) all in one.
pub const EXPERTS: Names = &[
    (Role::Router, at("model.layers.{l}.mlp.gate")),
    (Role::ExpertGate, at("model.layers.{l}.mlp.experts.{e}.gate_proj")),
    (Role::ExpertUp, at("model.layers.{l}.mlp.experts.{e}.up_proj")),
    (Role::ExpertDown, at("model.layers.{l}.mlp.experts.{e}.down_proj")),
    (Role::ExpertGate, at("model.layers.{l}.mlp.experts.gate_up_proj").stacked().exact()),
    (Role::ExpertUp, at("model.layers.{l}.mlp.experts.gate_up_proj").stacked().exact()),
    (Role::ExpertDown, at("model.layers.{l}.mlp.experts.down_proj").exact()),
    (Role::ExpertGate, at("model.layers.{l}.mlp.switch_mlp.gate_proj")),
    (Role::ExpertUp, at("model.layers.{l}.mlp.switch_mlp.up_proj")),
    (Role::ExpertDown, at("model.layers.{l}.mlp.switch_mlp.down_proj")),
];

/// How wrappers and bare models rename a whole checkpoint: (what a name begins with, what stands there instead).
/// The first that finds the token embedding counts.
pub const RENAMES: &[(&str, &str)] = &[
    ("", ""),
    ("model.", ""),
    ("", "language_model."),
    ("model.", "language_model.model."),
    ("model.", "model.language_model."),
    ("", "model.language_model."),
    ("model.", "model.text_model."),
    ("transformer.", ""),
    ("gpt_neox.", ""),
    ("", "model."),
    ("", "bert."),
    ("", "roberta."),
    ("", "distilbert."),
    ("", "transformer."),
    ("", "base_model.model."),
];
