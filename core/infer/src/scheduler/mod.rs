//! Many requests, one session: continuous batching.
//!
//! [`Scheduler`] is synchronous and owns the session: [`Scheduler::submit`] puts a request into a queue,
//! [`Scheduler::step`] runs one batch and returns what happened. [`Runner`] is a thread that does so for callers
//! elsewhere. Nothing here reads a clock or draws chance that a caller did not hand in.
//!
//! * **Batching.** Every step takes one token of each text being generated and fills up with pieces of prompts. While
//!   texts are being generated, prompts get [`Config::prefill_while_decoding`] tokens per step, so that a long prompt
//!   slows the others down only a little. Prompts share their part max-min fairly: a short one is never held up by a
//!   long one.
//! * **Prefix reuse.** A sequence keeps its tokens when its text ends. A new request takes over the sequence that
//!   shares the longest beginning with it, or a copy of it; that includes sequences still at work. Several choices for
//!   one prompt read it once.
//! * **Drafts.** Where [`Config::draft`] allows, a text reads guessed tokens along with its last one, and takes a step for
//!   each that was right. Guesses are what followed where it repeats itself, or a cheaper model's
//!   ([`Scheduler::with_draft_model`]). What it says is what it would have said without.
//! * **Fairness.** Requests carry a flow (a client, a key). Flows take turns; within one, first come, first served.
//! * **Back-pressure.** The queue is bounded. What does not fit is refused with a hint when to try again.
//! * **Failure.** An error of the session ends the texts in that batch, each with the error; the others go on.

mod admission;
mod batch;
mod draft;
mod draft_model;
mod fair_queue;
mod request;
mod runner;
mod slots;
mod step;
mod stop_strings;
mod task;

pub use admission::{Occupancy, Refused};
pub use request::{Event, EventKind, FinishReason, Request, RequestId, Timings, Usage};
pub use runner::{Runner, Sink};
pub use step::{Config, Scheduler};

#[cfg(test)]
mod tests;
