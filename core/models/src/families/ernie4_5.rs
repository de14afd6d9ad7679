//! ERNIE 4.5, dense: Llama that rotates in pairs.

use super::{Family, Gguf};
use crate::config::Config;
use crate::description::Description;
use crate::error::Result;
use crate::names::hugging_face::LLAMA;
use crate::rope::RopeLayout;

pub(super) static FAMILY: Family = Family {
    name: "ernie4_5",
    model_types: &["ernie4_5"],
    describe,
    names: &[LLAMA],
    norm_offset: 0.0,
    gguf: Some(Gguf { layout: RopeLayout::Pairs, ..Gguf::new("ernie4_5") }),
};

fn describe(config: &Config<'_>) -> Result<Description> {
    let bias = config.flag("use_bias")?;
    let tied = config.flag_or("tie_word_embeddings", true)?;
    let mut description = config.decoder("ernie4_5")?.with_biases(bias, bias, bias).with_tied_head(tied);
    for rope in &mut description.ropes {
        rope.layout = RopeLayout::Pairs;
    }
    Ok(description)
}
