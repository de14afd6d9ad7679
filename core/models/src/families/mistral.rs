//! Mistral 7B, Nemo, Small: Llama with a sliding window in all layers.

use super::{Family, Gguf};
use crate::config::Config;
use crate::description::Description;
use crate::error::Result;
use crate::names::hugging_face::LLAMA;
use crate::rope::RopeLayout;

pub(super) static FAMILY: Family = Family {
    name: "mistral",
    model_types: &["mistral", "ministral"],
    describe,
    names: &[LLAMA],
    norm_offset: 0.0,
    // llama.cpp knows no architecture for it and runs it as a Llama without window.
    gguf: Some(Gguf { layout: RopeLayout::Pairs, is: |_| false, ..Gguf::new("llama") }),
};

fn describe(config: &Config<'_>) -> Result<Description> {
    let mut description = config.decoder("mistral")?;
    config.slide(&mut description, |_| true)?;
    Ok(description)
}
