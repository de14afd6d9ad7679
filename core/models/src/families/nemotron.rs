//! Nemotron 3 and Minitron: layer norms that store their gain minus one, squared ReLU without a gate, half of each head rotated.

use super::{Family, Gguf};
use crate::config::Config;
use crate::description::{Description, NormRule};
use crate::error::Result;
use crate::graph::Activation;
use crate::names::hugging_face::LLAMA;

pub(super) static FAMILY: Family = Family {
    name: "nemotron",
    model_types: &["nemotron"],
    describe,
    names: &[LLAMA],
    norm_offset: 1.0,
    gguf: Some(Gguf { needs_output: true, ..Gguf::new("nemotron") }),
};

fn describe(config: &Config<'_>) -> Result<Description> {
    let (attention, mlp) = (config.flag("attention_bias")?, config.flag("mlp_bias")?);
    let activation = config.activation(&["hidden_act"], Activation::ReluSquared)?;
    Ok(config
        .decoder("nemotron")?
        .with_norms(NormRule::layer(config.epsilon()?, true))
        .with_plain_feed_forward(activation)
        .with_biases(attention, attention, mlp))
}
