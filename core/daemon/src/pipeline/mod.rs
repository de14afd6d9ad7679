//! From a dropped path to a published artifact: identify → plan → forge → measure → publish → serve.
//!
//! The [`Pipeline`] is the daemon's hand: it does what [`drophammer_engine`] decides. Every change of a job goes
//! through the ledger; every stage can be interrupted at any moment and taken up again from what the ledger and the
//! job's staging directory say. The user's files are only read.

mod forge;
mod intake;
mod measure;
mod orders;
mod schedule;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use drophammer_client::api::{self, LogLevel};
use drophammer_engine::job::{Event, Kind, State};
use drophammer_engine::plan::{Machine, Target};
use drophammer_engine::{Obstacle, admission::Resources};
use drophammer_sdk::HostInfo;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::board::Board;
use crate::config::Config;
use crate::events::Events;
use crate::home::Home;
use crate::journal::Journal;
use crate::ledger::Ledger;
use crate::plugins::Plugins;
use crate::watcher::{Listener, Seen};
use crate::workers::Supervisor;

pub use orders::OrderError;

/// Everything the stages need.
#[derive(Debug)]
pub struct Pipeline {
    /// The configuration.
    pub config: Config,
    /// The directories.
    pub home: Home,
    /// Every target known.
    pub targets: Vec<Target>,
    /// What is known.
    pub ledger: Ledger,
    /// Logs of jobs.
    pub journal: Journal,
    /// News.
    pub events: Events,
    /// Starts workers.
    pub supervisor: Supervisor,
    /// The plugins.
    pub plugins: Plugins,
    /// The worker processes.
    pub board: Board,
    /// All that jobs may take together; disk is looked up when it is needed.
    pub capacity: Resources,
    running: Mutex<HashMap<u64, Held>>,
    wake: Notify,
}

/// The daemon's hold on a running job.
#[derive(Debug, Clone, Default)]
struct Held {
    /// Ends it.
    token: CancellationToken,
    /// Why the daemon itself ends it.
    why: Option<api::ErrorReport>,
}

/// The parts of a [`Pipeline`].
#[derive(Debug)]
pub struct Parts {
    /// The configuration.
    pub config: Config,
    /// The directories.
    pub home: Home,
    /// Every target known.
    pub targets: Vec<Target>,
    /// What is known.
    pub ledger: Ledger,
    /// Logs of jobs.
    pub journal: Journal,
    /// News.
    pub events: Events,
    /// Starts workers.
    pub supervisor: Supervisor,
    /// All that jobs may take together.
    pub capacity: Resources,
}

impl Pipeline {
    /// Puts the parts together; nothing runs before [`Pipeline::run`].
    pub fn new(parts: Parts) -> Arc<Self> {
        let plugins = Plugins::discover(&parts.home.plugins, parts.events.clone());
        Arc::new(Self {
            config: parts.config,
            home: parts.home,
            targets: parts.targets,
            ledger: parts.ledger,
            journal: parts.journal,
            board: Board::default(),
            events: parts.events,
            supervisor: parts.supervisor,
            plugins,
            capacity: parts.capacity,
            running: Mutex::default(),
            wake: Notify::new(),
        })
    }

    /// Probes the plugins, then works until `stop`.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        self.sweep_staging();
        let probing = self.clone();
        tokio::spawn(async move { probing.plugins.probe(&probing).await });
        tokio::select! {
            () = self.clone().schedule() => {}
            () = stop.cancelled() => {}
        }
    }

    /// Has the scheduler look at the queue.
    pub fn wake(&self) {
        self.wake.notify_one();
    }

    /// What a plugin is told about its host.
    pub fn host_info(&self, plugin: &str) -> HostInfo {
        self.home.host_info(&self.config, plugin)
    }

    /// What the machine lets a job take.
    pub(crate) fn machine(&self) -> Machine {
        crate::planning::machine(&self.config, self.capacity, &self.home.staging)
    }

    /// Bytes that jobs may still write.
    pub(crate) fn free_disk(&self) -> u64 {
        self.machine().capacity.disk
    }

    /// A job's own directory.
    pub(crate) fn staging(&self, job: u64) -> PathBuf {
        self.home.staging.join(job.to_string())
    }

    /// Removes what no unfinished job can use any more: leftovers of finished or forgotten jobs, and of deletions.
    fn sweep_staging(&self) {
        let entries = std::fs::read_dir(&self.home.staging).into_iter().flatten().flatten();
        for entry in entries {
            let job = entry.file_name().to_string_lossy().parse().ok().and_then(|id| self.ledger.job(id));
            if job.is_some_and(|job| !job.life.state.is_finished()) {
                continue;
            }
            let path = entry.path();
            let removed =
                if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
            if let Err(error) = removed {
                tracing::warn!(path = %path.display(), %error, "a leftover cannot be removed");
            }
        }
    }

    fn token(&self, job: u64) -> Option<CancellationToken> {
        self.held().get(&job).map(|held| held.token.clone())
    }

    /// Why the daemon ends a job, if it does.
    fn why_asked(&self, job: u64) -> Option<api::ErrorReport> {
        self.held().get(&job).and_then(|held| held.why.clone())
    }

    fn held(&self) -> MutexGuard<'_, HashMap<u64, Held>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends every unfinished job of a model: its source is gone or another one.
    fn drop_jobs(&self, model: &str, why: &api::ErrorReport) {
        let unfinished = self.ledger.jobs_where(|job| job.model == model && !job.life.state.is_finished());
        for job in unfinished {
            if let Some(held) = self.held().get_mut(&job.id) {
                held.why = Some(why.clone());
                held.token.cancel();
            } else if job.life.kind == Kind::Intake {
                self.ledger.remove_job(job.id);
            } else {
                self.journal.job(job.id, LogLevel::Warn, why.to_string());
                let error = Some(why.clone());
                let cancelled = self.ledger.happen_with(job.id, Event::Cancel, |job| job.error = error);
                tracing::debug!(job = job.id, ok = cancelled.is_ok(), "dropped");
                let _ = std::fs::remove_dir_all(self.staging(job.id));
            }
        }
    }
}

