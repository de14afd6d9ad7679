//! The scheduler's core: one call, one batch.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use drophammer_sdk::{BackendError, Batch, ErrorCode, Limits, Session};

use super::admission::{Admission, Occupancy, Refused, Ticket};
use super::batch::{Wish, shares};
use super::draft::{Drafting, look_up};
use super::draft_model::{DraftModel, Wanted};
use super::fair_queue::FairQueue;
use super::request::{Event, EventKind, FinishReason, Request, RequestId};
use super::slots::Slots;
use super::stop_strings::StopStrings;
use super::task::Task;
use crate::sampler::Sampler;
use crate::tokenizer::{Detokenizer, Tokenizer};

/// What may be set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Config {
    /// How many choices may wait.
    pub queue_limit: u32,
    /// Tokens of prompts per step while texts are being generated.
    pub prefill_while_decoding: u32,
    /// Tokens per step that all texts together may guess at; 0: none. Worth what reading so many more at once saves, on
    /// sessions whose rows do not depend on what else is in the batch.
    pub draft: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self { queue_limit: 256, prefill_while_decoding: 256, draft: 0 }
    }
}

/// Seconds from any fixed moment.
pub(super) type Clock = Box<dyn Fn() -> f64 + Send>;

struct Running {
    task: Task,
    slot: u32,
    /// Guessed tokens that are read in this step.
    draft: Vec<u32>,
}

/// Runs many requests on one session. See the module's documentation.
pub struct Scheduler {
    session: Box<dyn Session>,
    draft_model: Option<DraftModel>,
    limits: Limits,
    tokenizer: Arc<Tokenizer>,
    config: Config,
    clock: Clock,
    admission: Arc<Admission>,
    queue: FairQueue<Task>,
    slots: Slots,
    running: Vec<Running>,
    turn: usize,
    rows: Vec<f32>,
}

impl std::fmt::Debug for Scheduler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Scheduler").field("occupancy", &self.occupancy()).finish_non_exhaustive()
    }
}

impl Scheduler {
    /// Takes a session over. `clock` gives seconds from any fixed moment and never goes back.
    pub fn new(
        session: Box<dyn Session>,
        tokenizer: Arc<Tokenizer>,
        config: Config,
        clock: Box<dyn Fn() -> f64 + Send>,
    ) -> Self {
        let limits = session.limits();
        Self {
            session,
            draft_model: None,
            limits,
            tokenizer,
            config,
            clock,
            admission: Arc::new(Admission::new(limits, config.queue_limit)),
            queue: FairQueue::default(),
            slots: Slots::new(limits.max_sequences),
            running: Vec::new(),
            turn: 0,
            rows: Vec::new(),
        }
    }

    /// Lets another session guess what this one will say, instead of what the text repeats.
    ///
    /// # Errors
    /// [`ErrorCode::InvalidRequest`] when it has another vocabulary or fewer sequences.
    pub fn with_draft_model(mut self, session: Box<dyn Session>) -> Result<Self, BackendError> {
        self.draft_model = Some(DraftModel::new(session, self.limits)?);
        Ok(self)
    }

    pub(super) fn admission(&self) -> &Arc<Admission> {
        &self.admission
    }

    /// How busy it is.
    pub fn occupancy(&self) -> Occupancy {
        self.admission.occupancy()
    }

    /// Puts a request into the queue.
    ///
    /// # Errors
    /// [`Refused`], and nothing has changed.
    pub fn submit(&mut self, request: Request) -> Result<RequestId, Refused> {
        let ticket = self.admission.admit(request)?;
        let id = ticket.id;
        self.enqueue(ticket);
        Ok(id)
    }

    /// Puts a request into the queue that has been let in.
    pub(super) fn enqueue(&mut self, Ticket { id, request }: Ticket) {
        let now = (self.clock)();
        let prompt_read = Arc::new(AtomicBool::new(false));
        let room = self.limits.context - request.prompt.len() as u32;
        for choice in 0..request.choices {
            let seed = request.seed.wrapping_add(u64::from(choice));
            // The parameters were checked when the request was let in.
            let Ok(sampler) = Sampler::new(request.sampling.clone(), seed, &request.prompt) else { continue };
            let task = Task {
                request: id,
                choice,
                tokens: request.prompt.clone(),
                read: 0,
                prompt_length: request.prompt.len(),
                limit: request.max_tokens.unwrap_or(room).min(room),
                ignore_end: request.ignore_end,
                sampler,
                constraint: request.constraint.clone(),
                text: Detokenizer::after(&self.tokenizer, &request.prompt),
                stops: StopStrings::new(request.stop.clone()),
                prompt_read: Arc::clone(&prompt_read),
                submitted: now,
                started: now,
                first_token: None,
                reused: 0,
                generated: 0,
                drafting: Drafting::default(),
            };
            self.queue.push(request.flow, task);
        }
    }

