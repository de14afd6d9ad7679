//! Cohere's Command R: blocks side by side behind one norm without bias, interleaved rotation, scaled logits.

use serde_json::{Map, Value as Json};

use super::{Family, Gguf, GgufKeys, GgufWriter};
use crate::config::Config;
use crate::description::{Description, NormRule, NormSpan};
use crate::error::Result;
use crate::names::hugging_face::LLAMA;
use crate::rope::RopeLayout;

pub(super) static FAMILY: Family = Family {
    name: "cohere",
    model_types: &["cohere"],
    describe,
    names: &[LLAMA],
    norm_offset: 0.0,
    gguf: Some(Gguf {
        layout: RopeLayout::Pairs,
        config: from_gguf,
        metadata: to_gguf,
        ..Gguf::new("command-r")
    }),
};

fn describe(config: &Config<'_>) -> Result<Description> {
    decoder(config, "cohere")
}

/// What Cohere's models share.
pub(super) fn decoder(config: &Config<'_>, family: &'static str) -> Result<Description> {
    let norm = NormRule::layer(config.epsilon()?, false);
    let bias = config.flag("attention_bias")?;
    let mut description = config
        .decoder(family)?
        .with_norms(norm)
        .with_biases(bias, bias, false)
        .with_parallel_blocks(false)
        .with_tied_head(config.flag_or("tie_word_embeddings", true)?);
    if config.flag("use_qk_norm")? {
        description = description.with_query_key_norm(norm, NormSpan::EachHead);
    }
    for rope in &mut description.ropes {
        rope.layout = RopeLayout::Pairs;
    }
    if let Some(head) = &mut description.head {
        head.scale = config.number_or("logit_scale", 0.0625)? as f32;
    }
    Ok(description)
}

fn from_gguf(keys: &GgufKeys<'_>, config: &mut Map<String, Json>) {
    config.insert("use_qk_norm".into(), keys.has_tensor("blk.0.attn_q_norm.weight").into());
}

pub(super) fn to_gguf(description: &Description, keys: &mut GgufWriter<'_>) {
    keys.set("logit_scale", description.head.map_or(1.0, |head| head.scale));
}
