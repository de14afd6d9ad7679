//! One loaded model: its worker, and the requests it has in hand.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use futures::{SinkExt as _, StreamExt as _};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, watch};
use tokio_util::codec::{FramedRead, FramedWrite, LengthDelimitedCodec};
use tokio_util::sync::CancellationToken;

use super::wire::{Call, Reply, Trouble};
use super::{Ask, Embedded, Prompt, Said, ServeError};
use crate::worker::protocol::{FRAME_LIMIT, Frame};
use crate::workers::{Running, WorkerFailure};

/// A model in a worker. Dropping it ends the worker.
#[derive(Debug)]
pub struct Hosted {
    calls: mpsc::UnboundedSender<Call>,
    shared: Arc<Shared>,
    _unloading: tokio_util::sync::DropGuard,
    /// The worker's process.
    pub pid: u32,
    /// The backend that runs it.
    pub backend: String,
    /// Longest context, in tokens.
    pub context: u32,
}

#[derive(Debug)]
struct Shared {
    next: AtomicU64,
    open: Mutex<HashMap<u64, Open>>,
    used: Mutex<Instant>,
    /// Why it is no more.
    ended: watch::Sender<Option<String>>,
}

/// A request in hand.
#[derive(Debug)]
struct Open {
    to: mpsc::UnboundedSender<Said>,
    /// Told once the worker has taken it.
    accepted: Option<tokio::sync::oneshot::Sender<()>>,
    /// Answers that are not complete.
    choices: u32,
}

impl Shared {
    fn open(&self) -> MutexGuard<'_, HashMap<u64, Open>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn touch(&self) {
        *self.used.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// Hands a reply on to whoever asked; false when nobody listens any more.
    fn hear(&self, reply: Reply) -> bool {
        let mut open = self.open();
        let (id, said) = match reply {
            Reply::Ready { .. } => return true,
            Reply::Accepted { id } => {
                if let Some(accepted) = open.get_mut(&id).and_then(|request| request.accepted.take()) {
                    // Fails when the client has gone in the meantime.
                    let _ = accepted.send(());
                }
                return true;
            }
            Reply::Started { id } => (id, Said::Started),
            Reply::Token { id, choice, text, logprobs } => (id, Said::Token { choice, text, logprobs }),
            Reply::Called { id, choice, name, arguments } => (id, Said::Call { choice, name, arguments }),
            Reply::Embedded { id, embedded } => (id, Said::Embedded(embedded)),
            Reply::Finished { id, choice, text, reason, usage } => {
                (id, Said::Finished { choice, text, reason, usage })
            }
            Reply::Failed { id, trouble } => (id, Said::Failed(trouble.into())),
        };
        let Some(request) = open.get_mut(&id) else { return false };
        let last = match &said {
            Said::Failed(_) | Said::Embedded(_) => true,
            Said::Finished { .. } => {
                request.choices = request.choices.saturating_sub(1);
                request.choices == 0
            }
            Said::Started | Said::Token { .. } | Said::Call { .. } => false,
        };
        let listening = request.to.send(said).is_ok();
        if last || !listening {
            open.remove(&id);
            drop(open);
            self.touch();
        }
        last || listening
    }

    /// The worker is gone: so are all its requests.
    fn end(&self, why: &str) {
        for (_, request) in self.open().drain() {
            let _ = request.to.send(Said::Failed(ServeError::Broke(why.to_owned())));
        }
        self.ended.send_replace(Some(why.to_owned()));
    }
}

impl From<Trouble> for ServeError {
    fn from(trouble: Trouble) -> Self {
        match trouble {
            Trouble::Invalid(message) => Self::Invalid(message),
            Trouble::Busy { message, retry_after_seconds } => Self::Busy { message, retry_after_seconds },
            Trouble::Broke(message) => Self::Broke(message),
        }
    }
}

