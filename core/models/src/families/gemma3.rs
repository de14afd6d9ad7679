//! Gemma 3's language model: norms of queries and keys, and two rotations: a fast one for sliding layers, a slow one for
//! every sixth.

use serde_json::{Map, Value as Json};

use super::gemma2::{NAMES, decoder};
use super::{Family, Gguf, GgufKeys, GgufWriter};
use crate::config::Config;
use crate::description::{Description, NormRule, NormSpan};
use crate::error::Result;
use crate::names::hugging_face::LLAMA;
use crate::rope::{Rope, RopeScaling};

pub(super) static FAMILY: Family = Family {
    name: "gemma3",
    model_types: &["gemma3_text"],
    describe,
    names: &[NAMES, LLAMA],
    norm_offset: 1.0,
    gguf: Some(Gguf { config: from_gguf, metadata: to_gguf, ..Gguf::new("gemma3") }),
};

fn describe(config: &Config<'_>) -> Result<Description> {
    let norm = NormRule::rms(config.epsilon()?);
    let mut description = decoder(config, "gemma3")?.with_query_key_norm(norm, NormSpan::Head);
    for layer in &mut description.layers {
        layer.attention.softcap = None; // a key of Gemma 2's that is written and never read
    }
    let pattern = match config.first(&["sliding_window_pattern", "_sliding_window_pattern"]) {
        Some(_) => config.positive(&["sliding_window_pattern", "_sliding_window_pattern"])? as usize,
        None => 6,
    };
    config.slide(&mut description, |layer| !(layer + 1).is_multiple_of(pattern))?;
    two_ropes(config, &mut description, 1_000_000.0, ("rope_local_base_freq", 10_000.0))?;
    Ok(description)
}

/// One rotation for full, one for sliding layers: under their layers' names in `rope_parameters` (new), or the usual keys and
/// the given one (old).
pub(super) fn two_ropes(
    config: &Config<'_>,
    description: &mut Description,
    full: f64,
    (local_key, local): (&str, f64),
) -> Result<()> {
    let Some(width) = description.layers.first().map(|layer| layer.attention.key_width) else {
        return Ok(());
    };
    let named = |name: &str| config.get("rope_parameters").and_then(|parameters| parameters.get(name));
    let full_rope = match named("full_attention") {
        Some(parameters) => config.rope_from(parameters, width, full)?,
        None => config.rope(width, full)?,
    };
    let sliding_rope = match named("sliding_attention") {
        Some(parameters) => config.rope_from(parameters, width, local)?,
        None => Rope {
            theta: config.number_or(local_key, local)?,
            scaling: RopeScaling::None,
            ..config.rope(width, full)?
        },
    };
    description.ropes = vec![full_rope, sliding_rope];
    for layer in &mut description.layers {
        layer.attention.rope = Some(usize::from(layer.attention.window.is_some()));
    }
    Ok(())
}

fn from_gguf(keys: &GgufKeys<'_>, config: &mut Map<String, Json>) {
    super::gemma2::from_gguf(keys, config);
    if let Some(base) = keys.number("rope.freq_base_swa") {
        config.insert("rope_local_base_freq".into(), base.into());
    }
}

fn to_gguf(description: &Description, keys: &mut GgufWriter<'_>) {
    super::gemma2::to_gguf(description, keys);
    if let Some(rope) = description.ropes.get(1) {
        keys.set("rope.freq_base_swa", rope.theta as f32);
    }
}
