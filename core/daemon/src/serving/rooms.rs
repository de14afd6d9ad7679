//! What the loaded models are asked, and what is known of them.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use drophammer_client::api;
use tokio::sync::{Notify, mpsc};

use super::hosted::Untaken;
use super::pins::Pins;
use super::room::{Room, Rooms, State};
use super::traffic::Visit;
use super::wire::Call;
use super::{Answers, Ask, Embedded, Prompt, Said, ServeError, Traffic};
use crate::ledger::Servable;
use crate::pipeline::Pipeline;

/// The loaded models.
#[derive(Debug)]
pub struct Serving {
    pub(super) pipeline: Arc<Pipeline>,
    pub(super) pins: Pins,
    /// Memory of all loaded models together, bytes.
    pub(super) budget: u64,
    /// Who needs memory waits for it in turn.
    pub(super) turn: tokio::sync::Mutex<()>,
    /// A model's memory is free again.
    pub(super) vacated: Notify,
    traffic: Arc<Traffic>,
    rooms: Mutex<Rooms>,
}

impl Serving {
    /// Nothing is loaded yet.
    pub fn new(pipeline: Arc<Pipeline>) -> Arc<Self> {
        let config = &pipeline.config;
        Arc::new(Self {
            pins: Pins::of_home(&pipeline.home.root, &config.serve.pinned),
            budget: crate::planning::serving_memory(config),
            turn: tokio::sync::Mutex::default(),
            vacated: Notify::new(),
            traffic: Arc::default(),
            rooms: Mutex::default(),
            pipeline,
        })
    }

    pub(super) fn rooms(&self) -> MutexGuard<'_, Rooms> {
        self.rooms.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks the model of this name, loading it if need be. `id` and `route` name the request to those who watch.
    ///
    /// # Errors
    /// [`ServeError`].
    pub async fn ask(
        self: &Arc<Self>,
        id: &str,
        route: &'static str,
        name: &str,
        ask: Ask,
    ) -> Result<Answers, ServeError> {
        let visit = self.traffic.arrive(id, name, route);
        let choices = ask.choices;
        let call = |id| Call::Ask { id, ask: Box::new(ask.clone()) };
        match self.taken(name, &visit, choices.max(1), call).await {
            Ok(said) => Ok(Answers::new(said, visit, choices)),
            Err(error) => {
                visit.not_taken(matches!(error, ServeError::Busy { .. }));
                Err(error)
            }
        }
    }

    /// Has the model of this name embed texts, loading it if need be.
    ///
    /// # Errors
    /// [`ServeError`].
    pub async fn embed(
        self: &Arc<Self>,
        id: &str,
        route: &'static str,
        name: &str,
        texts: Vec<Prompt>,
        truncate: bool,
    ) -> Result<Embedded, ServeError> {
        let visit = self.traffic.arrive(id, name, route);
        let call = |id| Call::Embed { id, texts: texts.clone(), truncate };
        let embedded = async {
            let mut said = self.taken(name, &visit, 1, call).await?;
            visit.phase(api::RequestPhase::Prefill);
            match said.recv().await {
                Some(Said::Embedded(embedded)) => Ok(embedded),
                Some(Said::Failed(error)) => Err(error),
                _ => Err(ServeError::lost()),
            }
        };
        match embedded.await {
            Ok(embedded) => {
                visit.embedded(embedded.tokens);
                Ok(embedded)
            }
            Err(error) => {
                visit.not_taken(matches!(error, ServeError::Busy { .. }));
                Err(error)
            }
        }
    }

    /// Has a worker take a request; another one, when the first died before it took it.
    async fn taken(
        self: &Arc<Self>,
        name: &str,
        visit: &Visit,
        choices: u32,
        call: impl Fn(u64) -> Call,
    ) -> Result<mpsc::UnboundedReceiver<Said>, ServeError> {
        let mut again = true;
        loop {
            let guest = self.load(self.named(name)?).await?;
            visit.phase(api::RequestPhase::Queued);
            match guest.call(choices, &call).await {
                Ok(said) => return Ok(said),
                Err(Untaken::Refused(error)) => return Err(error),
                Err(Untaken::Gone(why)) if std::mem::take(&mut again) => {
                    tracing::info!(model = name, why, "a request goes to another worker");
                    visit.phase(api::RequestPhase::Loading);
                }
                Err(Untaken::Gone(why)) => return Err(ServeError::Broke(why)),
            }
        }
    }

    /// What a request for `name` reaches.
    ///
    /// # Errors
    /// [`ServeError::NoSuchModel`].
    pub fn named(&self, name: &str) -> Result<Servable, ServeError> {
        self.pipeline.ledger.servable(name).ok_or_else(|| ServeError::NoSuchModel {
            name: name.to_owned(),
            known: self.names().into_iter().map(|(name, _)| name).collect(),
        })
    }

    /// Every name that can be asked for, and what it reaches: artifacts, and sources that some plugin here can run.
    pub fn names(&self) -> Vec<(String, Servable)> {
        let catalog = self.pipeline.plugins.catalog();
        let mut names = self.pipeline.ledger.servables();
        names.retain(|(_, found)| !found.is_source || !catalog.runners(&found.format).is_empty());
        names
    }

