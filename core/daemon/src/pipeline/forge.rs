//! A forge job's stages. Each leaves what the next one needs in the ledger or in the job's staging directory, so that
//! a new daemon takes up where the last one ended.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::Duration;

use drophammer_client::api::{self, LogLevel, WorkerRole};
use drophammer_engine::job::{Cause, Event, Kind, Stage, State};
use drophammer_engine::plan::Target;
use drophammer_formats::{Source, digest};
use drophammer_sdk::{ErrorCode, ForgeRequest};
use tokio_util::sync::CancellationToken;

use super::{Pipeline, intake};
use crate::ledger::{JobRecord, ModelRecord, Standing, source_name};
use crate::library::{Maker, PublishError, Published, SourceRecord, Staged};
use crate::planning::goal;
use crate::worker::protocol::{CalibrateOrder, IMATRIX_FILE, Limits, Outcome, Work};
use crate::workers::{Ending, Finished, Running, Task, WorkerEvent, WorkerFailure, api_level};

/// The longest that files which changed under a job are waited for to come to rest.
const WATCHER_PATIENCE: Duration = Duration::from_secs(10);

/// Why a stage did not end well.
#[derive(Debug)]
pub(super) enum Stop {
    /// The job is to end; somebody said why.
    Asked,
    /// The stage failed.
    Failed(Cause, api::ErrorReport),
}

impl Stop {
    pub(super) fn broken(code: &str, message: impl Into<String>, help: &str) -> Self {
        Self::Failed(Cause::Broken, api::ErrorReport::new(code, message).help(help))
    }
}

impl From<WorkerFailure> for Stop {
    fn from(failure: WorkerFailure) -> Self {
        let cause = match (&failure.ending, failure.code()) {
            (Ending::Cancelled, _) => return Self::Asked,
            (_, ErrorCode::WorkerDied) | (Ending::NotStarted(_), _) => Cause::Transient,
            (_, ErrorCode::MissingRuntime | ErrorCode::OutOfResources) => Cause::Blocked,
            _ => Cause::Broken,
        };
        Self::Failed(cause, failure.report())
    }
}

impl Pipeline {
    /// Takes a running job through its stages.
    pub(super) async fn forge(&self, job: JobRecord, token: CancellationToken) {
        let id = job.id;
        while let Some(job) = self.ledger.job(id).filter(|job| job.life.state == State::Running) {
            let done = match job.life.stage {
                Stage::Measure => self.measure(&job, &token).await,
                Stage::Publish => self.publish(&job, &token).await,
                Stage::Serve => self.settle_choice(&job).await,
                Stage::Identify | Stage::Plan | Stage::Forge => self.make(&job, &token).await,
            };
            let happened = match done {
                Ok(()) => self.ledger.happen(id, Event::StageDone).map(drop),
                Err(stop) => {
                    self.hear_the_watcher(&job, &stop, &token).await;
                    self.stopped(id, stop)
                }
            };
            if let Err(error) = happened {
                tracing::error!(job = id, %error, "a job lost its way");
                break;
            }
        }
        let ended = self.ledger.job(id).is_none_or(|job| job.life.state.is_finished());
        if ended {
            remove(self.staging(id)).await;
        }
    }

    /// A worker may stumble over files that are being removed or written before the watcher has seen them come to rest.
    /// What happened to them is then the reason, and the watcher says it.
    async fn hear_the_watcher(&self, job: &JobRecord, stop: &Stop, token: &CancellationToken) {
        let Some(model) = self.ledger.model(&job.model) else { return };
        if matches!(stop, Stop::Asked) || self.why_asked(job.id).is_some() {
            return;
        }
        let seen = tokio::task::spawn_blocking(move || crate::watcher::look(&model.path)).await;
        let now = seen.ok().flatten().map(|seen| seen.sight.fingerprint);
        if now != Some(job.fingerprint) {
            let _ = tokio::time::timeout(WATCHER_PATIENCE, token.cancelled()).await;
        }
    }

