//! One worker, from its start to its end.

use std::io;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;

use drophammer_client::api::{self, LogSource};
use drophammer_sdk::{ErrorCode, LogLevel};
use futures::{SinkExt, StreamExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::process::Child;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::codec::{FramedRead, FramedWrite, LengthDelimitedCodec};

use super::failure::{Ending, WorkerFailure};
use super::output::{Tail, printable, read_lines};
use super::settings::{WorkerSettings, duration};
use crate::worker::protocol::{
    Assignment, FRAME_LIMIT, Frame, Order, Outcome, Progress, Report, Work, log_level,
};

/// Events kept for a listener that is slow; later log lines are dropped, never the outcome.
const EVENTS: usize = 1024;
/// How long a worker that reported its result may take to exit.
const EXIT_GRACE: Duration = Duration::from_secs(2);
/// How long the pipes of a dead worker are still read.
const DRAIN_GRACE: Duration = Duration::from_millis(250);
/// How often the supervisor looks at a worker.
const TICK: Duration = Duration::from_secs(1);

/// Characters kept of the name of a stage or tensor.
const NAME_LIMIT: usize = 200;

/// Something a worker told while it works.
#[derive(Debug, Clone, PartialEq)]
pub enum WorkerEvent {
    /// How far it is.
    Progress(Progress),
    /// A line for the job's log from the plugin.
    Log(LogLevel, String),
    /// A line it printed.
    Output(LogSource, String),
}

/// A worker that did its work.
#[derive(Debug, Clone)]
pub struct Finished {
    /// What came of it.
    pub outcome: Outcome,
    /// Peak resident bytes of its process, mapped files included.
    pub peak_memory_bytes: Option<u64>,
}

/// A worker at work. Dropping it kills it.
#[derive(Debug)]
pub struct Running {
    pid: u32,
    events: mpsc::Receiver<WorkerEvent>,
    cancel: mpsc::Sender<()>,
    result: oneshot::Receiver<Result<Finished, WorkerFailure>>,
    plugin: String,
    companion: Option<Box<Running>>,
}

impl Running {
    /// Takes charge of a process that was just started.
    pub(super) fn watch(
        mut child: Child,
        socket: StdUnixStream,
        assignment: Assignment,
        plugin: String,
        settings: Arc<WorkerSettings>,
    ) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        let (reader, writer) = UnixStream::from_std(socket)?.into_split();
        let codec =
            || LengthDelimitedCodec::builder().little_endian().max_frame_length(FRAME_LIMIT).new_codec();
        let (line_sender, lines) = mpsc::channel(64);
        for (pipe, source) in [
            (child.stdout.take().map(Pipe::Stdout), LogSource::Stdout),
            (child.stderr.take().map(Pipe::Stderr), LogSource::Stderr),
        ] {
            let sender = line_sender.clone();
            tokio::spawn(async move {
                // A pipe that breaks has ended; its worker's own end says why.
                let _ = match pipe {
                    Some(Pipe::Stdout(pipe)) => read_lines(pipe, source, sender).await,
                    Some(Pipe::Stderr(pipe)) => read_lines(pipe, source, sender).await,
                    None => Ok(()),
                };
            });
        }
        let pid = child.id().ok_or_else(|| io::Error::other("it ended at once"))?;
        let (event_sender, events) = mpsc::channel(EVENTS);
        let (cancel, cancelled) = mpsc::channel(1);
        let (result_sender, result) = oneshot::channel();
        let watch = Watch {
            group: rustix::process::Pid::from_raw(pid as i32),
            child,
            writer: FramedWrite::new(writer, codec()),
            lines,
            events: event_sender,
            tail: Tail::default(),
            progress: Progress { stage: assignment.work.stage().to_owned(), ..Progress::default() },
            patience: Patience::of(&assignment.work, &settings),
            plugin: plugin.clone(),
        };
        let reader = FramedRead::new(reader, codec());
        tokio::spawn(watch.run(assignment, reader, cancelled, result_sender));
        Ok(Self { pid, events, cancel, result, plugin, companion: None })
    }

    /// Ties another worker to this one: it ends with it, and when it is the cause of this one's failure it is blamed.
    pub(super) fn accompanied_by(mut self, companion: Running) -> Self {
        self.companion = Some(Box::new(companion));
        self
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Its plugin.
    pub fn plugin(&self) -> &str {
        &self.plugin
    }

    /// The next event; `None` once it ended.
    pub async fn next_event(&mut self) -> Option<WorkerEvent> {
        self.events.recv().await
    }

    /// Asks it to stop. If it does not within the grace period it is killed; either way [`Running::finish`] then
    /// says [`Ending::Cancelled`], unless the work was done before.
    pub fn cancel(&self) {
        let _ = self.cancel.try_send(());
    }

    /// A handle to cancel it from elsewhere.
    pub fn canceller(&self) -> impl Fn() + Send + Sync + Clone + 'static + use<> {
        // Weak: a forgotten handle must not keep a dropped worker alive.
        let cancel = self.cancel.downgrade();
        move || {
            if let Some(cancel) = cancel.upgrade() {
                let _ = cancel.try_send(());
            }
        }
    }

    /// Waits for its end; events that were not taken are dropped.
    ///
    /// # Errors
    /// How it failed.
    pub async fn finish(mut self) -> Result<Finished, WorkerFailure> {
        let companion = self.companion.take();
        match (self.finish_alone().await, companion) {
            (Err(failure), Some(companion)) if failure.code() == ErrorCode::WorkerDied => {
                let other = tokio::time::timeout(EXIT_GRACE, companion.finish_alone()).await;
                Err(other.ok().and_then(Result::err).unwrap_or(failure))
            }
            (finished, _) => finished,
        }
    }

    /// [`Running::finish`] of a worker that has no companion itself.
    async fn finish_alone(mut self) -> Result<Finished, WorkerFailure> {
        self.events.close();
        let lost = WorkerFailure::not_started(&self.plugin, "its supervisor stopped");
        (&mut self.result).await.unwrap_or(Err(lost))
    }

    /// Hands every event to `listen`, then waits for its end.
    ///
    /// # Errors
    /// How it failed.
    pub async fn follow(mut self, mut listen: impl FnMut(WorkerEvent)) -> Result<Finished, WorkerFailure> {
        while let Some(event) = self.next_event().await {
            listen(event);
        }
        self.finish().await
    }
}

