//! The plugins of this machine: where they are, what they say of themselves, what their probes found.
//!
//! Which backend makes or runs something is decided here, from manifests and probe reports alone.

use std::path::{Path, PathBuf};

use drophammer_client::api;
use drophammer_sdk::manifest::MANIFEST_FILE;
use drophammer_sdk::{BackendError, ErrorCode, HostInfo, Manifest, ProbeReport, ProbeRequest};

use super::failure::{Ending, WorkerFailure};
use super::running::{WorkerEvent, api_level};
use super::supervisor::{Supervisor, Task};
use crate::moment::now;
use crate::worker::protocol::{Limits, Outcome, Work};

/// Lines kept of what a probe says.
const LOG_LINES: usize = 500;

/// One plugin's directory.
#[derive(Debug, Clone)]
pub struct Installed {
    /// Where it is.
    pub directory: PathBuf,
    /// Its manifest, or why it was refused before anything of it ran.
    pub manifest: Result<Manifest, BackendError>,
    /// What its probe found; `None` before it was probed.
    pub report: Option<Result<ProbeReport, WorkerFailure>>,
    /// What it logged and printed meanwhile.
    pub log: api::Log,
}

/// Every plugin found. Of two with the same id the one found first counts.
#[derive(Debug, Clone, Default)]
pub struct Catalog {
    plugins: Vec<Installed>,
}

impl Catalog {
    /// Looks for `*/plugin.toml` in each of `places`, in this order. Nothing is run. Places that do not exist are empty.
    pub fn discover(places: &[PathBuf]) -> Self {
        let mut catalog = Self::default();
        for place in places {
            let mut directories: Vec<_> = std::fs::read_dir(place)
                .into_iter()
                .flatten()
                .flatten()
                .map(|entry| entry.path())
                .filter(|path| path.join(MANIFEST_FILE).is_file())
                .collect();
            directories.sort();
            for directory in directories {
                let plugin = Installed::read(directory);
                if catalog.get(&plugin.id()).is_none() {
                    catalog.plugins.push(plugin);
                }
            }
        }
        catalog
    }

    /// All plugins, in the order they were found.
    pub fn plugins(&self) -> &[Installed] {
        &self.plugins
    }

    /// The plugin with this id.
    pub fn get(&self, id: &str) -> Option<&Installed> {
        self.plugins.iter().find(|plugin| plugin.id() == id)
    }

    /// Probes every plugin that can be, each in a worker of its own, all at once. `host` gives what a plugin id is told.
    pub async fn probe(&mut self, supervisor: &Supervisor, host: impl Fn(&str) -> HostInfo) {
        let probes = self.plugins.iter_mut().map(|plugin| {
            let host = host(&plugin.id());
            plugin.examine(supervisor, host)
        });
        futures::future::join_all(probes).await;
    }

    /// Probed plugins that can make artifacts of this format here, the preferred one first.
    pub fn makers(&self, format: &str) -> Vec<&Installed> {
        self.ranked(|report| report.formats.iter().any(|f| f.format == format && f.make))
    }

    /// Probed plugins that can run artifacts (or sources) of this format here, the preferred one first.
    pub fn runners(&self, format: &str) -> Vec<&Installed> {
        self.ranked(|report| report.formats.iter().any(|f| f.format == format && f.run))
    }

    fn ranked(&self, able: impl Fn(&ProbeReport) -> bool) -> Vec<&Installed> {
        let fits = |plugin: &&Installed| matches!(&plugin.report, Some(Ok(report)) if able(report));
        let mut plugins: Vec<_> = self.plugins.iter().filter(fits).collect();
        plugins
            .sort_by_key(|plugin| std::cmp::Reverse(plugin.manifest.as_ref().map_or(i32::MIN, |m| m.rank)));
        plugins
    }
}

impl Installed {
    /// Reads a plugin's directory; nothing is run.
    pub fn read(directory: PathBuf) -> Self {
        let manifest = Manifest::read(&directory);
        Self { directory, manifest, report: None, log: api::Log::default() }
    }

    /// Whether it has a device that is no processor.
    pub fn is_accelerated(&self) -> bool {
        let devices = self.report.iter().flatten().flat_map(|report| &report.devices);
        devices.into_iter().any(|device| device.kind != "cpu" && !device.emulated)
    }

