//! Configurations become descriptions.

#![allow(clippy::unwrap_used)] // a test stops at the first surprise

use std::path::Path;

use drophammer_models::rope::RopeScaling;
use drophammer_models::{Error, describe};
use serde_json::{Value as Json, json};

fn llama() -> serde_json::Value {
    json!({
        "model_type": "llama", "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2,
        "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 128, "rms_norm_eps": 1e-5,
        "max_position_embeddings": 256, "tie_word_embeddings": true
    })
}

#[test]
fn old_and_new_rope_keys_mean_the_same() {
    let (mut old, mut new) = (llama(), llama());
    let scaling = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 128});
    old["rope_theta"] = json!(500000.0);
    old["rope_scaling"] = scaling.clone();
    new["rope_parameters"] = scaling;
    new["rope_parameters"]["rope_theta"] = json!(500000.0);
    let (old, new) = (describe(&old).unwrap(), describe(&new).unwrap());
    assert_eq!(old, new);
    assert!(matches!(old.ropes[0].scaling, RopeScaling::Llama3 { original: 128, .. }));
}

#[test]
fn an_unknown_architecture_is_named_with_what_is_supported() {
    let error = describe(&json!({"model_type": "mamba2"})).unwrap_err().to_string();
    assert!(error.contains("`mamba2`") && error.contains("llama"), "{error}");
}

#[test]
fn senseless_configurations_are_refused_by_key() {
    for (key, value) in [
        ("num_attention_heads", json!(0)),
        ("num_key_value_heads", json!(3)),
        ("num_key_value_heads", json!(0)),
        ("num_hidden_layers", json!(1_000_000_000)),
        ("hidden_size", json!("large")),
        ("vocab_size", json!(-1)),
        ("head_dim", json!(0)),
        ("head_dim", json!(1 << 30)),
        ("hidden_act", json!("snake")),
        ("rope_theta", json!(0.0)),
    ] {
        let mut config = llama();
        config[key] = value.clone();
        assert!(describe(&config).is_err(), "{key} = {value}");
    }
}

/// A configuration as transformers wrote it before version 5.
fn old_spelling(config: &Json) -> Json {
    let mut old = config.as_object().unwrap().clone();
    if let Some(dtype) = old.remove("dtype") {
        old.insert("torch_dtype".into(), dtype);
    }
    let family = old["model_type"].as_str().unwrap().to_owned();
    if let Some(Json::Object(mut rope)) = old.remove("rope_parameters") {
        // Two rotations had keys of their own in each family.
        let theta = |rope: &Json| rope["rope_theta"].clone();
        match (family.as_str(), rope.get("sliding_attention").cloned(), rope.remove("full_attention")) {
            ("gemma3_text", Some(sliding), Some(full)) => {
                old.insert("rope_theta".into(), theta(&full));
                old.insert("rope_local_base_freq".into(), theta(&sliding));
                rope = full.as_object().unwrap().clone();
            }
            ("olmo3", _, Some(full)) => {
                old.insert("rope_theta".into(), theta(&full));
                rope = full.as_object().unwrap().clone();
            }
            ("modernbert", Some(sliding), Some(full)) => {
                old.insert("global_rope_theta".into(), theta(&full));
                old.insert("local_rope_theta".into(), theta(&sliding));
                rope.clear();
            }
            _ => {
                old.extend(rope.remove("rope_theta").map(|theta| ("rope_theta".into(), theta)));
            }
        }
        rope.remove("rope_theta");
        let partial = if family == "gpt_neox" { "rotary_pct" } else { "partial_rotary_factor" };
        old.extend(rope.remove("partial_rotary_factor").map(|part| (partial.into(), part)));
        if rope.get("rope_type").is_some_and(|kind| kind != "default") {
            let kind = rope.remove("rope_type").unwrap();
            rope.insert("type".into(), kind);
            old.insert("rope_scaling".into(), Json::Object(rope));
        } else {
            old.insert("rope_scaling".into(), Json::Null);
        }
    }
    if family != "gpt_oss" {
        old.remove("layer_types");
    }
    Json::Object(old)
}

#[test]
fn every_family_reads_old_configurations_like_new_ones() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/arch");
    let mut seen = 0;
    for entry in std::fs::read_dir(root).unwrap() {
        let path = entry.unwrap().path();
        let Ok(text) = std::fs::read(path.join("config.json")) else { continue };
        let new: Json = serde_json::from_slice(&text).unwrap();
        let old = old_spelling(&new);
        assert_ne!(old, new);
        assert_eq!(describe(&old).unwrap(), describe(&new).unwrap(), "{}", path.display());
        seen += 1;
    }
    assert!(seen > 30);
}

#[test]
fn variants_that_are_not_supported_are_named() {
    let falcon = json!({"model_type": "falcon", "hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 1,
        "vocab_size": 99, "alibi": true});
    let mut dynamic = llama();
    dynamic["rope_scaling"] = json!({"type": "ntk_by_parts", "factor": 2.0});
    for (config, what) in [(falcon, "alibi"), (dynamic, "ntk_by_parts")] {
        let error = describe(&config).unwrap_err();
        assert!(matches!(error, Error::Unsupported { .. }), "{error}");
        assert!(error.to_string().contains(what) && !error.help().is_empty(), "{error}");
    }
}

#[test]
fn what_a_nested_configuration_leaves_unsaid_is_what_its_class_assumes() {
    // Gemma 3 4B as released, LLaVA 1.5 7B as released: both name little but what is unusual.
    let gemma = json!({"model_type": "gemma3", "vision_config": {}, "text_config": {
        "model_type": "gemma3_text", "hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024}});
    let description = describe(&gemma).unwrap();
    let attention = &description.layers[0].attention;
    assert_eq!((attention.heads, attention.kv_heads, attention.key_width), (8, 4, 256));
    assert_eq!((description.vocabulary, description.context), (262_208, 131_072));
    assert_eq!(description.layers.iter().filter(|layer| layer.attention.window == Some(1024)).count(), 29);
    assert_eq!(description.ropes.iter().map(|rope| rope.theta).collect::<Vec<_>>(), [1e6, 1e4]);
    assert_eq!(description.ropes[0].scaling, RopeScaling::Linear { factor: 8.0 });
    assert_eq!(description.final_norm.unwrap().epsilon, 1e-6);
    let llava = json!({"model_type": "llava", "text_config": {
        "model_type": "llama", "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "vocab_size": 32064}});
    let description = describe(&llava).unwrap();
    assert_eq!((description.hidden, description.layers.len(), description.context), (4096, 32, 4096));
    assert_eq!(description.layers[0].attention.kv_heads, 32);
}

#[test]
fn a_default_never_hides_another_spelling() {
    let falcon =
        json!({"model_type": "falcon", "hidden_size": 64, "n_head": 4, "n_layer": 3, "vocab_size": 99});
    let description = describe(&falcon).unwrap();
    assert_eq!((description.layers.len(), description.layers[0].attention.heads), (3, 4));
    // A null is said, not silent: no window.
    let mistral = json!({"model_type": "mistral", "sliding_window": null});
    assert_eq!(describe(&mistral).unwrap().window(), None);
    assert_eq!(describe(&json!({"model_type": "mistral"})).unwrap().window(), Some(4096));
}
