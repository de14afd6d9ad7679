//! GGUF metadata ↔ configuration. Reading, the metadata become the `config.json` that the family's file understands, so there is
//! one way to describe a model. Writing, the description becomes the metadata that llama.cpp reads.
//!
//! Keys: llama.cpp's `gguf-py/gguf/constants.py`.

use drophammer_formats::Source;
use drophammer_formats::gguf::{Array, Metadata, Value};
use serde_json::{Map, Value as Json, json};

use crate::error::{Error, Result};
use crate::families::Family;
use crate::rope::Yarn;

/// Keys (after `<architecture>.`) that mean the same as one of Hugging Face's.
const SAME: &[(&str, &str)] = &[
    ("context_length", "max_position_embeddings"),
    ("embedding_length", "hidden_size"),
    ("block_count", "num_hidden_layers"),
    ("feed_forward_length", "intermediate_size"),
    ("attention.head_count", "num_attention_heads"),
    ("attention.head_count_kv", "num_key_value_heads"),
    ("attention.key_length", "head_dim"),
    ("attention.layer_norm_rms_epsilon", "rms_norm_eps"),
    ("attention.layer_norm_epsilon", "layer_norm_eps"),
    ("attention.sliding_window", "sliding_window"),
    ("rope.freq_base", "rope_theta"),
    ("vocab_size", "vocab_size"),
    ("expert_count", "num_experts"),
    ("expert_weights_norm", "norm_topk_prob"),
    ("expert_weights_scale", "routed_scaling_factor"),
    ("expert_used_count", "num_experts_per_tok"),
    ("expert_feed_forward_length", "moe_intermediate_size"),
    ("expert_shared_feed_forward_length", "shared_expert_intermediate_size"),
    ("attn_logit_softcapping", "attn_logit_softcapping"),
    ("final_logit_softcapping", "final_logit_softcapping"),
    ("embedding_scale", "embedding_multiplier"),
    ("residual_scale", "residual_multiplier"),
    ("attention.scale", "attention_multiplier"),
    ("logit_scale", "logit_scale"),
];

/// A GGUF file's keys and tensors, seen by a family: of a file that is read, or of one about to be written.
#[derive(Clone, Copy)]
pub struct GgufKeys<'a> {
    metadata: &'a Metadata,
    tensors: &'a dyn TensorFacts,
    architecture: &'static str,
}

/// What keys alone do not tell.
pub(crate) trait TensorFacts {
    /// Rows of a tensor, where it exists.
    fn rows(&self, name: &str) -> Option<u64>;

    /// The values of a small tensor.
    fn values(&self, name: &str) -> Option<Vec<f32>>;
}

impl TensorFacts for Source {
    fn rows(&self, name: &str) -> Option<u64> {
        Some(self.tensor(name)?.rows())
    }

    fn values(&self, name: &str) -> Option<Vec<f32>> {
        const MOST: u64 = 1 << 16;
        let tensor = self.tensor(name).filter(|tensor| tensor.elements() <= MOST)?;
        let mut values = vec![0.0; tensor.elements() as usize];
        drophammer_quant::dequantize(tensor.dtype, self.bytes(tensor), &mut values).ok()?;
        Some(values)
    }
}

impl<'a> GgufKeys<'a> {
    /// All metadata.
    pub fn metadata(&self) -> &'a Metadata {
        self.metadata
    }

    /// The value of `<architecture>.<key>`.
    pub fn get(&self, key: &str) -> Option<&'a Value> {
        self.metadata.get(&format!("{}.{key}", self.architecture))
    }

    /// A number.
    pub fn number(&self, key: &str) -> Option<f64> {
        let value = self.get(key)?;
        value.as_f64().or_else(|| value.as_u64().map(|value| value as f64))
    }

    /// A count.
    pub fn count(&self, key: &str) -> Option<u64> {
        self.get(key)?.as_u64()
    }

    /// The architecture's name.
    pub fn architecture(&self) -> &'static str {
        self.architecture
    }

    /// Rows of a tensor.
    pub fn rows(&self, name: &str) -> Option<u64> {
        self.tensors.rows(name)
    }

    /// Whether there is a tensor of this name.
    pub fn has_tensor(&self, name: &str) -> bool {
        self.tensors.rows(name).is_some()
    }

    /// The values of a small tensor.
    pub fn tensor(&self, name: &str) -> Option<Vec<f32>> {
        self.tensors.values(name)
    }
}

