//! Qwen 1.5, 2, 2.5: biases of queries, keys and values; optionally a window in the later layers.

use super::{Family, Gguf};
use crate::config::Config;
use crate::description::Description;
use crate::error::Result;
use crate::names::hugging_face::LLAMA;

pub(super) static FAMILY: Family = Family {
    name: "qwen2",
    model_types: &["qwen2", "qwen2_vl", "qwen2_vl_text", "qwen2_5_vl", "qwen2_5_vl_text"],
    describe,
    names: &[LLAMA],
    norm_offset: 0.0,
    gguf: Some(Gguf::new("qwen2")),
};

fn describe(config: &Config<'_>) -> Result<Description> {
    let mut description = config.decoder("qwen2")?.with_biases(true, false, false);
    slide_later_layers(config, &mut description)?;
    Ok(description)
}

/// Qwen's windows: off unless asked for, and then from a certain layer on.
pub(super) fn slide_later_layers(config: &Config<'_>, description: &mut Description) -> Result<()> {
    if config.flag("use_sliding_window")? {
        let first = config.maybe_count("max_window_layers")?.unwrap_or(0) as usize;
        config.slide(description, |layer| layer >= first)?;
    }
    Ok(())
}
