//! The daemon's two doors: the control API on a Unix socket that only its user can open, and the OpenAI-compatible
//! API over TCP, on loopback unless keys and TLS guard it. Handlers translate; what they ask for is done elsewhere.

mod answer;
mod control;
mod events;
mod guard;
mod metrics;
mod ollama;
mod openai;
pub mod openapi;

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::net::{TcpListener, UnixListener};
use tokio_util::sync::CancellationToken;

use crate::daemon::Daemon;
pub(crate) use openai::Memory;

/// How long requests in flight may take to end when the daemon is to stop.
const DRAIN: Duration = Duration::from_secs(10);

/// What handlers work with.
pub(crate) type Shared = Arc<Daemon>;

/// Opens the control socket: readable and writable by this user alone, from its first moment.
///
/// # Errors
/// When it cannot be made; the lock says that nobody else uses it.
pub(crate) fn open_socket(path: &Path) -> anyhow::Result<UnixListener> {
    let context = || format!("control socket {}", path.display());
    if let Err(error) = std::fs::remove_file(path)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        return Err(error).with_context(context);
    }
    // Bound under another name first: whoever sees the socket sees it with its final mode.
    let early = path.with_extension("sock.new");
    let _ = std::fs::remove_file(&early);
    let listener = UnixListener::bind(&early).with_context(context)?;
    std::fs::set_permissions(&early, std::fs::Permissions::from_mode(0o600)).with_context(context)?;
    std::fs::rename(&early, path).with_context(context)?;
    Ok(listener)
}

/// Answers at both doors until `stop`, then lets requests in flight end.
pub(crate) async fn serve(
    daemon: Shared,
    socket: UnixListener,
    tcp: Option<TcpListener>,
    stop: CancellationToken,
) {
    let control = control::router(daemon.clone());
    let at_socket = axum::serve(socket, control).with_graceful_shutdown(stop.clone().cancelled_owned());
    let at_socket = async move { at_socket.await };
    let at_tcp = {
        let stop = stop.clone();
        async move {
            let Some(tcp) = tcp else { return Ok(()) };
            let public = control::public_router(daemon.clone())
                .layer(axum::middleware::from_fn_with_state(daemon.clone(), guard::check))
                .layer(origins(&daemon.pipeline.config.serve.origins));
            match &daemon.tls {
                None => axum::serve(tcp, public).with_graceful_shutdown(stop.cancelled_owned()).await,
                Some(tls) => {
                    let handle = axum_server::Handle::new();
                    let ending = handle.clone();
                    tokio::spawn(async move {
                        stop.cancelled().await;
                        ending.graceful_shutdown(Some(DRAIN));
                    });
                    let listener = tcp.into_std()?;
                    axum_server::from_tcp_rustls(listener, tls.clone())?
                        .handle(handle)
                        .serve(public.into_make_service())
                        .await
                }
            }
        }
    };
    let drained = async {
        stop.cancelled().await;
        tokio::time::sleep(DRAIN).await;
    };
    tokio::select! {
        (a, b) = async { tokio::join!(at_socket, at_tcp) } => {
            for error in [a, b].into_iter().filter_map(Result::err) {
                tracing::error!(%error, "a door closed");
            }
        }
        () = drained => tracing::warn!("requests still in flight are cut off"),
    }
}

/// Lets pages of these origins ask; `*` is every origin.
fn origins(allowed: &[String]) -> tower_http::cors::CorsLayer {
    use tower_http::cors::{AllowOrigin, Any, CorsLayer};
    let layer = CorsLayer::new();
    if allowed.is_empty() {
        return layer;
    }
    let origins = if allowed.iter().any(|origin| origin == "*") {
        AllowOrigin::any()
    } else {
        AllowOrigin::list(allowed.iter().filter_map(|origin| origin.parse().ok()))
    };
    layer.allow_origin(origins).allow_methods(Any).allow_headers(Any)
}
