//! The daemon's parts together, and its life from start to end.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use drophammer_client::api;
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::config::{self, Config};
use crate::events::Events;
use crate::hardware::Hardware;
use crate::home::Home;
use crate::journal::Journal;
use crate::keys::Keys;
use crate::ledger::Ledger;
use crate::lock::Lock;
use crate::moment::now;
use crate::pipeline::{Parts, Pipeline};
use crate::serving::Serving;
use crate::store::{Store, StoreError};
use crate::workers::Supervisor;
use crate::{http, library, watcher};

/// How often the machine is sampled for those who watch.
const SAMPLE_PAUSE: Duration = Duration::from_secs(1);

/// How to run.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// The home; by default the one the environment asks for.
    pub home: Option<PathBuf>,
    /// The configuration; by default read from the home or the file the environment names.
    pub config: Option<Config>,
}

/// A running daemon, as its HTTP handlers see it.
#[derive(Debug)]
pub(crate) struct Daemon {
    pub(crate) pipeline: Arc<Pipeline>,
    pub(crate) hardware: Arc<Hardware>,
    pub(crate) serving: Arc<Serving>,
    /// Responses that may be gone on from.
    pub(crate) responses: http::Memory,
    /// Who may ask over TCP.
    pub(crate) keys: Keys,
    /// Where TCP is encrypted.
    pub(crate) tls: Option<axum_server::tls_rustls::RustlsConfig>,
    pub(crate) stop: CancellationToken,
    /// Somebody began to watch.
    pub(crate) watched: Notify,
    store: Arc<Store>,
    server: api::Server,
    started: f64,
}

/// Runs a daemon until it is asked to stop: by SIGINT, SIGTERM or the control API.
///
/// # Errors
/// When it cannot start; the message says what is in the way and what to do.
pub fn run(options: Options) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(16)
        .thread_keep_alive(Duration::from_secs(5))
        .enable_all()
        .build()
        .context("the daemon's threads")?;
    let outcome = runtime.block_on(start(options));
    runtime.shutdown_timeout(Duration::from_secs(2));
    outcome
}

async fn start(options: Options) -> anyhow::Result<()> {
    let root = options.home.map_or_else(crate::home::find, Ok)?;
    let config = options.config.map_or_else(|| Config::load(&root), Ok)?;
    let home = Home::prepare(&root, &config)?;
    let _lock = Lock::take(&home)?;
    let targets = config::targets(&home.root)?;
    let store = Arc::new(Store::open(&home.database())?);
    let events = Events::default();
    let artifacts = library::read_all(&home.library);
    let ledger =
        Ledger::open(store.clone(), events.clone(), config.serve.floor, config.history.jobs, artifacts)?;
    let journal = Journal::start(store.clone(), events.clone(), config.history.log_lines);
    let supervisor = Supervisor::new(config.workers.clone()).context("the worker supervisor")?;
    let socket = http::open_socket(&home.socket())?;
    let keys = Keys::of_home(&home.root);
    if !config.serve.address.is_loopback() && keys.all()?.is_empty() {
        anyhow::bail!(
            "serve.address = {} is reachable from other machines, and there is no API key: make one with `drophammer \
             key add NAME`",
            config.serve.address
        );
    }
    let tls = tls(&config, &home.root).await?;
    let tcp = listen(&config).await?;
    let protocol = if tls.is_some() { "https" } else { "http" };
    let server = api::Server {
        url: tcp.as_ref().and_then(|tcp| tcp.local_addr().ok()).map(|a| format!("{protocol}://{a}/v1")),
    };
    let capacity = crate::planning::capacity(&config);
    tracing::info!(home = %home.root.display(), socket = %home.socket().display(), server = server.url, "daemon started");
    let pipeline =
        Pipeline::new(Parts { config, home, targets, ledger, journal, events, supervisor, capacity });
    let stop = CancellationToken::new();
    let daemon = Arc::new(Daemon {
        serving: Serving::new(pipeline.clone()),
        hardware: Arc::new(Hardware::new(pipeline.home.root.clone(), pipeline.board.clone())),
        pipeline,
        responses: http::Memory::default(),
        keys,
        tls,
        stop: stop.clone(),
        watched: Notify::new(),
        store,
        server,
        started: now(),
    });
    daemon.live(socket, tcp, stop).await
}

