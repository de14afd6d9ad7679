//! What mlx-lm calls weights: Hugging Face's names, but for the families here. Source: `mlx_lm/models/*.py` (`sanitize`).

use crate::names::{Names, Place, at};
use crate::weight::{Role, WeightId};

/// A family's names that differ from Hugging Face's.
pub(crate) fn names(family: &str) -> Names {
    match family {
        "gpt2" => GPT2,
        "gpt_neox" => GPT_NEOX,
        "granitemoe" => GRANITE_MOE,
        _ => &[],
    }
}

/// Matrices lie as they are used, not transposed.
const GPT2: Names = &[
    (Role::TokenEmbedding, at("model.wte")),
    (Role::PositionEmbedding, at("model.wpe")),
    (Role::FinalNorm, at("model.ln_f")),
    (Role::Head, at("model.lm_head")),
    (Role::AttentionNorm, at("model.h.{l}.ln_1")),
    (Role::Query, at("model.h.{l}.attn.c_attn").stacked()),
    (Role::Key, at("model.h.{l}.attn.c_attn").stacked()),
    (Role::Value, at("model.h.{l}.attn.c_attn").stacked()),
    (Role::AttentionOutput, at("model.h.{l}.attn.c_proj")),
    (Role::FeedForwardNorm, at("model.h.{l}.ln_2")),
    (Role::Up, at("model.h.{l}.mlp.c_fc")),
    (Role::Down, at("model.h.{l}.mlp.c_proj")),
];

const GPT_NEOX: Names = &[
    (Role::TokenEmbedding, at("model.embed_in")),
    (Role::FinalNorm, at("model.final_layer_norm")),
    (Role::Head, at("model.embed_out")),
    (Role::AttentionNorm, at("model.h.{l}.input_layernorm")),
    (Role::Query, at("model.h.{l}.attention.query_key_value").grouped()),
    (Role::Key, at("model.h.{l}.attention.query_key_value").grouped()),
    (Role::Value, at("model.h.{l}.attention.query_key_value").grouped()),
    (Role::AttentionOutput, at("model.h.{l}.attention.dense")),
    (Role::FeedForwardNorm, at("model.h.{l}.post_attention_layernorm")),
    (Role::Up, at("model.h.{l}.mlp.dense_h_to_4h")),
    (Role::Down, at("model.h.{l}.mlp.dense_4h_to_h")),
];

/// DeepSeek's queries where they are not compressed first.
pub(super) const DIRECT_QUERIES: Names = &[(Role::Query, at("model.layers.{l}.self_attn.q_proj"))];

/// Gate and up lie apart.
const GRANITE_MOE: Names = &[
    (Role::ExpertGate, at("model.layers.{l}.block_sparse_moe.switch_mlp.gate_proj")),
    (Role::ExpertUp, at("model.layers.{l}.block_sparse_moe.switch_mlp.up_proj")),
    (Role::ExpertDown, at("model.layers.{l}.block_sparse_moe.switch_mlp.down_proj")),
];

/// Where a weight goes: the first of its names that is one matrix, as it is used, or one vector for each head.
pub(super) fn place(tables: &[Names], id: WeightId) -> Option<Place> {
    let apart = |place: &Place| place.is_per_expert() && (id.role.is_stacked() || !id.is_vector());
    let usable = |place: &Place| !(place.transposed || apart(place) || place.exact && id.role.is_stacked());
    let all = tables.iter().flat_map(|table| table.iter());
    all.filter(|(role, _)| *role == id.role).map(|(_, place)| *place).find(usable)
}
