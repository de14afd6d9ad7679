//! GPT-NeoX and Pythia: queries, keys and values interleaved head by head; blocks side by side behind a norm each.

use drophammer_formats::gguf::Value;
use serde_json::{Map, Value as Json};

use super::{Family, Gguf, GgufKeys, GgufWriter};
use crate::config::Config;
use crate::description::{Description, NormRule, Wiring};
use crate::error::Result;
use crate::graph::Activation;
use crate::names::gguf::FUSED_QKV;
use crate::names::{Names, at};
use crate::weight::Role;

pub(super) static FAMILY: Family = Family {
    name: "gpt_neox",
    model_types: &["gpt_neox"],
    describe,
    names: &[NAMES],
    norm_offset: 0.0,
    gguf: Some(Gguf {
        config: from_gguf,
        metadata: to_gguf,
        fused: &[FUSED_QKV],
        needs_output: true,
        ..Gguf::new("gptneox")
    }),
};

const NAMES: Names = &[
    (Role::TokenEmbedding, at("gpt_neox.embed_in")),
    (Role::FinalNorm, at("gpt_neox.final_layer_norm")),
    (Role::Head, at("embed_out")),
    (Role::AttentionNorm, at("gpt_neox.layers.{l}.input_layernorm")),
    (Role::Query, at("gpt_neox.layers.{l}.attention.query_key_value").grouped()),
    (Role::Key, at("gpt_neox.layers.{l}.attention.query_key_value").grouped()),
    (Role::Value, at("gpt_neox.layers.{l}.attention.query_key_value").grouped()),
    (Role::AttentionOutput, at("gpt_neox.layers.{l}.attention.dense")),
    (Role::FeedForwardNorm, at("gpt_neox.layers.{l}.post_attention_layernorm")),
    (Role::Up, at("gpt_neox.layers.{l}.mlp.dense_h_to_4h")),
    (Role::Down, at("gpt_neox.layers.{l}.mlp.dense_4h_to_h")),
];

fn describe(config: &Config<'_>) -> Result<Description> {
    let bias = config.flag_or("attention_bias", true)?;
    let activation = config.activation(&["hidden_act"], Activation::Gelu)?;
    let mut description = config
        .decoder("gpt_neox")?
        .with_norms(NormRule::layer(config.epsilon()?, true))
        .with_plain_feed_forward(activation)
        .with_biases(bias, bias, true);
    if config.flag_or("use_parallel_residual", true)? {
        description = description.with_parallel_blocks(true);
    }
    Ok(description)
}

fn from_gguf(keys: &GgufKeys<'_>, config: &mut Map<String, Json>) {
    let parallel = keys.get("use_parallel_residual").and_then(Value::as_bool).unwrap_or(true);
    config.insert("use_parallel_residual".into(), parallel.into());
}

fn to_gguf(description: &Description, keys: &mut GgufWriter<'_>) {
    let parallel = description.layers.first().is_some_and(|layer| layer.wiring == Wiring::Parallel);
    keys.set("use_parallel_residual", parallel);
}