impl Listener for Pipeline {
    fn settling(&self, path: &Path, waits_for: Option<String>) {
        let name = self.ledger.name_for(path);
        self.ledger.change_model(&name, path, |model| {
            (model.settling, model.waits_for) = (true, waits_for);
            model.missing = false;
        });
    }

    fn settled(&self, path: &Path, seen: &Seen) {
        let name = self.ledger.name_for(path);
        let fingerprint = Some(seen.sight.fingerprint);
        let before = self.ledger.model(&name);
        let same = before.as_ref().is_some_and(|model| model.fingerprint == fingerprint);
        let in_hand = |kind| {
            let open = |job: &crate::ledger::JobRecord| {
                job.model == name && job.life.kind == kind && !job.life.state.is_finished()
            };
            !self.ledger.jobs_where(open).is_empty()
        };
        let understood = before.is_some_and(|model| model.identity.is_some() || model.error.is_some());
        self.ledger.change_model(&name, path, |model| {
            (model.settling, model.missing) = (false, false);
            (model.waits_for, model.fingerprint, model.bytes) = (None, fingerprint, seen.bytes);
            if !same {
                (model.identity, model.digest, model.error) = (None, None, None);
                model.standing = None;
            }
        });
        if same && (understood || in_hand(Kind::Intake)) {
            return;
        }
        let why = api::ErrorReport::new(
            "source_changed",
            format!("the files of {name} changed while it was forged"),
        );
        self.drop_jobs(
            &name,
            &why.about(path.display().to_string()).help("its newer jobs work on the new files"),
        );
        self.ledger.add_job(&name, Kind::Intake, |job| job.fingerprint = seen.sight.fingerprint);
        self.wake();
    }

    fn gone(&self, path: &Path) {
        let name = self.ledger.name_for(path);
        if self.ledger.model(&name).is_none_or(|model| model.path != path) {
            return;
        }
        let why = api::ErrorReport::new(
            "source_removed",
            format!("{} was removed while it was forged", path.display()),
        );
        self.drop_jobs(
            &name,
            &why.about(path.display().to_string()).help("put it back: it is then forged anew"),
        );
        if self.ledger.has_artifacts(&name) {
            self.ledger.change_model(&name, path, |model| {
                (model.missing, model.settling, model.waits_for) = (true, false, None);
                model.fingerprint = None;
            });
        } else {
            self.ledger.remove_model(&name);
        }
    }

    fn known(&self) -> Vec<PathBuf> {
        self.ledger.model_paths().into_iter().map(|(_, path)| path).collect()
    }
}

/// An obstacle as the control API carries it.
pub(crate) fn report(obstacle: Obstacle) -> api::ErrorReport {
    api::ErrorReport {
        code: obstacle.code,
        message: obstacle.message,
        subject: obstacle.subject,
        help: obstacle.help,
        detail: Vec::new(),
    }
}

impl Pipeline {
    /// Ends a job with an error and what follows from its cause.
    fn fail(&self, job: u64, cause: drophammer_engine::job::Cause, error: api::ErrorReport) {
        self.journal.job(job, LogLevel::Error, error.to_string());
        let happened = self.ledger.happen_with(job, Event::Failed(cause), |record| {
            if record.life.state != State::Cancelled {
                record.error = Some(error);
            }
        });
        if let Err(error) = happened {
            tracing::debug!(job, %error, "a failure came too late");
        }
    }
}
