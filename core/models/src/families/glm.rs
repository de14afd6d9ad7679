//! GLM 4 (`glm`): half of each head rotated, in pairs; gate and up in one matrix.

use super::{Family, Gguf};
use crate::config::Config;
use crate::description::Description;
use crate::error::Result;
use crate::names::gguf::{FUSED_GATE_UP, FUSED_QKV};
use crate::names::hugging_face::LLAMA;
use crate::names::{Names, at};
use crate::rope::RopeLayout;
use crate::weight::Role;

pub(super) static FAMILY: Family = Family {
    name: "glm",
    model_types: &["glm"],
    describe,
    names: &[NAMES, LLAMA],
    norm_offset: 0.0,
    gguf: Some(Gguf {
        layout: RopeLayout::Pairs,
        fused: &[FUSED_QKV, FUSED_GATE_UP],
        needs_output: true,
        ..Gguf::new("chatglm")
    }),
};

pub(super) const NAMES: Names = &[
    (Role::Gate, at("model.layers.{l}.mlp.gate_up_proj").stacked()),
    (Role::Up, at("model.layers.{l}.mlp.gate_up_proj").stacked()),
];

fn describe(config: &Config<'_>) -> Result<Description> {
    decoder(config, "glm")
}

/// What GLM 4's dense models share.
pub(super) fn decoder(config: &Config<'_>, family: &'static str) -> Result<Description> {
    let mut description = config.decoder(family)?.with_biases(config.flag("attention_bias")?, false, false);
    for rope in &mut description.ropes {
        rope.layout = RopeLayout::Pairs;
    }
    Ok(description)
}
