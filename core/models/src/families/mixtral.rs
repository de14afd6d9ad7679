//! Mixtral: Mistral with a mixture of experts in every layer.

use super::{Family, Gguf};
use crate::config::Config;
use crate::description::{Description, Experts, FeedForward};
use crate::error::Result;
use crate::names::hugging_face::{EXPERTS, LLAMA};
use crate::names::{Names, at};
use crate::rope::RopeLayout;
use crate::weight::Role;

pub(super) static FAMILY: Family = Family {
    name: "mixtral",
    model_types: &["mixtral"],
    describe,
    names: &[NAMES, EXPERTS, LLAMA],
    norm_offset: 0.0,
    gguf: Some(Gguf {
        layout: RopeLayout::Pairs,
        is: |keys| keys.u64("llama.expert_count") > Some(0),
        ..Gguf::new("llama")
    }),
};

const NAMES: Names = &[
    (Role::Router, at("model.layers.{l}.block_sparse_moe.gate")),
    (Role::ExpertGate, at("model.layers.{l}.block_sparse_moe.experts.{e}.w1")),
    (Role::ExpertUp, at("model.layers.{l}.block_sparse_moe.experts.{e}.w3")),
    (Role::ExpertDown, at("model.layers.{l}.block_sparse_moe.experts.{e}.w2")),
    (Role::ExpertGate, at("model.layers.{l}.block_sparse_moe.switch_mlp.gate_proj")),
    (Role::ExpertUp, at("model.layers.{l}.block_sparse_moe.switch_mlp.up_proj")),
    (Role::ExpertDown, at("model.layers.{l}.block_sparse_moe.switch_mlp.down_proj")),
];

fn describe(config: &Config<'_>) -> Result<Description> {
    let mut description = config.decoder("mixtral")?;
    config.slide(&mut description, |_| true)?;
    for layer in &mut description.layers {
        if let FeedForward::Gated { width, gating, .. } = layer.feed_forward {
            layer.feed_forward =
                FeedForward::Experts(Experts { normalize: true, ..config.experts(width, gating)? });
        }
    }
    Ok(description)
}
