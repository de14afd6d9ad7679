//! What a settled path is, or precisely why nothing can be made of it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::Obstacle;

/// What was read from a path's headers and documents.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    /// The path, for messages.
    pub path: String,
    /// The source's format, such as `gguf`.
    pub format: String,
    /// Its architecture.
    pub architecture: String,
    /// Weights by storage type.
    pub weights: BTreeMap<String, u64>,
    /// How many tensors.
    pub tensors: u64,
    /// Size of all its files.
    pub bytes: u64,
    /// The longest context it was made for.
    pub context_length: Option<u64>,
    /// Whether a tokenizer comes with it.
    pub tokenizer: bool,
    /// Whether it gives hidden states instead of text.
    pub encodes: bool,
    /// Whether it is a graph that no tokens go through.
    pub plain: bool,
}

/// A model, understood.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Such as `gguf`.
    pub format: String,
    /// Such as `llama`.
    pub architecture: String,
    /// The storage type of most of its weights.
    pub scheme: String,
    /// How many weights.
    pub parameters: u64,
    /// How many tensors.
    pub tensors: u64,
    /// Size of all its files.
    pub bytes: u64,
    /// The longest context it was made for.
    pub context_length: Option<u64>,
    /// Whether it gives hidden states instead of text: it embeds.
    #[serde(default)]
    pub encodes: bool,
    /// Whether it is a graph that no tokens go through (vision, audio): it is forged and compared, not talked to.
    #[serde(default)]
    pub plain: bool,
}

/// Judges a path whose weights were all located.
///
/// # Errors
/// An [`Obstacle`] with code `no_weights` or `missing_tokenizer`.
pub fn identify(facts: &Facts) -> Result<Identity, Obstacle> {
    let parameters = facts.weights.values().fold(0u64, |sum, count| sum.saturating_add(*count));
    if parameters == 0 {
        return Err(Obstacle::new("no_weights", "there are no weights in it")
            .about(&facts.path)
            .help("put the model's weight files beside its configuration"));
    }
    if !facts.tokenizer && !facts.plain {
        return Err(Obstacle::new("missing_tokenizer", "there is no tokenizer with it")
            .about(&facts.path)
            .help("put tokenizer.json (or tokenizer.model) beside the weights; `drophammer convert --no-tokenizer` converts without one"));
    }
    let scheme = facts.weights.iter().max_by_key(|(_, count)| **count).map(|(name, _)| name.clone());
    Ok(Identity {
        format: facts.format.clone(),
        architecture: facts.architecture.clone(),
        scheme: scheme.unwrap_or_default(),
        parameters,
        tensors: facts.tensors,
        bytes: facts.bytes,
        context_length: facts.context_length,
        encodes: facts.encodes,
        plain: facts.plain,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> Facts {
        Facts {
            path: "models/a".into(),
            format: "safetensors".into(),
            architecture: "llama".into(),
            weights: [("bf16".to_owned(), 900), ("f32".to_owned(), 100)].into(),
            tensors: 12,
            bytes: 2200,
            context_length: Some(256),
            tokenizer: true,
            encodes: false,
            plain: false,
        }
    }

    #[test]
    fn a_sound_model_is_named_by_what_most_of_its_weights_are() {
        let identity = identify(&facts()).unwrap();
        assert_eq!((identity.scheme.as_str(), identity.parameters), ("bf16", 1000));
    }

    #[test]
    fn a_plain_graph_needs_no_tokenizer() {
        let identity = identify(&Facts { tokenizer: false, plain: true, ..facts() }).unwrap();
        assert!(identity.plain);
    }

    #[test]
    fn every_refusal_names_the_path_and_the_next_step() {
        type Spoil = fn(&mut Facts);
        let cases: [(Spoil, &str); 2] =
            [(|f| f.weights.clear(), "no_weights"), (|f| f.tokenizer = false, "missing_tokenizer")];
        for (spoil, code) in cases {
            let mut facts = facts();
            spoil(&mut facts);
            let obstacle = identify(&facts).unwrap_err();
            assert_eq!(obstacle.code, code);
            assert_eq!(obstacle.subject.as_deref(), Some("models/a"));
            assert!(obstacle.help.is_some());
        }
    }
}
