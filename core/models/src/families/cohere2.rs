//! Cohere's Command R7B and Command A: Command R with a window in three of four layers, and a rotation in those alone.

use super::{Family, Gguf};
use crate::config::Config;
use crate::description::Description;
use crate::error::Result;
use crate::names::hugging_face::LLAMA;
use crate::rope::RopeLayout;

pub(super) static FAMILY: Family = Family {
    name: "cohere2",
    model_types: &["cohere2"],
    describe,
    names: &[LLAMA],
    norm_offset: 0.0,
    gguf: Some(Gguf { layout: RopeLayout::Pairs, metadata: super::cohere::to_gguf, ..Gguf::new("cohere2") }),
};

fn describe(config: &Config<'_>) -> Result<Description> {
    let mut description = super::cohere::decoder(config, "cohere2")?;
    let pattern = match config.first(&["sliding_window_pattern", "_sliding_window_pattern"]) {
        Some(_) => config.positive(&["sliding_window_pattern", "_sliding_window_pattern"])? as usize,
        None => 4,
    };
    config.slide(&mut description, |layer| !(layer + 1).is_multiple_of(pattern))?;
    for layer in &mut description.layers {
        layer.attention.rope = layer.attention.window.map(|_| 0);
    }
    Ok(description)
}
