//! What is known now: models, jobs and artifacts, in memory, each change written to the store and told to listeners.
//!
//! Every change goes through here, so that what listeners hear, what a restart remembers and what the API answers is
//! the same. What only matters while a worker runs ([`Live`]) is not written.

mod records;
mod servable;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use drophammer_client::api;
use drophammer_engine::choice::Floor;
use drophammer_engine::job::{self, Kind, Refused};
use drophammer_formats::gguf::SplitName;

use crate::events::Events;
use crate::library::Published;
use crate::moment::now;
use crate::store::{Store, StoreError};

pub use records::{JobRecord, Live, ModelRecord, Standing};
pub(crate) use records::{source_info, source_name};
pub use servable::Servable;

/// Progress of one job is told at most this often.
const PROGRESS_PAUSE: Duration = Duration::from_millis(200);

/// The ledger.
#[derive(Debug)]
pub struct Ledger {
    store: Arc<Store>,
    events: Events,
    floor: Floor,
    finished_jobs: usize,
    book: Mutex<Book>,
}

#[derive(Debug, Default)]
struct Book {
    models: BTreeMap<String, ModelRecord>,
    jobs: BTreeMap<u64, JobRecord>,
    artifacts: BTreeMap<String, Published>,
    next_job: u64,
}

/// Why a job could not be changed.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// There is none.
    #[error("there is no job {0}")]
    NoSuchJob(u64),
    /// Not in its state.
    #[error(transparent)]
    Refused(#[from] Refused),
}