    /// Its id; the directory's name where the manifest says none.
    pub fn id(&self) -> String {
        match &self.manifest {
            Ok(manifest) => manifest.id.clone(),
            Err(_) => file_name(&self.directory),
        }
    }

    /// Has it say what it can do on this machine, and keeps its report and what it said meanwhile.
    pub async fn examine(&mut self, supervisor: &Supervisor, host: HostInfo) {
        let mut log = api::Log::default();
        let report = self.ask(supervisor, host, ProbeRequest::default(), |event| note(&mut log, event)).await;
        (self.report, self.log) = (report, log);
    }

    /// Asks the plugin, in a worker; `None` when its manifest was refused.
    pub async fn probe(
        &self,
        supervisor: &Supervisor,
        host: HostInfo,
        request: ProbeRequest,
    ) -> Option<Result<ProbeReport, WorkerFailure>> {
        self.ask(supervisor, host, request, |_| ()).await
    }

    async fn ask(
        &self,
        supervisor: &Supervisor,
        host: HostInfo,
        request: ProbeRequest,
        listen: impl FnMut(WorkerEvent),
    ) -> Option<Result<ProbeReport, WorkerFailure>> {
        let manifest = self.manifest.as_ref().ok()?;
        let task = Task {
            plugin: self.directory.clone(),
            host,
            limits: Limits::default(),
            work: Work::Probe(request),
        };
        let finished = match supervisor.start(task).await {
            Ok(running) => running.follow(listen).await,
            Err(failure) => Err(failure),
        };
        Some(finished.and_then(|finished| {
            let Outcome::Probed(report) = finished.outcome else {
                return Err(WorkerFailure::not_started(
                    &manifest.id,
                    "it answered a probe with something else",
                ));
            };
            Ok(report)
        }))
    }

    /// The plugin as the control API and `--json` show it.
    pub fn document(&self) -> api::Plugin {
        let manifest = self.manifest.as_ref().ok();
        let report = match &self.report {
            Some(Ok(report)) => report.clone(),
            _ => ProbeReport::default(),
        };
        let makes = |f: &&drophammer_sdk::FormatSupport| f.make;
        api::Plugin {
            id: self.id(),
            version: manifest.map(|m| m.version.clone()).unwrap_or_default(),
            abi: manifest.map(|m| m.abi.clone()).unwrap_or_default(),
            path: manifest
                .map_or(self.directory.clone(), |m| self.directory.join(&m.library))
                .display()
                .to_string(),
            state: self.state(),
            runtime_version: report.runtime_version.clone(),
            devices: report.devices.iter().map(device).collect(),
            formats: report.formats.iter().filter(makes).map(|f| f.format.clone()).collect(),
            schemes: report.formats.iter().filter(makes).flat_map(|f| f.schemes.clone()).collect(),
            problems: self.problems(&report),
            licence: manifest.map(|m| m.licence.clone()).filter(|licence| !licence.is_empty()),
        }
    }

    fn state(&self) -> api::PluginState {
        use api::PluginState as State;
        match (&self.manifest, &self.report) {
            (Err(_), _) => State::Refused,
            (Ok(_), None) => State::Probing,
            (Ok(_), Some(Ok(report))) if report.problems.is_empty() => State::Ready,
            (Ok(_), Some(Ok(report))) if report.formats.iter().any(|f| f.make || f.run) => State::Degraded,
            (Ok(_), Some(Ok(_))) => State::Unavailable,
            (Ok(_), Some(Err(failure))) => match failure.code() {
                ErrorCode::MissingRuntime => State::Unavailable,
                ErrorCode::InvalidInput | ErrorCode::UnsupportedInput => State::Refused,
                _ => State::Crashed,
            },
        }
    }

    fn problems(&self, report: &ProbeReport) -> Vec<api::Problem> {
        let problem = |message: &str, help: &str| api::Problem {
            message: message.to_owned(),
            help: Some(help.to_owned()).filter(|help| !help.is_empty()),
        };
        let refused = self.manifest.as_ref().err().map(|error| problem(&error.message, &error.help));
        let failed = match &self.report {
            Some(Err(failure)) => Some(problem(&with_last_line(failure), &failure.help())),
            _ => None,
        };
        let reported = report.problems.iter().map(|p| problem(&p.message, &p.help));
        refused.into_iter().chain(failed).chain(reported).collect()
    }
}

