//! Phi 3, 3.5 and 4: fused matrices, LongRoPE, from Phi 4 mini on only part of each head rotated.

use super::{Family, Gguf};
use crate::config::Config;
use crate::description::Description;
use crate::error::Result;
use crate::names::gguf::{FUSED_GATE_UP, FUSED_QKV};
use crate::names::hugging_face::LLAMA;
use crate::names::{Names, at};
use crate::weight::Role;

pub(super) static FAMILY: Family = Family {
    name: "phi3",
    model_types: &["phi3"],
    describe,
    names: &[NAMES, LLAMA],
    norm_offset: 0.0,
    gguf: Some(Gguf { fused: &[FUSED_QKV, FUSED_GATE_UP], ..Gguf::new("phi3") }),
};

const NAMES: Names = &[
    (Role::Query, at("model.layers.{l}.self_attn.qkv_proj").stacked()),
    (Role::Key, at("model.layers.{l}.self_attn.qkv_proj").stacked()),
    (Role::Value, at("model.layers.{l}.self_attn.qkv_proj").stacked()),
    (Role::Gate, at("model.layers.{l}.mlp.gate_up_proj").stacked()),
    (Role::Up, at("model.layers.{l}.mlp.gate_up_proj").stacked()),
];

fn describe(config: &Config<'_>) -> Result<Description> {
    let mut description = config.decoder("phi3")?;
    config.slide(&mut description, |_| true)?;
    Ok(description)
}
