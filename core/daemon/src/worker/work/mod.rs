//! The work itself: opens the plugin and calls it.

mod calibrate;
mod embed;
mod logits;
mod measure;
mod products;
mod serve;

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use drophammer_sdk::host::Plugin;
use drophammer_sdk::{Backend, BackendError, ErrorCode, LoadRequest, Result, Session};

use super::lending;
use super::line::WorkerJob;
use super::protocol::{Assignment, Outcome, Work};

/// Does what the assignment says. `handed` are the descriptors that came with it.
///
/// # Errors
/// The plugin's own, and those of the files the work reads and writes.
pub(super) fn perform(assignment: Assignment, job: WorkerJob, handed: Vec<OwnedFd>) -> Result<Outcome> {
    let plugin = Plugin::open(&assignment.plugin, &assignment.host)?;
    let mut channels = handed.into_iter().map(UnixStream::from);
    match assignment.work {
        Work::Probe(request) => plugin.probe(&request).map(Outcome::Probed),
        Work::Convert(request) => plugin.convert(&request, &job).map(Outcome::Forged),
        Work::Quantize(request) => plugin.quantize(&request, &job).map(Outcome::Forged),
        Work::Measure(order) => {
            measure::quality(&plugin, &order, &job, channels.next()).map(Outcome::Measured)
        }
        Work::Lend(request) => {
            let mut session = load(&plugin, &request, &job)?;
            let mut channel = channels.next().ok_or_else(|| {
                BackendError::new(ErrorCode::InvalidRequest, "a lending worker got no channel")
            })?;
            lending::lend(session.as_mut(), &mut channel).map(|()| Outcome::Lent)
        }
        Work::Calibrate(order) => calibrate::calibrate(&plugin, &order, &job).map(Outcome::Calibrated),
        Work::Bench(order) => measure::speed(&plugin, &order, &job).map(Outcome::Benched),
        Work::Profile(order) => measure::profile(&plugin, &order, &job).map(Outcome::Profiled),
        Work::Serve(order) => {
            let channel = channels.next().ok_or_else(|| {
                BackendError::new(ErrorCode::InvalidRequest, "a serving worker got no channel")
            })?;
            serve::serve(&plugin, &order, &job, channel).map(|()| Outcome::Served)
        }
        Work::Logits(order) => logits::write(&plugin, &order, &job).map(|()| Outcome::Written),
    }
}

fn load(plugin: &Plugin, request: &LoadRequest, job: &WorkerJob) -> Result<Box<dyn Session>> {
    plugin.load(request, Box::new(job.clone()))
}

/// A failure to read or write a file that is not the plugin's.
fn io(path: &std::path::Path, error: &std::io::Error) -> BackendError {
    BackendError::new(ErrorCode::Failed, format!("{}: {error}", path.display()))
        .with_help("check the path, its permissions and the free disk space")
}

/// A failure of a reader or writer of files.
fn format(error: drophammer_formats::Error) -> BackendError {
    use drophammer_formats::Error;
    let code = match &error {
        Error::NotAModel { .. } | Error::Pickle { .. } | Error::Ambiguous { .. } => {
            ErrorCode::UnsupportedInput
        }
        Error::Io { .. } => ErrorCode::Failed,
        _ => ErrorCode::InvalidInput,
    };
    BackendError::new(code, error.to_string()).with_help(error.help())
}
