//! Gemma 2: norms before and after each block, a window in every other layer, soft-capped scores and logits.

use serde_json::{Map, Value as Json};

use super::{Family, Gguf, GgufKeys, GgufWriter};
use crate::config::{Config, bad};
use crate::description::Description;
use crate::error::Result;
use crate::names::hugging_face::LLAMA;
use crate::names::{Names, at};
use crate::weight::Role;

pub(super) static FAMILY: Family = Family {
    name: "gemma2",
    model_types: &["gemma2"],
    describe,
    names: &[NAMES, LLAMA],
    norm_offset: 1.0,
    gguf: Some(Gguf { config: from_gguf, metadata: to_gguf, ..Gguf::new("gemma2") }),
};

/// The four norms of a layer, which Gemma 3 keeps.
pub(super) const NAMES: Names = &[
    (Role::AttentionOutputNorm, at("model.layers.{l}.post_attention_layernorm")),
    (Role::FeedForwardNorm, at("model.layers.{l}.pre_feedforward_layernorm")),
    (Role::FeedForwardOutputNorm, at("model.layers.{l}.post_feedforward_layernorm")),
];

fn describe(config: &Config<'_>) -> Result<Description> {
    let mut description = decoder(config, "gemma2")?;
    config.slide(&mut description, |layer| layer % 2 == 0)?;
    Ok(description)
}

/// What Gemma 2 and 3 share.
pub(super) fn decoder(config: &Config<'_>, family: &'static str) -> Result<Description> {
    let mut description = super::gemma::decoder(config, family)?.with_output_norms(false);
    let scalar = config.number_or("query_pre_attn_scalar", 256.0)?;
    if scalar <= 0.0 {
        return Err(bad("query_pre_attn_scalar", &scalar.into(), "must be positive"));
    }
    let positive = |key: &str| -> Result<Option<f32>> {
        Ok(config.number(key)?.filter(|&cap| cap > 0.0).map(|cap| cap as f32))
    };
    let softcap = positive("attn_logit_softcapping")?;
    for layer in &mut description.layers {
        layer.attention.scale = scalar.sqrt().recip() as f32;
        layer.attention.softcap = softcap;
    }
    if let Some(head) = &mut description.head {
        head.softcap = positive("final_logit_softcapping")?;
    }
    Ok(description)
}

/// llama.cpp knows the scale of queries by the model's size; ours is written besides.
pub(super) fn from_gguf(keys: &GgufKeys<'_>, config: &mut Map<String, Json>) {
    let count = |key: &str| keys.count(key).unwrap_or(1).max(1) as f64;
    let largest = matches!(
        (keys.architecture(), keys.count("block_count")),
        ("gemma2", Some(46)) | ("gemma3", Some(62))
    );
    let scalar = match keys.number("attention.scale") {
        Some(scale) if scale > 0.0 => (scale * scale).recip(),
        _ if largest => count("embedding_length") / count("attention.head_count"),
        _ => count("attention.key_length"),
    };
    config.insert("query_pre_attn_scalar".into(), scalar.into());
}

pub(super) fn to_gguf(description: &Description, keys: &mut GgufWriter<'_>) {
    let softcap = description.layers.first().and_then(|layer| layer.attention.softcap);
    if let Some(cap) = softcap {
        keys.set("attn_logit_softcapping", cap);
    }
    if let Some(cap) = description.head.and_then(|head| head.softcap) {
        keys.set("final_logit_softcapping", cap);
    }
}
