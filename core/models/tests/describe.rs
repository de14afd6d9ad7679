//! Configurations become descriptions.

use drophammer_models::describe;
use drophammer_models::rope::RopeScaling;
use serde_json::json;

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
