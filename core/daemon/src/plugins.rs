//! The plugins as the daemon knows them: found at the start and on request, asked in workers, never opened here.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use drophammer_client::api;
use drophammer_engine::plan::{Offer, Target};
use tokio::sync::watch;

use crate::events::Events;
use crate::pipeline::Pipeline;
use crate::planning;
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

    /// What a plugin's last probe logged and printed.
    pub fn log(&self, id: &str) -> Option<api::Log> {
        self.catalog().get(id).map(|plugin| plugin.log.clone())
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

    /// The plugin that runs a format here: the wanted one if it can, else the most preferred one.
    pub async fn runner(&self, format: &str, wanted: Option<&str>) -> Option<Installed> {
        self.ready().await;
        let catalog = self.catalog();
        let able = catalog.runners(format);
        let chosen = able.iter().find(|plugin| Some(plugin.id().as_str()) == wanted).or(able.first());
        chosen.map(|plugin| (*plugin).clone())
    }

    /// What each plugin would make of a source, target by target.
    pub async fn offers(
        &self,
        pipeline: &Pipeline,
        source: &std::path::Path,
        targets: &[Target],
    ) -> Vec<Vec<Offer>> {
        self.ready().await;
        planning::offers(&self.catalog(), &pipeline.supervisor, &|id| pipeline.host_info(id), source, targets)
            .await
    }
}
