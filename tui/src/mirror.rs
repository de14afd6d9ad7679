//! What the daemon last told us.

use std::collections::{BTreeMap, HashMap, VecDeque};

use drophammer_client::api::{
    Artifact, ErrorReport, Event, Hardware, Job, JobCounts, JobState, Log, LogLine, ModelEntry, PlanReport,
    Plugin, Requests, ServedModel, Status,
};

use crate::message::Loaded;

/// Samples kept of each history: ten minutes at one a second.
const HISTORY: usize = 600;
/// Lines kept of each log.
const LOG_LINES: usize = 20_000;
/// Logs kept.
const LOGS: usize = 32;

/// Whether the daemon is there.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) enum Link {
    /// Not known yet.
    #[default]
    Connecting,
    /// It is.
    Up,
    /// It is not.
    Down { error: ErrorReport, retry_at: f64 },
}

/// A copy of the daemon's state, kept true by events.
#[derive(Debug, Default)]
pub(crate) struct Mirror {
    pub(crate) link: Link,
    /// Whether everything was read at least once.
    pub(crate) loaded: bool,
    pub(crate) status: Option<Status>,
    jobs: Vec<Job>,
    places: HashMap<String, usize>,
    pub(crate) models: BTreeMap<String, ModelEntry>,
    pub(crate) plugins: Vec<Plugin>,
    pub(crate) served: Vec<ServedModel>,
    pub(crate) hardware: Option<Hardware>,
    pub(crate) history: History,
    /// `None` when this daemon does not count requests.
    pub(crate) requests: Option<Requests>,
    logs: HashMap<String, LogTail>,
    plugin_logs: HashMap<String, LogTail>,
    /// What could be forged from a model, as last asked.
    pub(crate) plans: HashMap<String, Result<PlanReport, ErrorReport>>,
    touched: u64,
}

/// The end of a log.
#[derive(Debug, Default)]
pub(crate) struct LogTail {
    pub(crate) lines: VecDeque<LogLine>,
    /// Older lines are not here.
    pub(crate) truncated: bool,
    /// Why it could not be read.
    pub(crate) error: Option<ErrorReport>,
    touched: u64,
}

/// One measured value over time, newest last.
#[derive(Debug, Clone, Default)]
pub(crate) struct Series(Vec<f32>);

impl Series {
    fn push(&mut self, value: f64) {
        // Cutting seldom keeps the values in one slice at little cost.
        if self.0.len() >= 2 * HISTORY {
            self.0.drain(..HISTORY);
        }
        self.0.push(value as f32);
    }

    pub(crate) fn values(&self) -> &[f32] {
        &self.0[self.0.len().saturating_sub(HISTORY)..]
    }

    pub(crate) fn max(&self) -> f32 {
        self.values().iter().copied().fold(0.0, f32::max)
    }
}

/// What graphs show.
#[derive(Debug, Clone, Default)]
pub(crate) struct History {
    pub(crate) cpu: Series,
    pub(crate) memory: Series,
    pub(crate) disk_read: Series,
    pub(crate) disk_write: Series,
    pub(crate) received: Series,
    pub(crate) sent: Series,
    pub(crate) power: Series,
    /// Busy parts of graphics, then of neural processors.
    pub(crate) accelerators: Vec<Series>,
}

impl History {
    fn push(&mut self, sample: &Hardware) {
        let memory = &sample.memory;
        self.cpu.push(sample.cpu.percent);
        self.memory.push(memory.used_bytes as f64 / (memory.total_bytes.max(1)) as f64 * 100.0);
        self.disk_read.push(sample.disks.iter().filter_map(|disk| disk.read_bytes_per_second).sum());
        self.disk_write.push(sample.disks.iter().filter_map(|disk| disk.write_bytes_per_second).sum());
        self.received.push(sample.network.received_bytes_per_second);
        self.sent.push(sample.network.sent_bytes_per_second);
        if let Some(watts) = sample.power_watts {
            self.power.push(watts);
        }
        let accelerators: Vec<_> = sample.gpus.iter().chain(&sample.npus).collect();
        self.accelerators.resize_with(accelerators.len(), Series::default);
        for (series, accelerator) in self.accelerators.iter_mut().zip(accelerators) {
            series.push(accelerator.percent.unwrap_or(0.0));
        }
    }
}