    /// Ends a request, wherever it is. Its choices finish with what they have.
    pub fn cancel(&mut self, request: RequestId) -> Vec<Event> {
        let now = (self.clock)();
        let mut events = Vec::new();
        let queued = self.queue.take_all(|task| task.request == request);
        self.admission.left_queue(queued.len() as u32);
        for mut task in queued {
            events.push(task.finish(FinishReason::Cancelled, now));
        }
        for index in (0..self.running.len()).rev() {
            if self.running[index].task.request == request {
                let Running { mut task, slot, .. } = self.running.remove(index);
                self.slots.release(slot);
                events.push(task.finish(FinishReason::Cancelled, now));
            }
        }
        self.admission.set_running(self.running.len() as u32);
        events
    }

    /// Whether there is nothing to do.
    pub fn is_idle(&self) -> bool {
        self.running.is_empty() && self.queue.is_empty()
    }

    /// Starts what can start, runs one batch, and tells what happened. Does nothing when idle.
    pub fn step(&mut self) -> Vec<Event> {
        let mut events = self.start_waiting();
        if !self.running.is_empty() {
            self.run_batch(&mut events);
        }
        self.admission.set_running(self.running.len() as u32);
        events
    }

    fn start_waiting(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        while self.slots.has_idle() {
            let Some(mut task) = self.queue.pop(Task::is_ready) else { break };
            self.admission.left_queue(1);
            task.started = (self.clock)();
            if task.limit == 0 {
                events.push(task.finish(FinishReason::Length, task.started));
                continue;
            }
            match self.slots.acquire(&mut *self.session, &task.tokens) {
                Ok(Some((slot, reused))) => {
                    task.read = reused;
                    task.reused = reused;
                    events.push(task.event(EventKind::Started { reused_tokens: reused as u32 }));
                    self.running.push(Running { task, slot, draft: Vec::new() });
                }
                Ok(None) => events.push(task.event(EventKind::Failed(BackendError::new(
                    ErrorCode::OutOfResources,
                    "no sequence of the model is free",
                )))),
                Err(error) => events.push(task.event(EventKind::Failed(error))),
            }
        }
        events
    }

    fn run_batch(&mut self, events: &mut Vec<Event>) {
        let wish = |running: &Running| Wish {
            unread: running.task.unread().len(),
            decoding: running.task.is_decoding(),
        };
        let wishes: Vec<Wish> = self.running.iter().map(wish).collect();
        let (batch, prefill) = (self.limits.max_batch as usize, self.config.prefill_while_decoding as usize);
        let shares = shares(&wishes, batch.max(1), prefill, self.turn % wishes.len());
        self.turn = self.turn.wrapping_add(1);
        self.draft(&shares);
        let result = self.forward(&shares);
        let now = (self.clock)();
        // From the back, so that removing one does not move those still to come.
        let mut row = self.rows.len();
        let mut batch_events = Vec::new();
        for index in (0..self.running.len()).rev() {
            let share = shares[index];
            if share == 0 {
                continue;
            }
            let (mut uncertain, mut happened) = (result.is_err(), Vec::new());
            if let Err(error) = &result {
                happened.push(self.running[index].task.event(EventKind::Failed(error.clone())));
            } else {
                let Running { task, slot, draft } = &mut self.running[index];
                self.slots.read(*slot, &task.tokens[task.read..task.read + share]);
                task.read += share;
                if task.read >= task.prompt_length {
                    task.prompt_read.store(true, Relaxed);
                }
                if task.unread().is_empty() {
                    let width = self.limits.output_width as usize;
                    let end = row;
                    row -= width * (1 + draft.len());
                    let accepted =
                        speak(task, draft, &mut self.rows[row..end], &self.tokenizer, now, &mut happened);
                    self.slots.read(*slot, &draft[..accepted]);
                    task.read += accepted;
                    task.drafting.learn(draft.len(), accepted);
                    if accepted < draft.len()
                        && let Err(error) = self.session.remove(*slot, task.read as u32, u32::MAX)
                    {
                        uncertain = true;
                        if !happened.iter().any(|event| event.kind.is_last()) {
                            happened.push(task.event(EventKind::Failed(error)));
                        }
                    }
                }
            }
            if happened.iter().any(|event| event.kind.is_last()) {
                self.end(index, uncertain, now);
            }
            batch_events.push(happened);
        }
        events.extend(batch_events.into_iter().rev().flatten());
    }

