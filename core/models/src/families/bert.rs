//! BERT, MiniLM, BGE and other sentence encoders on it.

use serde_json::{Map, Value as Json};

use super::{Family, Gguf, GgufKeys, GgufWriter, unsupported};
use crate::config::{Config, bad};
use crate::description::{Description, Embedding, LearnedPositions, ModelKind, NormRule, Wiring};
use crate::error::Result;
use crate::graph::{Activation, Pooling};
use crate::names::{Names, at};
use crate::weight::Role;

pub(super) static FAMILY: Family = Family {
    name: "bert",
    model_types: &["bert"],
    describe,
    names: &[NAMES],
    norm_offset: 0.0,
    gguf: Some(Gguf { names: |_| GGUF_NAMES, config: from_gguf, metadata: to_gguf, ..Gguf::new("bert") }),
};

/// What RoBERTa shares.
pub(super) const NAMES: Names = &[
    (Role::TokenEmbedding, at("embeddings.word_embeddings")),
    (Role::PositionEmbedding, at("embeddings.position_embeddings")),
    (Role::TokenTypeEmbedding, at("embeddings.token_type_embeddings")),
    (Role::EmbeddingNorm, at("embeddings.LayerNorm")),
    (Role::Query, at("encoder.layer.{l}.attention.self.query")),
    (Role::Key, at("encoder.layer.{l}.attention.self.key")),
    (Role::Value, at("encoder.layer.{l}.attention.self.value")),
    (Role::AttentionOutput, at("encoder.layer.{l}.attention.output.dense")),
    (Role::AttentionOutputNorm, at("encoder.layer.{l}.attention.output.LayerNorm")),
    (Role::Up, at("encoder.layer.{l}.intermediate.dense")),
    (Role::Down, at("encoder.layer.{l}.output.dense")),
    (Role::FeedForwardOutputNorm, at("encoder.layer.{l}.output.LayerNorm")),
];

pub(super) const GGUF_NAMES: Names = &[
    (Role::AttentionOutputNorm, at("blk.{l}.attn_output_norm")),
    (Role::FeedForwardOutputNorm, at("blk.{l}.layer_output_norm")),
];

fn describe(config: &Config<'_>) -> Result<Description> {
    encoder(config, "bert", 0)
}

/// A BERT whose position 0 lies in the table's row `offset`.
pub(super) fn encoder(config: &Config<'_>, family: &'static str, offset: u32) -> Result<Description> {
    if let Some(kind) = config.text("position_embedding_type")?
        && kind != "absolute"
    {
        return Err(unsupported(
            family,
            &format!("position embedding `{}`", kind.chars().take(40).collect::<String>()),
        ));
    }
    let norm = NormRule::layer(config.number_or("layer_norm_eps", 1e-12)? as f32, true);
    let activation = config.activation(&["hidden_act"], Activation::Gelu)?;
    let mut description = config
        .decoder(family)?
        .with_output_norms(true)
        .with_norms(norm)
        .with_plain_feed_forward(activation)
        .with_biases(true, true, true);
    for layer in &mut description.layers {
        layer.wiring = Wiring::PostNorm;
        layer.attention.rope = None;
    }
    let rows = description.context;
    if offset >= rows {
        return Err(bad("max_position_embeddings", &rows.into(), &format!("must be more than {offset}")));
    }
    Ok(Description {
        kind: ModelKind::Encoder,
        context: rows - offset,
        embedding: Embedding {
            scale: 1.0,
            positions: Some(LearnedPositions { rows, offset }),
            token_types: config.maybe_count("type_vocab_size")?.unwrap_or(2),
            norm: Some(norm),
        },
        ropes: Vec::new(),
        final_norm: None,
        head: None,
        pooling: Some(Pooling::Mean),
        ..description
    })
}

/// The positions' table may be longer than its first usable row tells; GGUF files hold usable rows alone.
fn from_gguf(keys: &GgufKeys<'_>, config: &mut Map<String, Json>) {
    config.insert("type_vocab_size".into(), keys.rows("token_types.weight").unwrap_or(0).into());
    if let Some(rows) = keys.rows("position_embd.weight") {
        config.insert("max_position_embeddings".into(), rows.into());
    }
}

pub(super) fn to_gguf(description: &Description, keys: &mut GgufWriter<'_>) {
    keys.set("attention.causal", false);
    // llama.cpp wants a count of at least one, also of models without segments, and does without their table.
    keys.set_global("tokenizer.ggml.token_type_count", description.embedding.token_types.max(1));
}
