//! Phi 1, 1.5 and 2: both blocks side by side behind one norm, half of each head rotated, biases everywhere.

use super::{Family, Gguf, unsupported};
use crate::config::Config;
use crate::description::{Description, NormRule};
use crate::error::Result;
use crate::graph::Activation;
use crate::names::hugging_face::LLAMA;
use crate::names::{Names, at};
use crate::weight::Role;

pub(super) static FAMILY: Family = Family {
    name: "phi",
    model_types: &["phi"],
    describe,
    names: &[NAMES, LLAMA],
    norm_offset: 0.0,
    gguf: Some(Gguf { needs_output: true, ..Gguf::new("phi2") }),
};

const NAMES: Names = &[
    (Role::FinalNorm, at("model.final_layernorm")),
    (Role::AttentionOutput, at("model.layers.{l}.self_attn.dense")),
    (Role::Up, at("model.layers.{l}.mlp.fc1")),
    (Role::Down, at("model.layers.{l}.mlp.fc2")),
];

fn describe(config: &Config<'_>) -> Result<Description> {
    if config.flag("qk_layernorm")? {
        return Err(unsupported("phi", "a norm of queries and keys (`qk_layernorm`)"));
    }
    let activation = config.activation(&["hidden_act"], Activation::GeluTanh)?;
    let mut description = config
        .decoder("phi")?
        .with_norms(NormRule::layer(config.epsilon()?, true))
        .with_plain_feed_forward(activation)
        .with_biases(true, true, true)
        .with_parallel_blocks(false);
    if let Some(head) = &mut description.head {
        head.bias = true;
    }
    Ok(description)
}
