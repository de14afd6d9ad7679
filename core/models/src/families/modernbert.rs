//! ModernBERT: rotation, gated feed-forward, norms without bias, and windows in two of three layers.

use serde_json::{Map, Value as Json};

use super::gemma3::two_ropes;
use super::{Family, Gguf, GgufKeys, GgufWriter};
use crate::config::Config;
use crate::description::{Description, FeedForward, ModelKind, NormRule};
use crate::error::Result;
use crate::graph::{Activation, Gating, Pooling};
use crate::names::gguf::{FUSED_GATE_UP, FUSED_QKV};
use crate::names::{Names, at};
use crate::weight::Role;

pub(super) static FAMILY: Family = Family {
    name: "modernbert",
    model_types: &["modernbert"],
    describe,
    names: &[NAMES],
    norm_offset: 0.0,
    gguf: Some(Gguf {
        config: from_gguf,
        metadata: to_gguf,
        fused: &[FUSED_QKV, FUSED_GATE_UP],
        ..Gguf::new("modern-bert")
    }),
};

const NAMES: Names = &[
    (Role::TokenEmbedding, at("embeddings.tok_embeddings")),
    (Role::EmbeddingNorm, at("embeddings.norm")),
    (Role::FinalNorm, at("final_norm")),
    (Role::AttentionNorm, at("layers.{l}.attn_norm")),
    (Role::Query, at("layers.{l}.attn.Wqkv").stacked()),
    (Role::Key, at("layers.{l}.attn.Wqkv").stacked()),
    (Role::Value, at("layers.{l}.attn.Wqkv").stacked()),
    (Role::AttentionOutput, at("layers.{l}.attn.Wo")),
    (Role::FeedForwardNorm, at("layers.{l}.mlp_norm")),
    (Role::Gate, at("layers.{l}.mlp.Wi").stacked()),
    (Role::Up, at("layers.{l}.mlp.Wi").stacked()),
    (Role::Down, at("layers.{l}.mlp.Wo")),
];

fn describe(config: &Config<'_>) -> Result<Description> {
    let norm = NormRule::layer(
        config.number_or("norm_eps", f64::from(config.epsilon()?))? as f32,
        config.flag("norm_bias")?,
    );
    let (attention, mlp) = (config.flag("attention_bias")?, config.flag("mlp_bias")?);
    let gating = Gating::By(config.activation(&["hidden_activation"], Activation::Gelu)?);
    let mut description =
        config.decoder("modernbert")?.with_norms(norm).with_biases(attention, attention, mlp);
    let every = config.maybe_count("global_attn_every_n_layers")?.unwrap_or(3).max(1) as usize;
    let window = config.maybe_count("local_attention")?.unwrap_or(128);
    let sliding = config.sliding(description.layers.len(), |layer| !layer.is_multiple_of(every))?;
    for (layer, sliding) in description.layers.iter_mut().zip(sliding) {
        layer.attention.window = sliding.then_some(window);
        if let FeedForward::Gated { width, bias, .. } = layer.feed_forward {
            layer.feed_forward = FeedForward::Gated { width, gating, bias };
        }
    }
    if let Some(first) = description.layers.first_mut() {
        first.norms.attention = None; // the embedding's norm has just been applied
    }
    let full = config.number_or("global_rope_theta", 160_000.0)?;
    two_ropes(config, &mut description, full, ("local_rope_theta", 10_000.0))?;
    description.embedding.norm = Some(norm);
    Ok(Description { kind: ModelKind::Encoder, head: None, pooling: Some(Pooling::Mean), ..description })
}

fn from_gguf(keys: &GgufKeys<'_>, config: &mut Map<String, Json>) {
    if let Some(base) = keys.number("rope.freq_base") {
        config.insert("global_rope_theta".into(), base.into());
    }
    if let Some(base) = keys.number("rope.freq_base_swa") {
        config.insert("local_rope_theta".into(), base.into());
    }
    if let Some(window) = keys.count("attention.sliding_window") {
        config.insert("local_attention".into(), window.into());
    }
}

fn to_gguf(description: &Description, keys: &mut GgufWriter<'_>) {
    keys.set("attention.causal", false);
    if let Some(rope) = description.ropes.get(1) {
        keys.set("rope.freq_base_swa", rope.theta as f32);
    }
}
