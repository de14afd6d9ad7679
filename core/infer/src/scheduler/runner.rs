//! A thread that runs a scheduler for callers elsewhere.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use super::admission::{Admission, Occupancy, Refused, Ticket};
use super::request::{Event, Request, RequestId};
use super::step::Scheduler;

/// Takes the events of one request, in the scheduler's thread: it must not block. Returns whether anybody still
/// listens; the request is cancelled when nobody does.
pub type Sink = Box<dyn FnMut(Event) -> bool + Send>;

enum Command {
    Submit(Ticket, Sink),
    Cancel(RequestId),
}

struct Listener {
    sink: Sink,
    /// Choices whose last event has not come.
    open: u32,
}

/// Hands requests to a scheduler in its own thread. When dropped, it takes no new requests, finishes those it has, and
/// waits for the thread.
#[derive(Debug)]
pub struct Runner {
    admission: Arc<Admission>,
    commands: Option<Sender<Command>>,
    thread: Option<JoinHandle<()>>,
}

impl Runner {
    /// Starts the thread.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(scheduler: Scheduler) -> std::io::Result<Self> {
        let admission = Arc::clone(scheduler.admission());
        let (commands, receiver) = channel();
        let thread = std::thread::Builder::new()
            .name("scheduler".to_owned())
            .spawn(move || run(scheduler, &receiver))?;
        Ok(Self { admission, commands: Some(commands), thread: Some(thread) })
    }

    /// Hands a request over; its events go to `sink`.
    ///
    /// # Errors
    /// [`Refused`], at once: no batch is waited for.
    pub fn submit(&self, request: Request, sink: Sink) -> Result<RequestId, Refused> {
        let ticket = self.admission.admit(request)?;
        let id = ticket.id;
        let choices = ticket.request.choices;
        let command = Command::Submit(ticket, sink);
        if self.commands.as_ref().is_some_and(|commands| commands.send(command).is_ok()) {
            return Ok(id);
        }
        self.admission.left_queue(choices);
        Err(Refused::Draining)
    }

    /// Ends a request; its choices finish as cancelled.
    pub fn cancel(&self, request: RequestId) {
        if let Some(commands) = &self.commands {
            // A thread that has ended has no requests left.
            let _ = commands.send(Command::Cancel(request));
        }
    }

    /// How busy it is.
    pub fn occupancy(&self) -> Occupancy {
        self.admission.occupancy()
    }

    /// Takes no new requests from now on.
    pub fn drain(&self) {
        self.admission.drain();
    }
}

impl Drop for Runner {
    fn drop(&mut self) {
        self.drain();
        self.commands = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the scheduler's thread panicked; its requests are lost");
        }
    }
}

fn run(mut scheduler: Scheduler, commands: &Receiver<Command>) {
    let mut listeners: HashMap<RequestId, Listener> = HashMap::new();
    loop {
        // Wait only when there is nothing to do; end when there never will be.
        if scheduler.is_idle() {
            match commands.recv() {
                Ok(command) => obey(&mut scheduler, &mut listeners, command),
                Err(_) => return,
            }
        }
        while let Ok(command) = commands.try_recv() {
            obey(&mut scheduler, &mut listeners, command);
        }
        let events = scheduler.step();
        for gone in deliver(&mut listeners, events) {
            scheduler.cancel(gone);
        }
    }
}

fn obey(scheduler: &mut Scheduler, listeners: &mut HashMap<RequestId, Listener>, command: Command) {
    match command {
        Command::Submit(ticket, sink) => {
            listeners.insert(ticket.id, Listener { sink, open: ticket.request.choices });
            scheduler.enqueue(ticket);
        }
        Command::Cancel(request) => {
            let events = scheduler.cancel(request);
            deliver(listeners, events);
        }
    }
}

/// Hands events out. Returns the requests nobody listens to any more.
fn deliver(listeners: &mut HashMap<RequestId, Listener>, events: Vec<Event>) -> Vec<RequestId> {
    let mut gone = Vec::new();
    for event in events {
        let request = event.request;
        let Some(listener) = listeners.get_mut(&request) else { continue };
        listener.open -= u32::from(event.kind.is_last());
        let finished = listener.open == 0;
        let listening = (listener.sink)(event);
        if finished || !listening {
            listeners.remove(&request);
        }
        if !finished && !listening {
            gone.push(request);
        }
    }
    gone
}