/// The configuration of a GGUF file.
///
/// # Errors
/// [`Error::MissingTensor`] without an embedding; [`Error::Unsupported`] where layers differ in what they may not.
pub(crate) fn config(
    metadata: &Metadata,
    tensors: &dyn TensorFacts,
    family: &'static Family,
) -> Result<Json> {
    let architecture = family.gguf.map_or("", |gguf| gguf.architecture);
    let keys = GgufKeys { metadata, tensors, architecture };
    let mut config = Map::new();
    config.insert("model_type".into(), json!(family.model_types.first().copied().unwrap_or(family.name)));
    for (gguf, hugging_face) in SAME {
        if let Some(value) = keys.get(gguf) {
            config.insert((*hugging_face).into(), scalar(family, gguf, value)?);
        }
    }
    vocabulary(&keys, &mut config)?;
    present(&keys, &mut config);
    rope(&keys, &mut config);
    if let Some(gguf) = family.gguf {
        (gguf.config)(&keys, &mut config);
    }
    Ok(Json::Object(config))
}

/// A scalar, or a list whose items are all the same.
fn scalar(family: &Family, key: &str, value: &Value) -> Result<Json> {
    if let Some(array) = value.as_array() {
        let items = array.to_i64s().unwrap_or_default();
        return match items.split_first() {
            Some((first, rest)) if rest.iter().all(|item| item == first) => Ok(json!(first)),
            _ => Err(Error::Unsupported {
                family: family.name.into(),
                what: format!("`{key}` that differs by layer"),
            }),
        };
    }
    serde_json::to_value(value).map_err(|error| Error::BadValue {
        key: key.into(),
        value: format!("{value:?}").chars().take(60).collect(),
        problem: error.to_string(),
    })
}

fn vocabulary(keys: &GgufKeys<'_>, config: &mut Map<String, Json>) -> Result<()> {
    let name = "token_embd.weight";
    let rows = keys.rows(name).ok_or_else(|| Error::MissingTensor {
        id: crate::Role::TokenEmbedding.global(),
        name: name.into(),
    })?;
    config.insert("vocab_size".into(), json!(rows));
    config.insert("tie_word_embeddings".into(), json!(!keys.has_tensor("output.weight")));
    Ok(())
}

/// What is seen from tensors and lists rather than from keys.
fn present(keys: &GgufKeys<'_>, config: &mut Map<String, Json>) {
    let any = |names: &[&str]| json!(names.iter().any(|name| keys.has_tensor(&format!("blk.0.{name}.bias"))));
    for key in ["attention_bias", "qkv_bias", "use_bias", "bias"] {
        config.insert(key.into(), any(&["attn_q", "attn_qkv", "attn_kv_a_mqa"]));
    }
    config.insert("mlp_bias".into(), any(&["ffn_up"]));
    config.insert("norm_bias".into(), json!(keys.has_tensor("output_norm.bias")));
    let layers = config.get("num_hidden_layers").and_then(Json::as_u64).unwrap_or(0).min(1 << 16);
    if config.contains_key("num_experts") {
        let dense = (0..layers).filter(|layer| !keys.has_tensor(&format!("blk.{layer}.ffn_gate_inp.weight")));
        config.insert("mlp_only_layers".into(), dense.collect());
    }
    if config.contains_key("sliding_window") {
        config.insert("use_sliding_window".into(), true.into());
    }
    if let Some(sliding) =
        keys.get("attention.sliding_window_pattern").and_then(Value::as_array).and_then(Array::as_bools)
    {
        let name = |&sliding: &bool| if sliding { "sliding_attention" } else { "full_attention" };
        config.insert("layer_types".into(), sliding.iter().map(name).collect());
    }
}

