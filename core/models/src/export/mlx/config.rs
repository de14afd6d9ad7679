//! `config.json` and the index of an MLX directory.

use drophammer_formats::layout::Layout;
use drophammer_formats::{DType, TensorDecl};
use serde_json::{Map, Value as Json, json};

use super::{Choice, MlxExport, Planned, Scheme};
use crate::description::Description;

/// Keys of this project's reading of GGUF files that Hugging Face does not have.
const OWN_KEYS: [&str; 3] = ["use_bias", "bias", "norm_bias"];

/// The configuration: the source's, with what became of each module under `quantization`. `tokens` are ids that the
/// configuration of a source without `config.json` should name (`bos_token_id`, …).
pub fn config(export: &MlxExport, scheme: &Scheme, plan: &[Planned], tokens: &Map<String, Json>) -> Json {
    let mut config = match export.checkpoint().config() {
        Json::Object(config) => config.clone(),
        _ => Map::new(),
    };
    for key in ["quantization", "quantization_config", "compression_config", "_name_or_path"] {
        config.remove(key);
    }
    if export.checkpoint().source().config().is_none() {
        complete(&mut config, tokens);
    }
    old_spelling(&mut config);
    as_classes_ask(&mut config, export.checkpoint().description());
    let base = match export.base() {
        DType::F32 => "float32",
        DType::F16 => "float16",
        _ => "bfloat16",
    };
    config.remove("dtype");
    config.insert("torch_dtype".into(), base.into());
    if let Some(tied) = export.checkpoint().description().head.map(|head| head.tied) {
        config.insert("tie_word_embeddings".into(), tied.into());
    }
    if let Some(quantization) = quantization(export, scheme, plan) {
        config.insert("quantization".into(), quantization.clone());
        config.insert("quantization_config".into(), quantization);
    }
    config.sort_keys();
    Json::Object(config)
}

/// Keys that mlx-lm's classes know by another name: theirs, and Hugging Face's.
const ALIASES: [(&str, &str); 5] = [
    ("num_experts", "num_local_experts"),
    ("num_local_experts", "num_experts"),
    ("n_ctx", "n_positions"),
    ("rotary_emb_base", "rope_theta"),
    ("rotary_pct", "partial_rotary_factor"),
];

/// Adds what transformers wrote before its version 5, which mlx-lm's classes read: rotations as keys of their own instead
/// of `rope_parameters`.
fn old_spelling(config: &mut Map<String, Json>) {
    if let Some(Json::Object(parameters)) = config.get("rope_parameters").cloned() {
        // Models with two rotations name them by their layers.
        let full = match parameters.get("full_attention") {
            Some(Json::Object(full)) => full.clone(),
            _ => parameters.clone(),
        };
        for key in ["rope_theta", "partial_rotary_factor"] {
            if let Some(value) = full.get(key) {
                config.entry(key).or_insert(value.clone());
            }
        }
        if let Some(local) = parameters.get("sliding_attention").and_then(|local| local.get("rope_theta")) {
            config.entry("rope_local_base_freq").or_insert(local.clone());
        }
        if full.get("rope_type").and_then(Json::as_str).is_some_and(|kind| kind != "default") {
            config.entry("rope_scaling").or_insert(Json::Object(full));
        }
    }
    for (theirs, known) in ALIASES {
        if let (false, Some(value)) = (config.contains_key(theirs), config.get(known)) {
            let value = value.clone();
            config.insert(theirs.to_owned(), value);
        }
    }
}

/// Adds what single classes of mlx-lm ask for where Hugging Face's do not, or in other words.
fn as_classes_ask(config: &mut Map<String, Json>, description: &Description) {
    if config.contains_key("rope_parameters") {
        // Required by some, though it may be null.
        config.entry("rope_scaling").or_insert(Json::Null);
    }
    if let Some(Json::Object(scaling)) = config.get_mut("rope_scaling")
        && let Some(kind) = scaling.get("rope_type").cloned()
    {
        scaling.entry("type").or_insert(kind);
    }
    match description.family {
        "exaone4" => {
            let width = description.layers.first().map_or(0, |layer| layer.attention.key_width);
            config.entry("head_dim").or_insert(width.into());
            if let Some(period) = config.get("sliding_window_pattern").and_then(Json::as_u64) {
                let local = "L".repeat(period.clamp(1, 64) as usize - 1);
                config.insert("sliding_window_pattern".into(), format!("{local}G").into());
            }
        }
        // Its class knows no unscaled rotations: stretched by one they are the same.
        "deepseek_v2" if config.get("rope_scaling").is_none_or(Json::is_null) => {
            let original = description.context;
            let scaling =
                json!({ "type": "yarn", "factor": 1.0, "original_max_position_embeddings": original });
            config.insert("rope_scaling".into(), scaling);
        }
        _ => {}
    }
}

/// What Hugging Face's classes expect beyond what GGUF metadata tell.
fn complete(config: &mut Map<String, Json>, tokens: &Map<String, Json>) {
    for key in OWN_KEYS {
        if config.get(key) == Some(&Json::Bool(false)) {
            config.remove(key);
        }
    }
    if config.get("rope_scaling").and_then(|scaling| scaling.get("rope_type")) == Some(&json!("default")) {
        config.insert("rope_scaling".into(), Json::Null);
    }
    config.entry("hidden_act").or_insert("silu".into());
    for (key, value) in tokens {
        config.entry(key.clone()).or_insert(value.clone());
    }
}

/// The usual parameters, and those of every module that has others.
fn quantization(export: &MlxExport, scheme: &Scheme, plan: &[Planned]) -> Option<Json> {
    let packed = |planned: &Planned| match planned.choice {
        Choice::Packed(packed) => Some(packed),
        _ => None,
    };
    let usual = scheme.usual().or_else(|| plan.iter().find_map(packed))?;
    let mut document = usual.document();
    if let Some(document) = document.as_object_mut() {
        for (module, planned) in export.modules().iter().zip(plan) {
            if let Some(own) = packed(planned).filter(|own| *own != usual) {
                document.insert(module.path.clone(), own.document());
            }
        }
    }
    Some(document)
}

/// `model.safetensors.index.json`, which mlx-lm always writes.
pub fn index(export: &MlxExport, tensors: &[TensorDecl], layout: &Layout) -> Json {
    let mut map = Map::new();
    for (tensor, place) in tensors.iter().zip(&layout.places) {
        map.insert(tensor.name.clone(), layout.files[place.file].name.clone().into());
    }
    map.sort_keys();
    let total: u64 = layout.places.iter().map(|place| place.len).sum();
    json!({
        "metadata": { "total_size": total, "total_parameters": export.parameters() },
        "weight_map": map,
    })
}
