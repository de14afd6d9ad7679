//! DeepSeek V2, V2.5, V3, R1: keys and values from a compressed state, many small experts chosen group by group.

use drophammer_formats::gguf::Value;
use serde_json::{Map, Value as Json};

use super::{Family, Gguf, GgufKeys, GgufWriter};
use crate::config::Config;
use crate::description::{Attention, Description, Experts, FeedForward, Latent, SharedExpert};
use crate::error::Result;
use crate::graph::{ExpertGroups, Scoring};
use crate::names::hugging_face::{EXPERTS, LLAMA};
use crate::names::{Names, at};
use crate::rope::{Rope, RopeLayout, RopeScaling, Yarn};
use crate::weight::Role;

pub(super) static V2: Family = Family {
    name: "deepseek_v2",
    model_types: &["deepseek_v2"],
    describe: describe_v2,
    names: &[NAMES, MIXTURE, EXPERTS, LLAMA],
    norm_offset: 0.0,
    gguf: Some(Gguf { is: |keys| keys.u64("deepseek2.expert_gating_func") != Some(2), ..GGUF }),
};

pub(super) static V3: Family = Family {
    name: "deepseek_v3",
    model_types: &["deepseek_v3", "kimi_k2"],
    describe: describe_v3,
    names: &[NAMES, MIXTURE, EXPERTS, LLAMA],
    norm_offset: 0.0,
    gguf: Some(GGUF),
};

const GGUF: Gguf =
    Gguf { layout: RopeLayout::Pairs, config: from_gguf, metadata: to_gguf, ..Gguf::new("deepseek2") };

const NAMES: Names = &[
    (Role::QueryDown, at("model.layers.{l}.self_attn.q_a_proj")),
    (Role::QueryDownNorm, at("model.layers.{l}.self_attn.q_a_layernorm")),
    (Role::Query, at("model.layers.{l}.self_attn.q_b_proj")),
    (Role::LatentDown, at("model.layers.{l}.self_attn.kv_a_proj_with_mqa").stacked()),
    (Role::KeyRotary, at("model.layers.{l}.self_attn.kv_a_proj_with_mqa").stacked()),
    (Role::LatentNorm, at("model.layers.{l}.self_attn.kv_a_layernorm")),
    (Role::KeyUp, at("model.layers.{l}.self_attn.kv_b_proj").grouped()),
    (Role::ValueUp, at("model.layers.{l}.self_attn.kv_b_proj").grouped()),
];

/// Its mixture's own names, which GLM 4.5 took over.
pub(super) const MIXTURE: Names = &[
    (Role::RouterCorrection, at("model.layers.{l}.mlp.gate.e_score_correction_bias").exact()),
    (Role::SharedGate, at("model.layers.{l}.mlp.shared_experts.gate_proj")),
    (Role::SharedUp, at("model.layers.{l}.mlp.shared_experts.up_proj")),
    (Role::SharedDown, at("model.layers.{l}.mlp.shared_experts.down_proj")),
];

fn describe_v2(config: &Config<'_>) -> Result<Description> {
    let grouped = config.text("topk_method")? == Some("group_limited_greedy");
    let groups = if grouped { groups(config, 1)? } else { None };
    let mut description = decoder(config, "deepseek_v2")?;
    mixtures(config, &mut description, |experts| Experts { groups, ..experts })?;
    Ok(description)
}

fn describe_v3(config: &Config<'_>) -> Result<Description> {
    let mut description = decoder(config, "deepseek_v3")?;
    sigmoid_mixtures(config, &mut description)?;
    Ok(description)
}

/// DeepSeek V3's mixture, which GLM 4.5 took over.
pub(super) fn sigmoid_mixtures(config: &Config<'_>, description: &mut Description) -> Result<()> {
    let groups = groups(config, 2)?;
    let route = |experts| Experts { groups, scoring: Scoring::Sigmoid, correction: true, ..experts };
    mixtures(config, description, route)
}

