//! Granite 3 MoE: Granite with small experts, perhaps one that every token uses.

use super::granite;
use super::{Family, Gguf};
use crate::config::Config;
use crate::description::{Description, Experts, FeedForward, SharedExpert};
use crate::error::Result;
use crate::graph::Scoring;
use crate::names::hugging_face::LLAMA;
use crate::names::{Names, at};
use crate::rope::RopeLayout;
use crate::weight::Role;

pub(super) static FAMILY: Family = Family {
    name: "granitemoe",
    model_types: &["granitemoe", "granitemoeshared"],
    describe,
    names: &[NAMES, LLAMA],
    norm_offset: 0.0,
    gguf: Some(Gguf {
        layout: RopeLayout::Pairs,
        config: granite::from_gguf,
        metadata: granite::to_gguf,
        ..Gguf::new("granitemoe")
    }),
};

const NAMES: Names = &[
    (Role::Router, at("model.layers.{l}.block_sparse_moe.router.layer")),
    (Role::Router, at("model.layers.{l}.block_sparse_moe.router")),
    (Role::ExpertGate, at("model.layers.{l}.block_sparse_moe.input_linear").stacked()),
    (Role::ExpertUp, at("model.layers.{l}.block_sparse_moe.input_linear").stacked()),
    (Role::ExpertDown, at("model.layers.{l}.block_sparse_moe.output_linear")),
    (Role::ExpertGate, at("model.layers.{l}.block_sparse_moe.experts.gate_up_proj").stacked().exact()),
    (Role::ExpertUp, at("model.layers.{l}.block_sparse_moe.experts.gate_up_proj").stacked().exact()),
    (Role::ExpertDown, at("model.layers.{l}.block_sparse_moe.experts.down_proj").exact()),
    (Role::SharedGate, at("model.layers.{l}.shared_mlp.input_linear").stacked()),
    (Role::SharedUp, at("model.layers.{l}.shared_mlp.input_linear").stacked()),
    (Role::SharedDown, at("model.layers.{l}.shared_mlp.output_linear")),
];

fn describe(config: &Config<'_>) -> Result<Description> {
    let mut description = granite::decoder(config, "granitemoe")?;
    let shared = ["shared_intermediate_size", "shared_expert_intermediate_size"];
    let shared = match config.first(&shared).and_then(serde_json::Value::as_u64) {
        None | Some(0) => None,
        Some(_) => Some(SharedExpert { width: config.positive(&shared)?, scored: false }),
    };
    for layer in &mut description.layers {
        if let FeedForward::Gated { width, gating, .. } = layer.feed_forward {
            let experts = config.experts(width, gating)?;
            layer.feed_forward = FeedForward::Experts(Experts {
                scoring: Scoring::SoftmaxOfChosen,
                normalize: false,
                shared,
                ..experts
            });
        }
    }
    Ok(description)
}
