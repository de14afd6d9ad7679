//! What a tensor is for, read off its GGUF name.

/// The part a tensor plays, as far as presets distinguish.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Role {
    /// Token embedding.
    Embedding,
    /// Output matrix.
    Output,
    /// Query projection.
    Query,
    /// Key projection.
    Key,
    /// Value projection, or one that makes values among others (fused QKV, MLA's KV-B).
    Value,
    /// Attention output projection.
    AttentionOutput,
    /// Feed-forward up projection.
    Up,
    /// Feed-forward gate projection.
    Gate,
    /// Feed-forward down projection.
    Down,
    /// Anything else.
    Other,
}

/// Parts of names, first match first.
const PARTS: &[(&str, Role)] = &[
    ("attn_qkv.weight", Role::Value),
    ("attn_kv_b.weight", Role::Value),
    ("attn_v.weight", Role::Value),
    ("attn_k.weight", Role::Key),
    ("attn_q.weight", Role::Query),
    ("attn_output.weight", Role::AttentionOutput),
    ("ffn_up", Role::Up),
    ("ffn_gate", Role::Gate),
    ("ffn_down", Role::Down),
];

impl Role {
    /// The role of the tensor with this GGUF name.
    pub fn of(name: &str) -> Self {
        match name {
            "output.weight" => Role::Output,
            "token_embd.weight" | "per_layer_token_embd.weight" => Role::Embedding,
            _ => PARTS.iter().find(|(part, _)| name.contains(part)).map_or(Role::Other, |(_, role)| *role),
        }
    }
}

/// Tensors kept as they are, by whole name.
const KEPT_NAMES: &[&str] = &["position_embd.weight", "token_types.weight"];

/// Tensors kept as they are, by a part of the name: norms, routers, small recurrences, positions, convolutions.
const KEPT_PARTS: &[&str] = &[
    "_norm.weight",
    "ffn_gate_inp.weight",
    "ffn_gate_tid2eid.weight",
    "altup",
    "laurel",
    "per_layer_model_proj",
    "ssm_conv1d",
    "shortconv.conv.weight",
    "indexer.k_proj.weight",
    "indexer.q_proj.weight",
    "time_mix_first.weight",
    "time_mix_w0.weight",
    "time_mix_w1.weight",
    "time_mix_w2.weight",
    "time_mix_v0.weight",
    "time_mix_v1.weight",
    "time_mix_v2.weight",
    "time_mix_a0.weight",
    "time_mix_a1.weight",
    "time_mix_a2.weight",
    "time_mix_g1.weight",
    "time_mix_g2.weight",
    "time_mix_decay_w1.weight",
    "time_mix_decay_w2.weight",
    "time_mix_lerp_fused.weight",
    "attn_rel_b.weight",
    ".position_embd",
    "sam.pos_embd",
    "sam.neck.",
    "sam.net_",
    ".rel_pos",
    ".patch_embd",
    ".patch_merger",
    "a.rvq.codebook",
    "mm.a.code_embd",
];

/// Whether the tensor is never quantized: vectors, biases, norms, routers, positional tables and other parts that are small
/// or delicate. `shape` is row-major, outermost dimension first.
pub fn stays_unquantized(name: &str, shape: &[u64]) -> bool {
    let dimensions = shape.iter().skip_while(|&&d| d == 1).count();
    dimensions < 2
        || !name.ends_with("weight")
        || KEPT_NAMES.contains(&name)
        || KEPT_PARTS.iter().any(|part| name.contains(part))
}
