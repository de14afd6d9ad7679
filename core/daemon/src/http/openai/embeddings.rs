//! `/v1/embeddings`.

use axum::Json;
use axum::extract::State;
use axum::extract::rejection::JsonRejection;
use serde::Deserialize;
use serde_json::{Value, json};

use super::Shared;
use super::refusal::Refusal;
use super::request::PromptBody;
use crate::serving::Prompt;

/// Texts of one request; OpenAI's own bound.
const MOST_TEXTS: usize = 2048;

#[derive(Debug, Deserialize)]
pub(super) struct Body {
    model: String,
    input: PromptBody,
    encoding_format: Option<String>,
    dimensions: Option<usize>,
}

pub(super) async fn embed(
    State(daemon): State<Shared>,
    body: Result<Json<Body>, JsonRejection>,
) -> Result<Json<Value>, Refusal> {
    let Json(body) = body?;
    let base64 = match body.encoding_format.as_deref() {
        None | Some("float") => false,
        Some("base64") => true,
        Some(_) => return Err(Refusal::invalid("encoding_format", "it must be float or base64")),
    };
    let texts: Vec<Prompt> = match body.input {
        PromptBody::Text(text) => vec![Prompt::Text(text)],
        PromptBody::Tokens(tokens) => vec![Prompt::Tokens(tokens)],
        PromptBody::Texts(texts) => texts.into_iter().map(Prompt::Text).collect(),
        PromptBody::ManyTokens(many) => many.into_iter().map(Prompt::Tokens).collect(),
    };
    let empty = |text: &Prompt| match text {
        Prompt::Text(text) => text.is_empty(),
        Prompt::Tokens(tokens) => tokens.is_empty(),
        Prompt::Chat { .. } => false,
    };
    if texts.is_empty() || texts.iter().any(empty) {
        return Err(Refusal::invalid("input", "an empty text has no embedding"));
    }
    if texts.len() > MOST_TEXTS {
        let message = format!("{} texts; send {MOST_TEXTS} at most", texts.len());
        return Err(Refusal::invalid("input", message));
    }
    let embedded = daemon.serving.embed("embeddings", "/v1/embeddings", &body.model, texts, false).await?;
    let width = embedded.vectors.first().map_or(0, Vec::len);
    if body.dimensions.is_some_and(|wanted| wanted != width) {
        let message = format!("this model's embeddings have {width} dimensions");
        return Err(Refusal::invalid("dimensions", message));
    }
    let one = |(index, vector): (usize, &Vec<f32>)| {
        let embedding = if base64 { json!(encode(vector)) } else { json!(vector) };
        json!({"object": "embedding", "index": index, "embedding": embedding})
    };
    let data: Vec<Value> = embedded.vectors.iter().enumerate().map(one).collect();
    let usage = json!({"prompt_tokens": embedded.tokens, "total_tokens": embedded.tokens});
    Ok(Json(json!({"object": "list", "data": data, "model": body.model, "usage": usage})))
}

/// Little-endian floats in Base64 (RFC 4648), which the official Python client asks for.
fn encode(vector: &[f32]) -> String {
    use base64::Engine as _;
    let bytes: Vec<u8> = vector.iter().flat_map(|x| x.to_le_bytes()).collect();
    base64::engine::general_purpose::STANDARD.encode(bytes)
}
