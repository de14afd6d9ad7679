//! What one-shot commands work with: configuration, plugins, and a supervisor of their own.

use std::path::{Path, PathBuf};

use drophammer_daemon::worker::protocol::{Limits, Work};
use drophammer_daemon::workers::{Catalog, Finished, Installed, Running, Supervisor, Task};
use drophammer_daemon::{Config, Home};
use drophammer_sdk::{HostInfo, LoadRequest};

use crate::arguments::{Budget, Extras};
use crate::failure::{Exit, Failure, Result};
use crate::progress::Display;

impl Extras {
    /// A request to load what lies at `path`, with these.
    ///
    /// # Errors
    /// When an adapter is not there.
    pub(crate) fn load(&self, path: &Path) -> Result<LoadRequest> {
        Ok(LoadRequest {
            path: path.to_owned(),
            adapters: self.adapters()?,
            options: self.options.iter().cloned().collect(),
            ..LoadRequest::default()
        })
    }

    /// Where the adapters are, for a worker that may run elsewhere.
    ///
    /// # Errors
    /// When one is not there.
    pub(crate) fn adapters(&self) -> Result<Vec<PathBuf>> {
        self.adapters.iter().map(|path| absolute(path)).collect()
    }

    /// Whether there are none.
    pub(crate) fn is_empty(&self) -> bool {
        self.adapters.is_empty() && self.options.is_empty()
    }
}

/// Where something really is, whatever directory a worker runs in.
///
/// # Errors
/// When it is not there.
pub(crate) fn absolute(path: &Path) -> Result<PathBuf> {
    std::fs::canonicalize(path).map_err(|error| Failure::io(path, &error))
}

/// The place of work.
pub(crate) struct Workshop {
    pub(crate) home: Home,
    pub(crate) config: Config,
    pub(crate) catalog: Catalog,
    pub(crate) supervisor: Supervisor,
}

impl Workshop {
    /// Reads the configuration and finds the plugins; none is run.
    ///
    /// # Errors
    /// When the configuration cannot be read.
    pub(crate) fn open() -> Result<Self> {
        let root = drophammer_daemon::home::find()?;
        let config = Config::load(&root)?;
        let home = Home::locate(&root, &config)?;
        let catalog = Catalog::discover(&home.plugins);
        let supervisor = Supervisor::new(config.workers.clone()).map_err(|error| {
            Failure::new(Exit::Failed, format!("no supervisor: {error}"), "close some programs")
        })?;
        Ok(Self { home, config, catalog, supervisor })
    }

    /// The same, with every plugin probed.
    ///
    /// # Errors
    /// As for [`Workshop::open`].
    pub(crate) async fn probed() -> Result<Self> {
        let mut shop = Self::open()?;
        let mut catalog = std::mem::take(&mut shop.catalog);
        catalog.probe(&shop.supervisor, |id| shop.host(id)).await;
        shop.catalog = catalog;
        Ok(shop)
    }

    /// What a plugin is told about its host.
    pub(crate) fn host(&self, plugin: &str) -> HostInfo {
        self.home.host_info(&self.config, plugin)
    }

    /// The backend to make `format` with: the one asked for, or the preferred one.
    ///
    /// # Errors
    /// When none can here; the message says why, as far as plugins told.
    pub(crate) fn maker(&self, format: &str, wanted: Option<&str>) -> Result<&Installed> {
        let makers = self.catalog.makers(format);
        self.choose(makers, wanted, &format!("make {format}"))
    }

    /// The backend to run what lies at `path` with: the one asked for, or the preferred one.
    ///
    /// # Errors
    /// When `path` is no model, or no backend can run it here.
    pub(crate) fn runner(&self, path: &Path, wanted: Option<&str>) -> Result<&Installed> {
        // What this project cannot read itself, a third party's plugin may know by its file's extension.
        let format = match drophammer_formats::source::identify(path) {
            Ok(found) => found.kind.name().to_owned(),
            Err(error) => {
                let extension = path.extension().and_then(|extension| extension.to_str());
                let known = extension.filter(|name| !self.catalog.runners(name).is_empty());
                known.ok_or(error)?.to_owned()
            }
        };
        self.choose(self.catalog.runners(&format), wanted, &format!("run {format}"))
    }

    fn choose<'a>(
        &'a self,
        able: Vec<&'a Installed>,
        wanted: Option<&str>,
        what: &str,
    ) -> Result<&'a Installed> {
        let chosen = match wanted {
            Some(id) => able.into_iter().find(|plugin| plugin.id() == id),
            None => able.into_iter().next(),
        };
        chosen.ok_or_else(|| self.unable(wanted, what))
    }

    /// Why nobody can: the asked-for plugin's own problems, or a pointer to where all are listed.
    fn unable(&self, wanted: Option<&str>, what: &str) -> Failure {
        let Some(id) = wanted else {
            let message = format!("no installed plugin can {what} here");
            return Failure::new(
                Exit::Unsupported,
                message,
                "`drophammer doctor` says what each plugin needs",
            );
        };
        let Some(plugin) = self.catalog.get(id) else {
            let message = format!("there is no plugin {id}");
            return Failure::new(Exit::Usage, message, "`drophammer plugin list` names them");
        };
        if let Some(problem) = plugin.document().problems.into_iter().next() {
            let message = format!("{id} cannot {what} here: {}", problem.message);
            return Failure::new(Exit::MissingRuntime, message, problem.help.unwrap_or_default());
        }
        let message = format!("{id} does not {what}");
        Failure::new(Exit::Unsupported, message, "`drophammer plugin list` shows what each plugin can do")
    }

    /// What one-shot work may use.
    pub(crate) fn limits(&self, budget: &Budget) -> Limits {
        let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get() as u32);
        Limits {
            threads: budget.threads.unwrap_or(cores).max(1),
            memory_bytes: budget
                .memory
                .unwrap_or_else(|| drophammer_daemon::planning::capacity(&self.config).memory),
            disk_bytes: 0,
            nice: 0,
        }
    }

    /// Runs one worker to its end, as [`Workshop::follow`] does.
    ///
    /// # Errors
    /// How it failed, or that it was cancelled.
    pub(crate) async fn work(
        &self,
        plugin: &Installed,
        limits: Limits,
        work: Work,
        verbose: bool,
    ) -> Result<Finished> {
        let running = self.supervisor.start(self.task(plugin, limits, work)).await?;
        self.follow(running, verbose).await
    }

    /// Work for a plugin.
    pub(crate) fn task(&self, plugin: &Installed, limits: Limits, work: Work) -> Task {
        Task { plugin: plugin.directory.clone(), host: self.host(&plugin.id()), limits, work }
    }

    /// Shows how a worker goes until it ends. Ctrl-C asks it to stop.
    ///
    /// # Errors
    /// How it failed, or that it was cancelled.
    pub(crate) async fn follow(&self, running: Running, verbose: bool) -> Result<Finished> {
        let mut display = Display::new(verbose);
        let cancel = running.canceller();
        let followed = running.follow(move |event| display.show(event));
        tokio::pin!(followed);
        let finished = tokio::select! {
            finished = &mut followed => finished,
            _ = tokio::signal::ctrl_c() => {
                cancel();
                followed.await
            }
        };
        Ok(finished?)
    }
}
