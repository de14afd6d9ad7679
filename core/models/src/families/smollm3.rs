//! SmolLM 3: Llama whose every fourth layer rotates nothing.

use super::{Family, Gguf};
use crate::config::Config;
use crate::description::Description;
use crate::error::Result;
use crate::names::hugging_face::LLAMA;
use crate::rope::RopeLayout;

pub(super) static FAMILY: Family = Family {
    name: "smollm3",
    model_types: &["smollm3"],
    describe,
    names: &[LLAMA],
    norm_offset: 0.0,
    gguf: Some(Gguf { layout: RopeLayout::Pairs, ..Gguf::new("smollm3") }),
};

fn describe(config: &Config<'_>) -> Result<Description> {
    let (attention, mlp) = (config.flag("attention_bias")?, config.flag("mlp_bias")?);
    let tied = config.flag_or("tie_word_embeddings", true)?;
    let description = config.decoder("smollm3")?.with_biases(attention, attention, mlp);
    let mut description = description.with_tied_head(tied);
    let listed = config.get("no_rope_layers").and_then(|list| list.as_array());
    let interval = config.maybe_count("no_rope_layer_interval")?.unwrap_or(4).max(1) as usize;
    for (number, layer) in description.layers.iter_mut().enumerate() {
        // The list says 1 where there *is* a rotation.
        let rotates = match listed.and_then(|list| list.get(number)) {
            Some(entry) => entry.as_u64() != Some(0),
            None => !(number + 1).is_multiple_of(interval),
        };
        layer.attention.rope = rotates.then_some(0);
    }
    if config.flag("use_sliding_window")? {
        let rotating: Vec<bool> =
            description.layers.iter().map(|layer| layer.attention.rope.is_some()).collect();
        config.slide(&mut description, |layer| !rotating[layer])?;
    }
    Ok(description)
}