impl Ledger {
    /// Reads what the last daemon knew. Jobs that ran when it ended are queued again.
    ///
    /// # Errors
    /// The database's.
    pub fn open(
        store: Arc<Store>,
        events: Events,
        floor: Floor,
        finished_jobs: usize,
        artifacts: Vec<Published>,
    ) -> Result<Self, StoreError> {
        let remembered = store.remembered()?;
        let mut book = Book {
            models: remembered.models.into_iter().map(|model| (model.name.clone(), model)).collect(),
            jobs: remembered.jobs.into_iter().map(|job| (job.id, job)).collect(),
            artifacts: artifacts.into_iter().map(|a| (a.manifest.id.clone(), a)).collect(),
            next_job: store.next_job_id()?,
        };
        for job in book.jobs.values_mut() {
            if let Ok(life) = job.life.after(job::Event::Interrupted)
                && life != job.life
            {
                job.life = life;
                store.save_job(job)?;
            }
        }
        Ok(Self { store, events, floor, finished_jobs, book: Mutex::new(book) })
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        // Changes are small assignments: a panic among them leaves nothing half-done that matters.
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Every job, oldest first.
    pub fn jobs(&self) -> Vec<api::Job> {
        self.book().jobs.values().map(JobRecord::document).collect()
    }

    /// A copy of one job.
    pub fn job(&self, id: u64) -> Option<JobRecord> {
        self.book().jobs.get(&id).cloned()
    }

    /// Copies of the jobs that `wanted` picks, oldest first.
    pub fn jobs_where(&self, wanted: impl Fn(&JobRecord) -> bool) -> Vec<JobRecord> {
        self.book().jobs.values().filter(|job| wanted(job)).cloned().collect()
    }

    /// Jobs in numbers.
    pub fn counts(&self) -> api::JobCounts {
        let mut counts = api::JobCounts::default();
        for job in self.book().jobs.values() {
            let count = match job.life.state {
                job::State::Queued => &mut counts.queued,
                job::State::Running => &mut counts.running,
                job::State::Succeeded => &mut counts.succeeded,
                job::State::Failed => &mut counts.failed,
                job::State::Cancelled => &mut counts.cancelled,
                job::State::Blocked => &mut counts.blocked,
            };
            *count += 1;
        }
        counts
    }

    /// Adds a job; `fill` completes it before anybody sees it.
    pub fn add_job(&self, model: &str, kind: Kind, fill: impl FnOnce(&mut JobRecord)) -> u64 {
        let mut book = self.book();
        let id = book.next_job;
        book.next_job += 1;
        let mut job = JobRecord::new(id, model, kind, now());
        fill(&mut job);
        self.written(self.store.save_job(&job));
        self.events.tell(|| api::Event::Job(Box::new(job.document())));
        book.jobs.insert(id, job);
        self.forget_old_jobs(&mut book);
        self.tell_model(&book, model);
        id
    }

    /// Changes a job and writes it down.
    ///
    /// # Errors
    /// [`LedgerError::NoSuchJob`].
    pub fn change_job(&self, id: u64, change: impl FnOnce(&mut JobRecord)) -> Result<JobRecord, LedgerError> {
        let mut book = self.book();
        let job = book.jobs.get_mut(&id).ok_or(LedgerError::NoSuchJob(id))?;
        change(job);
        let job = job.clone();
        self.job_changed(&book, &job);
        Ok(job)
    }

    /// Lets something happen to a job.
    ///
    /// # Errors
    /// When there is no such job or the event makes no sense in its state.
    pub fn happen(&self, id: u64, event: job::Event) -> Result<JobRecord, LedgerError> {
        self.happen_with(id, event, |_| ())
    }

    /// As [`Self::happen`], and changes the job with it.
    ///
    /// # Errors
    /// When there is no such job or the event makes no sense in its state; nothing is changed then.
    pub fn happen_with(
        &self,
        id: u64,
        event: job::Event,
        change: impl FnOnce(&mut JobRecord),
    ) -> Result<JobRecord, LedgerError> {
        let mut book = self.book();
        let job = book.jobs.get_mut(&id).ok_or(LedgerError::NoSuchJob(id))?;
        let life = job.life.after(event)?;
        job.enter(life, now());
        change(job);
        let job = job.clone();
        self.job_changed(&book, &job);
        Ok(job)
    }

    fn job_changed(&self, book: &Book, job: &JobRecord) {
        self.written(self.store.save_job(job));
        self.events.tell(|| api::Event::Job(Box::new(job.document())));
        self.tell_model(book, &job.model);
    }

    /// Changes what is only known while a worker runs; told now and then, never written.
    pub fn live(&self, id: u64, change: impl FnOnce(&mut Live)) {
        let mut book = self.book();
        let Some(job) = book.jobs.get_mut(&id) else { return };
        change(&mut job.live);
        if job.live.told.is_none_or(|told| told.elapsed() >= PROGRESS_PAUSE) {
            job.live.told = Some(Instant::now());
            self.events.tell(|| api::Event::Job(Box::new(job.document())));
        }
    }

    /// Forgets a job.
    pub fn remove_job(&self, id: u64) {
        let mut book = self.book();
        let Some(job) = book.jobs.remove(&id) else { return };
        self.job_forgotten(id);
        self.tell_model(&book, &job.model);
    }

    fn job_forgotten(&self, id: u64) {
        self.written(self.store.delete_job(id));
        self.events.tell(|| api::Event::JobRemoved(id.to_string()));
    }

    fn forget_old_jobs(&self, book: &mut Book) {
        let finished: Vec<u64> =
            book.jobs.values().filter(|job| job.life.state.is_finished()).map(|job| job.id).collect();
        for id in finished.iter().take(finished.len().saturating_sub(self.finished_jobs)) {
            book.jobs.remove(id);
            self.job_forgotten(*id);
        }
    }

    /// The name of the model at `path`, given when it is first seen: its file's or directory's name, without the
    /// ending of a weight file unless another model has that name.
    pub fn name_for(&self, path: &Path) -> String {
        let book = self.book();
        if let Some(model) = book.models.values().find(|model| model.path == path) {
            return model.name.clone();
        }
        let full = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
        let short = match SplitName::parse(path, "gguf") {
            Some(split) => split.stem,
            None => ["gguf", "safetensors", "onnx"]
                .iter()
                .find_map(|ending| full.strip_suffix(&format!(".{ending}")))
                .unwrap_or(&full)
                .to_owned(),
        };
        let taken = |name: &str| book.models.get(name).is_some_and(|model| model.path != path);
        if short.is_empty() || taken(&short) { full } else { short }
    }

    /// A copy of one model's record.
    pub fn model(&self, name: &str) -> Option<ModelRecord> {
        self.book().models.get(name).cloned()
    }

    /// Paths of all models that are there.
    pub fn model_paths(&self) -> Vec<(String, PathBuf)> {
        let book = self.book();
        book.models.values().map(|model| (model.name.clone(), model.path.clone())).collect()
    }

    /// Changes a model, adding it when it is new.
    pub fn change_model(&self, name: &str, path: &Path, change: impl FnOnce(&mut ModelRecord)) {
        let mut book = self.book();
        let known = book.models.get(name).cloned();
        let mut model = known.clone().unwrap_or_else(|| ModelRecord::new(name, path.to_owned()));
        change(&mut model);
        self.model_changed(&mut book, known.as_ref(), model);
    }

    /// Changes what is known of the files that a job works on; false when they went or are others by now, and then
    /// nothing is changed.
    pub fn learn(&self, job: &JobRecord, change: impl FnOnce(&mut ModelRecord)) -> bool {
        let mut book = self.book();
        let same = |model: &&ModelRecord| model.fingerprint == Some(job.fingerprint);
        let Some(known) = book.models.get(&job.model).filter(same).cloned() else { return false };
        let mut model = known.clone();
        change(&mut model);
        self.model_changed(&mut book, Some(&known), model);
        true
    }

    /// Written and told only when something changed.
    fn model_changed(&self, book: &mut Book, known: Option<&ModelRecord>, model: ModelRecord) {
        if known == Some(&model) {
            return;
        }
        self.written(self.store.save_model(&model));
        let name = model.name.clone();
        book.models.insert(name.clone(), model);
        self.tell_model(book, &name);
    }

    /// Forgets a model that left no artifact.
    pub fn remove_model(&self, name: &str) {
        let mut book = self.book();
        if book.models.remove(name).is_some() {
            self.written(self.store.delete_model(name));
            self.events.tell(|| api::Event::ModelRemoved(name.to_owned()));
        }
    }

    /// Every model, by name.
    pub fn model_documents(&self) -> Vec<api::ModelEntry> {
        let book = self.book();
        let mut names: Vec<&String> = book.models.keys().collect();
        // Artifacts of models that nobody remembers: the library was brought from elsewhere.
        names.extend(book.artifacts.values().map(|a| &a.manifest.model));
        names.sort();
        names.dedup();
        names.into_iter().filter_map(|name| self.model_document_in(&book, name)).collect()
    }

    /// One model.
    pub fn model_document(&self, name: &str) -> Option<api::ModelEntry> {
        self.model_document_in(&self.book(), name)
    }

    fn model_document_in(&self, book: &Book, name: &str) -> Option<api::ModelEntry> {
        let artifacts = book.artifact_documents(name, &self.floor);
        let Some(model) = book.models.get(name) else {
            let source = book.artifacts.values().find(|a| a.manifest.model == name)?.manifest.source_info();
            return Some(api::ModelEntry {
                name: name.to_owned(),
                state: api::ModelState::Missing,
                source,
                waits_for: None,
                error: None,
                artifacts,
            });
        };
        let jobs: Vec<&JobRecord> = book.jobs.values().filter(|job| job.model == name).collect();
        Some(model.document(&jobs, artifacts))
    }

    fn tell_model(&self, book: &Book, name: &str) {
        self.events.tell(|| match self.model_document_in(book, name) {
            Some(model) => api::Event::Model(Box::new(model)),
            None => api::Event::ModelRemoved(name.to_owned()),
        });
    }

    /// Adds a published artifact; returns the one of the same target that it replaces.
    pub fn add_artifact(&self, artifact: Published) -> Option<Published> {
        let mut book = self.book();
        let manifest = &artifact.manifest;
        let (model, id) = (manifest.model.clone(), manifest.id.clone());
        let replaced = book
            .artifacts
            .values()
            .find(|old| {
                old.manifest.model == model
                    && old.manifest.target.name == manifest.target.name
                    && old.manifest.id != id
            })
            .map(|old| old.manifest.id.clone());
        let replaced = replaced.and_then(|id| book.artifacts.remove(&id));
        book.artifacts.insert(id, artifact);
        self.tell_model(&book, &model);
        replaced
    }

    /// Whether anything of a model is in the library.
    pub fn has_artifacts(&self, model: &str) -> bool {
        self.book().artifacts.values().any(|artifact| artifact.manifest.model == model)
    }

    /// Takes an artifact out of the books.
    pub fn remove_artifact(&self, id: &str) -> Option<Published> {
        let mut book = self.book();
        let artifact = book.artifacts.remove(id)?;
        self.tell_model(&book, &artifact.manifest.model);
        Some(artifact)
    }

    /// A published artifact.
    pub fn artifact(&self, id: &str) -> Option<Published> {
        self.book().artifacts.get(id).cloned()
    }

    /// The database may be out of order (a full disk) without stopping the daemon: it then knows more than it wrote.
    #[allow(clippy::unused_self)]
    fn written(&self, result: Result<(), StoreError>) {
        if let Err(error) = result {
            tracing::error!(%error, "a change is not written down and will be lost if the daemon ends");
        }
    }
}
