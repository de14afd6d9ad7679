//! The stream of news.

use std::convert::Infallible;
use std::time::Duration;

use axum::extract::State;
use axum::response::sse::{Event as SseEvent, KeepAlive, Sse};
use drophammer_client::api::Event;
use drophammer_client::routes::{self, EVENTS_KEEPALIVE_SECONDS};
use futures::{Stream, StreamExt as _};
use tokio_stream::wrappers::BroadcastStream;
use tokio_stream::wrappers::errors::BroadcastStreamRecvError;

use super::Shared;

#[utoipa::path(get, path = routes::EVENTS, responses(
    (status = 200, content_type = "text/event-stream", body = Event,
     description = "Server-sent events; each `data:` is one Event, the first of them `resync`.")))]
pub(super) async fn stream(
    State(daemon): State<Shared>,
) -> Sse<impl Stream<Item = Result<SseEvent, Infallible>>> {
    let told = BroadcastStream::new(daemon.pipeline.events.listen()).map(|event| match event {
        Ok(event) => event,
        // Too slow: what it missed is lost, so it has to read everything again.
        Err(BroadcastStreamRecvError::Lagged(_)) => Event::Resync,
    });
    daemon.watched.notify_one();
    let events = futures::stream::once(std::future::ready(Event::Resync)).chain(told);
    let stop = daemon.stop.clone();
    let events = events.take_until(async move { stop.cancelled().await });
    let written = events.map(|event| Ok(SseEvent::default().json_data(&event).unwrap_or_default()));
    Sse::new(written).keep_alive(KeepAlive::new().interval(Duration::from_secs(EVENTS_KEEPALIVE_SECONDS)))
}
