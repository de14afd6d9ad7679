//! What stands before every request over TCP: keys, and a line in the access log.

use std::time::Instant;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use serde_json::json;

use super::Shared;
use crate::keys::holder;

/// Who asks: requests of different callers take turns.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Caller {
    /// The same for every request of one key.
    pub(super) flow: u64,
}

/// Whose turn a request takes.
pub(super) fn flow(caller: Option<Extension<Caller>>) -> u64 {
    caller.map_or(0, |Extension(caller)| caller.flow)
}

/// Open to everybody, so that what watches over the daemon needs no key.
const OPEN: &[&str] = &["/health", "/ready"];

/// Lets requests through that may pass, and logs all of them.
pub(super) async fn check(State(daemon): State<Shared>, mut request: Request, next: Next) -> Response {
    let started = Instant::now();
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let mut name = None;
    let response = match admit(&daemon, &request) {
        Ok(caller) => {
            name = caller.1;
            request.extensions_mut().insert(caller.0);
            next.run(request).await
        }
        Err(refused) => refused.into_response(),
    };
    tracing::info!(
        target: "access", %method, path, status = response.status().as_u16(), key = name.as_deref(),
        milliseconds = started.elapsed().as_millis() as u64,
    );
    response
}

fn admit(daemon: &Shared, request: &Request) -> Result<(Caller, Option<String>), Refused> {
    // A browser asks without its key whether it may ask at all.
    if OPEN.contains(&request.uri().path()) || request.method() == Method::OPTIONS {
        return Ok((Caller::default(), None));
    }
    let records = daemon.keys.all().map_err(|error| {
        tracing::error!(%error, "the keys cannot be read; nobody is let in");
        Refused(StatusCode::INTERNAL_SERVER_ERROR, "the daemon cannot read its keys", "keys_unreadable")
    })?;
    if records.is_empty() {
        return Ok((Caller::default(), None));
    }
    let told = given(request.headers());
    let found = told.and_then(|key| holder(&records, key));
    let at = found.ok_or_else(|| {
        let message = match told {
            Some(_) => "this API key is not known here; `drophammer key add NAME` makes one",
            None => {
                "an API key is needed: send `Authorization: Bearer KEY`; `drophammer key add NAME` makes one"
            }
        };
        Refused(StatusCode::UNAUTHORIZED, message, "invalid_api_key")
    })?;
    Ok((Caller { flow: at as u64 + 1 }, Some(records[at].name.clone())))
}

fn given(headers: &HeaderMap) -> Option<&str> {
    let bearer = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let bearer = bearer.and_then(|value| value.strip_prefix("Bearer "));
    bearer.or_else(|| headers.get("x-api-key").and_then(|value| value.to_str().ok())).map(str::trim)
}

/// Status, message and code of a request that is not let through.
struct Refused(StatusCode, &'static str, &'static str);

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let Self(status, message, code) = self;
        let unknown = status == StatusCode::UNAUTHORIZED;
        let kind = if unknown { "invalid_request_error" } else { "server_error" };
        let error = json!({"error": {"message": message, "type": kind, "param": null, "code": code}});
        let mut response = (status, Json(error)).into_response();
        if unknown {
            let way = header::HeaderValue::from_static("Bearer");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, way);
        }
        response
    }
}
