//! Ollama's API, as far as its clients need it to chat and to embed: `/api/chat`, `/api/generate`, `/api/embed`, `/api/tags`,
//! `/api/show`, `/api/ps`, `/api/version`. The same models and the same answers as under `/v1`, in that API's own documents.

use std::convert::Infallible;
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::extract::rejection::JsonRejection;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Json};
use drophammer_infer::template::CivilTime;
use drophammer_infer::tools::{Choice, Tools};
use serde::Deserialize;
use serde_json::{Value, json};

use super::Shared;
use super::guard::{Caller, flow};
use crate::ledger::Servable;
use crate::moment::now;
use crate::serving::{Answers, Ask, Prompt, Said, ServeError, Usage};

/// The routes.
pub(super) fn router() -> axum::Router<Shared> {
    axum::Router::new()
        .route("/api/chat", post(chat))
        .route("/api/generate", post(generate))
        .route("/api/embed", post(embed))
        .route("/api/embeddings", post(embed_one))
        .route("/api/ps", get(loaded))
        .route("/api/tags", get(tags))
        .route("/api/show", post(show))
        .route("/api/version", get(|| async { Json(json!({"version": env!("CARGO_PKG_VERSION")})) }))
}

/// `{"error": "…"}` with a status.
#[derive(Debug)]
struct Refusal(StatusCode, String);