    /// Live requests and figures.
    pub fn requests(&self) -> api::Requests {
        self.traffic.document(self.batches())
    }

    /// The same, if there is anything new.
    pub fn new_requests(&self) -> Option<api::Requests> {
        self.traffic.news(self.batches())
    }

    fn batches(&self) -> Vec<api::BatchUse> {
        let serve = &self.pipeline.config.serve;
        let use_of = |room: &Arc<Room>| {
            let State::Ready(hosted) = &*room.state.borrow() else { return None };
            let in_hand = hosted.in_hand() as u32;
            Some(api::BatchUse {
                model: room.servable.api_name.clone(),
                running: in_hand.min(serve.sequences),
                capacity: serve.sequences,
                queued: in_hand.saturating_sub(serve.sequences),
                queue_capacity: serve.queue,
            })
        };
        self.rooms().all().filter_map(use_of).collect()
    }

    /// Loads what has this name on somebody's order; it is loading when this returns.
    ///
    /// # Errors
    /// [`ServeError::NoSuchModel`] and [`ServeError::NoRoom`].
    pub fn serve(self: &Arc<Self>, name: &str) -> Result<api::ServedModel, ServeError> {
        let guest = self.enter(self.named(name)?)?;
        Ok(self.document(guest.room()))
    }

    /// Unloads an artifact once it has answered what it was asked; false when it is not loaded.
    pub fn unload(&self, id: &str) -> bool {
        let room = self.rooms().open(id);
        room.map(|room| self.retire(&room)).is_some()
    }

    /// Loads what has this name and keeps it loaded, over restarts of the daemon too.
    ///
    /// # Errors
    /// [`ServeError`]; [`ServeError::Broke`] when it cannot be written down.
    pub fn pin(self: &Arc<Self>, name: &str) -> Result<api::ServedModel, ServeError> {
        let servable = self.named(name)?;
        let guest = self.enter(servable)?;
        let pinned = self.pins.add(&guest.room().servable.api_name);
        pinned.map_err(|error| ServeError::Broke(format!("{error:#}")))?;
        self.tell();
        Ok(self.document(guest.room()))
    }

    /// Takes a pin back; it stays loaded as long as nobody needs its memory. False when the configuration pins it.
    ///
    /// # Errors
    /// [`ServeError::NoSuchModel`]; [`ServeError::Broke`] when it cannot be written down.
    pub fn unpin(&self, name: &str) -> Result<bool, ServeError> {
        let servable = self.named(name)?;
        let names = [servable.api_name.as_str(), servable.id.as_str(), name];
        self.pins.remove(&names).map_err(|error| ServeError::Broke(format!("{error:#}")))?;
        self.tell();
        Ok(!self.is_pinned(&servable))
    }

    /// Loads every pinned model there is.
    pub fn load_pinned(self: &Arc<Self>) {
        for name in self.pins.names() {
            if let Err(error) = self.named(&name).and_then(|servable| self.enter(servable)) {
                tracing::warn!(model = name, %error, "a pinned model is not loaded");
            }
        }
    }

    /// Whether a pinned name means it.
    pub(super) fn is_pinned(&self, servable: &Servable) -> bool {
        self.pins.names().iter().any(|name| {
            [&servable.id, &servable.api_name].contains(&name)
                // A bare name means whatever is best now.
                || *name == servable.model
                    && self.pipeline.ledger.servable(name).is_some_and(|best| best.id == servable.id)
        })
    }

    /// The loaded models.
    pub fn documents(&self) -> api::Served {
        let rooms: Vec<Arc<Room>> = self.rooms().shown();
        let mut models: Vec<_> = rooms.iter().map(|room| self.document(room)).collect();
        models.sort_by(|a, b| a.name.cmp(&b.name));
        api::Served { models }
    }

    pub(super) fn tell(&self) {
        self.pipeline.events.tell(|| api::Event::Served(self.documents()));
    }

    fn document(&self, room: &Room) -> api::ServedModel {
        let servable = &room.servable;
        let mut document = api::ServedModel {
            name: servable.api_name.clone(),
            model: servable.model.clone(),
            artifact: servable.id.clone(),
            backend: servable.backend.clone().unwrap_or_default(),
            state: api::ServedState::Loading,
            pid: None,
            context_length: None,
            sequences: 0,
            pinned: self.is_pinned(servable),
            error: None,
        };
        match &*room.state.borrow() {
            State::Loading => {}
            State::Ready(hosted) => {
                document.state = match hosted.ended() {
                    Some(_) => api::ServedState::Failed,
                    None if room.leaves() => api::ServedState::Draining,
                    None => api::ServedState::Ready,
                };
                document.pid = Some(hosted.pid);
                document.backend.clone_from(&hosted.backend);
                document.context_length = Some(hosted.context.into());
                document.sequences = hosted.in_hand() as u32;
            }
            State::Failed(why) => {
                document.state = api::ServedState::Failed;
                document.error = Some(api::ErrorReport::new("cannot_load", why.clone()));
            }
        }
        document
    }
}
