//! StarCoder 2: layer norms, biases everywhere, a feed-forward block without gate, a window.

use super::{Family, Gguf};
use crate::config::Config;
use crate::description::{Description, NormRule};
use crate::error::Result;
use crate::graph::Activation;
use crate::names::hugging_face::LLAMA;
use crate::names::{Names, at};
use crate::weight::Role;

pub(super) static FAMILY: Family = Family {
    name: "starcoder2",
    model_types: &["starcoder2"],
    describe,
    names: &[NAMES, LLAMA],
    norm_offset: 0.0,
    gguf: Some(Gguf::new("starcoder2")),
};

const NAMES: Names =
    &[(Role::Up, at("model.layers.{l}.mlp.c_fc")), (Role::Down, at("model.layers.{l}.mlp.c_proj"))];

fn describe(config: &Config<'_>) -> Result<Description> {
    let bias = config.flag_or("use_bias", true)?;
    let activation = config.activation(&["hidden_act"], Activation::GeluTanh)?;
    let mut description = config
        .decoder("starcoder2")?
        .with_norms(NormRule::layer(config.epsilon()?, true))
        .with_plain_feed_forward(activation)
        .with_biases(bias, bias, bias)
        .with_tied_head(config.flag_or("tie_word_embeddings", true)?);
    config.slide(&mut description, |_| true)?;
    Ok(description)
}
