//! A place for one model, from its first visitor until its memory is free again.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use drophammer_client::api;
use drophammer_engine::residence::{Tenant, Verdict, judge};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::hosted::{Hosted, Untaken};
use super::rooms::Serving;
use super::wire::Call;
use super::{Said, ServeError};
use crate::config::seconds;
use crate::hardware::resident_memory;
use crate::ledger::Servable;
use crate::worker::protocol::{Limits, ServeOrder, Work};
use crate::workers::{Task, WorkerEvent};

/// Memory that a model may take beside its weights, roughly: contexts of several sequences, logits, tokenizer.
const BESIDE_WEIGHTS: u64 = 256 << 20;
/// How often a model that is to leave is looked at.
const GLANCE: Duration = Duration::from_millis(20);
/// How long nobody looks at a model that stays.
const LONG: Duration = Duration::from_hours(24);

/// A place for one model.
#[derive(Debug)]
pub(super) struct Room {
    pub(super) servable: Servable,
    pub(super) state: watch::Sender<State>,
    /// Who is about to ask it something.
    guests: AtomicUsize,
    /// It is to go, once it has answered what it was asked.
    leave: CancellationToken,
    /// It counts against the memory of served models.
    housed: AtomicBool,
}

#[derive(Debug, Clone)]
pub(super) enum State {
    Loading,
    Ready(Arc<Hosted>),
    Failed(String),
}

impl Room {
    /// Whether somebody waits for its answer.
    fn is_busy(&self) -> bool {
        let in_hand = match &*self.state.borrow() {
            State::Ready(hosted) => hosted.in_hand(),
            State::Loading | State::Failed(_) => 0,
        };
        in_hand > 0 || self.guests.load(Ordering::Acquire) > 0
    }

    fn used(&self) -> Instant {
        match &*self.state.borrow() {
            State::Ready(hosted) => hosted.used(),
            State::Loading | State::Failed(_) => Instant::now(),
        }
    }

    pub(super) fn leaves(&self) -> bool {
        self.leave.is_cancelled()
    }

    /// Whether nothing can be asked of it any more.
    fn is_over(&self) -> bool {
        match &*self.state.borrow() {
            State::Loading => false,
            State::Ready(hosted) => hosted.ended().is_some(),
            State::Failed(_) => true,
        }
    }

    /// Memory it takes: what its worker has by now, but at least what is expected of it. Weights may take more than their
    /// files once a backend has laid them out, as was seen when they were measured.
    fn bytes(&self) -> u64 {
        let weights = self.servable.bytes.max(self.servable.peak_memory.unwrap_or(0));
        let taken = match &*self.state.borrow() {
            State::Ready(hosted) => resident_memory(hosted.pid),
            State::Loading | State::Failed(_) => None,
        };
        weights.saturating_add(BESIDE_WEIGHTS).max(taken.unwrap_or(0))
    }
}

/// Somebody who is about to ask a model something: as long as it is held, the model stays.
#[derive(Debug)]
pub(super) struct Guest {
    room: Arc<Room>,
    /// Requests that one model may have in hand.
    most: usize,
}

impl Guest {
    fn of(room: Arc<Room>, most: usize) -> Self {
        room.guests.fetch_add(1, Ordering::AcqRel);
        Self { room, most }
    }

    pub(super) fn room(&self) -> &Room {
        &self.room
    }

