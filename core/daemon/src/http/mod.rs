//! The daemon's two doors: the control API on a Unix socket that only its user can open, and the OpenAI-compatible
//! API over TCP, on loopback. Handlers translate; what they ask for is done elsewhere.

mod answer;
mod control;
mod events;
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
            let public = control::public_router(daemon);
            axum::serve(tcp, public).with_graceful_shutdown(stop.cancelled_owned()).await
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