impl Hosted {
    /// Waits until a starting worker has loaded its model. `on_event` hears what it tells meanwhile and later.
    ///
    /// # Errors
    /// Why it could not.
    pub async fn wait(
        mut running: Running,
        channel: UnixStream,
        on_event: impl Fn(crate::workers::WorkerEvent) + Send + 'static,
    ) -> Result<Self, WorkerFailure> {
        let codec =
            || LengthDelimitedCodec::builder().little_endian().max_frame_length(FRAME_LIMIT).new_codec();
        let (reader, writer) = channel.into_split();
        let mut reader = FramedRead::new(reader, codec());
        let (pid, backend) = (running.pid(), running.plugin().to_owned());
        let ready = async {
            loop {
                tokio::select! {
                    Some(event) = running.next_event() => on_event(event),
                    frame = reader.next() => return frame,
                }
            }
        };
        let first = ready.await.map(|frame| frame.and_then(|bytes| Frame::decode(&bytes)?.parse()));
        let Some(Ok(Reply::Ready { context, .. })) = first else {
            // Its own end says more than the closed channel does.
            return Err(end_of(running).await);
        };
        let (calls, orders) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared {
            next: AtomicU64::new(1),
            open: Mutex::default(),
            used: Mutex::new(Instant::now()),
            ended: watch::Sender::new(None),
        });
        tokio::spawn(write(FramedWrite::new(writer, codec()), orders));
        let unloaded = CancellationToken::new();
        tokio::spawn(read(reader, running, shared.clone(), unloaded.clone(), on_event));
        Ok(Self { calls, shared, _unloading: unloaded.drop_guard(), pid, backend, context })
    }

    /// Asks the model.
    ///
    /// # Errors
    /// When the worker refuses, or is no more.
    pub async fn ask(&self, ask: Ask) -> Result<mpsc::UnboundedReceiver<Said>, ServeError> {
        let choices = ask.choices.max(1);
        self.call(choices, |id| Call::Ask { id, ask: Box::new(ask) }).await
    }

    /// Has texts embedded.
    ///
    /// # Errors
    /// When the worker refuses, breaks, or is no more.
    pub async fn embed(&self, texts: Vec<Prompt>, truncate: bool) -> Result<Embedded, ServeError> {
        let mut said = self.call(1, |id| Call::Embed { id, texts, truncate }).await?;
        match said.recv().await {
            Some(Said::Embedded(embedded)) => Ok(embedded),
            Some(Said::Failed(error)) => Err(error),
            _ => Err(ServeError::lost()),
        }
    }

    async fn call(
        &self,
        choices: u32,
        call: impl FnOnce(u64) -> Call,
    ) -> Result<mpsc::UnboundedReceiver<Said>, ServeError> {
        let (to, mut said) = mpsc::unbounded_channel();
        let (accepted, taken) = tokio::sync::oneshot::channel();
        let id = self.shared.next.fetch_add(1, Ordering::Relaxed);
        let gone = to.clone();
        let request = Open { to, accepted: Some(accepted), choices };
        self.shared.open().insert(id, request);
        self.shared.touch();
        if let Some(why) = self.ended() {
            self.shared.open().remove(&id);
            return Err(ServeError::Broke(why));
        }
        self.calls.send(call(id)).map_err(|_| ServeError::lost())?;
        // A client that goes takes its place in the batch with it.
        let (calls, shared) = (self.calls.downgrade(), Arc::downgrade(&self.shared));
        tokio::spawn(async move {
            gone.closed().await;
            let open = shared.upgrade().is_some_and(|shared| shared.open().remove(&id).is_some());
            if open && let Some(calls) = calls.upgrade() {
                let _ = calls.send(Call::Forget { id });
            }
        });
        if taken.await.is_ok() {
            return Ok(said);
        }
        match said.recv().await {
            Some(Said::Failed(error)) => Err(error),
            _ => Err(ServeError::lost()),
        }
    }

    /// Why it is no more, once that is so.
    pub(super) fn ended(&self) -> Option<String> {
        self.shared.ended.borrow().clone()
    }

    /// Waits until it is no more.
    pub(super) fn until_ended(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut ended = self.shared.ended.subscribe();
        async move {
            // Fails when it was unloaded, which is an end as well.
            let _ = ended.wait_for(Option::is_some).await;
        }
    }

    /// Requests in hand.
    pub(super) fn in_hand(&self) -> usize {
        self.shared.open().len()
    }

    /// When it was last used.
    pub(super) fn used(&self) -> Instant {
        *self.shared.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn write(
    mut writer: FramedWrite<OwnedWriteHalf, LengthDelimitedCodec>,
    mut orders: mpsc::UnboundedReceiver<Call>,
) {
    while let Some(call) = orders.recv().await {
        let Ok(frame) = Frame::document(&call) else { continue };
        if writer.send(tokio_util::bytes::Bytes::from(frame.encode())).await.is_err() {
            return;
        }
    }
}

async fn read(
    mut reader: FramedRead<OwnedReadHalf, LengthDelimitedCodec>,
    mut running: Running,
    shared: Arc<Shared>,
    unloaded: CancellationToken,
    on_event: impl Fn(crate::workers::WorkerEvent),
) {
    loop {
        let frame = tokio::select! {
            Some(event) = running.next_event() => {
                on_event(event);
                continue;
            }
            frame = reader.next() => frame,
            // With its supervision goes the worker.
            () = unloaded.cancelled() => {
                shared.end("the model was unloaded");
                return;
            }
        };
        match frame.map(|frame| frame.and_then(|bytes| Frame::decode(&bytes)?.parse::<Reply>())) {
            Some(Ok(reply)) => drop(shared.hear(reply)),
            Some(Err(_)) | None => break,
        }
    }
    shared.end(&end_of(running).await.report().to_string());
}

/// How a worker ended that closed its channel.
async fn end_of(running: Running) -> WorkerFailure {
    let plugin = running.plugin().to_owned();
    match running.finish().await {
        Err(failure) => failure,
        Ok(_) => WorkerFailure::not_started(&plugin, "the model's worker ended"),
    }
}