/// Experts in all but the first layers.
fn mixtures(
    config: &Config<'_>,
    description: &mut Description,
    route: impl Fn(Experts) -> Experts,
) -> Result<()> {
    let dense = config.maybe_count("first_k_dense_replace")?.unwrap_or(0) as usize;
    let every = config.maybe_count("moe_layer_freq")?.unwrap_or(1).max(1) as usize;
    if config.get("n_routed_experts").is_none() {
        return Ok(());
    }
    for (number, layer) in description.layers.iter_mut().enumerate() {
        if let FeedForward::Gated { gating, .. } = layer.feed_forward
            && number >= dense
            && number.is_multiple_of(every)
        {
            let width = config.positive(&["moe_intermediate_size"])?;
            let experts = route(config.experts(width, gating)?);
            let shared = config.maybe_count("n_shared_experts")?.filter(|&count| count > 0);
            let shared =
                shared.map(|count| SharedExpert { width: count.saturating_mul(width), scored: false });
            layer.feed_forward = FeedForward::Experts(Experts { shared, ..experts });
        }
    }
    Ok(())
}

fn groups(config: &Config<'_>, best: u32) -> Result<Option<ExpertGroups>> {
    let (count, used) =
        (config.maybe_count("n_group")?.unwrap_or(1), config.maybe_count("topk_group")?.unwrap_or(1));
    Ok((count > 1).then_some(ExpertGroups { count, used, best }))
}

fn decoder(config: &Config<'_>, family: &'static str) -> Result<Description> {
    let bias = config.flag("attention_bias")?;
    let mut description = config.decoder(family)?.with_biases(bias, bias, false);
    let plain_width = config.positive(&["qk_nope_head_dim"])?;
    let rotary_width = config.positive(&["qk_rope_head_dim"])?;
    let latent = Latent {
        query_rank: config.maybe_count("q_lora_rank")?.filter(|&rank| rank > 0),
        rank: config.positive(&["kv_lora_rank"])?,
        plain_width,
    };
    let rope = config.rope(rotary_width, 10_000.0)?;
    let magnitude = scores_magnitude(config, &rope)?;
    let layout =
        if config.flag_or("rope_interleave", true)? { RopeLayout::Pairs } else { RopeLayout::Halves };
    description.ropes = vec![Rope { start: plain_width, layout, ..rope }];
    for layer in &mut description.layers {
        let attention = &mut layer.attention;
        attention.kv_heads = attention.heads;
        attention.key_width = plain_width + rotary_width;
        attention.value_width = config.positive(&["v_head_dim"])?;
        attention.scale = Attention::usual_scale(attention.key_width) * magnitude;
        attention.latent = Some(latent);
    }
    Ok(description)
}

/// With YaRN, scores are scaled by what sines and cosines are not.
fn scores_magnitude(config: &Config<'_>, rope: &Rope) -> Result<f32> {
    let RopeScaling::Yarn(yarn) = &rope.scaling else { return Ok(1.0) };
    let own = config.first(&["rope_parameters", "rope_scaling"]).map(Config::new);
    let all = own.map_or(Ok(None), |own| own.number("mscale_all_dim"))?.unwrap_or(0.0);
    let magnitude = if all == 0.0 { 1.0 } else { Yarn::usual_magnitude(yarn.factor, all) };
    Ok((magnitude * magnitude) as f32)
}

