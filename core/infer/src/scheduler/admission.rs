//! Which requests may enter. Shared by a scheduler and everybody who hands it requests, so that a refusal needs no
//! waiting for a batch to end.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use drophammer_sdk::{Limits, OutputKind};

use super::request::{Request, RequestId};
use crate::sampler::InvalidParameter;

/// Why a request may not enter.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Refused {
    /// Too many wait already.
    #[error("{queued} requests wait already and {limit} may; try again in {} s", retry_after.as_secs())]
    QueueFull {
        /// How many wait.
        queued: u32,
        /// How many may.
        limit: u32,
        /// When a place should be free.
        retry_after: Duration,
    },
    /// No new requests are taken.
    #[error("the model is being unloaded and takes no new requests; try again in a moment")]
    Draining,
    /// The prompt does not fit.
    #[error(
        "the prompt has {prompt} tokens and the model's context takes {context}, answer included; shorten the prompt"
    )]
    TooLong {
        /// Its tokens.
        prompt: usize,
        /// The context.
        context: u32,
    },
    /// There is nothing to continue.
    #[error("the prompt is empty; give at least one token")]
    EmptyPrompt,
    /// The prompt is not for this model.
    #[error("token {token} is outside the model's vocabulary of {vocabulary}; use the model's own tokenizer")]
    UnknownToken {
        /// The token.
        token: u32,
        /// How many the model knows.
        vocabulary: u32,
    },
    /// Too many answers at once.
    #[error("{choices} choices were asked for; 1 to {most} can be had")]
    Choices {
        /// How many.
        choices: u32,
        /// How many can be had.
        most: u32,
    },
    /// A stop text that would end every answer.
    #[error("a stop text is empty; leave it out")]
    EmptyStop,
    /// A sampling parameter is out of its range.
    #[error(transparent)]
    Parameter(#[from] InvalidParameter),
    /// The model gives no logits.
    #[error("the model is an encoder and generates no text; ask it for embeddings")]
    NotGenerative,
}

/// How busy a scheduler is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Occupancy {
    /// Texts being read or generated.
    pub running: u32,
    /// How many can be at once.
    pub capacity: u32,
    /// Texts that wait.
    pub queued: u32,
    /// How many may wait.
    pub queue_limit: u32,
}

/// The most choices of one request.
const MOST_CHOICES: u32 = 128;

/// The gate, and the figures it decides by.
#[derive(Debug)]
pub(super) struct Admission {
    limits: Limits,
    queue_limit: u32,
    next_id: AtomicU64,
    queued: AtomicU32,
    running: AtomicU32,
    draining: AtomicBool,
    /// Mean seconds from start to end of recent texts, as the bits of an `f64`.
    seconds: AtomicU64,
}

/// A request that has been let in.
#[derive(Debug)]
pub(super) struct Ticket {
    pub(super) id: RequestId,
    pub(super) request: Request,
}

impl Admission {
    pub(super) fn new(limits: Limits, queue_limit: u32) -> Self {
        Self {
            limits,
            queue_limit,
            next_id: AtomicU64::new(1),
            queued: AtomicU32::new(0),
            running: AtomicU32::new(0),
            draining: AtomicBool::new(false),
            seconds: AtomicU64::new(1f64.to_bits()),
        }
    }

    /// Lets a request in, with a place in the queue for each of its choices.
    pub(super) fn admit(&self, request: Request) -> Result<Ticket, Refused> {
        self.check(&request)?;
        let wanted = request.choices;
        let taken = self.queued.fetch_update(SeqCst, SeqCst, |queued| {
            // A request with many choices may enter an empty queue, however small.
            let fits = queued.saturating_add(wanted) <= self.queue_limit || queued == 0;
            fits.then(|| queued.saturating_add(wanted))
        });
        match taken {
            Ok(_) => Ok(Ticket { id: RequestId(self.next_id.fetch_add(1, SeqCst)), request }),
            Err(queued) => {
                let limit = self.queue_limit;
                Err(Refused::QueueFull { queued, limit, retry_after: self.retry_after(queued) })
            }
        }
    }

    fn check(&self, request: &Request) -> Result<(), Refused> {
        let Limits { context, output_width, output_kind, .. } = self.limits;
        if output_kind != OutputKind::Logits {
            return Err(Refused::NotGenerative);
        }
        if self.draining.load(SeqCst) {
            return Err(Refused::Draining);
        }
        if request.prompt.is_empty() {
            return Err(Refused::EmptyPrompt);
        }
        if request.prompt.len() >= context as usize {
            return Err(Refused::TooLong { prompt: request.prompt.len(), context });
        }
        if let Some(&token) = request.prompt.iter().find(|&&token| token >= output_width) {
            return Err(Refused::UnknownToken { token, vocabulary: output_width });
        }
        if request.choices == 0 || request.choices > MOST_CHOICES {
            return Err(Refused::Choices { choices: request.choices, most: MOST_CHOICES });
        }
        if request.stop.iter().any(String::is_empty) {
            return Err(Refused::EmptyStop);
        }
        Ok(request.sampling.validate()?)
    }

    /// When the queue should have moved on by one, given how long recent texts took.
    fn retry_after(&self, queued: u32) -> Duration {
        let each = f64::from_bits(self.seconds.load(SeqCst)) / f64::from(self.limits.max_sequences.max(1));
        Duration::from_secs((each * f64::from(queued)).clamp(1.0, 60.0).ceil() as u64)
    }

    pub(super) fn left_queue(&self, count: u32) {
        let _ = self.queued.fetch_update(SeqCst, SeqCst, |queued| Some(queued.saturating_sub(count)));
    }

    pub(super) fn set_running(&self, running: u32) {
        self.running.store(running, SeqCst);
    }

    /// Takes note of how long a text took; recent ones count more.
    pub(super) fn took(&self, seconds: f64) {
        let old = f64::from_bits(self.seconds.load(SeqCst));
        self.seconds.store((old + (seconds - old) * 0.2).to_bits(), SeqCst);
    }

    pub(super) fn drain(&self) {
        self.draining.store(true, SeqCst);
    }

    pub(super) fn occupancy(&self) -> Occupancy {
        Occupancy {
            running: self.running.load(SeqCst),
            capacity: self.limits.max_sequences,
            queued: self.queued.load(SeqCst),
            queue_limit: self.queue_limit,
        }
    }
}
