//! The daemon's events, over as many connections as it takes.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::Stream;
use http_body_util::BodyExt as _;
use hyper::Method;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use crate::api::Event;
use crate::sse::{EVENT_LIMIT, SseParser};
use crate::{Client, ClientError, routes};

/// Events the reader may lag behind before the daemon's side has to wait.
const BACKLOG: usize = 1024;
/// First and longest pause between two attempts to connect.
const PAUSES: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(5));
/// Silence after which a connection is given up.
const SILENCE: Duration = Duration::from_secs(3 * routes::EVENTS_KEEPALIVE_SECONDS);

/// What [`Client::events`] yields.
#[derive(Debug)]
pub enum Update {
    /// A connection stands. What happened before it is not told: read the documents again.
    Connected,
    /// Something happened.
    Event(Event),
    /// There is no connection; another attempt follows after the pause.
    Disconnected {
        /// Why.
        error: ClientError,
        /// Until the next attempt.
        retry_in: Duration,
    },
}

/// The daemon's events; never ends. Dropping it closes the connection.
#[derive(Debug)]
pub struct Events {
    updates: mpsc::Receiver<Update>,
    task: AbortHandle,
}

impl Drop for Events {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Stream for Events {
    type Item = Update;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Update>> {
        self.updates.poll_recv(context)
    }
}

impl Client {
    /// Everything that happens in the daemon, reconnecting whenever the connection breaks. Events this
    /// client does not know (from a newer daemon) are skipped. Must be called inside a Tokio runtime.
    pub fn events(&self) -> Events {
        let (sender, updates) = mpsc::channel(BACKLOG);
        let task = tokio::spawn(follow(self.clone(), sender)).abort_handle();
        Events { updates, task }
    }
}

async fn follow(client: Client, updates: mpsc::Sender<Update>) {
    let mut pause = PAUSES.0;
    loop {
        let mut was_connected = false;
        let error = listen(&client, &updates, &mut was_connected).await;
        if was_connected {
            pause = PAUSES.0;
        }
        if updates.send(Update::Disconnected { error, retry_in: pause }).await.is_err() {
            return;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSES.1);
    }
}

/// Reads one connection until it breaks; returns why.
async fn listen(client: &Client, updates: &mpsc::Sender<Update>, was_connected: &mut bool) -> ClientError {
    let endpoint = client.endpoint().clone();
    let response = match client.send(Method::GET, routes::EVENTS, None, SILENCE).await {
        Ok(response) => response,
        Err(error) => return error,
    };
    *was_connected = true;
    let lost = |reason: &str| ClientError::Lost { endpoint: endpoint.clone(), reason: reason.to_owned() };
    let reader_left = || lost("the reader left");
    if updates.send(Update::Connected).await.is_err() {
        return reader_left();
    }
    let mut body = response.into_body();
    let mut parser = SseParser::default();
    let mut received = Vec::new();
    loop {
        let frame = match tokio::time::timeout(SILENCE, body.frame()).await {
            Err(_) => return ClientError::Silent { endpoint, after: SILENCE },
            Ok(None) => return lost("the daemon ended the event stream"),
            Ok(Some(Err(error))) => return lost(&error.to_string()),
            Ok(Some(Ok(frame))) => frame,
        };
        let Some(bytes) = frame.data_ref() else { continue };
        if parser.feed(bytes, |data| received.push(data)).is_err() {
            return ClientError::TooLong { endpoint, path: routes::EVENTS.to_owned(), limit: EVENT_LIMIT };
        }
        for data in received.drain(..) {
            if let Ok(event) = serde_json::from_str(&data)
                && updates.send(Update::Event(event)).await.is_err()
            {
                return reader_left();
            }
        }
    }
}
