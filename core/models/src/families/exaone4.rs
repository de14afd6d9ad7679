//! EXAONE 4: norms after the blocks instead of before; with windows only sliding layers rotate.

use super::{Family, Gguf};
use crate::config::Config;
use crate::description::{Description, NormRule, NormSpan};
use crate::error::Result;
use crate::names::hugging_face::LLAMA;

pub(super) static FAMILY: Family = Family {
    name: "exaone4",
    model_types: &["exaone4"],
    describe,
    names: &[super::olmo2::NAMES, LLAMA],
    norm_offset: 0.0,
    gguf: Some(Gguf::new("exaone4")),
};

fn describe(config: &Config<'_>) -> Result<Description> {
    let norm = NormRule::rms(config.epsilon()?);
    let description = config.decoder("exaone4")?.with_output_norms(true);
    let mut description = description.with_query_key_norm(norm, NormSpan::Head);
    // The pattern is a number of layers, or a word like `LLLG`.
    let pattern = match config.get("sliding_window_pattern").and_then(|pattern| pattern.as_str()) {
        Some(word) => word.len().max(1),
        None => config.maybe_count("sliding_window_pattern")?.unwrap_or(4).max(1) as usize,
    };
    config.slide(&mut description, |layer| !(layer + 1).is_multiple_of(pattern))?;
    if description.window().is_some() {
        for layer in &mut description.layers {
            layer.attention.rope = layer.attention.window.map(|_| 0);
        }
    }
    Ok(description)
}