impl Daemon {
    async fn live(
        self: Arc<Self>,
        socket: tokio::net::UnixListener,
        tcp: Option<TcpListener>,
        stop: CancellationToken,
    ) -> anyhow::Result<()> {
        let pipeline = self.pipeline.clone();
        let watching = watcher::watch(
            pipeline.home.models.clone(),
            pipeline.config.watch.clone(),
            pipeline.clone(),
            stop.clone(),
        );
        let working = tokio::spawn(pipeline.clone().run(stop.clone()));
        let watching = tokio::spawn(watching);
        let sampling = tokio::spawn(self.clone().sample_for_watchers());
        self.serving.load_pinned();
        let signals = tokio::spawn(wait_for_signal(stop.clone()));
        http::serve(self.clone(), socket, tcp, stop.clone()).await;
        stop.cancel();
        let _ = tokio::join!(working, watching);
        sampling.abort();
        signals.abort();
        pipeline.journal.flush().await;
        let _ = std::fs::remove_file(pipeline.home.socket());
        tracing::info!("daemon stopped");
        Ok(())
    }

    /// The daemon in brief.
    pub(crate) fn status(&self) -> api::Status {
        let home = &self.pipeline.home;
        api::Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            home: home.root.display().to_string(),
            models_dir: home.models.display().to_string(),
            library_dir: home.library.display().to_string(),
            server: self.server.clone(),
            jobs: self.pipeline.ledger.counts(),
            workers: self.pipeline.board.workers(),
            pid: std::process::id(),
            started: self.started,
        }
    }

    /// A job's log.
    ///
    /// # Errors
    /// The database's.
    pub(crate) async fn job_log(&self, job: u64) -> Result<api::Log, StoreError> {
        let keep = self.pipeline.config.history.log_lines;
        self.pipeline.journal.read(&self.store, job, keep).await
    }

    /// The machine now.
    pub(crate) async fn sample(&self) -> api::Hardware {
        self.watched.notify_one();
        let hardware = self.hardware.clone();
        tokio::task::spawn_blocking(move || hardware.sample()).await.unwrap_or_default()
    }

    /// Samples the machine as long as anybody listens, and sleeps without a timer otherwise.
    async fn sample_for_watchers(self: Arc<Self>) {
        let events = &self.pipeline.events;
        loop {
            self.watched.notified().await;
            let mut idle = 0;
            while idle < 20 {
                if events.listeners() > 0 {
                    idle = 0;
                    let hardware = self.hardware.clone();
                    if let Ok(sample) = tokio::task::spawn_blocking(move || hardware.sample()).await {
                        events.tell(|| api::Event::Hardware(Box::new(sample)));
                        if let Some(requests) = self.serving.new_requests() {
                            events.tell(|| api::Event::Requests(Box::new(requests)));
                        }
                        events.tell(|| api::Event::Status(Box::new(self.status())));
                    }
                } else {
                    idle += 1;
                }
                tokio::time::sleep(SAMPLE_PAUSE).await;
            }
            self.hardware.forget_if_unused();
        }
    }
}

/// What TCP is encrypted with, where the configuration names it.
async fn tls(
    config: &Config,
    home: &std::path::Path,
) -> anyhow::Result<Option<axum_server::tls_rustls::RustlsConfig>> {
    let Some(tls) = &config.serve.tls else { return Ok(None) };
    // Fails when a provider is chosen already, which is this one.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let (certificate, key) = (home.join(&tls.certificate), home.join(&tls.key));
    let read = axum_server::tls_rustls::RustlsConfig::from_pem_file(&certificate, &key).await;
    read.map(Some).with_context(|| {
        format!(
            "serve.tls: {} and {} are no certificate and key in PEM",
            certificate.display(),
            key.display()
        )
    })
}

async fn listen(config: &Config) -> anyhow::Result<Option<TcpListener>> {
    if !config.serve.enabled {
        return Ok(None);
    }
    let address = std::net::SocketAddr::new(config.serve.address, config.serve.port);
    let bound = TcpListener::bind(address).await;
    bound.map(Some).with_context(|| {
        format!(
            "{address} cannot be listened on; set another `port` (0: any) under [serve] in the configuration"
        )
    })
}

async fn wait_for_signal(stop: CancellationToken) {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut interrupt), Ok(mut terminate)) =
        (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        return;
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    tracing::info!("asked to stop");
    stop.cancel();
}
