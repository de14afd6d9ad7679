//! A description as llama.cpp's keys. The family's own come last and win.

use drophammer_formats::gguf::{Array, Metadata, Value};

use crate::checkpoint::Checkpoint;
use crate::description::{Attention, Description, FeedForward, ModelKind, NormRule};
use crate::families::{Gguf, GgufWriter};
use crate::graph::NormKind;
use crate::rope::{Rope, RopeScaling, Yarn};

pub(super) fn metadata(checkpoint: &Checkpoint, gguf: &Gguf, file_type: u32) -> Metadata {
    let description = checkpoint.description();
    let mut metadata = Metadata::new();
    metadata.set("general.architecture", gguf.architecture);
    metadata.set("general.type", "model");
    if let Some(name) = checkpoint.source().root().file_stem() {
        metadata.set("general.name", name.to_string_lossy().into_owned());
    }
    metadata.set("general.file_type", file_type);
    metadata.set("general.quantization_version", 2u32);
    let mut keys = GgufWriter::new(&mut metadata, gguf.architecture);
    keys.set("vocab_size", description.vocabulary);
    keys.set("context_length", description.context);
    keys.set("embedding_length", description.hidden);
    keys.set("block_count", description.layers.len() as u32);
    keys.set("feed_forward_length", feed_forward_width(description));
    attention(description, &mut keys);
    norms(description, &mut keys);
    if let Some(rope) = description.ropes.first() {
        rotation(rope, &mut keys);
    }
    experts(description, &mut keys);
    if description.kind == ModelKind::Encoder {
        keys.set("attention.causal", false);
    }
    if let Some(pooling) = description.pooling {
        keys.set("pooling_type", pooling.gguf_id());
    }
    (gguf.metadata)(description, &mut keys);
    metadata
}

fn feed_forward_width(description: &Description) -> u32 {
    let dense = description.layers.iter().find_map(|layer| match &layer.feed_forward {
        FeedForward::Gated { width, .. } | FeedForward::Plain { width, .. } => Some(*width),
        FeedForward::Experts(_) => None,
    });
    dense.or(description.experts().map(|experts| experts.width)).unwrap_or(0)
}

fn attention(description: &Description, keys: &mut GgufWriter<'_>) {
    let Some(first) = description.layers.first().map(|layer| &layer.attention) else { return };
    keys.set("attention.head_count", first.heads);
    keys.set("attention.head_count_kv", first.kv_heads);
    keys.set("attention.key_length", first.key_width);
    keys.set("attention.value_length", first.value_width);
    if first.latent.is_none() && (first.scale / Attention::usual_scale(first.key_width) - 1.0).abs() > 1e-6 {
        keys.set("attention.scale", first.scale);
    }
    if let Some(window) = description.window() {
        keys.set("attention.sliding_window", window);
        let sliding = description.layers.iter().map(|layer| layer.attention.window.is_some()).collect();
        keys.set("attention.sliding_window_pattern", Value::Array(Array::Bool(sliding)));
    }
}

fn norms(description: &Description, keys: &mut GgufWriter<'_>) {
    let layer = description.layers.first().map(|layer| layer.norms);
    let of_layer = layer.and_then(|norms| norms.attention.or(norms.attention_output));
    let Some(NormRule { kind, epsilon, .. }) = of_layer.or(description.final_norm) else { return };
    match kind {
        NormKind::Rms => keys.set("attention.layer_norm_rms_epsilon", epsilon),
        NormKind::Layer => keys.set("attention.layer_norm_epsilon", epsilon),
    }
}

fn rotation(rope: &Rope, keys: &mut GgufWriter<'_>) {
    keys.set("rope.dimension_count", rope.width);
    keys.set("rope.freq_base", rope.theta as f32);
    match &rope.scaling {
        RopeScaling::None | RopeScaling::Llama3 { .. } | RopeScaling::Factors(_) => {}
        RopeScaling::Linear { factor } => {
            keys.set("rope.scaling.type", "linear");
            keys.set("rope.scaling.factor", *factor as f32);
        }
        // llama.cpp does not know it: there the model works up to its trained length.
        RopeScaling::Dynamic { factor, .. } => keys.set("rope.scaling.dynamic_factor", *factor as f32),
        RopeScaling::Yarn(yarn) => {
            keys.set("rope.scaling.type", "yarn");
            keys.set("rope.scaling.factor", yarn.factor as f32);
            keys.set("rope.scaling.original_context_length", yarn.original);
            keys.set("rope.scaling.yarn_beta_fast", yarn.beta_fast as f32);
            keys.set("rope.scaling.yarn_beta_slow", yarn.beta_slow as f32);
            // llama.cpp multiplies this with the usual magnitude.
            let factor = yarn.magnitude / Yarn::usual_magnitude(yarn.factor, 1.0);
            if (factor - 1.0).abs() > 1e-6 {
                keys.set("rope.scaling.attn_factor", factor as f32);
            }
        }
        RopeScaling::Long { original, magnitude, .. } => {
            keys.set("rope.scaling.type", "longrope");
            keys.set("rope.scaling.original_context_length", *original);
            keys.set("rope.scaling.attn_factor", *magnitude as f32);
        }
    }
}

fn experts(description: &Description, keys: &mut GgufWriter<'_>) {
    let Some(experts) = description.experts() else { return };
    keys.set("expert_count", experts.count);
    keys.set("expert_used_count", experts.used);
    keys.set("expert_feed_forward_length", experts.width);
    keys.set("expert_weights_norm", experts.normalize);
    if let Some(shared) = experts.shared {
        keys.set("expert_shared_feed_forward_length", shared.width);
    }
    if experts.scale != 1.0 {
        keys.set("expert_weights_scale", experts.scale);
    }
}
