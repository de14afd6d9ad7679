//! What runtimes want beside a model: configuration and tokenizer, copied, or told from a GGUF file's keys.

use std::path::Path;

use drophammer_infer::Tokenizer;
use drophammer_models::Checkpoint;
use drophammer_sdk::{BackendError, ErrorCode, Result};
use serde_json::{Value as Json, json};

use crate::failure;

/// Files of a source that a model keeps, besides those of the tokenizer.
const KEPT: [&str; 2] = ["config.json", "generation_config.json"];

/// Names and contents.
///
/// # Errors
/// Files that cannot be read, and vocabularies that cannot be told as files.
pub fn files(checkpoint: &Checkpoint, no_tokenizer: bool) -> Result<Vec<(String, Vec<u8>)>> {
    let source = checkpoint.source();
    if source.metadata().get("tokenizer.ggml.model").is_some() {
        return told(checkpoint, no_tokenizer);
    }
    let read = |path: &Path| {
        std::fs::read(path).map_err(|error| {
            BackendError::new(ErrorCode::Failed, format!("{}: {error}", path.display()))
                .with_help("Check its permissions.")
        })
    };
    let documents = KEPT.iter().map(|name| (*name, source.root().join(name)));
    let documents = documents.filter(|(_, path)| path.is_file());
    let mut files =
        documents.map(|(name, path)| Ok((name.to_owned(), read(&path)?))).collect::<Result<Vec<_>>>()?;
    if !no_tokenizer {
        for (name, path) in source.tokenizer().iter() {
            files.push((name.to_owned(), read(path)?));
        }
    }
    Ok(files)
}

/// The files that a GGUF file's keys stand for.
fn told(checkpoint: &Checkpoint, no_tokenizer: bool) -> Result<Vec<(String, Vec<u8>)>> {
    let source = checkpoint.source();
    let config =
        checkpoint.hugging_face_config().map_err(|error| failure::of_model(source.root(), &error))?;
    let bytes = |document: &Json| format!("{document:#}\n").into_bytes();
    let mut files = vec![("config.json".to_owned(), bytes(&config))];
    if no_tokenizer {
        return Ok(files);
    }
    let unusable = |error: drophammer_infer::TokenizerError| {
        BackendError::new(ErrorCode::InvalidInput, error.to_string())
            .with_help("Convert with --no-tokenizer, or from the model's Hugging Face directory.")
    };
    let tokenizer = Tokenizer::from_source(source).map_err(unusable)?;
    let template = source.metadata().str("tokenizer.chat_template");
    let context = checkpoint.description().context;
    files.extend(tokenizer.hugging_face_files(template, context).map_err(unusable)?);
    let special = tokenizer.special();
    let generation = json!({ "bos_token_id": special.bos, "eos_token_id": special.end_of_generation });
    files.push(("generation_config.json".to_owned(), bytes(&generation)));
    Ok(files)
}
