//! Hunyuan's dense models: queries and keys are normalized after their rotation, whose base is grown once and for all.

use serde_json::{Map, Value as Json};

use super::{Family, Gguf, GgufKeys};
use crate::config::Config;
use crate::description::{Description, NormRule, NormSpan};
use crate::error::Result;
use crate::names::hugging_face::LLAMA;
use crate::names::{Names, at};
use crate::rope::{Rope, RopeScaling};
use crate::weight::Role;

pub(super) static FAMILY: Family = Family {
    name: "hunyuan_v1_dense",
    model_types: &["hunyuan_v1_dense"],
    describe,
    names: &[NAMES, LLAMA],
    norm_offset: 0.0,
    gguf: Some(Gguf { config: from_gguf, ..Gguf::new("hunyuan-dense") }),
};

const NAMES: Names = &[
    (Role::QueryNorm, at("model.layers.{l}.self_attn.query_layernorm")),
    (Role::KeyNorm, at("model.layers.{l}.self_attn.key_layernorm")),
];

fn describe(config: &Config<'_>) -> Result<Description> {
    let (attention, mlp) = (config.flag("attention_bias")?, config.flag("mlp_bias")?);
    let mut description = config.decoder("hunyuan_v1_dense")?.with_biases(attention, attention, mlp);
    if config.flag_or("use_qk_norm", true)? {
        description = description.with_query_key_norm(NormRule::rms(config.epsilon()?), NormSpan::Head);
    }
    for layer in &mut description.layers {
        if let Some(norm) = &mut layer.attention.query_key_norm {
            norm.after_rotation = true;
        }
    }
    let own = config.first(&["rope_parameters", "rope_scaling"]).map(Config::new);
    if let Some(alpha) = own.map_or(Ok(None), |own| own.number("alpha"))?.filter(|&alpha| alpha > 0.0) {
        for rope in &mut description.ropes {
            let width = f64::from(rope.width);
            let theta = rope.theta * alpha.powf(width / (width - 2.0).max(1.0));
            *rope = Rope { theta, scaling: RopeScaling::None, ..rope.clone() };
        }
    }
    Ok(description)
}

fn from_gguf(keys: &GgufKeys<'_>, config: &mut Map<String, Json>) {
    config.insert("use_qk_norm".into(), keys.has_tensor("blk.0.attn_q_norm.weight").into());
}
