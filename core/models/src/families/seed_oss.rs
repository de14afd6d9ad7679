//! Seed-OSS: Llama with biases of queries, keys and values.

use super::{Family, Gguf, GgufKeys};
use crate::config::Config;
use crate::description::Description;
use crate::error::Result;
use crate::names::hugging_face::LLAMA;
use crate::names::{Names, at};
use crate::weight::Role;
use serde_json::{Map, Value as Json};

pub(super) static FAMILY: Family = Family {
    name: "seed_oss",
    model_types: &["seed_oss"],
    describe,
    names: &[LLAMA],
    norm_offset: 0.0,
    gguf: Some(Gguf { names: |_| GGUF_NAMES, config: from_gguf, ..Gguf::new("seed_oss") }),
};

/// llama.cpp names the feed-forward block's norm after what precedes it.
pub(super) const GGUF_NAMES: Names = &[(Role::FeedForwardNorm, at("blk.{l}.post_attention_norm"))];

fn describe(config: &Config<'_>) -> Result<Description> {
    let (input, output) = (config.flag_or("attention_bias", true)?, config.flag("attention_out_bias")?);
    Ok(config.decoder("seed_oss")?.with_biases(input, output, config.flag("mlp_bias")?))
}

fn from_gguf(keys: &GgufKeys<'_>, config: &mut Map<String, Json>) {
    config.insert("attention_out_bias".into(), keys.has_tensor("blk.0.attn_output.bias").into());
}
