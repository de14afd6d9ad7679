//! The worker processes that run now, for whoever asks.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use drophammer_client::api::{Worker, WorkerRole};

use crate::moment::now;

/// The board.
#[derive(Debug, Clone, Default)]
pub struct Board {
    workers: Arc<Mutex<BTreeMap<u32, Worker>>>,
}

/// A worker's place on the board; it is taken off when this is dropped.
#[derive(Debug)]
pub struct Place {
    board: Board,
    pid: u32,
}

impl Board {
    /// Puts a worker on the board; `fill` says what it works on.
    pub fn put(&self, pid: u32, role: WorkerRole, plugin: &str, fill: impl FnOnce(&mut Worker)) -> Place {
        let mut worker = Worker {
            pid,
            role,
            plugin: plugin.to_owned(),
            model: None,
            job: None,
            artifact: None,
            cpu_percent: 0.0,
            memory_bytes: 0,
            threads: None,
            sequences: None,
            started: now(),
        };
        fill(&mut worker);
        self.workers.lock().unwrap_or_else(PoisonError::into_inner).insert(pid, worker);
        Place { board: self.clone(), pid }
    }

    /// Every worker, by process id.
    pub fn workers(&self) -> Vec<Worker> {
        self.workers.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.board.workers.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.pid);
    }
}
