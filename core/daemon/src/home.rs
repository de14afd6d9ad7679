//! The daemon's directory and what lies where in it.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use drophammer_client::SOCKET_NAME;
use drophammer_sdk::HostInfo;

use crate::config::Config;

/// Moves the home.
pub const HOME_VARIABLE: &str = "DROPHAMMER_HOME";

/// Where everything is.
#[derive(Debug, Clone)]
pub struct Home {
    /// The home itself.
    pub root: PathBuf,
    /// The watched folder.
    pub models: PathBuf,
    /// Published artifacts, `<model>/<artifact>/`.
    pub library: PathBuf,
    /// Work in progress, `<job>/`.
    pub staging: PathBuf,
    /// Where plugins are looked for, in this order.
    pub plugins: Vec<PathBuf>,
}

/// The home that the environment asks for: [`HOME_VARIABLE`], or `~/.drophammer`.
///
/// # Errors
/// When neither variable is set.
pub fn find() -> anyhow::Result<PathBuf> {
    let named = std::env::var_os(HOME_VARIABLE).map(PathBuf::from);
    let usual = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".drophammer"));
    let path = named.or_else(usual).with_context(|| format!("neither {HOME_VARIABLE} nor HOME is set"))?;
    std::path::absolute(&path).with_context(|| path.display().to_string())
}

/// The lock that one daemon holds, in a home at `root`.
pub(crate) fn lock_in(root: &Path) -> PathBuf {
    root.join("daemon.lock")
}

impl Home {
    /// Where everything is; nothing is made.
    ///
    /// # Errors
    /// When the working directory is needed and unknown.
    pub fn locate(root: &Path, config: &Config) -> anyhow::Result<Self> {
        let root = std::path::absolute(root)?;
        Ok(Self {
            models: root.join(&config.paths.models),
            library: root.join(&config.paths.library),
            staging: root.join(&config.paths.staging),
            plugins: plugin_places(&root, config),
            root,
        })
    }

    /// What a plugin is told about its host.
    pub fn host_info(&self, config: &Config, plugin: &str) -> HostInfo {
        HostInfo {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            runtimes: self.runtimes(),
            cache: self.cache().join(plugin),
            config: config.plugins.get(plugin).cloned().unwrap_or_default(),
            ..HostInfo::default()
        }
    }

    /// Lays out the home: makes the directories that are not there yet.
    ///
    /// # Errors
    /// When one cannot be made; the message names it.
    pub fn prepare(root: &Path, config: &Config) -> anyhow::Result<Self> {
        let home = Self::locate(root, config)?;
        for directory in [&home.root, &home.models, &home.library, &home.staging] {
            std::fs::create_dir_all(directory).with_context(|| {
                format!("{} cannot be made; set {HOME_VARIABLE} to a writable place", directory.display())
            })?;
        }
        Ok(home)
    }

    /// The control socket.
    pub fn socket(&self) -> PathBuf {
        self.root.join(SOCKET_NAME)
    }

    /// The database.
    pub fn database(&self) -> PathBuf {
        self.root.join("drophammer.db")
    }

    /// The lock that one daemon holds.
    pub fn lock(&self) -> PathBuf {
        lock_in(&self.root)
    }

    /// Where installed runtimes are.
    pub fn runtimes(&self) -> PathBuf {
        self.root.join("runtimes")
    }

    /// What plugins may cache.
    pub fn cache(&self) -> PathBuf {
        self.root.join("cache")
    }
}

/// The configured places, the home's own, and those beside the program (installed or built).
fn plugin_places(root: &Path, config: &Config) -> Vec<PathBuf> {
    let mut places: Vec<PathBuf> = config.paths.plugins.iter().map(|place| root.join(place)).collect();
    places.push(root.join("plugins"));
    if let Ok(program) = std::env::current_exe()
        && let Some(directory) = program.parent()
    {
        places.push(directory.join("plugins"));
        places.push(directory.join("../lib/drophammer/plugins"));
    }
    places
}
