//! Which waiting jobs may start now.
//!
//! Jobs are admitted by what they need, in the order they came. A later job may overtake an earlier one that does not
//! fit yet, so that a big job does not idle the machine; but only [`PATIENCE`] times, after which nothing starts
//! until the earlier one has its turn. Since everything that runs ends, nothing starves.

use serde::{Deserialize, Serialize};

use crate::Obstacle;
use crate::words::size;

/// How often a waiting job lets later ones go first.
pub const PATIENCE: u32 = 8;

/// Memory, cores and disk: what a job needs, or what the machine has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// Bytes of memory.
    pub memory: u64,
    /// Cores.
    pub cores: u32,
    /// Bytes of disk.
    pub disk: u64,
}

impl Resources {
    /// Whether `self` has room for `other`.
    pub const fn holds(&self, other: &Self) -> bool {
        self.memory >= other.memory && self.cores >= other.cores && self.disk >= other.disk
    }

    /// What is left of `self` without `other`, at least nothing.
    #[must_use]
    pub const fn without(&self, other: &Self) -> Self {
        Self {
            memory: self.memory.saturating_sub(other.memory),
            cores: self.cores.saturating_sub(other.cores),
            disk: self.disk.saturating_sub(other.disk),
        }
    }

    /// What `self` lacks to hold `needs`, in words.
    fn lacks(&self, needs: &Self) -> String {
        if self.memory < needs.memory {
            format!("{} of memory", size(needs.memory - self.memory))
        } else if self.disk < needs.disk {
            format!("{} of disk", size(needs.disk - self.disk))
        } else if needs.cores - self.cores == 1 {
            "a core".to_owned()
        } else {
            format!("{} cores", needs.cores - self.cores)
        }
    }
}

/// A waiting job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Waiting {
    /// Its id.
    pub id: u64,
    /// What it needs while it runs.
    pub needs: Resources,
    /// How often it was overtaken.
    pub overtaken: u32,
}

/// Who may start, who was overtaken, who waits for what, and who will never fit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Admission {
    /// To be started now, in order.
    pub start: Vec<u64>,
    /// Overtaken by one of those that start: their count grows by one each time they are named.
    pub overtaken: Vec<u64>,
    /// Waiting, and for what.
    pub waits: Vec<(u64, String)>,
    /// Needs more than the whole machine.
    pub never: Vec<(u64, Obstacle)>,
}

/// Decides over `queue` (in order of arrival). `capacity` is all that jobs may ever take together; `free` is what is
/// left of it now.
pub fn admit(queue: &[Waiting], capacity: &Resources, free: &Resources) -> Admission {
    let mut admission = Admission::default();
    let mut free = *free;
    let mut behind: Vec<&Waiting> = Vec::new();
    for job in queue {
        if !capacity.holds(&job.needs) {
            admission.never.push((job.id, never(&job.needs, capacity)));
            continue;
        }
        let held_back = behind.iter().any(|earlier| {
            let overtaken = admission.overtaken.iter().filter(|id| **id == earlier.id).count() as u32;
            earlier.overtaken.saturating_add(overtaken) >= PATIENCE
        });
        if held_back {
            admission.waits.push((job.id, "waits for its turn".to_owned()));
        } else if free.holds(&job.needs) {
            free = free.without(&job.needs);
            admission.start.push(job.id);
            admission.overtaken.extend(behind.iter().map(|earlier| earlier.id));
        } else {
            admission.waits.push((job.id, format!("waits for {}", free.lacks(&job.needs))));
            behind.push(job);
        }
    }
    admission
}