/// Writes an event of a probe into its log; of the lines beyond [`LOG_LINES`] the oldest go.
fn note(log: &mut api::Log, event: WorkerEvent) {
    let (level, source, message) = match event {
        WorkerEvent::Progress(_) => return,
        WorkerEvent::Log(level, message) => (api_level(level), api::LogSource::Plugin, message),
        WorkerEvent::Output(source, line) => (api::LogLevel::Info, source, line),
    };
    let sequence = log.lines.last().map_or(1, |line| line.sequence + 1);
    log.lines.push(api::LogLine { sequence, time: now(), job: None, level, source, message });
    if log.lines.len() > LOG_LINES {
        log.lines.remove(0);
        log.truncated = true;
    }
}

/// A crash's message with the last line printed before it.
fn with_last_line(failure: &WorkerFailure) -> String {
    match (&failure.ending, failure.last_lines.last()) {
        (Ending::Reported { .. }, _) | (_, None) => failure.message(),
        (_, Some(line)) => format!("{}; its last words: {line}", failure.message()),
    }
}

fn device(device: &drophammer_sdk::Device) -> api::Device {
    api::Device {
        id: device.id.clone(),
        name: device.name.clone(),
        kind: *api::DeviceKind::ALL
            .iter()
            .find(|kind| kind.as_str() == device.kind)
            .unwrap_or(&api::DeviceKind::Cpu),
        memory_bytes: device.memory_bytes,
        emulated: device.emulated,
    }
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plugin(place: &Path, folder: &str, id: &str, rank: i32) {
        let directory = place.join(folder);
        std::fs::create_dir_all(&directory).unwrap();
        let text = format!(
            "id = {id:?}\nversion = \"1.0.0\"\nabi = {:?}\nrank = {rank}\nlibrary = \"lib.so\"\n",
            drophammer_sdk::abi::ABI_VERSION
        );
        std::fs::write(directory.join(MANIFEST_FILE), text).unwrap();
    }

    #[test]
    fn the_first_of_two_plugins_with_one_id_counts_and_a_refused_one_is_still_shown() {
        let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        plugin(first.path(), "b", "same", 1);
        plugin(first.path(), "a", "other", 1);
        plugin(first.path(), "broken", "Not An Id", 1);
        plugin(second.path(), "c", "same", 2);
        let places = [first.path().into(), second.path().into(), "/nonexistent".into()];
        let catalog = Catalog::discover(&places);
        let ids: Vec<_> = catalog.plugins().iter().map(Installed::id).collect();
        assert_eq!(ids, ["other", "same", "broken"]);
        assert_eq!(catalog.get("same").unwrap().directory, first.path().join("b"));
        let refused = catalog.get("broken").unwrap().document();
        assert_eq!(refused.state, api::PluginState::Refused);
        assert!(refused.problems[0].message.contains("Not An Id"), "{refused:?}");
    }

    #[test]
    fn the_higher_rank_is_preferred_among_those_that_can() {
        let home = tempfile::tempdir().unwrap();
        for (id, rank) in [("low", 1), ("high", 90), ("unable", 99)] {
            plugin(home.path(), id, id, rank);
        }
        let mut catalog = Catalog::discover(&[home.path().into()]);
        for plugin in &mut catalog.plugins {
            let able = plugin.id() != "unable";
            let format = drophammer_sdk::FormatSupport {
                format: "gguf".into(),
                make: able,
                run: able,
                ..Default::default()
            };
            plugin.report = Some(Ok(ProbeReport { formats: vec![format], ..ProbeReport::default() }));
        }
        let ids = |plugins: Vec<&Installed>| plugins.iter().map(|p| p.id()).collect::<Vec<_>>();
        assert_eq!(ids(catalog.makers("gguf")), ["high", "low"]);
        assert_eq!(ids(catalog.runners("gguf")), ["high", "low"]);
        assert!(catalog.runners("onnx").is_empty());
        for (kind, emulated, accelerated) in
            [("cpu", false, false), ("gpu", false, true), ("npu", true, false)]
        {
            let device =
                drophammer_sdk::Device { kind: kind.into(), emulated, ..drophammer_sdk::Device::default() };
            catalog.plugins[0].report =
                Some(Ok(ProbeReport { devices: vec![device], ..ProbeReport::default() }));
            assert_eq!(catalog.plugins[0].is_accelerated(), accelerated, "{kind}");
        }
    }
}
