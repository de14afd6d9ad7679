//! The configuration: `config/drophammer.toml` documents every setting; this is its shape.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use drophammer_engine::choice::Floor;
use drophammer_engine::plan::Target;
use drophammer_engine::settle::Patience;
use serde::{Deserialize, Serialize};

use crate::workers::WorkerSettings;

/// Names a configuration file, instead of the one in the home.
pub const CONFIG_VARIABLE: &str = "DROPHAMMER_CONFIG";

/// The commented defaults, as shipped.
pub const DEFAULTS: &str = include_str!("../../../config/drophammer.toml");

/// Targets that come with the program, by file.
const TARGETS: &[(&str, &str)] = &[
    ("gguf.toml", include_str!("../../../config/targets/gguf.toml")),
    ("mlx.toml", include_str!("../../../config/targets/mlx.toml")),
    ("onnx.toml", include_str!("../../../config/targets/onnx.toml")),
    ("openvino.toml", include_str!("../../../config/targets/openvino.toml")),
    ("qnn.toml", include_str!("../../../config/targets/qnn.toml")),
];

/// Everything that can be set.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where things are.
    pub paths: Paths,
    /// How the models folder is watched.
    pub watch: Watch,
    /// What dropped models are made into.
    pub targets: Targets,
    /// What jobs may take.
    pub limits: Limits,
    /// How workers are treated.
    pub workers: WorkerSettings,
    /// How artifacts are measured.
    pub measure: Measure,
    /// How requests are answered.
    pub serve: Serve,
    /// What is remembered.
    pub history: History,
    /// `[plugins.<id>]` tables, passed to the plugins.
    pub plugins: std::collections::BTreeMap<String, serde_json::Map<String, serde_json::Value>>,
    /// `[tui]`, read by the dashboard.
    pub tui: serde_json::Map<String, serde_json::Value>,
}

/// `[paths]`; relative ones are relative to the home.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Paths {
    /// The watched folder.
    pub models: PathBuf,
    /// Finished artifacts.
    pub library: PathBuf,
    /// Work in progress.
    pub staging: PathBuf,
    /// Further places with plugins.
    pub plugins: Vec<PathBuf>,
}

impl Default for Paths {
    fn default() -> Self {
        Self {
            models: "models".into(),
            library: "library".into(),
            staging: "staging".into(),
            plugins: Vec::new(),
        }
    }
}

/// Whether the watcher polls.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Poll {
    /// Where the system cannot tell of changes.
    #[default]
    Auto,
    /// Everywhere.
    Always,
    /// Nowhere.
    Never,
}

/// `[watch]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Watch {
    /// Rest before a path counts as complete.
    pub quiet_seconds: f64,
    /// Whether to poll.
    pub poll: Poll,
    /// Time between two polls.
    pub poll_seconds: f64,
}

impl Default for Watch {
    fn default() -> Self {
        Self { quiet_seconds: 0.25, poll: Poll::Auto, poll_seconds: 2.0 }
    }
}

impl Watch {
    /// The same for the settling rule.
    pub fn patience(&self) -> Patience {
        let quiet = seconds(self.quiet_seconds);
        Patience { quiet, look: quiet.max(Duration::from_millis(250)), longest: Duration::from_secs(5) }
    }
}

/// `[targets]`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Targets {
    /// Names; empty means those that call themselves default.
    pub default: Vec<String>,
}

/// `[limits]`; 0 leaves the choice to the daemon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Memory of all jobs.
    pub memory_bytes: u64,
    /// Cores of all jobs.
    pub cores: u32,
    /// Cores of one job.
    pub cores_per_job: u32,
    /// Disk never used up.
    pub disk_reserve_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { memory_bytes: 0, cores: 0, cores_per_job: 0, disk_reserve_bytes: 512 << 20 }
    }
}

/// `[measure]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Measure {
    /// Whether to measure.
    pub enabled: bool,
    /// The text to score.
    pub text: Option<PathBuf>,
    /// Whether every plugin that runs an artifact is measured.
    pub all_backends: bool,
}

impl Default for Measure {
    fn default() -> Self {
        Self { enabled: true, text: None, all_backends: false }
    }
}

/// `[serve]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Serve {
    /// Whether to listen over TCP.
    pub enabled: bool,
    /// A loopback address, or any with keys and TLS.
    pub address: std::net::IpAddr,
    /// 0: any free one.
    pub port: u16,
    /// Encrypts.
    pub tls: Option<Tls>,
    /// Origins whose pages may ask; `*` is every one.
    pub origins: Vec<String>,
    /// The largest body of a request.
    pub body_limit_bytes: usize,
    /// Unload after.
    pub idle_seconds: f64,
    /// Memory of all loaded models together; 0 leaves the choice to the daemon.
    pub memory_bytes: u64,
    /// Models that stay loaded.
    pub pinned: Vec<String>,
    /// Longest context.
    pub context: u32,
    /// Requests answered at a time by one model.
    pub sequences: u32,
    /// Requests that may wait for one model.
    pub queue: u32,
    /// The least quality of what is preferred for its speed.
    pub floor: Floor,
}

impl Default for Serve {
    fn default() -> Self {
        Self {
            enabled: true,
            address: std::net::Ipv4Addr::LOCALHOST.into(),
            port: 8777,
            tls: None,
            origins: Vec::new(),
            body_limit_bytes: 16 << 20,
            idle_seconds: 600.0,
            memory_bytes: 0,
            pinned: Vec::new(),
            context: 4096,
            sequences: 8,
            queue: 256,
            floor: Floor { kl_mean: 0.05, top1: 0.9 },
        }
    }
}