    fn stopped(&self, id: u64, stop: Stop) -> Result<(), crate::ledger::LedgerError> {
        match (stop, self.why_asked(id)) {
            // Somebody cancelled it.
            (Stop::Asked, None) => {
                self.journal.job(id, LogLevel::Warn, "cancelled");
                self.ledger
                    .happen(id, Event::Cancel)
                    .and_then(|_| self.ledger.happen(id, Event::Stopped))
                    .map(drop)
            }
            // Its source went away; the worker may have stumbled over that first.
            (Stop::Asked | Stop::Failed(..), Some(why)) => {
                self.fail(id, Cause::Broken, why);
                Ok(())
            }
            (Stop::Failed(cause, error), None) => {
                self.fail(id, cause, error);
                Ok(())
            }
        }
    }

    /// The model a job works on, if it is still what the job was planned for.
    pub(super) fn source_of(&self, job: &JobRecord) -> Result<ModelRecord, Stop> {
        let model = self.ledger.model(&job.model).filter(|model| !model.missing);
        let model = model.ok_or_else(|| {
            let message = format!("the model {} is not in the models folder any more", job.model);
            Stop::broken("source_removed", message, "put it back: it is then forged anew")
        })?;
        if model.fingerprint == Some(job.fingerprint) {
            return Ok(model);
        }
        let message = format!("the files of {} changed after this job was planned", job.model);
        Err(Stop::broken("source_changed", message, "use the newer jobs of the same model"))
    }

    /// Convert and quantize, in a worker.
    async fn make(&self, job: &JobRecord, token: &CancellationToken) -> Result<(), Stop> {
        let model = self.source_of(job)?;
        let planned = self.plan_again(job, &model).await?;
        let imatrix = if planned.target.calibrate {
            Some(self.statistics(job, &model, &planned.target, token).await?)
        } else {
            None
        };
        let work = self.staging(job.id).join("work");
        std::fs::create_dir_all(&work).map_err(|error| storage(&work, &error))?;
        let request = ForgeRequest {
            source: model.path.clone(),
            goal: goal(&planned.target),
            staging: work,
            name: format!("{}-{}", job.model, planned.target.scheme),
            imatrix,
            ..ForgeRequest::default()
        };
        // Far above the estimate: it catches a plugin that runs away, not one that is a little off.
        let limits = Limits {
            threads: planned.needs.cores,
            memory_bytes: planned.needs.memory.saturating_mul(2).saturating_add(256 << 20),
            disk_bytes: planned.needs.disk.saturating_mul(2),
            nice: self.config.workers.nice,
        };
        let finished = self.work(job, &planned.backend, limits, Work::forge(request), token).await?;
        let Outcome::Forged(report) = finished.outcome else {
            return Err(Stop::broken("failed", "the worker answered with something else", "report this"));
        };
        for note in &report.notes {
            self.journal.job(job.id, LogLevel::Info, note.clone());
        }
        let _ = self.ledger.change_job(job.id, |job| job.forged = Some(report));
        Ok(())
    }

    /// Collects statistics of the model's activations for its artifact, unless the job did before it was interrupted.
    async fn statistics(
        &self,
        job: &JobRecord,
        model: &ModelRecord,
        target: &Target,
        token: &CancellationToken,
    ) -> Result<PathBuf, Stop> {
        let complete = self.staging(job.id).join("calibrated");
        if !complete.exists() {
            let format = model.format();
            let runner = self.plugins.runner(format, None).await.ok_or_else(|| {
                let message =
                    format!("no plugin runs {format}: nobody can collect statistics of its activations");
                let report = api::ErrorReport::new("missing_plugin", message);
                Stop::Failed(
                    Cause::Blocked,
                    report.help("forge a target without `calibrate`, or install a plugin"),
                )
            })?;
            let unfinished = self.staging(job.id).join("calibrating");
            let _ = std::fs::remove_dir_all(&unfinished);
            std::fs::create_dir_all(&unfinished).map_err(|error| storage(&unfinished, &error))?;
            let products = target.options.get("compensate").is_some_and(|wanted| *wanted == true);
            let order = CalibrateOrder::automatic(&model.path, products, &unfinished);
            self.work(job, &runner.id(), self.measuring_limits(job), Work::Calibrate(order), token).await?;
            std::fs::rename(&unfinished, &complete).map_err(|error| storage(&complete, &error))?;
        }
        Ok(complete.join(IMATRIX_FILE))
    }