fn from_gguf(keys: &GgufKeys<'_>, config: &mut Map<String, Json>) {
    // With separate up-projections llama.cpp describes attention as it caches it, and keeps the heads' widths aside.
    let width = |mla: &str, plain: &str| keys.count(mla).or_else(|| keys.count(plain)).unwrap_or(0);
    let rotary = keys.count("rope.dimension_count").unwrap_or(0);
    let key = width("attention.key_length_mla", "attention.key_length");
    let mut set = |key: &str, value: Json| config.insert(key.into(), value);
    set("qk_rope_head_dim", rotary.into());
    set("qk_nope_head_dim", key.saturating_sub(rotary).into());
    set("v_head_dim", width("attention.value_length_mla", "attention.value_length").into());
    set("kv_lora_rank", keys.count("attention.kv_lora_rank").into());
    set("q_lora_rank", keys.count("attention.q_lora_rank").into());
    set("head_dim", rotary.into());
    config.remove("partial_rotary_factor");
    if let (Some(Json::Object(scaling)), Some(multiplier)) =
        (config.get_mut("rope_scaling"), keys.number("rope.scaling.yarn_log_multiplier"))
    {
        // Written as a tenth of `mscale_all_dim`; sines and cosines keep their length in every released model.
        scaling.insert("mscale_all_dim".into(), (multiplier * 10.0).into());
        scaling.insert("mscale".into(), (multiplier * 10.0).into());
    }
    mixtures_from_gguf(keys, config);
}

/// What the configuration's mixture needs beyond the usual keys.
pub(super) fn mixtures_from_gguf(keys: &GgufKeys<'_>, config: &mut Map<String, Json>) {
    let mut set = |key: &str, value: Json| config.insert(key.into(), value);
    set("first_k_dense_replace", keys.count("leading_dense_block_count").unwrap_or(0).into());
    set("n_routed_experts", keys.count("expert_count").into());
    set("n_shared_experts", keys.count("expert_shared_count").into());
    set("routed_scaling_factor", keys.number("expert_weights_scale").unwrap_or(1.0).into());
    set("norm_topk_prob", keys.get("expert_weights_norm").and_then(Value::as_bool).unwrap_or(false).into());
    set("n_group", keys.count("expert_group_count").unwrap_or(1).into());
    set("topk_group", keys.count("expert_group_used_count").unwrap_or(1).into());
    if keys.count("expert_group_count") > Some(1) {
        set("topk_method", "group_limited_greedy".into());
    }
}

fn to_gguf(description: &Description, keys: &mut GgufWriter<'_>) {
    let Some(attention) = description.layers.first().map(|layer| &layer.attention) else { return };
    let Some(latent) = attention.latent else { return };
    // llama.cpp caches the compressed state and sees one key/value head.
    let rotary = attention.key_width - latent.plain_width;
    keys.set("attention.head_count_kv", 1u32);
    keys.set("attention.key_length", latent.rank + rotary);
    keys.set("attention.value_length", latent.rank);
    keys.set("attention.key_length_mla", attention.key_width);
    keys.set("attention.value_length_mla", attention.value_width);
    keys.set("attention.kv_lora_rank", latent.rank);
    keys.set("attention.q_lora_rank", latent.query_rank.unwrap_or(0));
    mixtures_to_gguf(description, keys);
    if let Some(RopeScaling::Yarn(yarn)) = description.ropes.first().map(|rope| &rope.scaling) {
        let magnitude = (attention.scale / Attention::usual_scale(attention.key_width)).sqrt();
        let multiplier =
            if yarn.factor > 1.0 { (f64::from(magnitude) - 1.0) / yarn.factor.ln() } else { 0.0 };
        keys.set("rope.scaling.yarn_log_multiplier", multiplier as f32);
        keys.remove("rope.scaling.attn_factor");
    }
}

/// What llama.cpp needs to know of the mixture beyond the usual keys.
pub(super) fn mixtures_to_gguf(description: &Description, keys: &mut GgufWriter<'_>) {
    let dense =
        description.layers.iter().take_while(|layer| !matches!(layer.feed_forward, FeedForward::Experts(_)));
    keys.set("leading_dense_block_count", dense.count() as u32);
    let Some(experts) = description.experts() else { return };
    keys.set("expert_shared_count", experts.shared.map_or(0, |shared| shared.width / experts.width.max(1)));
    keys.set("expert_weights_scale", experts.scale);
    keys.set("expert_gating_func", if experts.scoring == Scoring::Sigmoid { 2u32 } else { 1 });
    if let Some(groups) = experts.groups {
        keys.set("expert_group_count", groups.count);
        keys.set("expert_group_used_count", groups.used);
    }
}
