//! What may happen to a job next.
//!
//! ```text
//!            ┌────────────── retry ──────────────┐
//!            ▼                                   │
//!         queued ──start──▶ running ──last──▶ succeeded
//!          ▲  ▲               │ │ │
//!   unblock│  └─ interrupted ─┘ │ └─ broken ───▶ failed ──┐
//!          │     or transient   │                         ├─▶ (retry)
//!       blocked ◀─── blocked ───┘     cancel ▶ cancelled ─┘
//! ```
//! A running job that is cancelled stays `running` with [`Job::cancelling`] until its worker is gone.

use serde::{Deserialize, Serialize};

/// Where a job stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Waits for memory, cores, disk or an earlier job.
    Queued,
    /// Somebody works on it.
    Running,
    /// All its stages are done.
    Succeeded,
    /// It ended with an error.
    Failed,
    /// Somebody stopped it.
    Cancelled,
    /// It cannot start until somebody does something.
    Blocked,
}

/// The parts of a model's life, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// What is this?
    Identify,
    /// What can be made of it here?
    Plan,
    /// Convert and quantize.
    Forge,
    /// Quality, speed, memory.
    Measure,
    /// Made visible in the library.
    Publish,
    /// Considered for answering requests.
    Serve,
}

/// Which stages a job goes through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A dropped path: identified and planned.
    Intake,
    /// One target made from a model.
    Forge,
    /// A source that answers as it is: measured, not forged.
    Measure,
}

impl Kind {
    /// The stages, in order.
    pub const fn route(self) -> &'static [Stage] {
        match self {
            Self::Intake => &[Stage::Identify, Stage::Plan],
            Self::Forge => &[Stage::Forge, Stage::Measure, Stage::Publish, Stage::Serve],
            Self::Measure => &[Stage::Measure, Stage::Serve],
        }
    }
}

/// Why a stage did not end well.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// Trying again would end the same way.
    Broken,
    /// Trying again may help: the worker died.
    Transient,
    /// Somebody has to do something first: a runtime is missing, the disk is full.
    Blocked,
}

/// What happens to a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// It was admitted.
    Start,
    /// Its present stage is done.
    StageDone,
    /// Its present stage ended with an error.
    Failed(Cause),
    /// Somebody wants it stopped.
    Cancel,
    /// Its worker is gone because of a cancellation.
    Stopped,
    /// The daemon went away while it ran.
    Interrupted,
    /// It will never fit as things are.
    Block,
    /// What blocked it is gone.
    Unblock,
    /// Somebody wants it tried again.
    Retry,
}

/// An event that makes no sense in the job's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a job that is {state:?} cannot take {event:?}")]
pub struct Refused {
    /// The state.
    pub state: State,
    /// The event.
    pub event: Event,
}

/// A job's place in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// Its route.
    pub kind: Kind,
    /// Where it stands.
    pub state: State,
    /// The stage it is in, will resume in or ended in.
    pub stage: Stage,
    /// 1 for the first try; grows with each that follows a failure.
    pub attempt: u32,
    /// Failed tries in a row that nobody looked at.
    pub strikes: u32,
    /// It is to be stopped and still runs.
    pub cancelling: bool,
}

/// How often a job whose worker died is tried again by itself.
pub const MAX_STRIKES: u32 = 2;

impl Job {
    /// A new job at the start of its route.
    pub fn new(kind: Kind) -> Self {
        let stage = kind.route()[0];
        Self { kind, state: State::Queued, stage, attempt: 1, strikes: 0, cancelling: false }
    }