    /// A job that was blocked or failed may have been planned on a machine that is different now.
    async fn plan_again(
        &self,
        job: &JobRecord,
        model: &ModelRecord,
    ) -> Result<drophammer_engine::plan::Planned, Stop> {
        let lost = || Stop::broken("failed", "the job has no plan", "forge the model again");
        let planned = job.planned.clone().ok_or_else(lost)?;
        if planned.supported && job.life.attempt == 1 {
            return Ok(planned);
        }
        let source = model.identity.clone().unwrap_or_default();
        let mut plans = self.plan(&model.path, &source, std::slice::from_ref(&planned.target)).await;
        let planned = plans.pop().ok_or_else(lost)?;
        let _ = self.ledger.change_job(job.id, |job| job.planned = Some(planned.clone()));
        if planned.supported {
            Ok(planned)
        } else {
            Err(Stop::Failed(Cause::Blocked, intake::cannot(&planned)))
        }
    }

    /// Runs a worker for a job: its progress and lines go to the ledger and the journal, and it ends with the job.
    pub(super) async fn work(
        &self,
        job: &JobRecord,
        backend: &str,
        limits: Limits,
        work: Work,
        token: &CancellationToken,
    ) -> Result<Finished, Stop> {
        let running = self.supervisor.start(self.task(backend, limits, work)?).await?;
        self.follow(job, backend, WorkerRole::Forge, running, token).await
    }

    /// A task for a plugin that is installed.
    pub(super) fn task(&self, backend: &str, limits: Limits, work: Work) -> Result<Task, Stop> {
        let catalog = self.plugins.catalog();
        let plugin = catalog.get(backend).ok_or_else(|| {
            let report =
                api::ErrorReport::new("missing_plugin", format!("the plugin {backend} is not installed"));
            Stop::Failed(Cause::Blocked, report.help("install it, then retry the job"))
        })?;
        Ok(Task { plugin: plugin.directory.clone(), host: self.host_info(backend), limits, work })
    }

    /// Sees a worker to its end.
    pub(super) async fn follow(
        &self,
        job: &JobRecord,
        backend: &str,
        role: WorkerRole,
        running: Running,
        token: &CancellationToken,
    ) -> Result<Finished, Stop> {
        let pid = running.pid();
        let _place = self.board.put(pid, role, backend, |worker| {
            worker.model = Some(job.model.clone());
            worker.job = Some(job.id.to_string());
        });
        self.ledger.live(job.id, |live| live.pid = Some(pid));
        let cancel = running.canceller();
        let followed = running.follow(|event| self.heard(job.id, event));
        tokio::pin!(followed);
        let finished = tokio::select! {
            finished = &mut followed => finished,
            () = token.cancelled() => {
                cancel();
                followed.await
            }
        };
        Ok(finished?)
    }

    fn heard(&self, job: u64, event: WorkerEvent) {
        match event {
            WorkerEvent::Progress(progress) => self.ledger.live(job, |live| {
                let activity = match (progress.stage.as_str(), progress.tensor.as_str()) {
                    (stage, "") => stage.to_owned(),
                    ("", tensor) => tensor.to_owned(),
                    (stage, tensor) => format!("{stage} {tensor}"),
                };
                live.progress(activity, progress.done, progress.total);
            }),
            WorkerEvent::Log(level, message) => {
                self.journal.line(job, api_level(level), api::LogSource::Plugin, message);
            }
            WorkerEvent::Output(source, line) => self.journal.line(job, LogLevel::Info, source, line),
        }
    }

