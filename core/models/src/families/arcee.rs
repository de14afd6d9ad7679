//! Arcee AFM: Llama without a gate, squared ReLU.

use super::{Family, Gguf};
use crate::config::Config;
use crate::description::Description;
use crate::error::Result;
use crate::graph::Activation;
use crate::names::hugging_face::LLAMA;
use crate::rope::RopeLayout;

pub(super) static FAMILY: Family = Family {
    name: "arcee",
    model_types: &["arcee"],
    describe,
    names: &[LLAMA],
    norm_offset: 0.0,
    gguf: Some(Gguf { layout: RopeLayout::Pairs, ..Gguf::new("arcee") }),
};

fn describe(config: &Config<'_>) -> Result<Description> {
    let (attention, mlp) = (config.flag("attention_bias")?, config.flag("mlp_bias")?);
    let activation = config.activation(&["hidden_act"], Activation::ReluSquared)?;
    let description = config.decoder("arcee")?.with_plain_feed_forward(activation);
    Ok(description.with_biases(attention, attention, mlp))
}
