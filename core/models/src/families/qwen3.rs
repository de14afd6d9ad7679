//! Qwen 3: queries and keys are normalized head by head.

use super::qwen2::slide_later_layers;
use super::{Family, Gguf};
use crate::config::Config;
use crate::description::{Description, NormRule, NormSpan};
use crate::error::Result;
use crate::names::hugging_face::LLAMA;

pub(super) static FAMILY: Family = Family {
    name: "qwen3",
    model_types: &["qwen3", "qwen3_vl_text"],
    describe,
    names: &[LLAMA],
    norm_offset: 0.0,
    gguf: Some(Gguf::new("qwen3")),
};

fn describe(config: &Config<'_>) -> Result<Description> {
    let bias = config.flag("attention_bias")?;
    let norm = NormRule::rms(config.epsilon()?);
    let description = config.decoder("qwen3")?.with_biases(bias, bias, false);
    let mut description = description.with_query_key_norm(norm, NormSpan::Head);
    slide_later_layers(config, &mut description)?;
    Ok(description)
}
