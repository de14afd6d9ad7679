//! GPT-2: learned positions, layer norms, fused and transposed matrices, biases everywhere.

use super::{Family, Gguf};
use crate::config::Config;
use crate::description::{Description, LearnedPositions, NormRule};
use crate::error::Result;
use crate::graph::Activation;
use crate::names::gguf::FUSED_QKV;
use crate::names::{Names, at};
use crate::weight::Role;

pub(super) static FAMILY: Family = Family {
    name: "gpt2",
    model_types: &["gpt2"],
    describe,
    names: &[NAMES],
    norm_offset: 0.0,
    gguf: Some(Gguf { fused: &[FUSED_QKV], ..Gguf::new("gpt2") }),
};

const NAMES: Names = &[
    (Role::TokenEmbedding, at("transformer.wte")),
    (Role::PositionEmbedding, at("transformer.wpe")),
    (Role::FinalNorm, at("transformer.ln_f")),
    (Role::Head, at("lm_head")),
    (Role::AttentionNorm, at("transformer.h.{l}.ln_1")),
    (Role::Query, at("transformer.h.{l}.attn.c_attn").stacked().transposed()),
    (Role::Key, at("transformer.h.{l}.attn.c_attn").stacked().transposed()),
    (Role::Value, at("transformer.h.{l}.attn.c_attn").stacked().transposed()),
    (Role::AttentionOutput, at("transformer.h.{l}.attn.c_proj").transposed()),
    (Role::FeedForwardNorm, at("transformer.h.{l}.ln_2")),
    (Role::Up, at("transformer.h.{l}.mlp.c_fc").transposed()),
    (Role::Down, at("transformer.h.{l}.mlp.c_proj").transposed()),
];

fn describe(config: &Config<'_>) -> Result<Description> {
    let activation = config.activation(&["activation_function"], Activation::GeluTanh)?;
    let mut description = config
        .decoder("gpt2")?
        .with_norms(NormRule::layer(config.epsilon()?, true))
        .with_plain_feed_forward(activation)
        .with_biases(true, true, true)
        .with_tied_head(config.flag_or("tie_word_embeddings", true)?);
    description.embedding.positions = Some(LearnedPositions { rows: description.context, offset: 0 });
    description.ropes.clear();
    let scaled = config.flag_or("scale_attn_weights", true)?;
    let by_layer = config.flag("scale_attn_by_inverse_layer_idx")?;
    for (number, layer) in (1u16..).zip(&mut description.layers) {
        layer.attention.rope = None;
        if !scaled {
            layer.attention.scale = 1.0;
        }
        if by_layer {
            layer.attention.scale /= f32::from(number);
        }
    }
    Ok(description)
}
