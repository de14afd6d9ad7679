//! `/v1/responses`: OpenAI's newer API, where an answer is a list of items and may go on from an earlier one.
//!
//! What is sent becomes a conversation as chat completions have it ([`request`]); what the model says becomes events
//! ([`events`]), of which an answer that is not streamed is the last.

mod events;
mod memory;
mod request;

use std::convert::Infallible;

use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use futures::StreamExt as _;
use serde_json::{Value, json};

use super::super::guard::{Caller, flow};
use super::refusal::Refusal;
use super::{Shared, fresh_id};
use crate::moment::now;
use crate::serving::{Answers, Ask, Said};
pub(crate) use memory::Memory;

use events::Teller;
use request::Body;

pub(super) const ROUTE: &str = "/v1/responses";

pub(super) async fn create(
    State(daemon): State<Shared>,
    caller: Option<Extension<Caller>>,
    body: Result<Json<Body>, JsonRejection>,
) -> Result<Response, Refusal> {
    let Json(body) = body?;
    let earlier = match &body.previous_response_id {
        None => Vec::new(),
        Some(id) => daemon.responses.conversation(id).ok_or_else(|| Refusal::no_such_response(id))?,
    };
    let created = now();
    let id = fresh_id("resp_", created);
    let (model, stream) = (body.model.clone(), body.stream);
    let store = body.store;
    let document = body.document(&id, created as u64);
    let (conversation, ask) = body.ask(earlier)?;
    let ask = Ask { flow: flow(caller), ..ask };
    let said = daemon.serving.ask(&id, ROUTE, &model, ask).await?;
    let teller = Teller::new(document);
    let keep = move |daemon: &Shared, document: &Value| {
        if store {
            daemon.responses.keep(document.clone(), conversation);
        }
    };
    if stream { Ok(streamed(daemon, teller, said, keep)) } else { whole(&daemon, teller, said, keep).await }
}

pub(super) async fn read(
    State(daemon): State<Shared>,
    Path(id): Path<String>,
) -> Result<Json<Value>, Refusal> {
    daemon.responses.document(&id).map(Json).ok_or_else(|| Refusal::no_such_response(&id))
}

pub(super) async fn delete(
    State(daemon): State<Shared>,
    Path(id): Path<String>,
) -> Result<Json<Value>, Refusal> {
    if daemon.responses.forget(&id) {
        Ok(Json(json!({"id": id, "object": "response", "deleted": true})))
    } else {
        Err(Refusal::no_such_response(&id))
    }
}

async fn whole(
    daemon: &Shared,
    mut teller: Teller,
    mut said: Answers,
    keep: impl FnOnce(&Shared, &Value),
) -> Result<Response, Refusal> {
    while !teller.is_over() {
        match said.next().await {
            Said::Failed(error) => return Err(error.into()),
            said => drop(teller.hear(said)),
        }
    }
    keep(daemon, teller.document());
    Ok((StatusCode::OK, Json(teller.document())).into_response())
}

fn streamed(
    daemon: Shared,
    mut teller: Teller,
    said: Answers,
    keep: impl FnOnce(&Shared, &Value) + Send + 'static,
) -> Response {
    let first = teller.begin();
    let rest = futures::stream::unfold(Some((daemon, teller, said, keep)), |state| async move {
        let (daemon, mut teller, mut said, keep) = state?;
        let events = teller.hear(said.next().await);
        if teller.is_over() {
            keep(&daemon, teller.document());
            return Some((events, None));
        }
        Some((events, Some((daemon, teller, said, keep))))
    });
    let events = futures::stream::iter(first).chain(rest.flat_map(futures::stream::iter)).map(|event| {
        let name = event["type"].as_str().unwrap_or_default().to_owned();
        Ok::<_, Infallible>(Event::default().event(name).data(event.to_string()))
    });
    Sse::new(events).keep_alive(KeepAlive::default()).into_response()
}
