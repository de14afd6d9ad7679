//! Llama 1–3.x, Code Llama, TinyLlama, SmolLM and everything that calls itself `llama`.

use super::{Family, Gguf};
use crate::config::Config;
use crate::description::Description;
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
    let (attention, mlp) = (config.flag("attention_bias")?, config.flag("mlp_bias")?);
    let mut description = config.decoder("llama")?.with_biases(attention, attention, mlp);
    config.slide(&mut description, |_| true)?; // a Mistral written as GGUF
    Ok(description)
}
