//! gpt-oss: experts with biases and a clamped activation, attention sinks, a window in every other layer, YaRN.

use serde_json::{Map, Value as Json};

use super::{Family, Gguf, GgufKeys};
use crate::config::Config;
use crate::description::{Description, Experts, FeedForward};
use crate::error::Result;
use crate::graph::{Gating, Scoring};
use crate::names::hugging_face::LLAMA;
use crate::names::{Names, at};
use crate::weight::Role;

pub(super) static FAMILY: Family = Family {
    name: "gpt_oss",
    model_types: &["gpt_oss"],
    describe,
    names: &[NAMES, LLAMA],
    norm_offset: 0.0,
    gguf: Some(Gguf { names: |_| GGUF_NAMES, config: from_gguf, needs_output: true, ..Gguf::new("gpt-oss") }),
};

const NAMES: Names = &[
    (Role::AttentionSinks, at("model.layers.{l}.self_attn.sinks").exact()),
    (Role::Router, at("model.layers.{l}.mlp.router")),
    // Packed in MXFP4 a matrix's rows are its outputs; in full precision its inputs.
    (Role::ExpertGate, at("model.layers.{l}.mlp.experts.gate_up_proj").grouped().transposed().exact()),
    (Role::ExpertUp, at("model.layers.{l}.mlp.experts.gate_up_proj").grouped().transposed().exact()),
    (Role::ExpertDown, at("model.layers.{l}.mlp.experts.down_proj").transposed().exact()),
    (Role::ExpertGate, at("model.layers.{l}.mlp.experts.gate_proj")),
    (Role::ExpertUp, at("model.layers.{l}.mlp.experts.up_proj")),
    (Role::ExpertDown, at("model.layers.{l}.mlp.experts.down_proj")),
];

const GGUF_NAMES: Names = &[(Role::FeedForwardNorm, at("blk.{l}.post_attention_norm"))];

fn describe(config: &Config<'_>) -> Result<Description> {
    let bias = config.flag_or("attention_bias", true)?;
    let mut description = config.decoder("gpt_oss")?.with_biases(bias, bias, false);
    config.slide(&mut description, |layer| layer % 2 == 0)?;
    let gating = Gating::Clamped {
        alpha: config.number_or("swiglu_alpha", 1.702)? as f32,
        limit: config.number_or("swiglu_limit", 7.0)? as f32,
    };
    for layer in &mut description.layers {
        layer.attention.sinks = true;
        if let FeedForward::Gated { width, .. } = layer.feed_forward {
            let experts = config.experts(width, gating)?;
            layer.feed_forward = FeedForward::Experts(Experts {
                scoring: Scoring::SoftmaxOfChosen,
                normalize: false,
                bias: true,
                ..experts
            });
        }
    }
    Ok(description)
}

fn from_gguf(keys: &GgufKeys<'_>, config: &mut Map<String, Json>) {
    if let Some(width) = keys.count("expert_feed_forward_length") {
        config.insert("intermediate_size".into(), width.into());
    }
    if let Some(Json::Object(scaling)) = config.get_mut("rope_scaling") {
        scaling.insert("truncate".into(), false.into());
    }
}
