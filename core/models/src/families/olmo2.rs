//! OLMo 2: norms after the blocks instead of before, and over all queries and keys at once.

use super::{Family, Gguf};
use crate::config::Config;
use crate::description::{Description, NormRule, NormSpan};
use crate::error::Result;
use crate::names::hugging_face::LLAMA;
use crate::names::{Names, at};
use crate::weight::Role;

pub(super) static FAMILY: Family = Family {
    name: "olmo2",
    model_types: &["olmo2"],
    describe,
    names: &[NAMES, LLAMA],
    norm_offset: 0.0,
    gguf: Some(Gguf { needs_output: true, ..Gguf::new("olmo2") }),
};

/// Norms of the blocks' outputs, which OLMo 3 and EXAONE 4 keep.
pub(super) const NAMES: Names = &[
    (Role::AttentionOutputNorm, at("model.layers.{l}.post_attention_layernorm")),
    (Role::FeedForwardOutputNorm, at("model.layers.{l}.post_feedforward_layernorm")),
];

fn describe(config: &Config<'_>) -> Result<Description> {
    decoder(config, "olmo2")
}

/// What OLMo 2 and 3 share.
pub(super) fn decoder(config: &Config<'_>, family: &'static str) -> Result<Description> {
    let bias = config.flag("attention_bias")?;
    let norm = NormRule::rms(config.epsilon()?);
    let description = config.decoder(family)?.with_biases(bias, bias, false);
    Ok(description.with_output_norms(true).with_query_key_norm(norm, NormSpan::Whole))
}