/// Something that can be talked to: a published artifact, or a source as it was dropped.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Voice<'a> {
    /// Names it among all of them.
    pub(crate) id: &'a str,
    /// What requests call it.
    pub(crate) api_name: &'a str,
    pub(crate) model: &'a str,
    pub(crate) format: &'a str,
    pub(crate) scheme: &'a str,
    /// What is known of it beyond that; a source has that only where it was measured as it is.
    pub(crate) artifact: Option<&'a Artifact>,
}

impl<'a> Voice<'a> {
    fn of_artifact(artifact: &'a Artifact) -> Self {
        Self {
            id: &artifact.id,
            api_name: &artifact.api_name,
            model: &artifact.model,
            format: &artifact.format,
            scheme: &artifact.scheme,
            artifact: Some(artifact),
        }
    }

    /// A source that is not among its model's artifacts.
    fn of_source(model: &'a ModelEntry) -> Option<Self> {
        let source = &model.source;
        let api_name = source.api_name.as_deref()?;
        if model.artifacts.iter().any(|artifact| model.is_source(artifact)) {
            return None;
        }
        Some(Self {
            id: api_name,
            api_name,
            model: &model.name,
            format: source.format.as_deref().unwrap_or_default(),
            scheme: source.scheme.as_deref().unwrap_or_default(),
            artifact: None,
        })
    }

    /// A line that tells it from others.
    pub(crate) fn title(&self) -> String {
        let source = if self.artifact.is_none() { " (source)" } else { "" };
        format!("{} · {} {}{source}", self.model, self.format, self.scheme)
    }

    /// How it is loaded, if it is.
    pub(crate) fn served<'m>(&self, mirror: &'m Mirror) -> Option<&'m ServedModel> {
        mirror.served.iter().find(|served| served.artifact == self.id || served.name == self.api_name)
    }
}

impl Mirror {
    /// Takes over everything.
    pub(crate) fn load(&mut self, loaded: Loaded) {
        self.loaded = true;
        // While nobody listened, lines were missed: logs are read again when looked at.
        self.logs.clear();
        self.status = loaded.status;
        self.jobs = loaded.jobs;
        self.reindex();
        self.models = loaded.models.into_iter().map(|model| (model.name.clone(), model)).collect();
        self.plugins = loaded.plugins;
        self.plugins.sort_by(|a, b| a.id.cmp(&b.id));
        self.served = loaded.served;
        self.requests = loaded.requests;
        if let Some(sample) = loaded.hardware {
            self.sample(sample);
        }
    }

    /// Takes over one change. The caller reads everything anew on a resync.
    pub(crate) fn apply(&mut self, event: Event) {
        match event {
            Event::Resync => {}
            Event::Status(status) => self.status = Some(*status),
            Event::Job(job) => {
                if let Some(place) = self.places.get(&job.id) {
                    self.jobs[*place] = *job;
                } else {
                    self.places.insert(job.id.clone(), self.jobs.len());
                    self.jobs.push(*job);
                }
            }
            Event::JobRemoved(id) => {
                self.jobs.retain(|job| job.id != id);
                self.logs.remove(&id);
                self.reindex();
            }
            Event::Model(model) => {
                self.models.insert(model.name.clone(), *model);
            }
            Event::ModelRemoved(name) => {
                self.models.remove(&name);
            }
            Event::Plugin(plugin) => match self.plugins.binary_search_by(|other| other.id.cmp(&plugin.id)) {
                Ok(place) => self.plugins[place] = *plugin,
                Err(place) => self.plugins.insert(place, *plugin),
            },
            Event::PluginRemoved(id) => self.plugins.retain(|plugin| plugin.id != id),
            Event::Served(served) => self.served = served.models,
            Event::Log(line) => {
                // Logs nobody opened are not kept: opening one reads it whole.
                if let Some(log) = line.job.as_ref().and_then(|job| self.logs.get_mut(job)) {
                    log.push(line);
                }
            }
            Event::Hardware(sample) => self.sample(*sample),
            Event::Requests(requests) => self.requests = Some(*requests),
        }
    }

    fn sample(&mut self, sample: Hardware) {
        self.history.push(&sample);
        self.hardware = Some(sample);
    }

    fn reindex(&mut self) {
        self.places = self.jobs.iter().enumerate().map(|(at, job)| (job.id.clone(), at)).collect();
    }