fn rope(keys: &GgufKeys<'_>, config: &mut Map<String, Json>) {
    let head = config.get("head_dim").and_then(Json::as_u64).or_else(|| {
        let [hidden, heads] =
            ["hidden_size", "num_attention_heads"].map(|key| config.get(key).and_then(Json::as_u64));
        hidden?.checked_div(heads?)
    });
    if let (Some(width), Some(head)) = (keys.count("rope.dimension_count"), head)
        && width < head
    {
        config.insert("partial_rotary_factor".into(), json!(width as f64 / head as f64));
    }
    let mut scaling = Map::new();
    let kind = keys.get("rope.scaling.type").and_then(Value::as_str).unwrap_or("none");
    let kind = match kind {
        "none" => "default",
        other => other,
    };
    scaling.insert("rope_type".into(), json!(kind));
    let factor = keys.number("rope.scaling.factor").or_else(|| keys.number("rope.scale_linear"));
    if let Some(factor) = factor {
        scaling.insert("factor".into(), json!(factor));
    }
    if let Some(original) = keys.count("rope.scaling.original_context_length") {
        scaling.insert("original_max_position_embeddings".into(), json!(original));
    }
    if let Some(factor) = keys.number("rope.scaling.dynamic_factor") {
        scaling.insert("rope_type".into(), json!("dynamic"));
        scaling.insert("factor".into(), json!(factor));
    }
    if let Some(magnitude) = keys.number("rope.scaling.attn_factor") {
        // With YaRN it comes on top of the usual one.
        let usual = if kind == "yarn" { Yarn::usual_magnitude(factor.unwrap_or(1.0), 1.0) } else { 1.0 };
        scaling.insert("attention_factor".into(), json!(magnitude * usual));
    }
    for (gguf, hugging_face) in
        [("rope.scaling.yarn_beta_fast", "beta_fast"), ("rope.scaling.yarn_beta_slow", "beta_slow")]
    {
        if let Some(value) = keys.number(gguf) {
            scaling.insert(hugging_face.into(), json!(value));
        }
    }
    let [short, long, factors] =
        ["rope_factors_short.weight", "rope_factors_long.weight", "rope_freqs.weight"]
            .map(|name| keys.tensor(name));
    if let (Some(short), Some(long)) = (short, long) {
        scaling.insert("rope_type".into(), json!("longrope"));
        scaling.insert("short_factor".into(), json!(short));
        scaling.insert("long_factor".into(), json!(long));
    } else if let Some(factors) = factors {
        scaling.insert("rope_type".into(), json!("factors"));
        scaling.insert("factors".into(), json!(factors));
    }
    config.insert("rope_scaling".into(), Json::Object(scaling));
}

/// The metadata of a GGUF file being written, seen by a family.
#[derive(Debug)]
pub struct GgufWriter<'a> {
    metadata: &'a mut Metadata,
    architecture: &'static str,
}

impl<'a> GgufWriter<'a> {
    /// Writes keys of an architecture.
    pub fn new(metadata: &'a mut Metadata, architecture: &'static str) -> Self {
        Self { metadata, architecture }
    }

    /// Sets `<architecture>.<key>`.
    pub fn set(&mut self, key: &str, value: impl Into<Value>) {
        self.metadata.set(format!("{}.{key}", self.architecture), value);
    }

    /// Sets a key of no architecture.
    pub fn set_global(&mut self, key: &str, value: impl Into<Value>) {
        self.metadata.set(key, value);
    }

    /// Removes `<architecture>.<key>`.
    pub fn remove(&mut self, key: &str) {
        self.metadata.remove(&format!("{}.{key}", self.architecture));
    }
}
