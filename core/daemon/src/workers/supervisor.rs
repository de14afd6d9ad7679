//! Starting workers.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;

use drophammer_sdk::{HostInfo, Manifest};
use tokio::process::{Child, Command};
use tokio::sync::oneshot;

use super::failure::WorkerFailure;
use super::running::Running;
use super::settings::WorkerSettings;
use crate::worker::line::hand_over;
use crate::worker::protocol::{Assignment, Limits, Work};

/// Starts workers. Cheap to clone; when the last clone is gone, so are all workers.
#[derive(Debug, Clone)]
pub struct Supervisor {
    settings: Arc<WorkerSettings>,
    spawner: std::sync::mpsc::Sender<Spawn>,
}

/// What a worker is started for.
#[derive(Debug)]
pub struct Task {
    /// Directory of the plugin.
    pub plugin: PathBuf,
    /// What the plugin is told about its host.
    pub host: HostInfo,
    /// What the worker may use.
    pub limits: Limits,
    /// What to do.
    pub work: Work,
}

struct Spawn {
    command: Command,
    answer: oneshot::Sender<io::Result<Child>>,
}

impl Supervisor {
    /// A supervisor for the current Tokio runtime.
    ///
    /// # Errors
    /// When its thread cannot be started.
    ///
    /// # Panics
    /// Outside a Tokio runtime.
    pub fn new(settings: WorkerSettings) -> io::Result<Self> {
        // A worker dies with the *thread* that started it (PR_SET_PDEATHSIG), and the runtime's threads come and go:
        // all are started by one thread that lives as long as the supervisor.
        let (spawner, orders) = std::sync::mpsc::channel::<Spawn>();
        let runtime = tokio::runtime::Handle::current();
        std::thread::Builder::new().name("spawner".into()).spawn(move || {
            let _inside = runtime.enter();
            while let Ok(mut order) = orders.recv() {
                let _ = order.answer.send(order.command.spawn());
            }
        })?;
        Ok(Self { settings: Arc::new(settings), spawner })
    }

    /// The settings it was made with.
    pub fn settings(&self) -> &WorkerSettings {
        &self.settings
    }

    /// Starts a worker.
    ///
    /// # Errors
    /// When the plugin's manifest is refused or the process cannot be started.
    pub async fn start(&self, task: Task) -> Result<Running, WorkerFailure> {
        self.start_with(task, Vec::new()).await
    }

    /// Starts a worker that measures ([`Work::Measure`]) and a second one that lends it the reference
    /// ([`Work::Lend`]), in lockstep over a channel of their own. What is given is the first; the second ends with it.
    ///
    /// # Errors
    /// As for [`Supervisor::start`].
    pub async fn start_compared(&self, measuring: Task, lending: Task) -> Result<Running, WorkerFailure> {
        let (one, other) = UnixStream::pair()
            .map_err(|error| WorkerFailure::not_started(&measuring.plugin.display().to_string(), error))?;
        let lender = self.start_with(lending, vec![one.into()]).await?;
        let measurer = self.start_with(measuring, vec![other.into()]).await?;
        Ok(measurer.accompanied_by(lender))
    }

    /// Starts a worker that hosts a model ([`Work::Serve`]), and gives the channel on which it answers.
    ///
    /// # Errors
    /// As for [`Supervisor::start`].
    pub async fn start_serving(
        &self,
        task: Task,
    ) -> Result<(Running, tokio::net::UnixStream), WorkerFailure> {
        let plugin = task.plugin.display().to_string();
        let not_started = |error: io::Error| WorkerFailure::not_started(&plugin, error);
        let (ours, theirs) = UnixStream::pair().map_err(not_started)?;
        ours.set_nonblocking(true).map_err(not_started)?;
        let ours = tokio::net::UnixStream::from_std(ours).map_err(not_started)?;
        let running = self.start_with(task, vec![theirs.into()]).await?;
        Ok((running, ours))
    }

    /// Starts a worker that gets further descriptors, in an order its work knows.
    async fn start_with(&self, task: Task, descriptors: Vec<OwnedFd>) -> Result<Running, WorkerFailure> {
        let manifest =
            Manifest::read(&task.plugin).map_err(|error| WorkerFailure::refused(&task.plugin, error))?;
        let not_started = |error: io::Error| WorkerFailure::not_started(&manifest.id, error);
        let (ours, theirs) = UnixStream::pair().map_err(not_started)?;
        hand_over(&ours, &descriptors).map_err(not_started)?;
        drop(descriptors);
        let child = self.spawn(self.command(theirs)).await.map_err(not_started)?;
        let assignment =
            Assignment { plugin: task.plugin, host: task.host, limits: task.limits, work: task.work };
        Running::watch(child, ours, assignment, manifest.id.clone(), self.settings.clone())
            .map_err(not_started)
    }

    fn command(&self, socket: UnixStream) -> Command {
        let program = self.settings.program.clone().map_or_else(own_program, Ok);
        // A path that cannot be found makes the start fail with the system's own message.
        let mut command = Command::new(program.unwrap_or_else(|_| PathBuf::from("drophammer")));
        command
            .arg0("drophammer")
            .arg("worker")
            .stdin(OwnedFd::from(socket))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true);
        command
    }

    async fn spawn(&self, command: Command) -> io::Result<Child> {
        let gone = || io::Error::other("the spawner thread is gone");
        let (answer, child) = oneshot::channel();
        self.spawner.send(Spawn { command, answer }).map_err(|_| gone())?;
        child.await.map_err(|_| gone())?
    }
}

/// This very program, also after its file was replaced by an update.
fn own_program() -> io::Result<PathBuf> {
    if cfg!(target_os = "linux") { Ok(PathBuf::from("/proc/self/exe")) } else { std::env::current_exe() }
}