    /// Guesses for the texts of this batch, as many as there is room for. Prompts come first: beside them a step is long
    /// anyway, and their readers wait.
    fn draft(&mut self, shares: &[usize]) {
        let taken: usize = shares.iter().sum();
        let prompts = self.running.iter().any(|running| !running.task.is_decoding());
        let room = (self.limits.max_batch as usize).saturating_sub(taken);
        let mut room = if prompts { 0 } else { room.min(self.config.draft as usize) };
        let mut wanted = Vec::new();
        for (index, (running, &share)) in self.running.iter_mut().zip(shares).enumerate() {
            running.draft.clear();
            let wish = if share > 0 { running.task.draft_wish(room) } else { 0 };
            if self.draft_model.is_none() {
                running.draft.extend_from_slice(look_up(&running.task.tokens, wish));
                room -= running.draft.len();
            } else if wish > 0 {
                wanted.push((index, wish));
                room -= wish;
            }
        }
        let Some(model) = self.draft_model.as_mut().filter(|_| !wanted.is_empty()) else { return };
        let text = |&(index, most): &(usize, usize)| {
            let Running { task, slot, .. } = &self.running[index];
            Wanted { slot: *slot, tokens: &task.tokens, most }
        };
        match model.guess(&wanted.iter().map(text).collect::<Vec<_>>()) {
            Ok(guesses) => {
                for (guess, (index, _)) in guesses.into_iter().zip(wanted) {
                    self.running[index].draft = guess;
                }
            }
            Err(error) => {
                tracing::warn!(%error, "the draft model failed: texts go on without it");
                self.draft_model = None;
            }
        }
    }

    fn end(&mut self, index: usize, uncertain: bool, now: f64) {
        let Running { task, slot, .. } = self.running.remove(index);
        if uncertain {
            self.slots.discard(&mut *self.session, slot);
        } else {
            self.slots.release(slot);
        }
        self.admission.took(now - task.started);
    }

    /// Pushes each running text's share through the session; rows of those that are read completely then lie in
    /// `self.rows`, in order.
    fn forward(&mut self, shares: &[usize]) -> Result<(), BackendError> {
        let (mut tokens, mut positions, mut sequences, mut outputs) = (vec![], vec![], vec![], vec![]);
        for (Running { task, slot, draft }, &share) in self.running.iter().zip(shares) {
            tokens.extend_from_slice(&task.unread()[..share]);
            tokens.extend_from_slice(draft);
            let count = share + draft.len();
            positions.extend((task.read..task.read + count).map(|position| position as u32));
            sequences.extend(std::iter::repeat_n(*slot, count));
            if share > 0 && share == task.unread().len() {
                let end = tokens.len() as u32;
                outputs.extend(end - 1 - draft.len() as u32..end);
            }
        }
        self.rows.resize(outputs.len() * self.limits.output_width as usize, 0.0);
        let batch =
            Batch { tokens: &tokens, positions: &positions, sequences: &sequences, outputs: &outputs };
        self.session.forward(batch, &mut self.rows)
    }
}

/// Chooses a token from each row while the rows stand for what the text says: the first always does, each other one if the
/// guess before it was what was chosen. Returns how many guesses were right.
fn speak(
    task: &mut Task,
    draft: &[u32],
    rows: &mut [f32],
    tokenizer: &Tokenizer,
    now: f64,
    happened: &mut Vec<Event>,
) -> usize {
    let width = rows.len() / (1 + draft.len());
    for (step, row) in rows.chunks_exact_mut(width).enumerate() {
        let before = task.tokens.len();
        happened.extend(task.advance(row, tokenizer, now));
        let goes_on = !happened.iter().any(|event| event.kind.is_last());
        let right = task.tokens.get(before).is_some_and(|token| draft.get(step) == Some(token));
        if !goes_on || !right {
            return step;
        }
    }
    draft.len()
}