    /// The job after `event`.
    ///
    /// # Errors
    /// [`Refused`] when the event makes no sense now; the job is unchanged.
    pub fn after(self, event: Event) -> Result<Self, Refused> {
        let refused = Err(Refused { state: self.state, event });
        let to = |state| Ok(Self { state, cancelling: false, ..self });
        match (self.state, event) {
            // An intake leaves nothing between its stages to go on from: it walks both whenever it starts.
            (State::Queued, Event::Start) if self.kind == Kind::Intake => {
                Ok(Self { state: State::Running, ..self.from_the_start() })
            }
            (State::Queued, Event::Start) => to(State::Running),
            (State::Queued | State::Blocked, Event::Cancel) => to(State::Cancelled),
            (State::Queued, Event::Interrupted) => Ok(self),
            (State::Running, Event::StageDone) => Ok(self.advanced()),
            (State::Running, Event::Cancel) => Ok(Self { cancelling: true, ..self }),
            (State::Running, Event::Stopped | Event::Failed(_) | Event::Interrupted) if self.cancelling => {
                to(State::Cancelled)
            }
            (State::Running, Event::Failed(Cause::Transient)) if self.strikes < MAX_STRIKES => {
                let (attempt, strikes) = (self.attempt.saturating_add(1), self.strikes + 1);
                Ok(Self { state: State::Queued, attempt, strikes, ..self })
            }
            (State::Running, Event::Failed(Cause::Broken | Cause::Transient)) => to(State::Failed),
            (State::Queued, Event::Block) | (State::Running, Event::Failed(Cause::Blocked)) => {
                to(State::Blocked)
            }
            // The daemon's end says nothing against the job: no strike.
            (State::Running, Event::Interrupted) | (State::Blocked, Event::Unblock) => to(State::Queued),
            (State::Failed | State::Cancelled | State::Blocked, Event::Retry) => Ok(Self {
                state: State::Queued,
                attempt: self.attempt.saturating_add(1),
                strikes: 0,
                cancelling: false,
                ..self
            }),
            _ => refused,
        }
    }

    /// The same job, to be done from the start of its route: what its stages left is of no use or gone.
    #[must_use]
    pub fn from_the_start(self) -> Self {
        Self { stage: self.kind.route()[0], ..self }
    }

    fn advanced(self) -> Self {
        let mut rest = self.kind.route().iter().skip_while(|stage| **stage != self.stage).skip(1);
        match rest.next() {
            // What is published stays published, even if somebody wanted to stop it just then.
            None => Self { state: State::Succeeded, cancelling: false, strikes: 0, ..self },
            Some(&stage) if self.cancelling && stage <= Stage::Publish => {
                Self { state: State::Cancelled, cancelling: false, ..self }
            }
            Some(&stage) => Self { stage, strikes: 0, ..self },
        }
    }
}