enum Pipe {
    Stdout(tokio::process::ChildStdout),
    Stderr(tokio::process::ChildStderr),
}

/// How long silence is taken for work.
struct Patience {
    heartbeat: Duration,
    stall: Duration,
    whole: Duration,
    grace: Duration,
}

impl Patience {
    fn of(work: &Work, settings: &WorkerSettings) -> Self {
        let never = duration(0.0);
        let whole =
            if matches!(work, Work::Probe(_)) { duration(settings.probe_timeout_seconds) } else { never };
        // A model that nobody asks anything makes no progress, and need not.
        let stall = match work {
            Work::Serve(_) | Work::Lend(_) => never,
            _ => duration(settings.stall_timeout_seconds),
        };
        Self {
            heartbeat: duration(settings.heartbeat_timeout_seconds),
            stall,
            whole,
            grace: duration(settings.cancel_grace_seconds),
        }
    }
}

/// A plugin's level as the control API shows it.
pub(crate) fn api_level(level: LogLevel) -> api::LogLevel {
    match level {
        LogLevel::Error => api::LogLevel::Error,
        LogLevel::Warning => api::LogLevel::Warn,
        LogLevel::Info => api::LogLevel::Info,
        LogLevel::Debug | LogLevel::Trace => api::LogLevel::Debug,
    }
}

/// Names as the plugin says them go to terminals and into jobs.
fn tidy(mut progress: Progress) -> Progress {
    for name in [&mut progress.stage, &mut progress.tensor] {
        *name = printable(name).chars().take(NAME_LIMIT).collect();
    }
    progress
}

/// The task that watches one worker.
struct Watch {
    group: Option<rustix::process::Pid>,
    child: Child,
    writer: FramedWrite<OwnedWriteHalf, LengthDelimitedCodec>,
    lines: mpsc::Receiver<(LogSource, String)>,
    events: mpsc::Sender<WorkerEvent>,
    tail: Tail,
    progress: Progress,
    patience: Patience,
    plugin: String,
}

type Reader = FramedRead<OwnedReadHalf, LengthDelimitedCodec>;

impl Watch {
    async fn run(
        mut self,
        assignment: Assignment,
        reader: Reader,
        cancelled: mpsc::Receiver<()>,
        mut result: oneshot::Sender<Result<Finished, WorkerFailure>>,
    ) {
        let end = tokio::select! {
            end = self.converse(assignment, reader, cancelled) => end,
            () = result.closed() => Err(Some(Ending::Cancelled)),
        };
        // One that said what it had to say exits by itself, and what it printed is flushed.
        let at_once = !matches!(end, Ok(_) | Err(None | Some(Ending::Reported { .. })));
        let status = self.wind_up(at_once).await;
        let finished = end.map_err(|known| {
            let ending = known.unwrap_or_else(|| match status {
                Some(status) => Ending::of(status),
                None => Ending::Garbled("it closed its control socket".to_owned()),
            });
            WorkerFailure {
                ending,
                plugin: std::mem::take(&mut self.plugin),
                progress: std::mem::take(&mut self.progress),
                last_lines: std::mem::take(&mut self.tail).into_lines(),
            }
        });
        let _ = result.send(finished);
    }

