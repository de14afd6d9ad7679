//! Qwen 1.5 and 2 MoE: experts in most layers, and one that all tokens share as far as they like.

use super::{Family, Gguf};
use crate::config::Config;
use crate::description::{Description, Experts, FeedForward, SharedExpert};
use crate::error::Result;
use crate::names::hugging_face::{EXPERTS, LLAMA};
use crate::names::{Names, at};
use crate::weight::Role;

pub(super) static FAMILY: Family = Family {
    name: "qwen2_moe",
    model_types: &["qwen2_moe"],
    describe,
    names: &[NAMES, EXPERTS, LLAMA],
    norm_offset: 0.0,
    gguf: Some(Gguf { needs_output: true, ..Gguf::new("qwen2moe") }),
};

const NAMES: Names = &[
    (Role::SharedGate, at("model.layers.{l}.mlp.shared_expert.gate_proj")),
    (Role::SharedUp, at("model.layers.{l}.mlp.shared_expert.up_proj")),
    (Role::SharedDown, at("model.layers.{l}.mlp.shared_expert.down_proj")),
    (Role::SharedScore, at("model.layers.{l}.mlp.shared_expert_gate")),
];

fn describe(config: &Config<'_>) -> Result<Description> {
    let bias = config.flag_or("qkv_bias", true)?;
    let mut description = config.decoder("qwen2_moe")?.with_biases(bias, false, false);
    if config.flag("use_sliding_window")? {
        let first = config.maybe_count("max_window_layers")?.unwrap_or(0) as usize;
        config.slide(&mut description, |layer| layer % 2 == 0 && layer < first)?;
    }
    let shared = SharedExpert {
        width: config.positive(&["shared_expert_intermediate_size", "intermediate_size"])?,
        scored: true,
    };
    sparse_layers(config, &mut description, Some(shared))?;
    Ok(description)
}

/// Qwen's mixture: in every `decoder_sparse_step`-th layer but those of `mlp_only_layers`.
pub(super) fn sparse_layers(
    config: &Config<'_>,
    description: &mut Description,
    shared: Option<SharedExpert>,
) -> Result<()> {
    let step = config.maybe_count("decoder_sparse_step")?.unwrap_or(1).max(1) as usize;
    let dense: Vec<u64> = config
        .get("mlp_only_layers")
        .and_then(|list| list.as_array())
        .map(|list| list.iter().filter_map(serde_json::Value::as_u64).collect())
        .unwrap_or_default();
    let width = config.positive(&["moe_intermediate_size"])?;
    for (number, layer) in description.layers.iter_mut().enumerate() {
        if let FeedForward::Gated { gating, .. } = layer.feed_forward
            && (number + 1).is_multiple_of(step)
            && !dense.contains(&(number as u64))
        {
            layer.feed_forward = FeedForward::Experts(Experts { shared, ..config.experts(width, gating)? });
        }
    }
    Ok(())
}