    pub(crate) fn jobs(&self) -> &[Job] {
        &self.jobs
    }

    pub(crate) fn job(&self, id: &str) -> Option<&Job> {
        self.jobs.get(*self.places.get(id)?)
    }

    /// Every artifact of every model.
    pub(crate) fn artifacts(&self) -> impl Iterator<Item = &Artifact> {
        self.models.values().flat_map(|model| &model.artifacts)
    }

    pub(crate) fn artifact(&self, id: &str) -> Option<&Artifact> {
        self.artifacts().find(|artifact| artifact.id == id)
    }

    /// Everything that can be talked to: artifacts, then sources.
    pub(crate) fn voices(&self) -> impl Iterator<Item = Voice<'_>> {
        let sources = self.models.values().filter_map(Voice::of_source);
        self.artifacts().map(Voice::of_artifact).chain(sources)
    }

    pub(crate) fn voice(&self, id: &str) -> Option<Voice<'_>> {
        self.voices().find(|voice| voice.id == id)
    }

    /// How an artifact is loaded, if it is.
    pub(crate) fn served(&self, artifact: &str) -> Option<&ServedModel> {
        self.served.iter().find(|served| served.artifact == artifact)
    }

    /// Jobs in numbers, counted here so that they always agree with the list.
    pub(crate) fn counts(&self) -> JobCounts {
        let mut counts = JobCounts::default();
        for job in &self.jobs {
            *match job.state {
                JobState::Queued => &mut counts.queued,
                JobState::Running => &mut counts.running,
                JobState::Succeeded => &mut counts.succeeded,
                JobState::Failed => &mut counts.failed,
                JobState::Cancelled => &mut counts.cancelled,
                JobState::Blocked => &mut counts.blocked,
            } += 1;
        }
        counts
    }

    pub(crate) fn log(&self, job: &str) -> Option<&LogTail> {
        self.logs.get(job)
    }

    pub(crate) fn plugin_log(&self, plugin: &str) -> Option<&LogTail> {
        self.plugin_logs.get(plugin)
    }

    /// From now on this job's lines are kept: what arrives while its log is read must not be lost.
    pub(crate) fn begin_log(&mut self, job: &str) {
        self.logs.entry(job.to_owned()).or_default();
    }

    pub(crate) fn set_log(&mut self, job: String, log: Result<Log, ErrorReport>) {
        self.touched += 1;
        set_log(&mut self.logs, job, log, self.touched);
    }

    pub(crate) fn set_plugin_log(&mut self, plugin: String, log: Result<Log, ErrorReport>) {
        self.touched += 1;
        set_log(&mut self.plugin_logs, plugin, log, self.touched);
    }

    /// Whether something is wrong that nobody has to look for.
    pub(crate) fn troubles(&self) -> usize {
        let models = self.models.values().filter(|model| model.error.is_some()).count();
        let jobs = self.jobs.iter().filter(|job| matches!(job.state, JobState::Failed | JobState::Blocked));
        models + jobs.count()
    }
}

fn set_log(logs: &mut HashMap<String, LogTail>, key: String, log: Result<Log, ErrorReport>, touched: u64) {
    let tail = logs.entry(key).or_default();
    match log {
        Ok(log) => {
            // Lines that came as events while the log was read are newer than what was read.
            let read = log.lines.last().map_or(0, |line| line.sequence);
            let newer: Vec<LogLine> = tail.lines.drain(..).filter(|line| line.sequence > read).collect();
            *tail = LogTail { truncated: log.truncated, ..LogTail::default() };
            for line in log.lines.into_iter().chain(newer) {
                tail.push(line);
            }
        }
        Err(error) => tail.error = Some(error),
    }
    tail.touched = touched;
    if logs.len() > LOGS
        && let Some(oldest) = logs.iter().min_by_key(|(_, tail)| tail.touched).map(|(key, _)| key.clone())
    {
        logs.remove(&oldest);
    }
}

impl LogTail {
    fn push(&mut self, line: LogLine) {
        if self.lines.back().is_some_and(|last| last.sequence >= line.sequence) {
            return;
        }
        if self.lines.len() >= LOG_LINES {
            self.lines.pop_front();
            self.truncated = true;
        }
        self.lines.push_back(line);
    }
}
