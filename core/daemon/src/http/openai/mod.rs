//! OpenAI's API: `/v1/chat/completions`, `/v1/completions`, `/v1/responses`, `/v1/embeddings`, `/v1/models`, as its official clients use them.

mod answer;
mod embeddings;
mod refusal;
mod request;
mod responses;

use std::sync::atomic::{AtomicU64, Ordering};

use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, State};
use axum::response::Response;
use axum::routing::{get, post};
use axum::{Extension, Json};
use drophammer_client::routes;
use serde_json::{Value, json};

use super::Shared;
use super::guard::{Caller, flow};
use crate::serving::{Ask, Usage};
use answer::Kind;
use refusal::Refusal;
pub(crate) use responses::Memory;

/// The routes.
pub(super) fn router() -> axum::Router<Shared> {
    axum::Router::new()
        .route(routes::CHAT_COMPLETIONS, post(chat))
        .route("/v1/completions", post(complete))
        .route(responses::ROUTE, post(responses::create))
        .route("/v1/responses/{id}", get(responses::read).delete(responses::delete))
        .route("/v1/embeddings", post(embeddings::embed))
        .route("/v1/models", get(models))
        .route("/v1/models/{name}", get(model))
}

async fn chat(
    State(daemon): State<Shared>,
    caller: Option<Extension<Caller>>,
    body: Result<Json<request::Chat>, JsonRejection>,
) -> Result<Response, Refusal> {
    let Json(body) = body?;
    let name = body.common.model.clone();
    let (ask, style) = body.ask()?;
    answer::give(&daemon, Kind::Chat, name, Ask { flow: flow(caller), ..ask }, style).await
}

async fn complete(
    State(daemon): State<Shared>,
    caller: Option<Extension<Caller>>,
    body: Result<Json<request::Completion>, JsonRejection>,
) -> Result<Response, Refusal> {
    let Json(body) = body?;
    let name = body.common.model.clone();
    let (ask, style) = body.ask()?;
    answer::give(&daemon, Kind::Text, name, Ask { flow: flow(caller), ..ask }, style).await
}

async fn models(State(daemon): State<Shared>) -> Json<Value> {
    let names = daemon.serving.names();
    let data: Vec<Value> = names.iter().map(|(name, found)| model_document(name, found.created)).collect();
    Json(json!({"object": "list", "data": data}))
}

async fn model(State(daemon): State<Shared>, Path(name): Path<String>) -> Result<Json<Value>, Refusal> {
    let found = daemon.serving.named(&name)?;
    Ok(Json(model_document(&name, found.created)))
}

fn model_document(name: &str, created: f64) -> Value {
    json!({"id": name, "object": "model", "created": created as u64, "owned_by": "drophammer"})
}

/// Names an answer: no other of this daemon's is called the same.
fn fresh_id(prefix: &str, created: f64) -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    format!("{prefix}{:x}{:04x}", (created * 1000.0) as u64, NEXT.fetch_add(1, Ordering::Relaxed))
}

fn usage_document(usage: &Usage) -> Value {
    json!({
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    })
}