    /// Makes the artifact visible.
    async fn publish(&self, job: &JobRecord, token: &CancellationToken) -> Result<(), Stop> {
        let model = self.source_of(job)?;
        // The last daemon may have got as far as showing it.
        let shown = job.artifact.as_ref().map(|id| self.home.library.join(&job.model).join(id));
        let published = match shown.and_then(|directory| Published::read(directory).ok()) {
            Some(published) => published,
            None => self.gather_and_show(job, self.staged(job, &model, token).await?).await?,
        };
        let directory = published.directory.clone();
        if let Some(replaced) = self.ledger.add_artifact(published) {
            self.journal.job(job.id, LogLevel::Info, format!("replaces artifact {}", replaced.manifest.id));
            if let Err(error) = replaced.delete(&self.home.staging) {
                tracing::warn!(%error, "a replaced artifact cannot be removed");
            }
        }
        self.journal.job(job.id, LogLevel::Info, format!("published as {}", directory.display()));
        Ok(())
    }

    async fn gather_and_show(&self, job: &JobRecord, staged: Staged) -> Result<Published, Stop> {
        let (told, mut progress) = tokio::sync::mpsc::channel(8);
        let gathering = tokio::task::spawn_blocking(move || {
            staged.gather(&mut |done, total| {
                // Dropped when nobody is quick enough to read it.
                let _ = told.try_send((done, total));
            })
        });
        while let Some((done, total)) = progress.recv().await {
            self.ledger.live(job.id, |live| live.progress("digests".to_owned(), done, total));
        }
        let complete = gathering.await.map_err(panicked)?.map_err(not_published)?;
        // Written before it is shown, so that a new daemon knows what to look for.
        let id = complete.id().to_owned();
        let _ = self.ledger.change_job(job.id, |job| job.artifact = Some(id));
        let library = self.home.library.clone();
        let showing = tokio::task::spawn_blocking(move || complete.publish(&library));
        showing.await.map_err(panicked)?.map_err(not_published)
    }

    async fn staged(
        &self,
        job: &JobRecord,
        model: &ModelRecord,
        token: &CancellationToken,
    ) -> Result<Staged, Stop> {
        let lost = || Stop::broken("failed", "the forged files are not known any more", "retry the job");
        let planned = job.planned.as_ref().ok_or_else(lost)?;
        let digest = self.source_digest(job, model, token).await?;
        let catalog = self.plugins.catalog();
        let plugin = catalog.get(&planned.backend);
        let report = plugin.and_then(|plugin| plugin.report.as_ref()).and_then(|report| report.as_ref().ok());
        let version = plugin.and_then(|plugin| plugin.manifest.as_ref().ok()).map(|m| m.version.clone());
        Ok(Staged {
            work: self.staging(job.id).join("work"),
            bundle: self.staging(job.id).join("bundle"),
            report: job.forged.clone().ok_or_else(lost)?,
            model: job.model.clone(),
            target: planned.target.clone(),
            source: SourceRecord {
                digest,
                path: model.path.display().to_string(),
                identity: model.identity.clone().unwrap_or_default(),
            },
            maker: Maker {
                backend: planned.backend.clone(),
                version: version.unwrap_or_default(),
                runtime_version: report.and_then(|report| report.runtime_version.clone()),
                drophammer: env!("CARGO_PKG_VERSION").to_owned(),
            },
            measurements: job.measured.unwrap_or_default(),
            runner: job.runner.clone(),
        })
    }