    /// Talks with the worker until one of both has nothing more to say. `Err(None)`: its exit status says why.
    async fn converse(
        &mut self,
        assignment: Assignment,
        mut reader: Reader,
        mut cancelled: mpsc::Receiver<()>,
    ) -> Result<Finished, Option<Ending>> {
        if self.order(&Order::Start(Box::new(assignment))).await.is_err() {
            return Err(None);
        }
        let started = Instant::now();
        let (mut alive, mut moved, mut kill_at) = (started, started, None);
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                frame = reader.next() => {
                    let report = match frame {
                        None => return Err(kill_at.map(|_| Ending::Cancelled)),
                        // A process that dies with an unread ping resets the connection: the same end.
                        Some(Err(error)) if error.kind() != io::ErrorKind::InvalidData => {
                            return Err(kill_at.map(|_| Ending::Cancelled));
                        }
                        Some(frame) => frame.and_then(|bytes| Frame::decode(&bytes)?.parse()),
                    };
                    alive = Instant::now();
                    match report.map_err(|error| Some(Ending::Garbled(error.to_string())))? {
                        Report::Pong => {}
                        Report::Progress(progress) => {
                            moved = alive;
                            let progress = tidy(progress);
                            self.progress = progress.clone();
                            self.tell(WorkerEvent::Progress(progress));
                        }
                        Report::Log { level, message } => {
                            moved = alive;
                            self.tell(WorkerEvent::Log(log_level(level), printable(&message)));
                        }
                        Report::Done { outcome, peak_memory_bytes } => {
                            return Ok(Finished { outcome: *outcome, peak_memory_bytes });
                        }
                        Report::Failed(failure) => {
                            if !failure.progress.stage.is_empty() {
                                self.progress = tidy(failure.progress.clone());
                            }
                            return Err(Some(failure.into()));
                        }
                    }
                }
                Some((source, line)) = self.lines.recv() => self.heard(source, line),
                Some(()) = cancelled.recv() => {
                    kill_at.get_or_insert(Instant::now() + self.patience.grace);
                    let _ = self.order(&Order::Cancel).await;
                }
                _ = tick.tick() => {
                    if let Some(ending) = self.lost_patience(started, alive, moved) {
                        return Err(Some(if kill_at.is_some() { Ending::Cancelled } else { ending }));
                    }
                    let _ = self.order(&Order::Ping).await;
                }
                () = tokio::time::sleep_until(kill_at.unwrap_or(started)), if kill_at.is_some() => {
                    return Err(Some(Ending::Cancelled));
                }
            }
        }
    }

    fn lost_patience(&self, started: Instant, alive: Instant, moved: Instant) -> Option<Ending> {
        let seconds = |limit: Duration| limit.as_secs_f64();
        let patience = &self.patience;
        if alive.elapsed() > patience.heartbeat {
            return Some(Ending::Hung(seconds(patience.heartbeat)));
        }
        if started.elapsed() > patience.whole {
            return Some(Ending::TimedOut(seconds(patience.whole)));
        }
        (moved.elapsed() > patience.stall).then_some(Ending::Stalled(seconds(patience.stall)))
    }

    /// Sends an order. A full socket (a stopped worker) must not stop its supervisor: the tick's clock decides.
    async fn order(&mut self, order: &Order) -> io::Result<()> {
        let bytes = Frame::document(order)?.encode();
        let sending = self.writer.send(tokio_util::bytes::Bytes::from(bytes));
        tokio::time::timeout(TICK, sending).await?
    }

    fn heard(&mut self, source: LogSource, line: String) {
        self.tail.push(&line);
        self.tell(WorkerEvent::Output(source, line));
    }

    /// Tells the listener, if it keeps up.
    fn tell(&self, event: WorkerEvent) {
        let _ = self.events.try_send(event);
    }

    /// Sees the process to its end, kills what is left of its group, and reads what it still printed. Gives the status
    /// of a process that exited by itself.
    async fn wind_up(&mut self, at_once: bool) -> Option<ExitStatus> {
        let grace = if at_once { Duration::ZERO } else { EXIT_GRACE };
        let by_itself = tokio::time::timeout(grace, self.child.wait()).await.ok().and_then(Result::ok);
        if let Some(group) = self.group {
            // Fails when nothing of the group is left, which is what is wanted.
            let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        }
        if by_itself.is_none() {
            let _ = self.child.wait().await;
        }
        let drain = async {
            while let Some((source, line)) = self.lines.recv().await {
                self.heard(source, line);
            }
        };
        let _ = tokio::time::timeout(DRAIN_GRACE, drain).await;
        by_itself
    }
}