    /// Has the loaded model take a request.
    pub(super) async fn call(
        &self,
        choices: u32,
        call: impl FnOnce(u64) -> Call,
    ) -> Result<mpsc::UnboundedReceiver<Said>, Untaken> {
        let hosted = match &*self.room.state.borrow() {
            State::Ready(hosted) => hosted.clone(),
            State::Failed(why) => return Err(Untaken::Gone(why.clone())),
            State::Loading => return Err(Untaken::Gone("it is not loaded".to_owned())),
        };
        let (waiting, most) = (hosted.in_hand(), self.most);
        if waiting >= most {
            let message = format!("{waiting} requests wait for this model");
            return Err(Untaken::Refused(ServeError::Busy { message, retry_after_seconds: 1 }));
        }
        hosted.call(choices, call).await
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.room.guests.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Every room.
#[derive(Debug, Default)]
pub(super) struct Rooms {
    /// Those that take guests, by what is in them.
    open: HashMap<String, Arc<Room>>,
    /// Those that do not any more, until their memory is free.
    leaving: Vec<Arc<Room>>,
}

impl Rooms {
    /// Every room.
    pub(super) fn all(&self) -> impl Iterator<Item = &Arc<Room>> {
        self.open.values().chain(&self.leaving)
    }

    /// The room of this content that takes guests.
    pub(super) fn open(&self, id: &str) -> Option<Arc<Room>> {
        self.open.get(id).cloned()
    }

    /// Those that people are shown: of what leaves, only what they see nowhere else.
    pub(super) fn shown(&self) -> Vec<Arc<Room>> {
        let drains = |room: &&Arc<Room>| {
            !self.open.contains_key(&room.servable.id) && matches!(&*room.state.borrow(), State::Ready(_))
        };
        self.open.values().chain(self.leaving.iter().filter(drains)).cloned().collect()
    }

    /// Takes it out of those that take guests.
    fn close(&mut self, room: &Arc<Room>) {
        let id = &room.servable.id;
        if self.open.get(id).is_some_and(|now| Arc::ptr_eq(now, room)) {
            self.open.remove(id);
            self.leaving.push(room.clone());
        }
        room.leave.cancel();
    }

    /// The same; of one that failed nobody takes care any more, so it is forgotten.
    fn dismiss(&mut self, room: &Arc<Room>) {
        self.close(room);
        if matches!(&*room.state.borrow(), State::Failed(_)) {
            self.forget(room);
        }
    }

    fn forget(&mut self, room: &Arc<Room>) {
        if self.open.get(&room.servable.id).is_some_and(|now| Arc::ptr_eq(now, room)) {
            self.open.remove(&room.servable.id);
        }
        self.leaving.retain(|other| !Arc::ptr_eq(other, room));
    }
}

impl Serving {
    /// Loads it, or waits for whoever loads it already.
    ///
    /// # Errors
    /// [`ServeError`].
    pub(super) async fn load(self: &Arc<Self>, servable: Servable) -> Result<Guest, ServeError> {
        let guest = self.enter(servable)?;
        let room = &guest.room;
        let waiting = room.guests.load(Ordering::Acquire);
        if waiting > guest.most {
            let message = format!("{} requests wait for this model", waiting - 1);
            return Err(ServeError::Busy { message, retry_after_seconds: 1 });
        }
        let mut state = room.state.subscribe();
        let settled = state.wait_for(|state| !matches!(state, State::Loading)).await;
        let why = match settled.as_deref() {
            Ok(State::Ready(_)) => None,
            Ok(State::Failed(why)) => Some(why.clone()),
            Ok(State::Loading) | Err(_) => Some("it was unloaded".to_owned()),
        };
        drop(settled);
        let Some(why) = why else { return Ok(guest) };
        // Whoever asks next has it loaded anew.
        self.rooms().forget(room);
        self.tell();
        Err(ServeError::CannotLoad { artifact: room.servable.api_name.clone(), why })
    }

    /// Its room; the first visitor has it loaded.
    ///
    /// # Errors
    /// [`ServeError::NoRoom`].
    pub(super) fn enter(self: &Arc<Self>, servable: Servable) -> Result<Guest, ServeError> {
        let serve = &self.pipeline.config.serve;
        let most = serve.sequences.saturating_add(serve.queue) as usize;
        let mut rooms = self.rooms();
        if let Some(room) = rooms.open(&servable.id) {
            if !room.is_over() {
                return Ok(Guest::of(room, most));
            }
            rooms.dismiss(&room);
        }
        let room = Arc::new(Room {
            servable,
            state: watch::Sender::new(State::Loading),
            guests: AtomicUsize::new(0),
            leave: CancellationToken::new(),
            housed: AtomicBool::new(false),
        });
        let (tenants, _) = self.tenants(&rooms);
        if let Verdict::Never(why) = judge(self.budget, room.bytes(), &tenants) {
            return Err(ServeError::NoRoom { artifact: room.servable.api_name.clone(), why });
        }
        rooms.open.insert(room.servable.id.clone(), room.clone());
        let guest = Guest::of(room.clone(), most);
        drop(rooms);
        let serving = self.clone();
        tokio::spawn(async move { serving.furnish(&room).await });
        self.tell();
        Ok(guest)
    }

    /// Loads what belongs into a room and watches over it until its memory is free again.
    async fn furnish(self: Arc<Self>, room: &Arc<Room>) {
        let id = room.servable.id.as_str();
        let started = match self.make_space(room).await {
            Ok(()) if room.leaves() && !room.is_busy() => Err("it was unloaded".to_owned()),
            Ok(()) => self.start(&room.servable).await,
            Err(why) => Err(why),
        };
        let (hosted, place) = match started {
            Ok(started) => started,
            Err(why) => {
                tracing::warn!(artifact = id, why, "a model cannot be loaded");
                room.state.send_replace(State::Failed(why));
                return self.vacate(room, false);
            }
        };
        tracing::info!(artifact = id, pid = hosted.pid, "a model is loaded");
        let (ended, gone) = (hosted.until_ended(), hosted.until_gone());
        room.state.send_replace(State::Ready(Arc::new(hosted)));
        self.tell();
        tokio::select! {
            () = ended => {}
            () = self.until_unused(room) => tracing::info!(artifact = id, "a model is unloaded"),
        }
        self.retire(room);
        // The last hold on the worker is let go.
        room.state.send_replace(State::Failed("it was unloaded".to_owned()));
        gone.await;
        drop(place);
        self.vacate(room, true);
    }

    /// Waits for its turn and for memory, and has others leave for it.
    ///
    /// # Errors
    /// Why there will never be enough.
    async fn make_space(&self, room: &Arc<Room>) -> Result<(), String> {
        let _turn = self.turn.lock().await;
        while !self.step_aside(room)? {
            self.vacated.notified().await;
        }
        Ok(())
    }

    /// Has others leave for it as far as needed; whether it has its place now.
    ///
    /// # Errors
    /// Why it will never have one.
    fn step_aside(&self, room: &Arc<Room>) -> Result<bool, String> {
        let mut rooms = self.rooms();
        let mut told = false;
        let placed = loop {
            let (tenants, housed) = self.tenants(&rooms);
            match judge(self.budget, room.bytes(), &tenants) {
                Verdict::Fits => {
                    room.housed.store(true, Ordering::Release);
                    break true;
                }
                Verdict::Never(why) => return Err(why),
                Verdict::Unload(index) => {
                    rooms.close(&housed[index]);
                    told = true;
                }
                Verdict::Wait => break false,
            }
        };
        drop(rooms);
        if told {
            self.tell();
        }
        Ok(placed)
    }

    /// Those that take memory, as they are judged.
    fn tenants(&self, rooms: &Rooms) -> (Vec<Tenant>, Vec<Arc<Room>>) {
        let now = Instant::now();
        let housed: Vec<Arc<Room>> =
            rooms.all().filter(|room| room.housed.load(Ordering::Acquire)).cloned().collect();
        let tenant = |room: &Arc<Room>| Tenant {
            bytes: room.bytes(),
            pinned: self.is_pinned(&room.servable),
            busy: room.is_busy(),
            leaving: room.leaves(),
            // A scale that grows: the longer ago, the smaller.
            used: u64::MAX - now.saturating_duration_since(room.used()).as_micros() as u64,
        };
        (housed.iter().map(tenant).collect(), housed)
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

    /// Waits until a loaded model has answered everything and is to leave, or was not used for the configured time.
    async fn until_unused(&self, room: &Arc<Room>) {
        let idle = Some(seconds(self.pipeline.config.serve.idle_seconds)).filter(|idle| !idle.is_zero());
        loop {
            if room.leaves() {
                if !room.is_busy() {
                    return;
                }
                tokio::time::sleep(GLANCE).await;
                continue;
            }
            let left = match idle {
                None => LONG,
                Some(idle) if room.is_busy() || self.is_pinned(&room.servable) => idle,
                Some(idle) => idle.saturating_sub(room.used().elapsed()),
            };
            if left.is_zero() {
                // Nobody enters while this is held.
                let mut rooms = self.rooms();
                if !room.is_busy() {
                    return rooms.close(room);
                }
            }
            tokio::select! {
                () = room.leave.cancelled() => {}
                () = tokio::time::sleep(left.max(GLANCE)) => {}
            }
        }
    }

    /// Has it leave once it has answered what it was asked.
    pub(super) fn retire(&self, room: &Arc<Room>) {
        self.rooms().dismiss(room);
        self.tell();
    }

    /// Its memory is free. What failed is shown until somebody asks again.
    fn vacate(&self, room: &Arc<Room>, forget: bool) {
        room.housed.store(false, Ordering::Release);
        if forget || room.leaves() {
            self.rooms().forget(room);
        }
        self.vacated.notify_one();
        self.tell();
    }
}