fn never(needs: &Resources, capacity: &Resources) -> Obstacle {
    if capacity.memory < needs.memory {
        Obstacle::new(
            "not_enough_memory",
            format!("needs {} of memory, jobs may take {}", size(needs.memory), size(capacity.memory)),
        )
        .help("raise `limits.memory` in the configuration, or forge a smaller target")
    } else if capacity.disk < needs.disk {
        Obstacle::new(
            "not_enough_disk",
            format!("needs {} of disk, {} are free", size(needs.disk), size(capacity.disk)),
        )
        .help("free some disk space or move the home to a larger disk, then retry the job")
    } else {
        Obstacle::new(
            "not_enough_cores",
            format!("needs {} cores, jobs may take {}", needs.cores, capacity.cores),
        )
        .help("raise `limits.cores` in the configuration")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MACHINE: Resources = Resources { memory: 100, cores: 4, disk: 1000 };

    fn job(id: u64, memory: u64, cores: u32) -> Waiting {
        Waiting { id, needs: Resources { memory, cores, disk: 0 }, overtaken: 0 }
    }

    #[test]
    fn jobs_start_in_order_as_long_as_they_fit_together() {
        let admission = admit(&[job(1, 60, 1), job(2, 50, 1), job(3, 40, 1)], &MACHINE, &MACHINE);
        assert_eq!(admission.start, [1, 3]);
        assert_eq!(admission.overtaken, [2]);
        assert_eq!(admission.waits, [(2, "waits for 10 bytes of memory".to_owned())]);
    }

    #[test]
    fn a_job_overtaken_too_often_holds_everyone_back() {
        let patient = Waiting { overtaken: PATIENCE, ..job(1, 90, 1) };
        let free = Resources { memory: 50, ..MACHINE };
        let admission = admit(&[patient, job(2, 10, 1)], &MACHINE, &free);
        assert_eq!(admission.start, [0u64; 0]);
        assert_eq!(admission.waits[1], (2, "waits for its turn".to_owned()));
    }

    #[test]
    fn a_job_larger_than_the_machine_is_named_and_stands_in_nobodys_way() {
        for (needs, code) in [
            (Resources { memory: 101, ..MACHINE }, "not_enough_memory"),
            (Resources { disk: 1001, ..MACHINE }, "not_enough_disk"),
            (Resources { cores: 5, ..MACHINE }, "not_enough_cores"),
        ] {
            let giant = Waiting { id: 1, needs, overtaken: PATIENCE };
            let admission = admit(&[giant, job(2, 10, 1)], &MACHINE, &MACHINE);
            assert_eq!(admission.start, [2]);
            assert_eq!(admission.never[0].1.code, code);
            assert!(admission.never[0].1.help.is_some());
        }
    }

    fn any_needs() -> impl Strategy<Value = Resources> {
        (0..=100u64, 1..=4u32, 0..=1000u64).prop_map(|(memory, cores, disk)| Resources {
            memory,
            cores,
            disk,
        })
    }

    proptest! {
        #[test]
        fn what_starts_together_fits_together(needs in prop::collection::vec(any_needs(), 0..40), free in any_needs()) {
            let queue: Vec<_> = (0..).zip(&needs).map(|(id, needs)| Waiting { id, needs: *needs, overtaken: 0 }).collect();
            let admission = admit(&queue, &MACHINE, &free);
            let mut left = free;
            for id in &admission.start {
                let needs = needs[*id as usize];
                prop_assert!(left.holds(&needs));
                left = left.without(&needs);
            }
            prop_assert_eq!(admission.start.len() + admission.waits.len(), queue.len());
        }

        /// A machine on which one running job ends per step, with an endless stream of small jobs: every early job
        /// starts within a bounded number of steps.
        #[test]
        fn nothing_starves_however_many_small_jobs_keep_coming(early in prop::collection::vec(any_needs(), 1..12)) {
            let mut queue: Vec<Waiting> =
                (0..).zip(&early).map(|(id, needs)| Waiting { id, needs: *needs, overtaken: 0 }).collect();
            let mut running: Vec<(u64, Resources)> = Vec::new();
            let mut next = early.len() as u64;
            let mut waiting_early = early.len();
            for _ in 0..early.len() * (PATIENCE as usize + 6) + 10 {
                for _ in 0..3 {
                    queue.push(Waiting { id: next, needs: Resources { memory: 5, cores: 1, disk: 0 }, overtaken: 0 });
                    next += 1;
                }
                let free = running.iter().fold(MACHINE, |free, (_, needs)| free.without(needs));
                let admission = admit(&queue, &MACHINE, &free);
                for job in &mut queue {
                    job.overtaken += admission.overtaken.iter().filter(|id| **id == job.id).count() as u32;
                }
                for id in &admission.start {
                    let at = queue.iter().position(|job| job.id == *id).unwrap();
                    let job = queue.remove(at);
                    waiting_early -= usize::from(job.id < early.len() as u64);
                    running.push((job.id, job.needs));
                }
                if waiting_early == 0 {
                    return Ok(());
                }
                if !running.is_empty() {
                    running.remove(0);
                }
            }
            prop_assert!(false, "{waiting_early} of {} early jobs never started", early.len());
        }
    }
}
