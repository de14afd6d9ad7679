//! Falcon 7B, 40B, 180B, 11B: blocks side by side; few key/value heads, interleaved with their queries.

use serde_json::{Map, Value as Json};

use super::{Family, Gguf, GgufKeys, unsupported};
use crate::config::Config;
use crate::description::{Description, NormRule};
use crate::error::Result;
use crate::graph::Activation;
use crate::names::gguf::FUSED_QKV;
use crate::names::{Names, at};
use crate::weight::Role;

pub(super) static FAMILY: Family = Family {
    name: "falcon",
    model_types: &["falcon", "RefinedWeb", "RefinedWebModel"],
    describe,
    names: &[NAMES],
    norm_offset: 0.0,
    gguf: Some(Gguf { config: from_gguf, names: gguf_names, fused: &[FUSED_QKV], ..Gguf::new("falcon") }),
};

const NAMES: Names = &[
    (Role::TokenEmbedding, at("transformer.word_embeddings")),
    (Role::FinalNorm, at("transformer.ln_f")),
    (Role::Head, at("lm_head")),
    (Role::AttentionNorm, at("transformer.h.{l}.input_layernorm")),
    (Role::AttentionNorm, at("transformer.h.{l}.ln_attn")),
    (Role::Query, at("transformer.h.{l}.self_attention.query_key_value").grouped()),
    (Role::Key, at("transformer.h.{l}.self_attention.query_key_value").grouped()),
    (Role::Value, at("transformer.h.{l}.self_attention.query_key_value").grouped()),
    (Role::AttentionOutput, at("transformer.h.{l}.self_attention.dense")),
    (Role::FeedForwardNorm, at("transformer.h.{l}.post_attention_layernorm")),
    (Role::FeedForwardNorm, at("transformer.h.{l}.ln_mlp")),
    (Role::Up, at("transformer.h.{l}.mlp.dense_h_to_4h")),
    (Role::Down, at("transformer.h.{l}.mlp.dense_4h_to_h")),
];

/// llama.cpp names the norms after their order in Falcon 7B, where attention's is the only one.
fn gguf_names(description: &Description) -> Names {
    const TWO: Names =
        &[(Role::AttentionNorm, at("blk.{l}.attn_norm_2")), (Role::FeedForwardNorm, at("blk.{l}.attn_norm"))];
    let two = description.layers.first().is_some_and(|layer| layer.norms.feed_forward.is_some());
    if two { TWO } else { &[] }
}

fn describe(config: &Config<'_>) -> Result<Description> {
    if config.flag("alibi")? {
        return Err(unsupported("falcon", "attention with linear biases (`alibi`)"));
    }
    let new = config.flag("new_decoder_architecture")?;
    let parallel = new || config.flag_or("parallel_attn", true)?;
    let bias = config.flag("bias")?;
    let activation = config.activation(&["activation"], Activation::Gelu)?;
    let mut description = config
        .decoder("falcon")?
        .with_norms(NormRule::layer(config.epsilon()?, true))
        .with_plain_feed_forward(activation)
        .with_biases(bias, bias, bias)
        .with_tied_head(config.flag_or("tie_word_embeddings", true)?);
    for layer in &mut description.layers {
        let attention = &mut layer.attention;
        attention.kv_heads = if new {
            config
                .first(&["num_kv_heads", "n_head_kv"])
                .map_or(Ok(attention.heads), |_| config.positive(&["num_kv_heads", "n_head_kv"]))?
        } else if config.flag_or("multi_query", true)? {
            1
        } else {
            attention.heads
        };
    }
    if parallel {
        let norms = config.maybe_count("num_ln_in_parallel_attn")?.unwrap_or(if new { 2 } else { 1 });
        description = description.with_parallel_blocks(norms == 2);
    }
    Ok(description)
}

fn from_gguf(keys: &GgufKeys<'_>, config: &mut Map<String, Json>) {
    let two = keys.has_tensor("blk.0.attn_norm_2.weight");
    config.insert("new_decoder_architecture".into(), true.into());
    config.insert("num_ln_in_parallel_attn".into(), if two { 2 } else { 1 }.into());
    config.insert("num_kv_heads".into(), keys.count("attention.head_count_kv").unwrap_or(1).into());
}
