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
