//! Commands about the running daemon, through its control API.

use std::path::{Path, PathBuf};
use std::time::Duration;

use drophammer_client::api::{self, AddModel, ForgeModel};
use drophammer_client::{Client, ClientError, Endpoint};
use drophammer_daemon::lock;

use super::picture::{self, Point};
use super::table::{columns, maybe, size};
use super::{answer, print};
use crate::arguments::{Daemon, Models, Query};
use crate::failure::{Exit, Failure, Result};

/// How long a daemon may take to stop: it answers what it was asked first.
const STOPPING: Duration = Duration::from_secs(30);
/// How often it is looked for meanwhile.
const EVERY: Duration = Duration::from_millis(100);

/// Runs the daemon in the foreground; its log goes to standard error.
pub(super) fn run() -> Result<()> {
    let filter = tracing_subscriber::EnvFilter::try_from_env("DROPHAMMER_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    let colour = std::io::IsTerminal::is_terminal(&std::io::stderr());
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colour).with_writer(std::io::stderr).init();
    Ok(drophammer_daemon::run(drophammer_daemon::Options::default())?)
}

/// A client of the daemon that is meant.
pub(super) fn client(daemon: Daemon) -> Result<Client> {
    Ok(Client::new(endpoint(daemon)?))
}

pub(super) fn endpoint(daemon: Daemon) -> Result<Endpoint> {
    match daemon.connect {
        Some(endpoint) => Ok(endpoint),
        None => Ok(Endpoint::in_home(&drophammer_daemon::home::find()?)),
    }
}

/// Stops the daemon and waits until it is gone: one of this machine until it gives its home back, which it does when its workers have ended.
pub(super) async fn stop(daemon: Daemon) -> Result<()> {
    let home = if daemon.connect.is_none() { Some(drophammer_daemon::home::find()?) } else { None };
    let client = client(daemon)?;
    let pid = client.status().await?.pid;
    client.shutdown().await?;
    for _ in 0..STOPPING.as_millis() / EVERY.as_millis() {
        let answers = !matches!(client.status().await, Err(ClientError::NoDaemon { .. }));
        if !answers && !home.as_deref().is_some_and(lock::is_held) {
            print(&format!("the daemon (process {pid}) has stopped\n"));
            return Ok(());
        }
        tokio::time::sleep(EVERY).await;
    }
    let seconds = STOPPING.as_secs();
    let message = format!("the daemon (process {pid}) was asked to stop and still runs after {seconds} s");
    Err(Failure::new(Exit::Failed, message, "its log says what it waits for; jobs survive if it is killed"))
}

pub(super) async fn status(query: Query) -> Result<()> {
    answer(query.output.json, &client(query.daemon)?.status().await?, |status| {
        let jobs = &status.jobs;
        format!(
            "drophammer {} (process {})\nhome     {}\nmodels   {}\nlibrary  {}\nserver   {}\njobs     {} queued, {} running, \
             {} succeeded, {} failed, {} blocked\nworkers  {}\n",
            status.version,
            status.pid,
            status.home,
            status.models_dir,
            status.library_dir,
            status.server.url.as_deref().unwrap_or("off"),
            jobs.queued,
            jobs.running,
            jobs.succeeded,
            jobs.failed,
            jobs.blocked,
            status.workers.len()
        )
    })
}

pub(super) async fn jobs(query: Query) -> Result<()> {
    answer(query.output.json, &client(query.daemon)?.jobs().await?, |jobs| {
        let rows: Vec<_> = jobs.jobs.iter().map(job_row).collect();
        let mut text = columns(&["job", "model", "target", "state", "stage", "done", "seconds"], &rows);
        for (job, error) in jobs.jobs.iter().filter_map(|job| Some((job, job.error.as_ref()?))) {
            text += &format!("\njob {}: {error}\n", job.id);
        }
        text
    })
}

fn job_row(job: &api::Job) -> Vec<String> {
    vec![
        job.id.clone(),
        job.model.clone(),
        job.target.clone().unwrap_or_default(),
        job.state.to_string(),
        job.stage.to_string(),
        format!("{:.0}%", job.progress * 100.0),
        format!("{:.1}", job.seconds),
    ]
}

