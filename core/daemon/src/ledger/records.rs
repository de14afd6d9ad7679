//! What the daemon remembers of a model and of a job, and how the control API shows it.

use std::path::PathBuf;
use std::time::Instant;

use drophammer_client::api;
use drophammer_engine::identify::Identity;
use drophammer_engine::job::{Job, Kind, Stage, State};
use drophammer_engine::plan::Planned;
use drophammer_sdk::ForgeReport;
use serde::{Deserialize, Serialize};

/// A job.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct JobRecord {
    /// Its id.
    pub id: u64,
    /// Its model.
    pub model: String,
    /// Where it stands.
    pub life: Job,
    /// What it is to make; none for an intake.
    pub planned: Option<Planned>,
    /// The fingerprint of the source it was planned for.
    pub fingerprint: u64,
    /// What the forge stage made.
    pub forged: Option<ForgeReport>,
    /// What the measure stage found.
    pub measured: Option<api::Measurements>,
    /// Who was measured to run it fastest.
    #[serde(default)]
    pub runner: Option<String>,
    /// What it published.
    pub artifact: Option<String>,
    /// Why it failed or is blocked.
    pub error: Option<api::ErrorReport>,
    /// When it was queued.
    pub created: f64,
    /// When it ended.
    pub finished: Option<f64>,
    /// Seconds worked before the present run.
    pub seconds: f64,
    /// Known while it runs.
    #[serde(skip)]
    pub live: Live,
}

/// What is only known while a worker runs.
#[derive(Debug, Clone, Default)]
pub struct Live {
    /// Since when.
    pub started: Option<Instant>,
    /// What is going on.
    pub activity: Option<String>,
    /// Of the stage.
    pub bytes_done: u64,
    /// Of the stage.
    pub bytes_total: u64,
    /// Per second.
    pub rate: Option<f64>,
    /// The worker.
    pub pid: Option<u32>,
    /// How often later jobs went first.
    pub overtaken: u32,
    /// When it was last told.
    pub told: Option<Instant>,
    /// When the stage began, and at how many bytes (a resumed stage begins later).
    pub stage_began: Option<(Instant, u64)>,
}

impl Live {
    /// Takes in how far the stage is.
    pub fn progress(&mut self, activity: String, done: u64, total: u64) {
        self.activity = Some(activity).filter(|text| !text.is_empty());
        self.bytes_done = done.min(total);
        self.bytes_total = total;
        let (since, first) = *self.stage_began.get_or_insert_with(|| (Instant::now(), done));
        let seconds = since.elapsed().as_secs_f64();
        self.rate = (seconds > 0.2 && done > first).then(|| (done - first) as f64 / seconds);
    }

    fn fraction(&self) -> f64 {
        if self.bytes_total == 0 { 0.0 } else { self.bytes_done as f64 / self.bytes_total as f64 }
    }
}

impl JobRecord {
    /// A job that was just queued.
    pub fn new(id: u64, model: &str, kind: Kind, created: f64) -> Self {
        Self {
            id,
            model: model.to_owned(),
            life: Job::new(kind),
            planned: None,
            fingerprint: 0,
            forged: None,
            measured: None,
            runner: None,
            artifact: None,
            error: None,
            created,
            finished: None,
            seconds: 0.0,
            live: Live::default(),
        }
    }

    /// Moves to another place in its life.
    pub fn enter(&mut self, life: Job, now: f64) {
        let was = self.life;
        self.life = life;
        if life.state != was.state || life.stage != was.stage {
            let live = std::mem::take(&mut self.live);
            self.live = Live { started: live.started, overtaken: live.overtaken, ..Live::default() };
        }
        if life.state == State::Running && was.state != State::Running {
            self.live.started = Some(Instant::now());
            (self.error, self.finished) = (None, None);
        }
        if life.state != State::Running {
            self.seconds = self.worked();
            self.live.started = None;
        }
        if life.state == State::Queued {
            self.error = None;
            self.finished = None;
        }
        if life.state.is_finished() {
            self.finished = Some(now);
        }
    }

    fn worked(&self) -> f64 {
        self.seconds + self.live.started.map_or(0.0, |started| started.elapsed().as_secs_f64())
    }

    /// The job as the control API shows it.
    pub fn document(&self) -> api::Job {
        let planned = self.planned.as_ref();
        let target = planned.map(|planned| &planned.target);
        let running = self.life.state == State::Running;
        let remaining = self.live.bytes_total.saturating_sub(self.live.bytes_done) as f64;
        let eta = self.live.rate.filter(|rate| running && *rate > 0.0).map(|rate| remaining / rate);
        api::Job {
            id: self.id.to_string(),
            model: self.model.clone(),
            target: target.map(|target| target.name.clone()),
            backend: planned.map(|planned| planned.backend.clone()),
            device: target.and_then(|target| target.device.clone()),
            format: target.map(|target| target.format.clone()),
            scheme: target.map(|target| target.scheme.clone()),
            state: state(self.life.state),
            stage: stage(self.life.stage),
            progress: if self.life.state == State::Succeeded { 1.0 } else { self.live.fraction() },
            activity: if self.life.cancelling {
                Some("being cancelled".to_owned())
            } else {
                self.live.activity.clone()
            },
            bytes_done: self.live.bytes_done,
            bytes_total: self.live.bytes_total,
            rate: self.live.rate,
            eta_seconds: eta,
            seconds: self.worked(),
            attempt: self.life.attempt,
            reasons: planned.map(|planned| planned.reasons.clone()).unwrap_or_default(),
            planned_bytes: planned.map(|planned| planned.bytes),
            planned_memory_bytes: planned.map(|planned| planned.needs.memory),
            created: self.created,
            finished: self.finished,
            pid: self.live.pid,
            artifact: self.artifact.clone(),
            error: self.error.clone(),
        }
    }
}

