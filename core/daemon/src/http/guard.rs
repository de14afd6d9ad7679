//! What stands before every request over TCP: keys, and a line in the access log.

use std::time::Instant;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use serde_json::json;

use super::Shared;
use crate::keys::{KeyRecord, holder};

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
    let (response, key) = match admit(&daemon, &request) {
        Ok((caller, key)) => {
            request.extensions_mut().insert(caller);
            (next.run(request).await, key)
        }
        Err(refused) => (refused.into_response(), None),
    };
    tracing::info!(
        target: "access", %method, path, status = response.status().as_u16(), key = key.as_deref(),
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
    let loopback = daemon.pipeline.config.serve.address.is_loopback();
    match known(&records, loopback, given(request.headers()))? {
        None => Ok((Caller::default(), None)),
        Some(at) => Ok((Caller { flow: at as u64 + 1 }, Some(records[at].name.clone()))),
    }
}

/// Which of the records is that of the key that was told. Without any record loopback is open, and nothing else: the last
/// key of a server that others reach may be taken away while it runs.
fn known(records: &[KeyRecord], loopback: bool, told: Option<&str>) -> Result<Option<usize>, Refused> {
    if records.is_empty() && loopback {
        return Ok(None);
    }
    let found = told.and_then(|key| holder(records, key));
    found.map(Some).ok_or_else(|| {
        let message = match told {
            Some(_) => "this API key is not known here; `drophammer key add NAME` makes one",
            None => {
                "an API key is needed: send `Authorization: Bearer KEY`; `drophammer key add NAME` makes one"
            }
        };
        Refused(StatusCode::UNAUTHORIZED, message, "invalid_api_key")
    })
}

fn given(headers: &HeaderMap) -> Option<&str> {
    let bearer = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let bearer = bearer.and_then(|value| value.strip_prefix("Bearer "));
    bearer.or_else(|| headers.get("x-api-key").and_then(|value| value.to_str().ok())).map(str::trim)
}

/// Status, message and code of a request that is not let through.
#[derive(Debug)]
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::Keys;

    #[test]
    fn only_loopback_is_open_without_keys() {
        let home = tempfile::tempdir().unwrap();
        let keys = Keys::of_home(home.path());
        let key = keys.add("one").unwrap();
        let one = keys.all().unwrap();
        let at = |records: &[KeyRecord], loopback, told| known(records, loopback, told).ok();
        for loopback in [true, false] {
            assert_eq!(at(&one, loopback, Some(&key)), Some(Some(0)));
            assert_eq!(at(&one, loopback, Some("dh-other")), None);
            assert_eq!(at(&one, loopback, None), None);
        }
        assert_eq!(at(&[], true, None), Some(None));
        assert_eq!(at(&[], true, Some("dh-other")), Some(None));
        assert_eq!(at(&[], false, None), None);
        assert_eq!(at(&[], false, Some(&key)), None);
    }
}
