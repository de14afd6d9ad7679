//! The client against a real HTTP server on a real Unix socket.

#![allow(clippy::unwrap_used)]

use std::convert::Infallible;
use std::path::Path;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Path as Segment;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::routing::{get, post};
use drophammer_client::api::{ApiError, ChatChunk, ChatRequest, ErrorReport, Event, Jobs, Models};
use drophammer_client::{Client, ClientError, Endpoint, Update, routes};
use futures::{StreamExt as _, stream};
use tempfile::TempDir;
use tokio::net::UnixListener;
use tokio::task::JoinHandle;

fn serve(socket: &Path, routes: Router) -> JoinHandle<()> {
    let listener = UnixListener::bind(socket).unwrap();
    tokio::spawn(async move { axum::serve(listener, routes).await.unwrap() })
}

fn daemon(routes: Router) -> (Client, TempDir, JoinHandle<()>) {
    let home = TempDir::new().unwrap();
    let endpoint = Endpoint::in_home(home.path());
    let server = serve(&home.path().join(drophammer_client::SOCKET_NAME), routes);
    (Client::new(endpoint), home, server)
}

/// An answer that sends these pieces, then ends.
fn pieces(parts: Vec<&'static str>) -> Body {
    Body::from_stream(stream::iter(parts.into_iter().map(Ok::<_, Infallible>)))
}

#[tokio::test]
async fn a_call_returns_the_document() {
    let routes = Router::new().route(routes::JOBS, get(|| async { axum::Json(Jobs::default()) }));
    let (client, _home, _server) = daemon(routes);
    assert_eq!(client.jobs().await.unwrap(), Jobs::default());
}

#[tokio::test]
async fn a_refusal_carries_the_daemons_own_words() {
    let no = |Segment(name): Segment<String>| async move {
        let report = ErrorReport::new("unknown_model", format!("there is no model named {name}"))
            .help("see `drophammer models`");
        (StatusCode::NOT_FOUND, axum::Json(ApiError { error: report }))
    };
    let (client, _home, _server) = daemon(Router::new().route(routes::MODEL, get(no)));
    let error = client.model("../etc").await.unwrap_err();
    assert_eq!(error.status(), Some(404));
    assert_eq!(error.to_string(), "there is no model named ../etc; see `drophammer models`");
}

#[tokio::test]
async fn an_error_page_of_something_else_is_not_mistaken_for_a_document() {
    let (client, _home, _server) = daemon(Router::new().route(routes::MODELS, get(|| async { "<html>" })));
    assert!(matches!(client.models().await, Err(ClientError::Malformed { .. })));
    let error = client.jobs().await.unwrap_err().report();
    assert_eq!(error.message, "the daemon answered 404 Not Found to /api/control/jobs");
}

#[tokio::test]
async fn without_a_daemon_the_error_says_how_to_start_one() {
    let home = TempDir::new().unwrap();
    let error = Client::connect(Endpoint::in_home(home.path())).await.unwrap_err();
    assert!(error.to_string().ends_with("start it with `drophammer daemon`"), "{error}");
    let report = error.report();
    assert_eq!(report.code, "no_daemon");
    assert_eq!(report.help.as_deref(), Some("start it with `drophammer daemon`"));
}

#[tokio::test]
async fn tcp_carries_the_key() {
    let whoami = |headers: axum::http::HeaderMap| async move {
        if headers.get("authorization").is_some_and(|value| value == "Bearer secret") {
            axum::Json(Models::default()).into_response()
        } else {
            StatusCode::UNAUTHORIZED.into_response()
        }
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let app = Router::new().route(routes::MODELS, get(whoami));
    tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
    let client = Client::new(Endpoint::parse(&address).unwrap());
    assert_eq!(client.models().await.unwrap_err().status(), Some(401));
    client.with_key("secret").models().await.unwrap();
}

#[tokio::test]
async fn events_survive_a_daemon_that_goes_and_comes_back() {
    let home = TempDir::new().unwrap();
    let socket = home.path().join(drophammer_client::SOCKET_NAME);
    let client = Client::new(Endpoint::in_home(home.path()));
    let mut events = client.events();
    let mut next =
        async || tokio::time::timeout(Duration::from_secs(20), events.next()).await.unwrap().unwrap();
    assert!(matches!(next().await, Update::Disconnected { error: ClientError::NoDaemon { .. }, .. }));

    let stream = || async {
        pieces(vec![
            "data: {\"type\":\"resync\"}\n\n: still here\n\ndata: {\"type\":\"from_the_future\"}\n\ndata: {\"type\":\"job_",
            "removed\",\"data\":\"7\"}\n\n",
        ])
    };
    serve(&socket, Router::new().route(routes::EVENTS, get(stream)));
    for _ in 0..2 {
        // Attempts made before the socket was there may still be reported.
        let connected = loop {
            match next().await {
                Update::Disconnected { .. } => {}
                other => break other,
            }
        };
        assert!(matches!(connected, Update::Connected));
        assert!(matches!(next().await, Update::Event(Event::Resync)));
        assert!(matches!(next().await, Update::Event(Event::JobRemoved(id)) if id == "7"));
        assert!(matches!(next().await, Update::Disconnected { error: ClientError::Lost { .. }, .. }));
    }
}

async fn chat(parts: Vec<&'static str>) -> Vec<Result<ChatChunk, ClientError>> {
    let answer = move || async move { pieces(parts.clone()) };
    let (client, _home, _server) = daemon(Router::new().route(routes::CHAT_COMPLETIONS, post(answer)));
    client.chat(&ChatRequest::default()).await.unwrap().collect().await
}

#[tokio::test]
async fn a_chat_streams_text_then_its_end_then_its_usage() {
    let chunks = chat(vec![
        "data: {\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}\n\n",
        "data: {\"choices\":[{\"delta\":{\"content\":\"Par\"}}]}\n\ndata: {\"choices\":[{\"delta\":{\"con",
        "tent\":\"is\"},\"finish_reason\":\"stop\"}]}\n\n",
        "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":2}}\n\ndata: [DONE]\n\n",
    ])
    .await;
    let chunks: Vec<_> = chunks.into_iter().map(Result::unwrap).collect();
    assert_eq!(chunks[0], ChatChunk::Text("Par".into()));
    assert_eq!(chunks[1], ChatChunk::Text("is".into()));
    assert_eq!(chunks[2], ChatChunk::Finished("stop".into()));
    assert!(matches!(chunks[3], ChatChunk::Usage(usage) if usage.completion_tokens == 2));
    assert_eq!(chunks.len(), 4);
}

#[tokio::test]
async fn a_chat_that_breaks_off_or_reports_an_error_ends_with_that_error() {
    let chunks = chat(vec!["data: {\"choices\":[{\"delta\":{\"content\":\"Par\"}}]}\n\n"]).await;
    assert!(matches!(chunks.last(), Some(Err(ClientError::Lost { .. }))), "{chunks:?}");
    let chunks = chat(vec![
        "data: {\"error\":{\"message\":\"the worker died\",\"type\":\"server_error\",\"code\":null}}\n\ndata: [DONE]\n\n",
    ])
    .await;
    assert_eq!(chunks.len(), 1);
    assert_eq!(chunks[0].as_ref().unwrap_err().to_string(), "the worker died");
}
