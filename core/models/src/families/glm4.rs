//! GLM 4 0414 (`glm4`): GLM 4 with norms of both blocks' outputs besides.

use super::glm::decoder;
use super::{Family, Gguf};
use crate::config::Config;
use crate::description::Description;
use crate::error::Result;
use crate::names::gguf::FUSED_GATE_UP;
use crate::names::hugging_face::LLAMA;
use crate::names::{Names, at};
use crate::rope::RopeLayout;
use crate::weight::Role;

pub(super) static FAMILY: Family = Family {
    name: "glm4",
    model_types: &["glm4"],
    describe,
    names: &[NAMES, super::glm::NAMES, LLAMA],
    norm_offset: 0.0,
    gguf: Some(Gguf { layout: RopeLayout::Pairs, fused: &[FUSED_GATE_UP], ..Gguf::new("glm4") }),
};

const NAMES: Names = &[
    (Role::AttentionOutputNorm, at("model.layers.{l}.post_self_attn_layernorm")),
    (Role::FeedForwardOutputNorm, at("model.layers.{l}.post_mlp_layernorm")),
];

fn describe(config: &Config<'_>) -> Result<Description> {
    Ok(decoder(config, "glm4")?.with_output_norms(false))
}
