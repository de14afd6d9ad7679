//! StableLM 2 and 3B: layer norms, part of each head rotated; the 12B's blocks lie side by side and each head of its queries and
//! keys has its own norm.

use serde_json::{Map, Value as Json};

use super::{Family, Gguf, GgufKeys, GgufWriter};
use crate::config::Config;
use crate::description::{Description, NormRule, NormSpan, Wiring};
use crate::error::Result;
use crate::names::hugging_face::LLAMA;
use crate::names::{Names, at};
use crate::rope::Rope;
use crate::weight::Role;

pub(super) static FAMILY: Family = Family {
    name: "stablelm",
    model_types: &["stablelm", "stablelm_epoch"],
    describe,
    names: &[NAMES, LLAMA],
    norm_offset: 0.0,
    gguf: Some(Gguf { config: from_gguf, metadata: to_gguf, needs_output: true, ..Gguf::new("stablelm") }),
};

const NAMES: Names = &[
    (Role::QueryNorm, at("model.layers.{l}.self_attn.q_layernorm.norms.{e}")),
    (Role::KeyNorm, at("model.layers.{l}.self_attn.k_layernorm.norms.{e}")),
];

fn describe(config: &Config<'_>) -> Result<Description> {
    let epsilon = config.epsilon()?;
    let mut description = config.decoder("stablelm")?.with_norms(NormRule::layer(epsilon, true)).with_biases(
        config.flag("use_qkv_bias")?,
        false,
        false,
    );
    if config.first(&["rope_parameters", "partial_rotary_factor", "rope_pct"]).is_none() {
        let width = description.layers.first().map_or(0, |layer| layer.attention.key_width);
        description.ropes = vec![Rope { width: width / 4 / 2 * 2, ..config.rope(width, 10_000.0)? }];
    }
    if config.flag("qk_layernorm")? {
        description = description.with_query_key_norm(NormRule::layer(epsilon, false), NormSpan::EachHead);
    }
    if config.flag("use_parallel_residual")? {
        description = description.with_parallel_blocks(false);
    }
    Ok(description)
}

/// Both variants are seen from their tensors.
fn from_gguf(keys: &GgufKeys<'_>, config: &mut Map<String, Json>) {
    config.insert("use_qkv_bias".into(), keys.has_tensor("blk.0.attn_q.bias").into());
    config.insert("qk_layernorm".into(), keys.has_tensor("blk.0.attn_q_norm.weight").into());
    config.insert("use_parallel_residual".into(), (!keys.has_tensor("blk.0.ffn_norm.weight")).into());
}

fn to_gguf(description: &Description, keys: &mut GgufWriter<'_>) {
    let parallel = description.layers.first().is_some_and(|layer| layer.wiring == Wiring::Parallel);
    keys.set("use_parallel_residual", parallel);
}
