//! Which models are loaded, and how they come and go.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use drophammer_client::api;
use tokio::sync::watch;

use super::hosted::Hosted;
use super::{Answers, Ask, Embedded, Prompt, ServeError, Traffic};
use crate::config::seconds;
use crate::ledger::Servable;
use crate::pipeline::Pipeline;
use crate::worker::protocol::{Limits, ServeOrder, Work};
use crate::workers::{Task, WorkerEvent};

/// Memory that a model takes beside its weights, roughly: context, logits, tokenizer.
const BESIDE_WEIGHTS: u64 = 256 << 20;

/// The loaded models.
#[derive(Debug)]
pub struct Serving {
    pipeline: Arc<Pipeline>,
    traffic: Arc<Traffic>,
    rooms: Mutex<HashMap<String, Arc<Room>>>,
}

/// A place for one model.
#[derive(Debug)]
struct Room {
    servable: Servable,
    state: watch::Sender<State>,
}

#[derive(Debug, Clone)]
enum State {
    Loading,
    Ready(Arc<Hosted>),
    Failed(String),
}

impl Serving {
    /// Nothing is loaded yet.
    pub fn new(pipeline: Arc<Pipeline>) -> Arc<Self> {
        Arc::new(Self { pipeline, traffic: Arc::default(), rooms: Mutex::default() })
    }