impl From<ServeError> for Refusal {
    fn from(error: ServeError) -> Self {
        let status = match error {
            ServeError::NoSuchModel { .. } => StatusCode::NOT_FOUND,
            ServeError::Invalid(_) => StatusCode::BAD_REQUEST,
            ServeError::Busy { .. } | ServeError::CannotLoad { .. } => StatusCode::SERVICE_UNAVAILABLE,
            ServeError::NoRoom { .. } => StatusCode::UNPROCESSABLE_ENTITY,
            ServeError::Broke(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self(status, error.to_string())
    }
}

impl From<JsonRejection> for Refusal {
    fn from(rejection: JsonRejection) -> Self {
        Self(StatusCode::BAD_REQUEST, rejection.body_text())
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (self.0, Json(json!({"error": self.1}))).into_response()
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Options {
    num_predict: Option<i64>,
    temperature: Option<f32>,
    top_k: Option<u32>,
    top_p: Option<f32>,
    min_p: Option<f32>,
    repeat_penalty: Option<f32>,
    presence_penalty: Option<f32>,
    frequency_penalty: Option<f32>,
    seed: Option<i64>,
    stop: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct ChatBody {
    model: String,
    messages: Vec<Value>,
    stream: Option<bool>,
    format: Option<Value>,
    tools: Option<Vec<Value>>,
    #[serde(default)]
    options: Options,
}

#[derive(Debug, Deserialize)]
struct GenerateBody {
    model: String,
    #[serde(default)]
    prompt: String,
    system: Option<String>,
    #[serde(default)]
    raw: bool,
    stream: Option<bool>,
    format: Option<Value>,
    #[serde(default)]
    options: Options,
}

impl Options {
    /// Ollama's own defaults where the client says nothing.
    fn ask(self, prompt: Prompt, format: Option<Value>) -> Ask {
        let json_schema = match format {
            Some(Value::String(word)) if word == "json" => Some(json!({"type": "object"})),
            Some(schema @ Value::Object(_)) => Some(schema),
            _ => None,
        };
        Ask {
            // Negative means without end: what the context leaves.
            max_tokens: self.num_predict.and_then(|most| u32::try_from(most).ok()).filter(|most| *most > 0),
            temperature: self.temperature.unwrap_or(0.8),
            top_p: self.top_p.unwrap_or(0.9),
            top_k: self.top_k.unwrap_or(40),
            min_p: self.min_p.unwrap_or(0.0),
            presence_penalty: self.presence_penalty.unwrap_or(0.0),
            frequency_penalty: self.frequency_penalty.unwrap_or(0.0),
            repetition_penalty: self.repeat_penalty.unwrap_or(1.0),
            seed: self.seed.map(|seed| seed as u64),
            stop: self.stop,
            json_schema,
            ..Ask::new(prompt)
        }
    }
}

async fn chat(
    State(daemon): State<Shared>,
    caller: Option<Extension<Caller>>,
    body: Result<Json<ChatBody>, JsonRejection>,
) -> Result<Response, Refusal> {
    let Json(body) = body?;
    let tools = Tools { list: body.tools.unwrap_or_default(), choice: Choice::Auto, parallel: true };
    tools.check().map_err(|error| Refusal(StatusCode::BAD_REQUEST, error.to_string()))?;
    let messages = body.messages.into_iter().map(openai_message).collect();
    let ask = Ask {
        tools: (!tools.list.is_empty()).then_some(tools),
        flow: flow(caller),
        ..body.options.ask(Prompt::Chat { messages }, body.format)
    };
    give(&daemon, Kind::Chat, body.model, ask, body.stream.unwrap_or(true)).await
}

async fn generate(
    State(daemon): State<Shared>,
    caller: Option<Extension<Caller>>,
    body: Result<Json<GenerateBody>, JsonRejection>,
) -> Result<Response, Refusal> {
    let Json(body) = body?;
    let prompt = if body.raw {
        Prompt::Text(body.prompt)
    } else {
        let system = body.system.map(|text| json!({"role": "system", "content": text}));
        let user = json!({"role": "user", "content": body.prompt});
        Prompt::Chat { messages: system.into_iter().chain([user]).collect() }
    };
    let ask = Ask { flow: flow(caller), ..body.options.ask(prompt, body.format) };
    give(&daemon, Kind::Generate, body.model, ask, body.stream.unwrap_or(true)).await
}

/// A message as OpenAI's API has it: results of tools name the tool here and the call there.
fn openai_message(mut message: Value) -> Value {
    if let Some(name) = message.get("tool_name").cloned() {
        message["name"] = name;
    }
    message
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Chat,
    Generate,
}

/// Tags are this API's way to name variants; `latest` means none in particular.
fn plain(model: &str) -> &str {
    model.strip_suffix(":latest").unwrap_or(model)
}

async fn give(
    daemon: &Shared,
    kind: Kind,
    model: String,
    ask: Ask,
    stream: bool,
) -> Result<Response, Refusal> {
    let route = if kind == Kind::Chat { "/api/chat" } else { "/api/generate" };
    let started = Instant::now();
    let answers = daemon.serving.ask(&model, route, plain(&model), ask).await?;
    let tale = Tale { kind, model, started, first: None, calls: Vec::new() };
    if stream { Ok(streamed(tale, answers)) } else { whole(tale, answers).await }
}

/// One answer as it is told.
#[derive(Debug)]
struct Tale {
    kind: Kind,
    model: String,
    started: Instant,
    first: Option<Instant>,
    /// Not told yet.
    calls: Vec<Value>,
}

impl Tale {
    fn call(&mut self, name: &str, arguments: &str) {
        let arguments: Value = serde_json::from_str(arguments).unwrap_or_default();
        self.calls.push(json!({"function": {"name": name, "arguments": arguments}}));
    }

    fn document(&mut self, text: &str) -> Value {
        let mut document = json!({"model": self.model, "created_at": timestamp(now())});
        match self.kind {
            Kind::Chat => {
                document["message"] = json!({"role": "assistant", "content": text});
                if !self.calls.is_empty() {
                    document["message"]["tool_calls"] = std::mem::take(&mut self.calls).into();
                }
            }
            Kind::Generate => document["response"] = json!(text),
        }
        document["done"] = json!(false);
        document
    }

    fn last(&mut self, text: &str, reason: &str, usage: &Usage) -> Value {
        let nanoseconds = |duration: Duration| duration.as_nanos() as u64;
        let first = self.first.unwrap_or(self.started);
        let mut document = self.document(text);
        document["done"] = json!(true);
        // This API knows no reason of its own for calls.
        document["done_reason"] = json!(if reason == "tool_calls" { "stop" } else { reason });
        document["total_duration"] = json!(nanoseconds(self.started.elapsed()));
        document["prompt_eval_count"] = json!(usage.prompt_tokens);
        document["prompt_eval_duration"] = json!(nanoseconds(first - self.started));
        document["eval_count"] = json!(usage.completion_tokens);
        document["eval_duration"] = json!(nanoseconds(first.elapsed()));
        document
    }
}

async fn whole(mut tale: Tale, mut answers: Answers) -> Result<Response, Refusal> {
    let mut all = String::new();
    loop {
        match answers.next().await {
            Said::Started | Said::Embedded(_) => {}
            Said::Call { name, arguments, .. } => tale.call(&name, &arguments),
            Said::Failed(error) => return Err(error.into()),
            Said::Token { text, .. } => {
                tale.first.get_or_insert_with(Instant::now);
                all.push_str(&text);
            }
            Said::Finished { text, reason, usage, .. } => {
                all.push_str(&text);
                return Ok(Json(tale.last(&all, &reason, &usage)).into_response());
            }
        }
    }
}

/// A line of JSON for each piece of text; a stream that breaks ends with a line that holds the error.
fn streamed(tale: Tale, answers: Answers) -> Response {
    let lines = futures::stream::unfold(Some((tale, answers)), |state| async move {
        let (mut tale, mut answers) = state?;
        loop {
            let (document, over) = match answers.next().await {
                Said::Started | Said::Embedded(_) => continue,
                Said::Call { name, arguments, .. } => {
                    tale.call(&name, &arguments);
                    (tale.document(""), false)
                }
                Said::Token { text, .. } => {
                    tale.first.get_or_insert_with(Instant::now);
                    if text.is_empty() {
                        continue;
                    }
                    (tale.document(&text), false)
                }
                Said::Finished { text, reason, usage, .. } => (tale.last(&text, &reason, &usage), true),
                Said::Failed(error) => (json!({"error": error.to_string()}), true),
            };
            let line = Ok::<_, Infallible>(Bytes::from(format!("{document}\n")));
            return Some((line, (!over).then_some((tale, answers))));
        }
    });
    ([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(lines)).into_response()
}

#[derive(Debug, Deserialize)]
struct EmbedBody {
    model: String,
    input: Input,
    truncate: Option<bool>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Input {
    One(String),
    Many(Vec<String>),
}

async fn embed(
    State(daemon): State<Shared>,
    body: Result<Json<EmbedBody>, JsonRejection>,
) -> Result<Json<Value>, Refusal> {
    let Json(body) = body?;
    let started = Instant::now();
    let texts = match body.input {
        Input::One(text) => vec![text],
        Input::Many(texts) => texts,
    };
    let texts = texts.into_iter().map(Prompt::Text).collect();
    let truncate = body.truncate.unwrap_or(true);
    let name = plain(&body.model);
    let embedded = daemon.serving.embed(&body.model, "/api/embed", name, texts, truncate).await?;
    Ok(Json(json!({
        "model": body.model, "embeddings": embedded.vectors, "prompt_eval_count": embedded.tokens,
        "total_duration": started.elapsed().as_nanos() as u64,
    })))
}

#[derive(Debug, Deserialize)]
struct OldEmbedBody {
    model: String,
    #[serde(default)]
    prompt: String,
}

/// The older call: one text.
async fn embed_one(
    State(daemon): State<Shared>,
    body: Result<Json<OldEmbedBody>, JsonRejection>,
) -> Result<Json<Value>, Refusal> {
    let Json(body) = body?;
    let texts = vec![Prompt::Text(body.prompt)];
    let name = plain(&body.model);
    let embedded = daemon.serving.embed(&body.model, "/api/embeddings", name, texts, true).await?;
    Ok(Json(json!({"embedding": embedded.vectors.into_iter().next().unwrap_or_default()})))
}

/// What is loaded.
async fn loaded(State(daemon): State<Shared>) -> Json<Value> {
    let models = daemon.serving.documents().models.into_iter().map(|served| {
        json!({"name": served.name, "model": served.name, "digest": served.artifact, "context_length": served.context_length})
    });
    Json(json!({"models": models.collect::<Vec<_>>()}))
}

async fn tags(State(daemon): State<Shared>) -> Json<Value> {
    let models = daemon.serving.names().into_iter().map(|(name, found)| {
        json!({
            "name": name, "model": name, "modified_at": timestamp(found.created), "size": found.bytes,
            "digest": found.id, "details": details(&found),
        })
    });
    Json(json!({"models": models.collect::<Vec<_>>()}))
}

#[derive(Debug, Deserialize)]
struct ShowBody {
    #[serde(alias = "name")]
    model: String,
}

async fn show(
    State(daemon): State<Shared>,
    body: Result<Json<ShowBody>, JsonRejection>,
) -> Result<Json<Value>, Refusal> {
    let Json(body) = body?;
    let found = daemon.serving.named(plain(&body.model))?;
    let identity = &found.identity;
    Ok(Json(json!({
        "details": details(&found),
        "model_info": {
            "general.architecture": identity.architecture,
            "general.parameter_count": identity.parameters,
            format!("{}.context_length", identity.architecture): identity.context_length,
        },
        "capabilities": if found.identity.encodes { ["embedding"].as_slice() } else { &["completion", "tools"] },
        "modified_at": timestamp(found.created),
    })))
}

fn details(found: &Servable) -> Value {
    let identity = &found.identity;
    json!({
        "format": found.format, "family": identity.architecture, "families": [identity.architecture],
        "parameter_size": format!("{:.1}M", identity.parameters as f64 / 1e6),
        "quantization_level": found.scheme,
    })
}

/// RFC 3339, in UTC.
fn timestamp(seconds: f64) -> String {
    let time = CivilTime::from_unix_seconds(seconds as i64);
    format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}Z",
        time.year, time.month, time.day, time.hour, time.minute, time.second
    )
}
