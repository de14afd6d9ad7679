//! Gemma 1: norms store their gain minus one, embeddings are scaled, the activation is GELU's tanh form.

use super::{Family, Gguf};
use crate::config::Config;
use crate::description::{Description, FeedForward};
use crate::error::Result;
use crate::graph::{Activation, Gating};
use crate::names::hugging_face::LLAMA;

pub(super) static FAMILY: Family = Family {
    name: "gemma",
    model_types: &["gemma"],
    describe,
    names: &[LLAMA],
    norm_offset: 1.0,
    gguf: Some(Gguf::new("gemma")),
};

fn describe(config: &Config<'_>) -> Result<Description> {
    decoder(config, "gemma")
}

/// What all Gemmas share.
pub(super) fn decoder(config: &Config<'_>, family: &'static str) -> Result<Description> {
    // `hidden_act` of the first releases says `gelu`, which their code never read.
    let gating = Gating::By(config.activation(&["hidden_activation"], Activation::GeluTanh)?);
    let bias = config.flag("attention_bias")?;
    let tied = config.flag_or("tie_word_embeddings", true)?;
    let mut description = config.decoder(family)?.with_biases(bias, bias, false).with_tied_head(tied);
    description.embedding.scale = f64::from(description.hidden).sqrt() as f32;
    for layer in &mut description.layers {
        if let FeedForward::Gated { width, bias, .. } = layer.feed_forward {
            layer.feed_forward = FeedForward::Gated { width, gating, bias };
        }
    }
    Ok(description)
}
