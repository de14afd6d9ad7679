//! `genai_config.json`: what onnxruntime-genai asks about a decoder.

use serde_json::{Value as Json, json};

use super::FILE;
use crate::checkpoint::Checkpoint;
use crate::description::ModelKind;

/// Architectures that onnxruntime-genai knows by name; all others are plain decoders to it.
const KNOWN: &[&str] = &[
    "ernie4_5",
    "gemma",
    "gemma2",
    "gemma3_text",
    "granite",
    "llama",
    "mistral",
    "nemotron",
    "olmo",
    "phi",
    "phi3",
    "qwen2",
    "qwen3",
    "smollm3",
];

/// The file, for decoders that write logits.
pub(super) fn config(checkpoint: &Checkpoint, shares_buffers: bool) -> Option<Vec<u8>> {
    let description = checkpoint.description();
    if description.kind != ModelKind::Decoder || description.head.is_none() {
        return None;
    }
    let attention = &description.layers.first()?.attention;
    let name = if description.family == "gemma3" { "gemma3_text" } else { description.family };
    let kind = if KNOWN.contains(&name) { name } else { "decoder" };
    let source = checkpoint.source();
    let generation =
        drophammer_formats::source::read_json(&source.root().join("generation_config.json")).ok();
    let token = |key: &str, gguf: &str| -> Json {
        let configured = [generation.as_ref(), source.config()].into_iter().flatten();
        let mut told = configured.filter_map(|config| config.get(key)).filter(|value| !value.is_null());
        told.next().cloned().unwrap_or_else(|| source.metadata().u64(gguf).map_or(Json::Null, Json::from))
    };
    let end = token("eos_token_id", "tokenizer.ggml.eos_token_id");
    let first_end = end.as_array().and_then(|list| list.first()).unwrap_or(&end).clone();
    let pad = Some(token("pad_token_id", "tokenizer.ggml.padding_token_id")).filter(|pad| !pad.is_null());
    let document = json!({
        "model": {
            "type": kind,
            "bos_token_id": token("bos_token_id", "tokenizer.ggml.bos_token_id").as_u64().map_or(first_end.clone(), Json::from),
            "eos_token_id": end,
            "pad_token_id": pad.unwrap_or(first_end),
            "vocab_size": description.vocabulary,
            "context_length": description.context,
            "decoder": {
                "filename": FILE,
                "hidden_size": description.hidden,
                "head_size": attention.key_width,
                "num_attention_heads": attention.heads,
                "num_key_value_heads": attention.kv_heads,
                "num_hidden_layers": description.layers.len(),
                "inputs": {
                    "input_ids": "input_ids",
                    "attention_mask": "attention_mask",
                    "position_ids": "position_ids",
                    "past_key_names": "past_key_values.%d.key",
                    "past_value_names": "past_key_values.%d.value",
                },
                "outputs": {
                    "logits": "logits",
                    "present_key_names": "present.%d.key",
                    "present_value_names": "present.%d.value",
                },
                "session_options": { "log_id": "onnxruntime-genai", "provider_options": [] },
            },
        },
        "search": {
            "do_sample": false,
            "early_stopping": true,
            "max_length": description.context,
            "min_length": 0,
            "num_beams": 1,
            "num_return_sequences": 1,
            "past_present_share_buffer": shares_buffers,
            "repetition_penalty": 1.0,
            "temperature": 1.0,
            "top_k": 1,
            "top_p": 1.0,
        },
    });
    serde_json::to_vec_pretty(&document).ok()
}