    /// The digest of a model's whole content; read once for all its jobs.
    async fn source_digest(
        &self,
        job: &JobRecord,
        model: &ModelRecord,
        token: &CancellationToken,
    ) -> Result<String, Stop> {
        if let Some(digest) = &model.digest {
            return Ok(digest.clone());
        }
        let (path, token) = (model.path.clone(), token.clone());
        let reading = tokio::task::spawn_blocking(move || {
            let source = Source::open_headers(&path)?;
            let go_on =
                |_| if token.is_cancelled() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) };
            digest::source(&source, &mut { go_on })
        });
        let digest = match reading.await {
            Ok(Ok(digest)) => digest.to_string(),
            Ok(Err(drophammer_formats::Error::Cancelled { .. })) => return Err(Stop::Asked),
            Ok(Err(error)) => {
                return Err(Stop::broken(error.code(), error.to_string(), &error.help()));
            }
            Err(error) => return Err(Stop::broken("panic", error.to_string(), "please report it")),
        };
        self.ledger.learn(job, |model| model.digest = Some(digest.clone()));
        Ok(digest)
    }

    /// An artifact is among those that requests choose from as soon as it is in the library, a source once it was
    /// measured: cleans up and says who won.
    async fn settle_choice(&self, job: &JobRecord) -> Result<(), Stop> {
        remove(self.staging(job.id)).await;
        if job.life.kind == Kind::Measure {
            let planned = job.planned.as_ref().map(|planned| planned.backend.clone());
            let backend = job.runner.clone().or(planned).unwrap_or_default();
            let standing = Standing { backend, measurements: job.measured.unwrap_or_default() };
            self.ledger.learn(job, |model| model.standing = Some(standing));
            let source = self.ledger.servable(&source_name(&job.model)).map(|source| source.id);
            let _ = self.ledger.change_job(job.id, |job| job.artifact = source);
        }
        if let Some(best) = self.ledger.servable(&job.model) {
            let told = format!("requests for {} are answered by {}", job.model, best.api_name);
            self.journal.job(job.id, LogLevel::Info, told);
        }
        Ok(())
    }
}

fn panicked(error: tokio::task::JoinError) -> Stop {
    Stop::broken("panic", format!("publishing failed: {error}"), "please report it")
}

fn not_published(error: PublishError) -> Stop {
    match &error {
        PublishError::Io { path, source } => storage(path, source),
        PublishError::NotAResult(_) | PublishError::Nothing => {
            Stop::broken("invalid_result", error.to_string(), "this is a defect of the plugin: update it")
        }
    }
}

/// A failure to write. A full disk is somebody's to free; the job then goes on where it was.
pub(super) fn storage(path: &std::path::Path, error: &std::io::Error) -> Stop {
    use std::io::ErrorKind::{QuotaExceeded, ReadOnlyFilesystem, StorageFull};
    let place = path.display().to_string();
    let report = |code: &str, help: &str| {
        api::ErrorReport::new(code, format!("{place}: {error}")).about(place.clone()).help(help)
    };
    match error.kind() {
        StorageFull | QuotaExceeded => {
            Stop::Failed(Cause::Blocked, report("disk_full", "free some disk space, then retry the job"))
        }
        ReadOnlyFilesystem => {
            Stop::Failed(Cause::Blocked, report("read_only", "make it writable, then retry the job"))
        }
        _ => Stop::Failed(Cause::Broken, report("io", "check the disk, then retry the job")),
    }
}

async fn remove(directory: PathBuf) {
    let removed = tokio::task::spawn_blocking(move || std::fs::remove_dir_all(&directory)).await;
    if let Ok(Err(error)) = removed
        && error.kind() != std::io::ErrorKind::NotFound
    {
        tracing::warn!(%error, "a staging directory cannot be removed now; the next start does it");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_blocks_a_job_and_any_other_failure_to_write_ends_it() {
        for (error, expected) in [(28, Cause::Blocked), (30, Cause::Blocked), (5, Cause::Broken)] {
            let error = std::io::Error::from_raw_os_error(error);
            let Stop::Failed(cause, report) = storage(std::path::Path::new("/s"), &error) else { panic!() };
            assert_eq!(cause, expected, "{error}");
            assert!(report.help.is_some() && report.message.contains("/s"));
        }
    }
}