pub(super) async fn models(arguments: Models) -> Result<()> {
    let Models { svg, query } = arguments;
    let found = client(query.daemon)?.models().await?;
    if let Some(path) = &svg {
        draw(&found, path)?;
    }
    answer(query.output.json, &found, |models| {
        let mut rows = Vec::new();
        for model in &models.models {
            rows.push(vec![model.name.clone(), model.state.to_string(), size(model.source.bytes)]);
            rows.extend(model.artifacts.iter().map(|artifact| artifact_row(model, artifact)));
        }
        let titles = [
            "model",
            "state",
            "size",
            "bits",
            "perplexity",
            "KL",
            "top-1",
            "prefill t/s",
            "decode t/s",
            "memory",
        ];
        let mut text = columns(&titles, &rows);
        for (model, what) in models.models.iter().filter_map(|model| Some((model, model.waits_for.as_ref()?)))
        {
            text += &format!("\n{} waits: {what}\n", model.name);
        }
        for (model, error) in models.models.iter().filter_map(|model| Some((model, model.error.as_ref()?))) {
            text += &format!("\n{}: {error}\n", model.name);
        }
        text
    })
}

/// Sizes against divergences, for every artifact that was compared with its source.
fn draw(models: &api::Models, path: &Path) -> Result<()> {
    let points: Vec<Point<'_>> = models
        .models
        .iter()
        .flat_map(|model| model.artifacts.iter().map(move |artifact| (model, artifact)))
        .filter_map(|(model, artifact)| {
            let label = format!("{} {}", artifact.format, artifact.scheme);
            let kl = artifact.measurements.kl_mean?;
            Some(Point { model: &model.name, label, bytes: artifact.bytes, kl })
        })
        .collect();
    let svg = picture::size_against_kl(&points).ok_or_else(|| {
        Failure::new(Exit::Failed, "no artifact has been measured yet", "wait until a job has measured one")
    })?;
    std::fs::write(path, svg).map_err(|error| Failure::io(path, &error))
}

fn artifact_row(model: &api::ModelEntry, artifact: &api::Artifact) -> Vec<String> {
    let measured = &artifact.measurements;
    let source = if model.is_source(artifact) { " (source)" } else { "" };
    vec![
        format!("  {} {}{source}", artifact.format, artifact.scheme),
        if artifact.best { "best".to_owned() } else { String::new() },
        size(artifact.bytes),
        maybe(artifact.bits_per_weight, 2),
        maybe(measured.perplexity, 3),
        maybe(measured.kl_mean, 5),
        maybe(measured.top1.map(|top1| top1 * 100.0), 2),
        maybe(measured.prefill_tps, 1),
        maybe(measured.decode_tps, 1),
        measured.peak_memory_bytes.map_or_else(|| "–".to_owned(), size),
    ]
}

pub(super) async fn plugins(query: Query) -> Result<()> {
    answer(query.output.json, &client(query.daemon)?.plugins().await?, |plugins| {
        super::plugin::table(&plugins.plugins)
    })
}

pub(super) async fn devices(query: Query) -> Result<()> {
    let plugins = client(query.daemon)?.plugins().await?.plugins;
    let of = |plugin: api::Plugin| {
        plugin.devices.into_iter().map(move |device| api::PluginDevice { plugin: plugin.id.clone(), device })
    };
    let devices = api::Devices { devices: plugins.into_iter().flat_map(of).collect() };
    answer(query.output.json, &devices, |devices| {
        let row = |entry: &api::PluginDevice| {
            let device = &entry.device;
            vec![
                entry.plugin.clone(),
                device.id.clone(),
                device.kind.to_string(),
                device.name.clone(),
                device.memory_bytes.map_or_else(|| "–".to_owned(), size),
                if device.emulated { "emulated".to_owned() } else { String::new() },
            ]
        };
        let rows: Vec<_> = devices.devices.iter().map(row).collect();
        columns(&["plugin", "device", "kind", "name", "memory", ""], &rows)
    })
}

pub(super) async fn add(path: PathBuf, name: Option<String>, daemon: Daemon) -> Result<()> {
    let path = std::path::absolute(&path).map_err(|error| Failure::io(&path, &error))?;
    let add = AddModel { path: path.display().to_string(), name };
    let model = client(daemon)?.add_model(&add).await?;
    print(&format!("{} is {}\n", model.name, model.state));
    Ok(())
}

pub(super) async fn forge(model: String, targets: Vec<String>, daemon: Daemon) -> Result<()> {
    let jobs = client(daemon)?.forge_model(&model, &ForgeModel { targets }).await?;
    for job in &jobs.jobs {
        let target = job.target.as_deref().unwrap_or_default();
        print(&format!("job {}: {} {target} is {}\n", job.id, job.model, job.state));
    }
    Ok(())
}

pub(super) async fn cancel(job: String, daemon: Daemon) -> Result<()> {
    let job = client(daemon)?.cancel_job(&job).await?;
    print(&format!("job {} is {}\n", job.id, job.state));
    Ok(())
}

pub(super) async fn retry(job: String, daemon: Daemon) -> Result<()> {
    let job = client(daemon)?.retry_job(&job).await?;
    print(&format!("job {} is {}\n", job.id, job.state));
    Ok(())
}
