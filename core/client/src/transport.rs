//! One request over one connection.
//!
//! Connections are not pooled: on a Unix socket a new one costs microseconds, and dropping a response
//! closes its connection, which is how the daemon learns that nobody listens any more.

use std::io::ErrorKind;
use std::time::Duration;

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST, USER_AGENT};
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

use crate::api::{ApiError, ErrorReport};
use crate::{ClientError, Endpoint};

/// Longest document that is read: 100 000 jobs take some 60 MB.
pub(crate) const DOCUMENT_LIMIT: usize = 128 << 20;
/// Longest error document that is read.
const ERROR_LIMIT: usize = 1 << 20;
/// How long a connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Sends one request and hands back the answer once its head is there and says success.
pub(crate) async fn send(
    endpoint: &Endpoint,
    key: Option<&str>,
    method: Method,
    path: &str,
    body: Option<Vec<u8>>,
    head_timeout: Duration,
) -> Result<Response<Incoming>, ClientError> {
    let request = build(endpoint, key, method, path, body)?;
    let answer = tokio::time::timeout(head_timeout, open_and_send(endpoint, request));
    let response = answer
        .await
        .map_err(|_| ClientError::Silent { endpoint: endpoint.clone(), after: head_timeout })??;
    if response.status().is_success() {
        return Ok(response);
    }
    let status = response.status();
    let bytes = read_all(endpoint, path, response, ERROR_LIMIT).await.unwrap_or_default();
    let report = read_error(&bytes).unwrap_or_else(|| {
        ErrorReport::new("http", format!("the daemon answered {status} to {path}"))
            .help("are daemon and client of the same version?")
    });
    Err(ClientError::Api { status: status.as_u16(), report: Box::new(report) })
}

/// Reads the whole body, up to `limit` bytes.
pub(crate) async fn read_all(
    endpoint: &Endpoint,
    path: &str,
    response: Response<Incoming>,
    limit: usize,
) -> Result<Bytes, ClientError> {
    match Limited::new(response.into_body(), limit).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.is::<http_body_util::LengthLimitError>() => {
            Err(ClientError::TooLong { endpoint: endpoint.clone(), path: path.to_owned(), limit })
        }
        Err(error) => Err(ClientError::Lost { endpoint: endpoint.clone(), reason: error.to_string() }),
    }
}

/// Reads an error in our own form, or in OpenAI's, which has no help and sometimes no code.
pub(crate) fn read_error(bytes: &[u8]) -> Option<ErrorReport> {
    if let Ok(ApiError { error }) = serde_json::from_slice(bytes) {
        return Some(error);
    }
    let value: serde_json::Value = serde_json::from_slice(bytes).ok()?;
    let error = value.get("error")?;
    let text = |name: &str| error.get(name).and_then(serde_json::Value::as_str);
    let code = text("code").or_else(|| text("type")).unwrap_or("error");
    Some(ErrorReport::new(code, text("message")?))
}

fn build(
    endpoint: &Endpoint,
    key: Option<&str>,
    method: Method,
    path: &str,
    body: Option<Vec<u8>>,
) -> Result<Request<Full<Bytes>>, ClientError> {
    let host = match endpoint {
        Endpoint::Unix(_) => "localhost",
        Endpoint::Tcp(address) => address,
    };
    let mut request = Request::builder()
        .method(method)
        .uri(path)
        .header(HOST, host)
        .header(USER_AGENT, concat!("drophammer/", env!("CARGO_PKG_VERSION")));
    if let Some(key) = key {
        request = request.header(AUTHORIZATION, format!("Bearer {key}"));
    }
    if body.is_some() {
        request = request.header(CONTENT_TYPE, "application/json");
    }
    request.body(Full::new(Bytes::from(body.unwrap_or_default()))).map_err(|_| ClientError::Endpoint {
        endpoint: endpoint.to_string(),
        reason: "the address or the key holds characters that HTTP forbids",
    })
}

async fn open_and_send(
    endpoint: &Endpoint,
    request: Request<Full<Bytes>>,
) -> Result<Response<Incoming>, ClientError> {
    match endpoint {
        Endpoint::Unix(path) => {
            let stream = UnixStream::connect(path).await;
            exchange(endpoint, stream.map_err(|source| cannot_connect(endpoint, source))?, request).await
        }
        Endpoint::Tcp(address) => {
            let connecting = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(address));
            let stream = connecting.await.unwrap_or_else(|_| Err(ErrorKind::TimedOut.into()));
            let stream = stream.map_err(|source| cannot_connect(endpoint, source))?;
            // Streams of small events must not wait for one another.
            let _ = stream.set_nodelay(true);
            exchange(endpoint, stream, request).await
        }
    }
}

async fn exchange<S>(
    endpoint: &Endpoint,
    stream: S,
    request: Request<Full<Bytes>>,
) -> Result<Response<Incoming>, ClientError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let lost =
        |error: hyper::Error| ClientError::Lost { endpoint: endpoint.clone(), reason: error.to_string() };
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(lost)?;
    // Ends when the sender and the response body are dropped; its errors reach us through the body.
    tokio::spawn(connection);
    sender.send_request(request).await.map_err(lost)
}

fn cannot_connect(endpoint: &Endpoint, source: std::io::Error) -> ClientError {
    let endpoint = endpoint.clone();
    match source.kind() {
        ErrorKind::PermissionDenied => ClientError::Denied { endpoint, source },
        _ => ClientError::NoDaemon { endpoint, source },
    }
}