/// `[serve.tls]`: files in PEM; relative ones are relative to the home.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    /// The certificate, with those between it and its root.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// `[history]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct History {
    /// Finished jobs remembered.
    pub jobs: usize,
    /// Log lines remembered per job.
    pub log_lines: usize,
}

impl Default for History {
    fn default() -> Self {
        Self { jobs: 1000, log_lines: 2000 }
    }
}

impl Config {
    /// Reads the file that [`CONFIG_VARIABLE`] names, or `drophammer.toml` in the home, or nothing.
    ///
    /// # Errors
    /// When a named file is missing, or a setting is unknown or senseless; the message names file and setting.
    pub fn load(home: &Path) -> anyhow::Result<Self> {
        let named = std::env::var_os(CONFIG_VARIABLE).map(PathBuf::from);
        let path = named.clone().unwrap_or_else(|| home.join("drophammer.toml"));
        match std::fs::read_to_string(&path) {
            Ok(text) => Self::parse(&text).with_context(|| format!("configuration {}", path.display())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && named.is_none() => {
                Ok(Self::default())
            }
            Err(error) => Err(error).with_context(|| format!("configuration {}", path.display())),
        }
    }

    /// Reads a configuration's text.
    ///
    /// # Errors
    /// When a setting is unknown or senseless.
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        let config: Self = toml::from_str(text)?;
        for (name, value) in [
            ("watch.quiet_seconds", config.watch.quiet_seconds),
            ("watch.poll_seconds", config.watch.poll_seconds),
            ("serve.idle_seconds", config.serve.idle_seconds),
        ] {
            if !(0.0..=1e9).contains(&value) {
                bail!("{name} = {value} is no sensible time");
            }
        }
        if !config.serve.address.is_loopback() && config.serve.tls.is_none() {
            bail!(
                "serve.address = {} is not a loopback address: name a certificate under [serve.tls], or tunnel",
                config.serve.address
            );
        }
        if config.serve.sequences == 0 || config.serve.context < 16 {
            bail!("serve.sequences must be at least 1 and serve.context at least 16");
        }
        Ok(config)
    }
}

/// A number of seconds that [`Config::parse`] has checked.
pub(crate) fn seconds(value: f64) -> Duration {
    Duration::try_from_secs_f64(value).unwrap_or_default()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TargetFile {
    #[serde(default)]
    target: Vec<Target>,
    /// Devices that targets may name: data for the backend that makes them, which reads them itself.
    #[serde(default, rename = "device")]
    _devices: serde::de::IgnoredAny,
}

/// Every target known: those that come with the program, and those in `targets/*.toml` of the home, which replace
/// targets of the same name.
///
/// # Errors
/// When a file of the home cannot be read as targets; the message names it.
pub fn targets(home: &Path) -> anyhow::Result<Vec<Target>> {
    let mut known: Vec<Target> = Vec::new();
    let mut add = |name: &str, text: &str| -> anyhow::Result<()> {
        let file: TargetFile = toml::from_str(text).with_context(|| format!("targets {name}"))?;
        for target in file.target {
            if target.name == drophammer_client::api::SOURCE_TARGET {
                anyhow::bail!(
                    "targets {name}: no target may be called `{}`: a model's source is",
                    target.name
                );
            }
            known.retain(|other| other.name != target.name);
            known.push(target);
        }
        Ok(())
    };
    for (name, text) in TARGETS {
        add(name, text)?;
    }
    let mut files: Vec<PathBuf> = std::fs::read_dir(home.join("targets"))
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "toml"))
        .collect();
    files.sort();
    for path in files {
        let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        add(&path.display().to_string(), &text)?;
    }
    Ok(known)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shipped_file_shows_exactly_the_defaults() {
        assert_eq!(Config::parse(DEFAULTS).unwrap(), Config::default());
    }

    #[test]
    fn senseless_settings_are_refused_by_name() {
        for (text, expected) in [
            ("[serve]\naddress = \"0.0.0.0\"", "loopback"),
            ("[watch]\nquiet_seconds = -1.0", "quiet_seconds"),
            ("[watch]\nquiet_seconds = nan", "quiet_seconds"),
            ("[wacth]", "wacth"),
            ("[serve]\nsequences = 0", "sequences"),
        ] {
            let error = Config::parse(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    #[test]
    fn a_target_of_the_home_replaces_the_shipped_one_of_its_name() {
        let home = tempfile::tempdir().unwrap();
        std::fs::create_dir(home.path().join("targets")).unwrap();
        let text =
            "[[target]]\nname = \"gguf-q8_0\"\nformat = \"gguf\"\nscheme = \"q8_0\"\nbackend = \"mine\"\n";
        std::fs::write(home.path().join("targets/mine.toml"), text).unwrap();
        let targets = targets(home.path()).unwrap();
        let found: Vec<_> = targets.iter().filter(|target| target.name == "gguf-q8_0").collect();
        assert_eq!((found.len(), found[0].backend.as_deref()), (1, Some("mine")));
        std::fs::write(home.path().join("targets/bad.toml"), "[[target]]\nnmae = 1").unwrap();
        assert!(super::targets(home.path()).unwrap_err().to_string().contains("bad.toml"));
        std::fs::write(home.path().join("targets/bad.toml"), text.replace("gguf-q8_0", "source")).unwrap();
        assert!(super::targets(home.path()).unwrap_err().to_string().contains("may be called `source`"));
    }
}
