//! The plugins as the daemon knows them: found at the start and on request, asked in workers, never opened here.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use drophammer_client::api;
use drophammer_engine::plan::{Offer, Target};
use drophammer_sdk::{Goal, ProbeRequest};
use tokio::sync::watch;

use crate::events::Events;
use crate::pipeline::Pipeline;
use crate::workers::{Catalog, Installed};

/// The plugins.
#[derive(Debug)]
pub struct Plugins {
    places: Vec<PathBuf>,
    events: Events,
    catalog: Mutex<Arc<Catalog>>,
    probed: watch::Sender<bool>,
}

impl Plugins {
    /// Finds them; nothing is run.
    pub fn discover(places: &[PathBuf], events: Events) -> Self {
        let catalog = Mutex::new(Arc::new(Catalog::discover(places)));
        Self { places: places.to_vec(), events, catalog, probed: watch::Sender::new(false) }
    }

    /// The plugins as last known.
    pub fn catalog(&self) -> Arc<Catalog> {
        self.catalog.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Every plugin as the control API shows it.
    pub fn documents(&self) -> Vec<api::Plugin> {
        self.catalog().plugins().iter().map(Installed::document).collect()
    }

    /// Finds and asks all plugins anew.
    pub async fn probe(&self, pipeline: &Pipeline) {
        let mut catalog = Catalog::discover(&self.places);
        catalog.probe(&pipeline.supervisor, |id| pipeline.host_info(id)).await;
        let gone: Vec<String> = self
            .catalog()
            .plugins()
            .iter()
            .map(Installed::id)
            .filter(|id| catalog.get(id).is_none())
            .collect();
        for plugin in catalog.plugins() {
            let plugin = plugin.document();
            tracing::info!(id = plugin.id, state = %plugin.state, "plugin");
            self.events.tell(|| api::Event::Plugin(Box::new(plugin)));
        }
        for id in gone {
            self.events.tell(|| api::Event::PluginRemoved(id));
        }
        *self.catalog.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(catalog);
        self.probed.send_replace(true);
        pipeline.wake();
    }

    /// Waits until every plugin was asked once.
    pub async fn ready(&self) {
        // Fails only when the daemon ends.
        let _ = self.probed.subscribe().wait_for(|probed| *probed).await;
    }

    /// What each plugin would make of a source, target by target.
    pub async fn offers(
        &self,
        pipeline: &Pipeline,
        source: &std::path::Path,
        targets: &[Target],
    ) -> Vec<Vec<Offer>> {
        self.ready().await;
        let catalog = self.catalog();
        let asked = catalog.plugins().iter().map(|plugin| ask(pipeline, plugin, source, targets));
        let answers = futures::future::join_all(asked).await;
        (0..targets.len())
            .map(|target| {
                let offers = answers.iter().flatten();
                offers.filter(|(at, _)| *at == target).map(|(_, offer)| offer.clone()).collect()
            })
            .collect()
    }
}

/// One plugin's offers, each with the index of its target.
async fn ask(
    pipeline: &Pipeline,
    plugin: &Installed,
    source: &std::path::Path,
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
    let answer = plugin.probe(&pipeline.supervisor, pipeline.host_info(&manifest.id), request).await;
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
    Goal { format: target.format.clone(), scheme: target.scheme.clone(), options: target.options.clone() }
}
