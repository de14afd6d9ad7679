//! Where the time of forward passes goes: each step's, as the thread that leads sees it, summed by kind of operation.
//!
//! As with [`calibration`](crate::calibration) the extension answers from any thread, and the next forward pass takes up what it
//! was told ([`Profiler::prepare`]).

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use drophammer_sdk::profile::{Arithmetic, MachineLimits, Operation, Profile};
use drophammer_sdk::{BackendError, ErrorCode, Result};

use crate::kernels::{Path, limits};
use crate::model::cost::{Cost, name};
use crate::model::execute::{Engine, Program};
use crate::model::record::MatrixRef;

/// The profile of one session.
pub(crate) struct Profiler {
    /// What each step computes.
    names: Vec<String>,
    threads: usize,
    /// Whether the next forward pass has to look at the clock: one that has not takes no lock.
    asked: AtomicBool,
    clock: Mutex<Option<Arc<Clock>>>,
}

/// Sums for each step, by what it multiplied with: [`KINDS`].
pub(crate) struct Clock(Vec<[Sums; 2]>);

const KINDS: [Arithmetic; 2] = [Arithmetic::Float, Arithmetic::Integer];

#[derive(Default)]
struct Sums {
    calls: AtomicU64,
    nanoseconds: AtomicU64,
    bytes: AtomicU64,
    operations: AtomicU64,
}

impl Clock {
    /// Counts a step that began at `since`; gives the moment when it ended.
    pub(crate) fn count(&self, step: usize, since: Instant, arithmetic: Arithmetic, cost: Cost) -> Instant {
        let kind = usize::from(arithmetic == Arithmetic::Integer);
        let (sums, now) = (&self.0[step][kind], Instant::now());
        let add = |sum: &AtomicU64, amount: u64| sum.fetch_add(amount, Ordering::Relaxed);
        add(&sums.calls, 1);
        add(&sums.nanoseconds, (now - since).as_nanos() as u64);
        add(&sums.bytes, cost.bytes);
        add(&sums.operations, cost.operations);
        // What counting took belongs to no step.
        Instant::now()
    }
}

impl Profiler {
    /// For a program on so many threads.
    pub(crate) fn new(program: &Program, references: &[MatrixRef], threads: usize) -> Self {
        let names = program.steps.iter().map(|step| name(step, references)).collect();
        Self { names, threads, asked: AtomicBool::new(false), clock: Mutex::default() }
    }

    /// Takes up what was asked for since the last forward pass.
    pub(crate) fn prepare(&self, engine: &mut Engine) {
        if self.asked.swap(false, Ordering::Acquire) {
            engine.clock.clone_from(&self.clock.lock().unwrap_or_else(PoisonError::into_inner));
        }
    }
}

/// What the extension holds of it.
pub(crate) struct Asked(pub(crate) Arc<Profiler>);

impl Profile for Asked {
    fn record(&self, on: bool) -> Result<()> {
        let clock =
            on.then(|| Arc::new(Clock(self.0.names.iter().map(|_| <[Sums; 2]>::default()).collect())));
        *self.0.clock.lock().unwrap_or_else(PoisonError::into_inner) = clock;
        self.0.asked.store(true, Ordering::Release);
        Ok(())
    }

    fn recorded(&self) -> Result<Vec<Operation>> {
        let clock = self.0.clock.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(clock) = clock else { return Ok(Vec::new()) };
        let mut operations: Vec<Operation> = Vec::new();
        for (name, by_kind) in self.0.names.iter().zip(&clock.0) {
            for (arithmetic, sums) in KINDS.into_iter().zip(by_kind) {
                let of = |sum: &AtomicU64| sum.load(Ordering::Relaxed);
                if of(&sums.calls) == 0 {
                    continue;
                }
                let same = |o: &Operation| o.name == *name && o.arithmetic == arithmetic;
                let at = operations.iter().position(same).unwrap_or_else(|| {
                    operations.push(Operation { name: name.clone(), arithmetic, ..Operation::default() });
                    operations.len() - 1
                });
                let operation = &mut operations[at];
                operation.calls += of(&sums.calls);
                operation.seconds += of(&sums.nanoseconds) as f64 * 1e-9;
                operation.bytes += of(&sums.bytes);
                operation.operations += of(&sums.operations);
            }
        }
        Ok(operations)
    }

    fn limits(&self) -> Result<MachineLimits> {
        limits::measure(Path::chosen(), self.0.threads).ok_or_else(|| {
            let message = "there is no memory to measure how fast it is read";
            BackendError::new(ErrorCode::OutOfResources, message).with_help("Close other programs.")
        })
    }
}
