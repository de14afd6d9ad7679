//! DistilBERT: BERT without segments, under other names.

use super::bert::{GGUF_NAMES, encoder, to_gguf};
use super::{Family, Gguf, unsupported};
use crate::config::Config;
use crate::description::{Description, FeedForward};
use crate::error::Result;
use crate::graph::Activation;
use crate::names::{Names, at};
use crate::weight::Role;

pub(super) static FAMILY: Family = Family {
    name: "distilbert",
    model_types: &["distilbert"],
    describe,
    names: &[NAMES],
    norm_offset: 0.0,
    gguf: Some(Gguf { names: |_| GGUF_NAMES, metadata: to_gguf, is: |_| false, ..Gguf::new("bert") }),
};

const NAMES: Names = &[
    (Role::TokenEmbedding, at("embeddings.word_embeddings")),
    (Role::PositionEmbedding, at("embeddings.position_embeddings")),
    (Role::EmbeddingNorm, at("embeddings.LayerNorm")),
    (Role::Query, at("transformer.layer.{l}.attention.q_lin")),
    (Role::Key, at("transformer.layer.{l}.attention.k_lin")),
    (Role::Value, at("transformer.layer.{l}.attention.v_lin")),
    (Role::AttentionOutput, at("transformer.layer.{l}.attention.out_lin")),
    (Role::AttentionOutputNorm, at("transformer.layer.{l}.sa_layer_norm")),
    (Role::Up, at("transformer.layer.{l}.ffn.lin1")),
    (Role::Down, at("transformer.layer.{l}.ffn.lin2")),
    (Role::FeedForwardOutputNorm, at("transformer.layer.{l}.output_layer_norm")),
];

fn describe(config: &Config<'_>) -> Result<Description> {
    if config.flag("sinusoidal_pos_embds")? {
        return Err(unsupported("distilbert", "a sinusoidal position table (`sinusoidal_pos_embds`)"));
    }
    let mut description = encoder(config, "distilbert", 0)?;
    description.embedding.token_types = 0;
    let of_config = config.activation(&["activation"], Activation::Gelu)?;
    for layer in &mut description.layers {
        if let FeedForward::Plain { activation, .. } = &mut layer.feed_forward {
            *activation = of_config;
        }
    }
    Ok(description)
}
