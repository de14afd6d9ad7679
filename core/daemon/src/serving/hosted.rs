//! One loaded model: its worker, and the requests it has in hand.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use futures::{SinkExt as _, StreamExt as _};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::codec::{FramedRead, FramedWrite, LengthDelimitedCodec};
use tokio_util::sync::CancellationToken;

use super::wire::{Call, Reply, Trouble};
use super::{Ask, Said, ServeError};
use crate::worker::protocol::{FRAME_LIMIT, Frame};
use crate::workers::{Running, WorkerFailure};

/// A model in a worker. Dropping it ends the worker.
#[derive(Debug)]
pub struct Hosted {
    calls: mpsc::UnboundedSender<Call>,
    shared: Arc<Shared>,
    _unloading: tokio_util::sync::DropGuard,
    /// Cancelled once its process is no more.
    gone: CancellationToken,
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

/// Why a worker did not take a request.
#[derive(Debug)]
pub(super) enum Untaken {
    /// It says why.
    Refused(ServeError),
    /// It died first; another one may take it.
    Gone(String),
}

/// A request in hand.
#[derive(Debug)]
struct Open {
    to: mpsc::UnboundedSender<Said>,
    /// Told once the worker has taken it, or why it has not.
    taken: Option<oneshot::Sender<Result<(), Untaken>>>,
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
                if let Some(taken) = open.get_mut(&id).and_then(|request| request.taken.take()) {
                    // Fails when the client has gone in the meantime.
                    let _ = taken.send(Ok(()));
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
            Reply::Failed { id, trouble } => {
                if let Some(taken) = open.get_mut(&id).and_then(|request| request.taken.take()) {
                    open.remove(&id);
                    let _ = taken.send(Err(Untaken::Refused(trouble.into())));
                    return true;
                }
                (id, Said::Failed(trouble.into()))
            }
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

    /// The worker is gone: so are all its requests, but those that it had not taken.
    fn end(&self, why: &str) {
        // First, so that who comes later does not wait for it.
        self.ended.send_replace(Some(why.to_owned()));
        for (_, mut request) in self.open().drain() {
            // Either fails when the client has gone in the meantime.
            let _ = match request.taken.take() {
                Some(taken) => taken.send(Err(Untaken::Gone(why.to_owned()))).is_ok(),
                None => request.to.send(Said::Failed(ServeError::Broke(why.to_owned()))).is_ok(),
            };
        }
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
        let gone = CancellationToken::new();
        let reading = read(reader, running, shared.clone(), unloaded.clone(), on_event);
        let leaving = gone.clone().drop_guard();
        tokio::spawn(async move {
            reading.await;
            drop(leaving);
        });
        Ok(Self { calls, shared, _unloading: unloaded.drop_guard(), gone, pid, backend, context })
    }

    /// Asks the model.
    ///
    /// # Errors
    /// When the worker refuses, or is no more.
    pub async fn ask(&self, ask: Ask) -> Result<mpsc::UnboundedReceiver<Said>, ServeError> {
        let choices = ask.choices.max(1);
        let asked = self.call(choices, |id| Call::Ask { id, ask: Box::new(ask) }).await;
        asked.map_err(|untaken| match untaken {
            Untaken::Refused(error) => error,
            Untaken::Gone(why) => ServeError::Broke(why),
        })
    }

    /// Has the worker take a request with so many answers.
    ///
    /// # Errors
    /// When it refuses, or is no more.
    pub(super) async fn call(
        &self,
        choices: u32,
        call: impl FnOnce(u64) -> Call,
    ) -> Result<mpsc::UnboundedReceiver<Said>, Untaken> {
        let (to, said) = mpsc::unbounded_channel();
        let (accepted, taken) = oneshot::channel();
        let id = self.shared.next.fetch_add(1, Ordering::Relaxed);
        let gone = to.clone();
        let request = Open { to, taken: Some(accepted), choices };
        self.shared.open().insert(id, request);
        self.shared.touch();
        if let Some(why) = self.ended() {
            self.shared.open().remove(&id);
            return Err(Untaken::Gone(why));
        }
        let gone_already = |_| Untaken::Gone(ServeError::lost().to_string());
        self.calls.send(call(id)).map_err(gone_already)?;
        // A client that goes takes its place in the batch with it.
        let (calls, shared) = (self.calls.downgrade(), Arc::downgrade(&self.shared));
        tokio::spawn(async move {
            gone.closed().await;
            let open = shared.upgrade().is_some_and(|shared| shared.open().remove(&id).is_some());
            if open && let Some(calls) = calls.upgrade() {
                let _ = calls.send(Call::Forget { id });
            }
        });
        match taken.await {
            Ok(Ok(())) => Ok(said),
            Ok(Err(untaken)) => Err(untaken),
            Err(_) => Err(Untaken::Gone(ServeError::lost().to_string())),
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

    /// Waits until its process is no more.
    pub(super) fn until_gone(&self) -> impl Future<Output = ()> + Send + use<> {
        self.gone.clone().cancelled_owned()
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
            () = unloaded.cancelled() => {
                shared.end("the model was unloaded");
                // A worker whose channel is closed ends by itself, or is made to.
                drop(reader);
                running.cancel();
                let _ = running.finish().await;
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
