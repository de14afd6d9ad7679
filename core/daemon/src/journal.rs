//! The logs of jobs: told at once to whoever listens, written to the database a little later.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use drophammer_client::api::{Event, Log, LogLevel, LogLine, LogSource};
use tokio::sync::mpsc;

use crate::events::Events;
use crate::moment::now;
use crate::store::{Store, StoreError};

/// Lines that may wait to be written; above it the newest are told but not kept.
const WAITING: usize = 8192;
/// Lines are written together after this time.
const DELAY: Duration = Duration::from_millis(200);
/// Longer lines are cut.
const LONGEST: usize = 4096;

/// Writes the logs.
#[derive(Debug, Clone)]
pub struct Journal {
    next: Arc<AtomicU64>,
    events: Events,
    lines: mpsc::Sender<Order>,
}

#[derive(Debug)]
enum Order {
    Line(u64, LogLine),
    /// Answered when everything before it is written.
    Flush(tokio::sync::oneshot::Sender<()>),
}

impl Journal {
    /// Starts writing into `store`, keeping `keep` lines per job.
    pub fn start(store: Arc<Store>, events: Events, keep: usize) -> Self {
        let (lines, orders) = mpsc::channel(WAITING);
        tokio::spawn(write(store, orders, keep));
        // Sequence numbers also grow over a restart, so a client that lived through it can tell lines apart.
        let next = Arc::new(AtomicU64::new((now() * 1000.0) as u64));
        Self { next, events, lines }
    }

    /// Logs a line of the daemon about a job.
    pub fn job(&self, job: u64, level: LogLevel, message: impl Into<String>) {
        self.line(job, level, LogSource::Daemon, message.into());
    }

    /// Logs a line of any source about a job.
    pub fn line(&self, job: u64, level: LogLevel, source: LogSource, mut message: String) {
        if message.len() > LONGEST {
            let cut = (0..=LONGEST).rev().find(|&at| message.is_char_boundary(at)).unwrap_or(0);
            message.truncate(cut);
            message.push('…');
        }
        if message.contains(char::is_control) {
            message = message.replace(char::is_control, " ");
        }
        let sequence = self.next.fetch_add(1, Ordering::Relaxed);
        let line = LogLine { sequence, time: now(), job: Some(job.to_string()), level, source, message };
        self.events.tell(|| Event::Log(line.clone()));
        let _ = self.lines.try_send(Order::Line(job, line));
    }

    /// Waits until everything logged so far is written.
    pub async fn flush(&self) {
        let (done, written) = tokio::sync::oneshot::channel();
        if self.lines.send(Order::Flush(done)).await.is_ok() {
            let _ = written.await;
        }
    }

    /// A job's log, complete up to this call.
    ///
    /// # Errors
    /// The database's.
    pub async fn read(&self, store: &Store, job: u64, keep: usize) -> Result<Log, StoreError> {
        self.flush().await;
        let lines = store.log(job)?;
        Ok(Log { truncated: lines.len() >= keep, lines })
    }
}

async fn write(store: Arc<Store>, mut orders: mpsc::Receiver<Order>, keep: usize) {
    while let Some(first) = orders.recv().await {
        let mut lines = Vec::new();
        let mut flushed = Vec::new();
        let mut next = Some(first);
        let deadline = tokio::time::Instant::now() + DELAY;
        while let Some(order) = next {
            match order {
                Order::Line(job, line) => lines.push((job, line)),
                Order::Flush(done) => {
                    flushed.push(done);
                    break;
                }
            }
            next = tokio::time::timeout_at(deadline, orders.recv()).await.ok().flatten();
        }
        let store = store.clone();
        let written = tokio::task::spawn_blocking(move || store.append_log(&lines, keep)).await;
        if let Ok(Err(error)) = written {
            tracing::error!(%error, "log lines are lost");
        }
        for done in flushed {
            let _ = done.send(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_line_is_told_at_once_and_read_back_in_order_without_control_characters() {
        let directory = tempfile::tempdir().unwrap();
        let store = Arc::new(Store::open(&directory.path().join("a.db")).unwrap());
        let events = Events::default();
        let mut told = events.listen();
        let journal = Journal::start(store.clone(), events, 3);
        for text in ["one", "tw\x1bo", "three\n", "four", &"é".repeat(LONGEST)] {
            journal.job(7, LogLevel::Info, text);
        }
        let log = journal.read(&store, 7, 3).await.unwrap();
        assert!(log.truncated);
        let texts: Vec<_> = log.lines.iter().map(|line| line.message.as_str()).collect();
        assert_eq!(texts[..2], ["three ", "four"]);
        assert!(texts[2].ends_with('…') && texts[2].len() < LONGEST + 10);
        let Event::Log(first) = told.try_recv().unwrap() else { panic!() };
        assert_eq!(first.message, "one");
    }
}
