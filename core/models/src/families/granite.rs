//! Granite 3: Llama with multipliers of embeddings, scores, residuals and logits.

use serde_json::{Map, Value as Json};

use super::{Family, Gguf, GgufKeys, GgufWriter};
use crate::config::{Config, bad};
use crate::description::Description;
use crate::error::Result;
use crate::names::hugging_face::LLAMA;
use crate::rope::RopeLayout;

pub(super) static FAMILY: Family = Family {
    name: "granite",
    model_types: &["granite"],
    describe,
    names: &[LLAMA],
    norm_offset: 0.0,
    gguf: Some(Gguf {
        layout: RopeLayout::Pairs,
        config: from_gguf,
        metadata: to_gguf,
        ..Gguf::new("granite")
    }),
};

fn describe(config: &Config<'_>) -> Result<Description> {
    decoder(config, "granite")
}

/// What Granite's models share.
pub(super) fn decoder(config: &Config<'_>, family: &'static str) -> Result<Description> {
    let (attention, mlp) = (config.flag("attention_bias")?, config.flag("mlp_bias")?);
    let mut description = config.decoder(family)?.with_biases(attention, attention, mlp);
    let divisor = config.number_or("logits_scaling", 1.0)?;
    if divisor == 0.0 {
        return Err(bad("logits_scaling", &divisor.into(), "must not be 0"));
    }
    description.embedding.scale = config.number_or("embedding_multiplier", 1.0)? as f32;
    if let Some(head) = &mut description.head {
        head.scale = divisor.recip() as f32;
    }
    let (scale, residual) =
        (config.number_or("attention_multiplier", 1.0)?, config.number_or("residual_multiplier", 1.0)?);
    for layer in &mut description.layers {
        layer.attention.scale = scale as f32;
        layer.residual_scale = residual as f32;
    }
    Ok(description)
}

pub(super) fn from_gguf(keys: &GgufKeys<'_>, config: &mut Map<String, Json>) {
    if let Some(divisor) = keys.number("logit_scale") {
        config.insert("logits_scaling".into(), divisor.into());
    }
}

pub(super) fn to_gguf(description: &Description, keys: &mut GgufWriter<'_>) {
    let layer = description.layers.first();
    keys.set("attention.scale", layer.map_or(1.0, |layer| layer.attention.scale));
    keys.set("residual_scale", layer.map_or(1.0, |layer| layer.residual_scale));
    keys.set("embedding_scale", description.embedding.scale);
    keys.set("logit_scale", description.head.map_or(1.0, |head| head.scale.recip()));
}
