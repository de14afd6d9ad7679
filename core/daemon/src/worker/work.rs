//! The work itself: opens the plugin and calls it.

use std::os::fd::OwnedFd;

use drophammer_sdk::host::Plugin;
use drophammer_sdk::{Backend, Result};

use super::line::WorkerJob;
use super::protocol::{Assignment, Outcome, Work};

/// Does what the assignment says. `handed` are the descriptors that came with it.
///
/// # Errors
/// The plugin's own.
pub(super) fn perform(assignment: Assignment, job: WorkerJob, _handed: Vec<OwnedFd>) -> Result<Outcome> {
    let plugin = Plugin::open(&assignment.plugin, &assignment.host)?;
    match assignment.work {
        Work::Probe(request) => plugin.probe(&request).map(Outcome::Probed),
        Work::Convert(request) => plugin.convert(&request, &job).map(Outcome::Forged),
        Work::Quantize(request) => plugin.quantize(&request, &job).map(Outcome::Forged),
    }
}
