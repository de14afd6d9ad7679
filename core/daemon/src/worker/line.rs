//! The worker's end of the control socket.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use drophammer_sdk::{BackendError, Budgets, ErrorCode, JobContext, LogLevel};
use serde::Serialize;

use super::protocol::{Failure, Frame, Limits, Progress, Report};

/// Progress within one tensor is told at most this often.
const PROGRESS_PERIOD: Duration = Duration::from_millis(100);
/// The longest log line that is passed on, bytes.
const LOG_LINE_LIMIT: usize = 16 << 10;

/// The control socket, shared by the plugin's thread, the reader and the watchdog.
#[derive(Clone)]
pub(super) struct Line(Arc<Shared>);

struct Shared {
    writer: Mutex<UnixStream>,
    place: Mutex<Place>,
    cancelled: AtomicBool,
}

#[derive(Default)]
struct Place {
    progress: Progress,
    told: Option<Instant>,
}

/// A poisoned lock only means that some thread panicked between two whole messages.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Line {
    pub(super) fn new(stream: UnixStream) -> Self {
        Self(Arc::new(Shared {
            writer: Mutex::new(stream),
            place: Mutex::default(),
            cancelled: AtomicBool::new(false),
        }))
    }

    /// Sends a report. A supervisor that is gone cannot be told anything: the reader thread sees that too and ends us.
    pub(super) fn send<T: Serialize>(&self, message: &T) -> io::Result<()> {
        Frame::document(message)?.write(&mut *lock(&self.0.writer))
    }

    /// Where the work is.
    pub(super) fn place(&self) -> Progress {
        lock(&self.0.place).progress.clone()
    }

    pub(super) fn cancel(&self) {
        self.0.cancelled.store(true, Ordering::Relaxed);
    }

    /// Reports an error with the place the work had reached.
    pub(super) fn fail(&self, error: BackendError) {
        let failure = Failure {
            code: error.code.word().to_owned(),
            message: error.message,
            help: error.help,
            progress: self.place(),
        };
        let _ = self.send(&Report::Failed(failure));
    }
}

/// What the plugin sees of the line.
#[derive(Clone)]
pub(super) struct WorkerJob {
    pub(super) line: Line,
    pub(super) limits: Limits,
}

impl JobContext for WorkerJob {
    fn progress(&self, stage: &str, tensor: &str, done: u64, total: u64) {
        let report = {
            let mut place = lock(&self.line.0.place);
            let moved = place.progress.stage != stage || place.progress.tensor != tensor;
            let due = place.told.is_none_or(|told| told.elapsed() >= PROGRESS_PERIOD);
            if moved {
                stage.clone_into(&mut place.progress.stage);
                tensor.clone_into(&mut place.progress.tensor);
            }
            (place.progress.done, place.progress.total) = (done, total);
            if !(moved || due || done == total) {
                return;
            }
            place.told = Some(Instant::now());
            Report::Progress(place.progress.clone())
        };
        let _ = self.line.send(&report);
    }

    fn log(&self, level: LogLevel, message: &str) {
        let end = message.floor_char_boundary(LOG_LINE_LIMIT);
        let report = Report::Log { level: level as u32, message: message[..end].to_owned() };
        let _ = self.line.send(&report);
    }

    fn cancelled(&self) -> bool {
        self.line.0.cancelled.load(Ordering::Relaxed)
    }

    fn budgets(&self) -> Budgets {
        Budgets {
            threads: self.limits.threads,
            memory_bytes: self.limits.memory_bytes,
            disk_bytes: self.limits.disk_bytes,
        }
    }
}

/// Takes the control socket off standard input, which a native library might read, and the descriptors that the
/// supervisor handed over with its first byte. Standard input becomes empty.
///
/// # Errors
/// [`ErrorCode::InvalidRequest`] when standard input is not such a socket: somebody typed the hidden command.
pub(super) fn take() -> Result<(UnixStream, Vec<OwnedFd>), BackendError> {
    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
    use std::mem::MaybeUninit;
    use std::os::fd::AsFd;

    let not_ours = |error: io::Error| {
        let message = format!("standard input is not a supervisor's socket: {error}");
        BackendError::new(ErrorCode::InvalidRequest, message)
            .with_help("`drophammer worker` is started by the daemon and by one-shot commands, not by hand")
    };
    let socket = std::io::stdin().as_fd().try_clone_to_owned().map_err(not_ours)?;
    let empty = std::fs::File::open("/dev/null").map_err(not_ours)?;
    rustix::stdio::dup2_stdin(&empty).map_err(|error| not_ours(error.into()))?;

    let mut byte = [0];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut buffers = [io::IoSliceMut::new(&mut byte)];
    let received = rustix::net::recvmsg(&socket, &mut buffers, &mut ancillary, RecvFlags::CMSG_CLOEXEC)
        .map_err(|error| not_ours(error.into()))?;
    if received.bytes != 1 {
        return Err(not_ours(io::ErrorKind::UnexpectedEof.into()));
    }
    let handed = ancillary
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
            _ => None,
        })
        .flatten()
        .collect();
    Ok((UnixStream::from(socket), handed))
}

/// The supervisor's half of [`take`]: one byte carrying `descriptors`, before the worker is started.
///
/// # Errors
/// The socket's.
pub(crate) fn hand_over(socket: &UnixStream, descriptors: &[OwnedFd]) -> io::Result<()> {
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
    use std::mem::MaybeUninit;
    use std::os::fd::AsFd;

    let borrowed: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !borrowed.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(&borrowed)) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many descriptors for one worker"));
    }
    rustix::net::sendmsg(socket, &[io::IoSlice::new(&[0])], &mut ancillary, SendFlags::empty())?;
    Ok(())
}
