//! Llama 1–3.x, Code Llama, TinyLlama, SmolLM and everything that calls itself `llama`.

use super::{Family, Gguf};
use crate::config::Config;
use crate::description::{Description, FeedForward};
use crate::error::Result;
use crate::names::hugging_face::LLAMA;
use crate::rope::RopeLayout;

pub(super) static FAMILY: Family = Family {
    name: "llama",
    model_types: &["llama"],
    describe,
    names: &[LLAMA],
    norm_offset: 0.0,
    gguf: Some(Gguf { layout: RopeLayout::Pairs, ..Gguf::new("llama") }),
};

fn describe(config: &Config<'_>) -> Result<Description> {
    let mut description = config.decoder("llama")?;
    let (attention_bias, mlp_bias) = (config.flag("attention_bias")?, config.flag("mlp_bias")?);
    for layer in &mut description.layers {
        layer.attention.input_bias = attention_bias;
        layer.attention.output_bias = attention_bias;
        if let FeedForward::Gated { bias, .. } = &mut layer.feed_forward {
            *bias = mlp_bias;
        }
    }
    Ok(description)
}
