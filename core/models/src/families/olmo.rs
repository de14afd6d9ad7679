//! OLMo 1: Llama whose norms have neither gain nor bias.

use super::{Family, Gguf, GgufWriter, unsupported};
use crate::config::Config;
use crate::description::{Description, NormRule};
use crate::error::Result;
use crate::graph::NormKind;
use crate::names::hugging_face::LLAMA;
use crate::rope::RopeLayout;

pub(super) static FAMILY: Family = Family {
    name: "olmo",
    model_types: &["olmo"],
    describe,
    names: &[LLAMA],
    norm_offset: 0.0,
    gguf: Some(Gguf { layout: RopeLayout::Pairs, metadata: to_gguf, ..Gguf::new("olmo") }),
};

fn describe(config: &Config<'_>) -> Result<Description> {
    if config.number("clip_qkv")?.is_some() {
        return Err(unsupported("olmo", "clamping of queries, keys and values (`clip_qkv`)"));
    }
    let bias = config.flag("attention_bias")?;
    let norm = NormRule { kind: NormKind::Layer, epsilon: 1e-5, weight: false, bias: false };
    Ok(config.decoder("olmo")?.with_norms(norm).with_biases(bias, bias, false))
}

fn to_gguf(_: &Description, keys: &mut GgufWriter<'_>) {
    keys.set("attention.layer_norm_epsilon", 1e-5f32);
}