    fn rooms(&self) -> MutexGuard<'_, HashMap<String, Arc<Room>>> {
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
        let asked = async {
            let hosted = self.find(name).await?;
            visit.phase(api::RequestPhase::Queued);
            hosted.ask(ask).await
        };
        match asked.await {
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
        let embedded = async {
            let hosted = self.find(name).await?;
            visit.phase(api::RequestPhase::Prefill);
            let serve = &self.pipeline.config.serve;
            if hosted.in_hand() >= (serve.sequences + serve.queue) as usize {
                let message = format!("{} requests wait for this model", hosted.in_hand());
                return Err(ServeError::Busy { message, retry_after_seconds: 1 });
            }
            hosted.embed(texts, truncate).await
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

    async fn find(self: &Arc<Self>, name: &str) -> Result<Arc<Hosted>, ServeError> {
        self.load(self.named(name)?).await
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
        names.retain(|(_, found)| !found.is_source() || !catalog.runners(&found.format).is_empty());
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
        self.rooms().values().filter_map(use_of).collect()
    }

    /// Loads it, or waits for whoever loads it already.
    ///
    /// # Errors
    /// [`ServeError::CannotLoad`].
    async fn load(self: &Arc<Self>, servable: Servable) -> Result<Arc<Hosted>, ServeError> {
        let (id, name) = (servable.id.clone(), servable.api_name.clone());
        let cannot = |why: String| ServeError::CannotLoad { artifact: name.clone(), why };
        let room = self.enter(servable);
        let mut state = room.state.subscribe();
        let settled = state.wait_for(|state| !matches!(state, State::Loading)).await;
        match settled.as_deref() {
            Ok(State::Ready(hosted)) => Ok(hosted.clone()),
            Ok(State::Failed(why)) => {
                self.leave(&id, &room);
                Err(cannot(why.clone()))
            }
            Ok(State::Loading) | Err(_) => Err(cannot("it was unloaded".to_owned())),
        }
    }

    /// Its room; the first visitor has it loaded.
    fn enter(self: &Arc<Self>, servable: Servable) -> Arc<Room> {
        let mut rooms = self.rooms();
        let id = servable.id.clone();
        if let Some(room) = rooms.get(&id) {
            let gone = matches!(&*room.state.borrow(), State::Ready(hosted) if hosted.ended().is_some());
            if !gone {
                return room.clone();
            }
        }
        let room = Arc::new(Room { servable, state: watch::Sender::new(State::Loading) });
        rooms.insert(id, room.clone());
        drop(rooms);
        let (serving, entered) = (self.clone(), room.clone());
        tokio::spawn(async move { serving.furnish(&entered).await });
        self.tell();
        room
    }

    /// Loads what belongs into a room and watches over it until it goes.
    async fn furnish(self: Arc<Self>, room: &Arc<Room>) {
        self.make_space(&room.servable);
        let id = room.servable.id.clone();
        match self.start(&room.servable).await {
            Err(why) => {
                tracing::warn!(artifact = id, why, "a model cannot be loaded");
                room.state.send_replace(State::Failed(why));
                self.tell();
            }
            Ok((hosted, place)) => {
                tracing::info!(artifact = id, pid = hosted.pid, "a model is loaded");
                let ended = hosted.until_ended();
                room.state.send_replace(State::Ready(Arc::new(hosted)));
                self.tell();
                tokio::select! {
                    () = ended => {}
                    () = self.until_idle(room) => tracing::info!(artifact = id, "an idle model is unloaded"),
                }
                drop(place);
                self.leave(&id, room);
            }
        }
    }

    async fn start(&self, servable: &Servable) -> Result<(Hosted, crate::board::Place), String> {
        let plugin = self.pipeline.plugins.runner(&servable.format, servable.backend.as_deref()).await;
        let plugin = plugin.ok_or_else(|| {
            format!("no installed plugin runs {}; `drophammer plugin list` tells more", servable.format)
        })?;
        let serve = &self.pipeline.config.serve;
        let context = servable
            .identity
            .context_length
            .map_or(serve.context, |most| u32::try_from(most).unwrap_or(u32::MAX).min(serve.context));
        let mut order = ServeOrder::of(&servable.path, context, serve.sequences, serve.queue);
        order.load.device.clone_from(&servable.device);
        // An encoder reads every text in one batch.
        order.load.max_batch = servable.identity.encodes.then_some(context);
        order.vocabulary.clone_from(&servable.vocabulary);
        let limits = Limits { threads: self.pipeline.capacity.cores, ..Limits::default() };
        let host = self.pipeline.host_info(&plugin.id());
        let task = Task { plugin: plugin.directory.clone(), host, limits, work: Work::Serve(order) };
        let started = self.pipeline.supervisor.start_serving(task).await;
        let (running, channel) = started.map_err(|failure| failure.report().to_string())?;
        let place = self.pipeline.board.put(running.pid(), api::WorkerRole::Serve, &plugin.id(), |worker| {
            worker.model = Some(servable.model.clone());
            worker.artifact = Some(servable.id.clone());
            worker.threads = Some(limits.threads);
        });
        let name = servable.api_name.clone();
        let told = move |event: WorkerEvent| match event {
            WorkerEvent::Log(level, line) => tracing::info!(model = name, ?level, line, "plugin"),
            WorkerEvent::Output(_, line) => tracing::debug!(model = name, line, "printed"),
            WorkerEvent::Progress(_) => {}
        };
        let hosted = Hosted::wait(running, channel, told).await;
        Ok((hosted.map_err(|failure| failure.report().to_string())?, place))
    }

    /// Unloads models that nobody uses, those unused longest first, until another one fits.
    fn make_space(&self, newcomer: &Servable) {
        let needs = |servable: &Servable| servable.bytes.saturating_add(BESIDE_WEIGHTS);
        loop {
            let mut taken = needs(newcomer);
            let mut idle: Vec<(std::time::Instant, String, Arc<Room>)> = Vec::new();
            for (id, room) in self.rooms().iter() {
                if let State::Ready(hosted) = &*room.state.borrow() {
                    taken = taken.saturating_add(needs(&room.servable));
                    if hosted.in_hand() == 0 {
                        idle.push((hosted.used(), id.clone(), room.clone()));
                    }
                }
            }
            idle.sort_by_key(|(used, ..)| *used);
            let Some((_, id, room)) = idle.into_iter().next() else { return };
            if taken <= self.pipeline.capacity.memory {
                return;
            }
            self.leave(&id, &room);
        }
    }

    /// Waits until a loaded model was not used for the configured time.
    async fn until_idle(&self, room: &Room) {
        let idle = seconds(self.pipeline.config.serve.idle_seconds);
        if idle.is_zero() {
            return std::future::pending().await;
        }
        loop {
            let used = match &*room.state.borrow() {
                State::Ready(hosted) if hosted.in_hand() == 0 => hosted.used(),
                State::Ready(_) => std::time::Instant::now(),
                State::Loading | State::Failed(_) => return,
            };
            let left = idle.saturating_sub(used.elapsed());
            if left.is_zero() {
                return;
            }
            tokio::time::sleep(left.max(Duration::from_millis(100))).await;
        }
    }

    /// Empties a room, unless it is another's by now.
    fn leave(&self, id: &str, room: &Arc<Room>) {
        let mut rooms = self.rooms();
        if rooms.get(id).is_some_and(|now| Arc::ptr_eq(now, room)) {
            rooms.remove(id);
        }
        drop(rooms);
        room.state.send_replace(State::Failed("it was unloaded".to_owned()));
        self.tell();
    }

    /// Loads what has this id on somebody's order; it is loading when this returns.
    ///
    /// # Errors
    /// [`ServeError::NoSuchModel`].
    pub fn serve(self: &Arc<Self>, id: &str) -> Result<api::ServedModel, ServeError> {
        Ok(document(&self.enter(self.named(id)?)))
    }

    /// Unloads an artifact; false when it is not loaded.
    pub fn unload(&self, id: &str) -> bool {
        let room = self.rooms().get(id).cloned();
        room.map(|room| self.leave(id, &room)).is_some()
    }

    /// The loaded models.
    pub fn documents(&self) -> api::Served {
        let mut models: Vec<_> = self.rooms().values().map(|room| document(room)).collect();
        models.sort_by(|a, b| a.name.cmp(&b.name));
        api::Served { models }
    }

    fn tell(&self) {
        self.pipeline.events.tell(|| api::Event::Served(self.documents()));
    }
}

fn document(room: &Room) -> api::ServedModel {
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
        pinned: false,
        error: None,
    };
    match &*room.state.borrow() {
        State::Loading => {}
        State::Ready(hosted) => {
            document.state =
                if hosted.ended().is_some() { api::ServedState::Failed } else { api::ServedState::Ready };
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