fn state(state: State) -> api::JobState {
    match state {
        State::Queued => api::JobState::Queued,
        State::Running => api::JobState::Running,
        State::Succeeded => api::JobState::Succeeded,
        State::Failed => api::JobState::Failed,
        State::Cancelled => api::JobState::Cancelled,
        State::Blocked => api::JobState::Blocked,
    }
}

fn stage(stage: Stage) -> api::Stage {
    match stage {
        Stage::Identify => api::Stage::Identify,
        Stage::Plan => api::Stage::Plan,
        Stage::Forge => api::Stage::Forge,
        Stage::Measure => api::Stage::Measure,
        Stage::Publish => api::Stage::Publish,
        Stage::Serve => api::Stage::Serve,
    }
}

/// A source that answers as it is: some target would have gained nothing over it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Standing {
    /// Who ran it; empty where nobody here does.
    pub backend: String,
    /// What was measured.
    pub measurements: api::Measurements,
}

/// A model: a path in the watched folder.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelRecord {
    /// Its name.
    pub name: String,
    /// Where it is.
    pub path: PathBuf,
    /// The fingerprint with which it last settled; none while it never did.
    pub fingerprint: Option<u64>,
    /// What it is.
    pub identity: Option<Identity>,
    /// The digest of its whole content, once somebody needed it.
    pub digest: Option<String>,
    /// How it was measured, where it answers as it is beside its artifacts.
    #[serde(default)]
    pub standing: Option<Standing>,
    /// Why nothing can be made of it.
    pub error: Option<api::ErrorReport>,
    /// It is gone from the folder.
    #[serde(default)]
    pub missing: bool,
    /// It is being written to, or waited for.
    #[serde(skip)]
    pub settling: bool,
    /// What it waits for.
    #[serde(skip)]
    pub waits_for: Option<String>,
    /// Size of its files as last seen.
    #[serde(default)]
    pub bytes: u64,
}

impl ModelRecord {
    /// A path just noticed.
    pub fn new(name: &str, path: PathBuf) -> Self {
        Self {
            name: name.to_owned(),
            path,
            fingerprint: None,
            identity: None,
            digest: None,
            standing: None,
            error: None,
            missing: false,
            settling: true,
            waits_for: None,
            bytes: 0,
        }
    }

    fn state(&self, jobs: &[&JobRecord], artifacts: usize) -> api::ModelState {
        let (intakes, work): (Vec<&JobRecord>, Vec<&JobRecord>) =
            jobs.iter().partition(|job| job.life.kind == Kind::Intake);
        let any =
            |jobs: &[&JobRecord], states: &[State]| jobs.iter().any(|job| states.contains(&job.life.state));
        if self.missing {
            api::ModelState::Missing
        } else if self.settling {
            api::ModelState::Settling
        } else if any(&intakes, &[State::Queued, State::Running]) {
            api::ModelState::Identifying
        } else if self.error.is_some() {
            api::ModelState::Failed
        } else if any(&work, &[State::Running]) {
            api::ModelState::Forging
        } else if any(&work, &[State::Queued, State::Blocked]) {
            api::ModelState::Planned
        } else if artifacts > 0 {
            api::ModelState::Ready
        } else if any(&work, &[State::Failed, State::Cancelled]) {
            api::ModelState::Failed
        } else {
            api::ModelState::Planned
        }
    }

    /// The model as the control API shows it.
    pub fn document(&self, jobs: &[&JobRecord], artifacts: Vec<api::Artifact>) -> api::ModelEntry {
        let state = self.state(jobs, artifacts.len());
        let failed = || jobs.iter().rev().find_map(|job| job.error.clone());
        let error = self.error.clone().or_else(|| (state == api::ModelState::Failed).then(failed).flatten());
        api::ModelEntry {
            name: self.name.clone(),
            state,
            source: self.source_info(),
            waits_for: self.waits_for.clone(),
            error,
            artifacts,
        }
    }

    /// What it is, as far as it is known.
    pub fn source_info(&self) -> api::SourceInfo {
        let info = source_info(self.path.display().to_string(), self.identity.as_ref(), self.bytes);
        api::SourceInfo { api_name: self.answers().map(|_| source_name(&self.name)), ..info }
    }

    /// Its format, empty while it is not known.
    pub fn format(&self) -> &str {
        self.identity.as_ref().map_or("", |identity| &identity.format)
    }

    /// What it is and its fingerprint, if it lies there, understood and still, and tokens go through it: then it can answer for itself.
    pub fn answers(&self) -> Option<(&Identity, u64)> {
        let still = !self.missing && !self.settling;
        self.identity.as_ref().filter(|identity| !identity.plain).zip(self.fingerprint).filter(|_| still)
    }
}

/// The `model` value that means a model's source.
pub(crate) fn source_name(model: &str) -> String {
    format!("{model}:{}", api::SOURCE_TARGET)
}

/// A source as the control API shows it.
pub(crate) fn source_info(path: String, identity: Option<&Identity>, bytes: u64) -> api::SourceInfo {
    let Some(identity) = identity else {
        return api::SourceInfo { path, bytes, ..api::SourceInfo::default() };
    };
    api::SourceInfo {
        path,
        api_name: None,
        format: Some(identity.format.clone()),
        architecture: Some(identity.architecture.clone()),
        scheme: Some(identity.scheme.clone()),
        parameters: Some(identity.parameters),
        tensors: Some(identity.tensors),
        context_length: identity.context_length,
        bytes: identity.bytes,
    }
}
