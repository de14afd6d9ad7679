//! Nomic Embed: a BERT that rotates instead of learning positions, with a gated feed-forward block and few biases.

use serde_json::{Map, Value as Json};

use super::{Family, Gguf, GgufKeys, GgufWriter, unsupported};
use crate::config::Config;
use crate::description::{Description, Embedding, FeedForward, ModelKind, NormRule, Wiring};
use crate::error::Result;
use crate::graph::{Activation, Gating, Pooling};
use crate::names::gguf::FUSED_QKV;
use crate::names::{Names, at};
use crate::weight::Role;

pub(super) static FAMILY: Family = Family {
    name: "nomic_bert",
    model_types: &["nomic_bert"],
    describe,
    names: &[NAMES],
    norm_offset: 0.0,
    gguf: Some(Gguf {
        names: |_| super::bert::GGUF_NAMES,
        config: from_gguf,
        metadata: to_gguf,
        fused: &[FUSED_QKV],
        ..Gguf::new("nomic-bert")
    }),
};

const NAMES: Names = &[
    (Role::TokenEmbedding, at("embeddings.word_embeddings")),
    (Role::TokenTypeEmbedding, at("embeddings.token_type_embeddings")),
    (Role::EmbeddingNorm, at("emb_ln")),
    (Role::EmbeddingNorm, at("embeddings.LayerNorm")),
    (Role::Query, at("encoder.layers.{l}.attn.Wqkv").stacked()),
    (Role::Query, at("layers.{l}.self_attn.q_proj")),
    (Role::Key, at("encoder.layers.{l}.attn.Wqkv").stacked()),
    (Role::Key, at("layers.{l}.self_attn.k_proj")),
    (Role::Value, at("encoder.layers.{l}.attn.Wqkv").stacked()),
    (Role::Value, at("layers.{l}.self_attn.v_proj")),
    (Role::AttentionOutput, at("encoder.layers.{l}.attn.out_proj")),
    (Role::AttentionOutput, at("layers.{l}.self_attn.o_proj")),
    (Role::AttentionOutputNorm, at("encoder.layers.{l}.norm1")),
    (Role::AttentionOutputNorm, at("layers.{l}.post_attention_layernorm")),
    (Role::Up, at("encoder.layers.{l}.mlp.fc11")),
    (Role::Up, at("layers.{l}.mlp.up_proj")),
    (Role::Gate, at("encoder.layers.{l}.mlp.fc12")),
    (Role::Gate, at("layers.{l}.mlp.gate_proj")),
    (Role::Down, at("encoder.layers.{l}.mlp.fc2")),
    (Role::Down, at("layers.{l}.mlp.down_proj")),
    (Role::FeedForwardOutputNorm, at("encoder.layers.{l}.norm2")),
    (Role::FeedForwardOutputNorm, at("layers.{l}.post_mlp_layernorm")),
];

fn describe(config: &Config<'_>) -> Result<Description> {
    // The authors' own configuration names a mixture, learned positions or a norm in front where there are some.
    for (key, what) in
        [("prenorm", "norms in front of its blocks"), ("use_rms_norm", "root-mean-square norms")]
    {
        if config.flag(key)? {
            return Err(unsupported("nomic_bert", &format!("{what} (`{key}`)")));
        }
    }
    if config.maybe_count("num_experts")?.is_some_and(|count| count > 0) {
        return Err(unsupported("nomic_bert", "a mixture of experts (`num_experts`)"));
    }
    let activation = match config.text("activation_function")? {
        Some("swiglu") => Activation::Silu,
        Some("geglu") => Activation::Gelu,
        Some(other) => {
            let other: String = other.chars().take(40).collect();
            return Err(unsupported("nomic_bert", &format!("a feed-forward block of `{other}`")));
        }
        None => config.activation(&["hidden_act"], Activation::Silu)?,
    };
    let norm = NormRule::layer(config.epsilon()?, true);
    let attention = config.flag("qkv_proj_bias")?;
    let inner = config.flag("mlp_fc1_bias")?;
    let mut description = config
        .decoder("nomic_bert")?
        .with_output_norms(true)
        .with_norms(norm)
        .with_biases(attention, attention, inner);
    let fraction = config.number_or("rotary_emb_fraction", 1.0)?;
    if fraction != 1.0 {
        return Err(unsupported("nomic_bert", "rotation of a part of each head (`rotary_emb_fraction`)"));
    }
    for layer in &mut description.layers {
        layer.wiring = Wiring::PostNorm;
        if let FeedForward::Gated { gating, .. } = &mut layer.feed_forward {
            *gating = Gating::By(activation);
        }
    }
    Ok(Description {
        kind: ModelKind::Encoder,
        embedding: Embedding {
            scale: 1.0,
            positions: None,
            token_types: config.maybe_count("type_vocab_size")?.unwrap_or(2),
            norm: Some(norm),
        },
        final_norm: None,
        head: None,
        pooling: Some(Pooling::Mean),
        ..description
    })
}

fn from_gguf(keys: &GgufKeys<'_>, config: &mut Map<String, Json>) {
    config.insert("type_vocab_size".into(), keys.rows("token_types.weight").unwrap_or(0).into());
    config.insert("qkv_proj_bias".into(), keys.has_tensor("blk.0.attn_qkv.bias").into());
    config.insert("mlp_fc1_bias".into(), keys.has_tensor("blk.0.ffn_up.bias").into());
}

fn to_gguf(description: &Description, keys: &mut GgufWriter<'_>) {
    super::bert::to_gguf(description, keys);
}
