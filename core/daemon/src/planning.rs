//! What could be made of a source here: asked of the plugins, decided by `drophammer_engine`. For the daemon and for
//! commands that need none.

use std::path::Path;

use drophammer_client::api::{self, ErrorReport};
use drophammer_engine::admission::Resources;
use drophammer_engine::plan::{Machine, Offer, Planned, Target, plan};
use drophammer_sdk::{Goal, HostInfo, ProbeRequest};

use crate::config::Config;
use crate::hardware::{free_disk, total_memory};
use crate::workers::{Catalog, Installed, Supervisor};

/// Memory a worker takes whatever it does.
const WORKER_MEMORY: u64 = 64 << 20;

/// What jobs may take together; disk is looked up when it is needed.
pub fn capacity(config: &Config) -> Resources {
    let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get() as u32);
    let wanted = &config.limits;
    Resources {
        memory: if wanted.memory_bytes == 0 { total_memory() / 10 * 8 } else { wanted.memory_bytes },
        cores: if wanted.cores == 0 { cores } else { wanted.cores },
        disk: 0,
    }
}

/// Memory that all loaded models may take together.
pub fn serving_memory(config: &Config) -> u64 {
    let wanted = config.serve.memory_bytes;
    if wanted == 0 { total_memory() / 10 * 6 } else { wanted }
}

/// What the machine lets one job take, of all that jobs may take together, with results at `place`.
pub fn machine(config: &Config, capacity: Resources, place: &Path) -> Machine {
    let wanted = config.limits.cores_per_job;
    let free = free_disk(place).unwrap_or(u64::MAX).saturating_sub(config.limits.disk_reserve_bytes);
    Machine {
        capacity: Resources { disk: free, ..capacity },
        cores_per_job: if wanted == 0 { capacity.cores.min(8) } else { wanted },
        worker_memory: WORKER_MEMORY,
    }
}

/// What a path is.
///
/// # Errors
/// Precisely why nothing can be made of it.
pub fn identify(path: &Path) -> Result<drophammer_engine::identify::Identity, ErrorReport> {
    crate::facts::identify(path)
}

/// What each probed plugin would make of a source, target by target.
pub async fn offers(
    catalog: &Catalog,
    supervisor: &Supervisor,
    host: &impl Fn(&str) -> HostInfo,
    source: &Path,
    targets: &[Target],
) -> Vec<Vec<Offer>> {
    let asked =
        catalog.plugins().iter().map(|plugin| ask(supervisor, host(&plugin.id()), plugin, source, targets));
    let answers = futures::future::join_all(asked).await;
    let of = |target: usize| {
        let offers = answers.iter().flatten();
        offers.filter(|(at, _)| *at == target).map(|(_, offer)| offer.clone()).collect()
    };
    (0..targets.len()).map(of).collect()
}

/// Plans each target for a source at `path`, with results at `place`.
///
/// # Errors
/// Precisely why nothing can be made of the source.
pub async fn report(
    config: &Config,
    catalog: &Catalog,
    supervisor: &Supervisor,
    host: &impl Fn(&str) -> HostInfo,
    path: &Path,
    place: &Path,
    targets: &[Target],
) -> Result<api::PlanReport, ErrorReport> {
    let identity = identify(path)?;
    let offers = offers(catalog, supervisor, host, path, targets).await;
    let machine = machine(config, capacity(config), place);
    let planned =
        targets.iter().zip(&offers).map(|(target, offers)| plan(&identity, target, offers, &machine));
    Ok(api::PlanReport {
        source: crate::ledger::source_info(path.display().to_string(), Some(&identity), identity.bytes),
        targets: planned.map(document).collect(),
    })
}

/// A planned target as the control API shows it.
pub fn document(planned: Planned) -> api::PlanTarget {
    let known = |number: u64| Some(number).filter(|number| *number > 0);
    api::PlanTarget {
        name: planned.target.name,
        backend: planned.backend,
        device: planned.target.device,
        format: planned.target.format,
        scheme: planned.target.scheme,
        supported: planned.supported,
        reason: Some(planned.reasons.join("; ")).filter(|reasons| !reasons.is_empty()),
        steps: planned.steps,
        bytes: known(planned.bytes),
        peak_memory_bytes: known(planned.needs.memory),
        seconds: planned.supported.then_some(planned.seconds),
    }
}

/// One plugin's offers, each with the index of its target.
async fn ask(
    supervisor: &Supervisor,
    host: HostInfo,
    plugin: &Installed,
    source: &Path,
    targets: &[Target],
) -> Vec<(usize, Offer)> {
    let (Ok(manifest), Some(Ok(report))) = (&plugin.manifest, &plugin.report) else { return Vec::new() };
    let makes = |target: &Target| {
        report.formats.iter().any(|known| known.make && known.format == target.format)
            && target.backend.as_ref().is_none_or(|wanted| *wanted == manifest.id)
    };
    let wanted: Vec<usize> = (0..targets.len()).filter(|&at| makes(&targets[at])).collect();
    if wanted.is_empty() {
        return Vec::new();
    }
    let goals = wanted.iter().map(|&at| goal(&targets[at])).collect();
    let request = ProbeRequest { source: Some(source.to_owned()), goals };
    let answer = plugin.probe(supervisor, host, request).await;
    let none = |reason: String, help: String| Offer {
        backend: manifest.id.clone(),
        rank: manifest.rank,
        reason: Some(reason),
        help: Some(help).filter(|help| !help.is_empty()),
        ..Offer::default()
    };
    match answer {
        None => Vec::new(),
        Some(Err(failure)) => {
            wanted.iter().map(|&at| (at, none(failure.message(), failure.help()))).collect()
        }
        Some(Ok(report)) => {
            let offer = |estimate: drophammer_sdk::Estimate| Offer {
                supported: estimate.supported,
                steps: estimate.steps,
                bytes: estimate.bytes,
                peak_memory: estimate.peak_memory_bytes,
                seconds: estimate.seconds,
                reason: estimate.reason,
                help: estimate.help,
                ..none(String::new(), String::new())
            };
            wanted.into_iter().zip(report.estimates.into_iter().map(offer)).collect()
        }
    }
}

/// A target as a plugin is asked for it.
pub(crate) fn goal(target: &Target) -> Goal {
    let mut options = target.options.clone();
    if target.calibrate {
        options.insert("calibrated".to_owned(), true.into());
    }
    Goal { format: target.format.clone(), scheme: target.scheme.clone(), options }
}
