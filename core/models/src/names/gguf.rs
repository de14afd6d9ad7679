//! Names in GGUF files, the same for every architecture. Source: llama.cpp's `gguf-py/gguf/constants.py`.

use super::{Names, Place, at};
use crate::weight::Role;

/// All roles. Where a fused tensor stands besides, the separate one is looked for first.
pub const NAMES: Names = &[
    (Role::TokenEmbedding, at("token_embd")),
    (Role::PositionEmbedding, at("position_embd")),
    (Role::TokenTypeEmbedding, at("token_types")),
    (Role::EmbeddingNorm, at("token_embd_norm")),
    (Role::FinalNorm, at("output_norm")),
    (Role::Head, at("output")),
    (Role::AttentionNorm, at("blk.{l}.attn_norm")),
    (Role::Query, at("blk.{l}.attn_q")),
    (Role::Query, at("blk.{l}.attn_qkv").stacked()),
    (Role::Key, at("blk.{l}.attn_k")),
    (Role::Key, at("blk.{l}.attn_qkv").stacked()),
    (Role::Value, at("blk.{l}.attn_v")),
    (Role::Value, at("blk.{l}.attn_qkv").stacked()),
    (Role::AttentionOutput, at("blk.{l}.attn_output")),
    (Role::QueryNorm, at("blk.{l}.attn_q_norm")),
    (Role::KeyNorm, at("blk.{l}.attn_k_norm")),
    (Role::AttentionSinks, at("blk.{l}.attn_sinks")),
    (Role::AttentionOutputNorm, at("blk.{l}.post_attention_norm")),
    (Role::FeedForwardNorm, at("blk.{l}.ffn_norm")),
    (Role::Gate, at("blk.{l}.ffn_gate")),
    (Role::Gate, at("blk.{l}.ffn_up").stacked()),
    (Role::Up, at("blk.{l}.ffn_up")),
    (Role::Up, at("blk.{l}.ffn_up").stacked()),
    (Role::Down, at("blk.{l}.ffn_down")),
    (Role::FeedForwardOutputNorm, at("blk.{l}.post_ffw_norm")),
    (Role::Router, at("blk.{l}.ffn_gate_inp")),
    (Role::RouterCorrection, at("blk.{l}.exp_probs_b.bias").exact()),
    (Role::ExpertGate, at("blk.{l}.ffn_gate_exps")),
    (Role::ExpertGate, at("blk.{l}.ffn_gate_up_exps").stacked()),
    (Role::ExpertGate, at("blk.{l}.ffn_gate.{e}")),
    (Role::ExpertUp, at("blk.{l}.ffn_up_exps")),
    (Role::ExpertUp, at("blk.{l}.ffn_gate_up_exps").stacked()),
    (Role::ExpertUp, at("blk.{l}.ffn_up.{e}")),
    (Role::ExpertDown, at("blk.{l}.ffn_down_exps")),
    (Role::ExpertDown, at("blk.{l}.ffn_down.{e}")),
    (Role::SharedGate, at("blk.{l}.ffn_gate_shexp")),
    (Role::SharedUp, at("blk.{l}.ffn_up_shexp")),
    (Role::SharedDown, at("blk.{l}.ffn_down_shexp")),
    (Role::SharedScore, at("blk.{l}.ffn_gate_inp_shexp")),
    (Role::QueryDown, at("blk.{l}.attn_q_a")),
    (Role::QueryDownNorm, at("blk.{l}.attn_q_a_norm")),
    (Role::Query, at("blk.{l}.attn_q_b")),
    (Role::LatentDown, at("blk.{l}.attn_kv_a_mqa").stacked()),
    (Role::KeyRotary, at("blk.{l}.attn_kv_a_mqa").stacked()),
    (Role::LatentNorm, at("blk.{l}.attn_kv_a_norm")),
    (Role::KeyUp, at("blk.{l}.attn_k_b").transposed()),
    (Role::KeyUp, at("blk.{l}.attn_kv_b").grouped()),
    (Role::ValueUp, at("blk.{l}.attn_v_b")),
    (Role::ValueUp, at("blk.{l}.attn_kv_b").grouped()),
];

/// Several weights, one after another in one tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fused {
    /// The weights, in order.
    pub roles: &'static [Role],
    /// The tensor.
    pub place: Place,
}

/// Queries, keys and values.
pub const FUSED_QKV: Fused =
    Fused { roles: &[Role::Query, Role::Key, Role::Value], place: at("blk.{l}.attn_qkv").stacked() };

/// Gate and up.
pub const FUSED_GATE_UP: Fused =
    Fused { roles: &[Role::Gate, Role::Up], place: at("blk.{l}.ffn_up").stacked() };
