//! OLMoE: a mixture of experts in every layer, norms over all queries and keys at once.

use super::{Family, Gguf, unsupported};
use crate::config::Config;
use crate::description::{Description, FeedForward, NormRule, NormSpan};
use crate::error::Result;
use crate::names::hugging_face::{EXPERTS, LLAMA};

pub(super) static FAMILY: Family = Family {
    name: "olmoe",
    model_types: &["olmoe"],
    describe,
    names: &[EXPERTS, LLAMA],
    norm_offset: 0.0,
    gguf: Some(Gguf { needs_output: true, ..Gguf::new("olmoe") }),
};

fn describe(config: &Config<'_>) -> Result<Description> {
    if config.number("clip_qkv")?.is_some() {
        return Err(unsupported("olmoe", "clamping of queries, keys and values (`clip_qkv`)"));
    }
    let bias = config.flag("attention_bias")?;
    let norm = NormRule::rms(config.epsilon()?);
    let description = config.decoder("olmoe")?.with_biases(bias, bias, false);
    let mut description = description.with_query_key_norm(norm, NormSpan::Whole);
    for layer in &mut description.layers {
        if let FeedForward::Gated { width, gating, .. } = layer.feed_forward {
            layer.feed_forward = FeedForward::Experts(config.experts(width, gating)?);
        }
    }
    Ok(description)
}
