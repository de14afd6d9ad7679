//! Qwen 3 MoE.

use serde_json::{Map, Value as Json};

use super::qwen2::slide_later_layers;
use super::qwen2_moe::sparse_layers;
use super::{Family, Gguf, GgufKeys};
use crate::config::Config;
use crate::description::{Description, NormRule, NormSpan};
use crate::error::Result;
use crate::names::hugging_face::{EXPERTS, LLAMA};

pub(super) static FAMILY: Family = Family {
    name: "qwen3_moe",
    model_types: &["qwen3_moe", "qwen3_vl_moe_text"],
    describe,
    names: &[EXPERTS, LLAMA],
    norm_offset: 0.0,
    gguf: Some(Gguf { config: from_gguf, ..Gguf::new("qwen3moe") }),
};

fn describe(config: &Config<'_>) -> Result<Description> {
    let bias = config.flag("attention_bias")?;
    let norm = NormRule::rms(config.epsilon()?);
    let description = config.decoder("qwen3_moe")?.with_biases(bias, bias, false);
    let mut description = description.with_query_key_norm(norm, NormSpan::Head);
    slide_later_layers(config, &mut description)?;
    sparse_layers(config, &mut description, None)?;
    Ok(description)
}

/// llama.cpp's own files do not say that the chosen scores are divided by their sum; it always does.
fn from_gguf(_: &GgufKeys<'_>, config: &mut Map<String, Json>) {
    config.entry("norm_topk_prob").or_insert(true.into());
}