impl State {
    /// Whether nothing more happens by itself and nobody is waited for.
    pub const fn is_finished(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::Event::{Block, Cancel, Failed, Interrupted, Retry, StageDone, Start, Stopped, Unblock};
    use super::*;

    fn run(kind: Kind, events: &[Event]) -> Job {
        events.iter().fold(Job::new(kind), |job, &event| job.after(event).unwrap())
    }

    #[test]
    fn a_job_walks_its_route_and_succeeds() {
        let job = run(Kind::Forge, &[Start, StageDone, StageDone, StageDone, StageDone]);
        assert_eq!((job.state, job.stage, job.attempt), (State::Succeeded, Stage::Serve, 1));
        let job = run(Kind::Intake, &[Start, StageDone, StageDone]);
        assert_eq!((job.state, job.stage), (State::Succeeded, Stage::Plan));
        let job = run(Kind::Measure, &[Start, StageDone, StageDone]);
        assert_eq!((job.state, job.stage), (State::Succeeded, Stage::Serve));
    }

    #[test]
    fn an_interrupted_job_resumes_in_its_stage_without_a_strike() {
        let job = run(Kind::Forge, &[Start, StageDone, Interrupted]);
        assert_eq!((job.state, job.stage, job.attempt, job.strikes), (State::Queued, Stage::Measure, 1, 0));
    }

    #[test]
    fn an_intake_interrupted_while_it_plans_is_not_done_before_it_has_planned() {
        let job = run(Kind::Intake, &[Start, StageDone, Interrupted, Start]);
        assert_eq!((job.state, job.stage), (State::Running, Stage::Identify));
        let job = job.after(StageDone).unwrap();
        assert_eq!((job.state, job.stage), (State::Running, Stage::Plan));
    }

    #[test]
    fn a_job_whose_worker_keeps_dying_fails_after_two_more_tries() {
        let died = Failed(Cause::Transient);
        let job = run(Kind::Forge, &[Start, died, Start, died]);
        assert_eq!((job.state, job.attempt), (State::Queued, 3));
        let job = run(Kind::Forge, &[Start, died, Start, died, Start, died]);
        assert_eq!((job.state, job.attempt), (State::Failed, 3));
        let job = job.after(Retry).unwrap();
        assert_eq!((job.state, job.attempt, job.strikes), (State::Queued, 4, 0));
    }

    #[test]
    fn a_cancelled_job_is_running_until_its_worker_is_gone() {
        let job = run(Kind::Forge, &[Start, Cancel]);
        assert_eq!((job.state, job.cancelling), (State::Running, true));
        for end in [Stopped, Failed(Cause::Broken), Failed(Cause::Transient), Interrupted, StageDone] {
            assert_eq!(job.after(end).unwrap().state, State::Cancelled, "{end:?}");
        }
    }

    #[test]
    fn a_cancellation_that_comes_after_publishing_changes_nothing() {
        let job = run(Kind::Forge, &[Start, StageDone, StageDone, StageDone, Cancel, StageDone]);
        assert_eq!(job.state, State::Succeeded);
    }

    fn any_event() -> impl Strategy<Value = Event> {
        prop::sample::select(vec![
            Start,
            StageDone,
            Failed(Cause::Broken),
            Failed(Cause::Transient),
            Failed(Cause::Blocked),
            Cancel,
            Stopped,
            Interrupted,
            Block,
            Unblock,
            Retry,
        ])
    }

    proptest! {
        #[test]
        fn whatever_happens_a_job_stays_on_its_route_and_ends_for_good(
            kind in prop::sample::select(vec![Kind::Intake, Kind::Forge, Kind::Measure]),
            events in prop::collection::vec(any_event(), 0..200),
        ) {
            let mut job = Job::new(kind);
            for event in events {
                let Ok(next) = job.after(event) else { continue };
                prop_assert!(kind.route().contains(&next.stage));
                let begins_anew = kind == Kind::Intake && event == Start;
                prop_assert!(next.stage >= job.stage || begins_anew, "stages never go back by themselves");
                prop_assert!(next.attempt >= job.attempt && next.strikes <= MAX_STRIKES);
                prop_assert!(!next.cancelling || next.state == State::Running);
                if job.state == State::Succeeded {
                    prop_assert_eq!(next, job, "a success is final");
                }
                if job.state.is_finished() && next.state != job.state {
                    prop_assert_eq!(event, Retry);
                }
                if next.state == State::Running && job.state != State::Running {
                    prop_assert_eq!(event, Start, "only admission starts a job");
                }
                job = next;
            }
        }

        #[test]
        fn every_unfinished_job_can_be_cancelled_and_every_unsuccessful_one_tried_again(
            events in prop::collection::vec(any_event(), 0..60),
        ) {
            let job = events.into_iter().fold(Job::new(Kind::Forge), |job, e| job.after(e).unwrap_or(job));
            if !job.state.is_finished() {
                let cancelled = job.after(Cancel).unwrap();
                let ended = cancelled.after(Stopped).unwrap_or(cancelled);
                prop_assert_eq!(ended.state, State::Cancelled);
                prop_assert_eq!(ended.after(Retry).unwrap().state, State::Queued);
            } else if job.state != State::Succeeded {
                prop_assert_eq!(job.after(Retry).unwrap().state, State::Queued);
            }
        }
    }
}
