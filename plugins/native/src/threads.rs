//! The engine's own threads: a job runs on all of them at once and meets at barriers.
//!
//! A token is a few hundred short steps, so a step may not cost a system call while the cores are ours: threads that wait
//! spin. What takes long is another process on the other thread's core: then they sleep, which leaves the core to it and
//! keeps this process's claim to be run as soon as there is something to do (a spinning thread uses its share of the core
//! up, and has to wait its turn when it matters). How long to spin is learnt from the sleeps: short ones were not worth
//! going to bed for, long ones show that the cores are wanted elsewhere. Where they go on, fewer threads take part
//! ([`Crew`]). The calling thread takes part as number 0.
#![allow(unsafe_code)] // a borrowed closure is shared with threads that outlive the borrow; the reasons stand below

use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::crew::Crew;

/// The least and the most spins before a thread sleeps: some tens and some hundreds of microseconds.
const SPINS: std::ops::RangeInclusive<u32> = 1 << 10..=1 << 14;

/// A sleep shorter than this should have been spun through.
const NAP: Duration = Duration::from_micros(300);

/// Bits of [`Shared::epoch`] that hold a number of threads.
const CREW_BITS: u32 = 16;

/// One thread's place in a job.
#[derive(Clone, Copy)]
pub(crate) struct Member<'a> {
    /// Number of this thread, below [`Member::count`].
    pub(crate) index: usize,
    /// How many threads take part.
    pub(crate) count: usize,
    shared: &'a Shared,
}

impl Member<'_> {
    /// Waits until every thread has come here. What was written before is visible after.
    pub(crate) fn barrier(&self) {
        if self.count > 1 {
            self.shared.barrier(self.count);
        }
    }

    /// This thread in the place of the one `turns` after it: whose shares are smaller changes from item to item.
    pub(crate) fn turned(self, turns: usize) -> Self {
        Self { index: (self.index + turns) % self.count, ..self }
    }

    /// This thread's part of `items`, in consecutive runs of nearly equal length; cut at multiples of `grain`.
    pub(crate) fn share(&self, items: usize, grain: usize) -> std::ops::Range<usize> {
        let grains = items.div_ceil(grain);
        let begin = grains * self.index / self.count * grain;
        let end = grains * (self.index + 1) / self.count * grain;
        begin.min(items)..end.min(items)
    }

    /// This thread's part of the items of several owners, which are shared as if they lay end to end: those of each owner that are
    /// this thread's, where any are.
    pub(crate) fn share_of_each<T>(
        &self,
        each: impl Iterator<Item = (usize, T)> + Clone,
    ) -> impl Iterator<Item = (std::ops::Range<usize>, T)> {
        let share = self.share(each.clone().map(|(items, _)| items).sum(), 1);
        let mut first = 0;
        each.filter_map(move |(items, owner)| {
            let end = first + items;
            let mine = share.start.clamp(first, end) - first..share.end.clamp(first, end) - first;
            first = end;
            (!mine.is_empty()).then_some((mine, owner))
        })
    }
}

type Job<'a> = dyn Fn(Member<'_>) + Sync + 'a;

struct Shared {
    /// Counts jobs in its upper bits, and says in the lower [`CREW_BITS`] how many threads take part in this one: one of those that
    /// sees a new number starts.
    epoch: AtomicUsize,
    /// The job of this epoch.
    job: UnsafeCell<Option<*const Job<'static>>>,
    /// Threads (but the caller) that still work on it.
    running: AtomicUsize,
    stop: AtomicBool,
    /// A thread panicked: nobody waits for it any more.
    broken: AtomicBool,
    arrived: AtomicUsize,
    generation: AtomicUsize,
    /// Spins before a thread sleeps, within [`SPINS`].
    patience: AtomicU32,
    /// Nanoseconds that threads of this job slept, short naps left out.
    slept: AtomicU64,
    /// Threads that sleep or are about to.
    sleepers: AtomicUsize,
    bed: Mutex<()>,
    alarm: Condvar,
}

// SAFETY: `job` is written by the caller only while no thread works (`running` is 0), and read by threads only after
// they acquired the new epoch. Everything else is atomic.
unsafe impl Sync for Shared {}
// SAFETY: the pointer in `job` is to a `Sync` closure and is used only while `Pool::run` borrows that closure.
unsafe impl Send for Shared {}

impl Shared {
    fn barrier(&self, count: usize) {
        let generation = self.generation.load(Ordering::Relaxed);
        if self.arrived.fetch_add(1, Ordering::AcqRel) + 1 == count {
            self.arrived.store(0, Ordering::Relaxed);
            self.generation.store(generation.wrapping_add(1), Ordering::Release);
            self.wake();
        } else {
            let passed = || self.generation.load(Ordering::Acquire) != generation;
            self.wait(|| passed() || self.broken.load(Ordering::Relaxed));
            assert!(passed(), "another thread of the same job panicked");
        }
    }

    /// Waits for what another thread is about to do.
    fn wait(&self, ready: impl Fn() -> bool) {
        let patience = self.patience.load(Ordering::Relaxed);
        for _ in 0..patience {
            if ready() {
                return;
            }
            std::hint::spin_loop();
        }
        let asleep = Instant::now();
        let mut bed = self.bed.lock().unwrap_or_else(PoisonError::into_inner);
        self.sleepers.fetch_add(1, Ordering::Relaxed);
        // Pairs with the fence in `wake`: either this thread sees what it waits for, or the other sees this one.
        fence(Ordering::SeqCst);
        while !ready() {
            bed = self.alarm.wait(bed).unwrap_or_else(PoisonError::into_inner);
        }
        self.sleepers.fetch_sub(1, Ordering::Relaxed);
        drop(bed);
        let slept = asleep.elapsed();
        let long = slept >= NAP;
        if long {
            self.slept.fetch_add(slept.as_nanos() as u64, Ordering::Relaxed);
        }
        let learnt = if long { patience / 2 } else { patience + patience / 8 };
        self.patience.store(learnt.clamp(*SPINS.start(), *SPINS.end()), Ordering::Relaxed);
    }

    /// Wakes those who wait for what this thread has just done.
    fn wake(&self) {
        fence(Ordering::SeqCst);
        if self.sleepers.load(Ordering::Relaxed) > 0 {
            // Whoever was about to sleep has the lock until it does.
            drop(self.bed.lock().unwrap_or_else(PoisonError::into_inner));
            self.alarm.notify_all();
        }
    }

    fn serve(&self, index: usize) {
        let mut seen = 0;
        loop {
            let mut idle = 0;
            let epoch = loop {
                let epoch = self.epoch.load(Ordering::Acquire);
                if epoch != seen || self.stop.load(Ordering::Relaxed) {
                    break epoch;
                }
                idle += 1;
                if idle < self.patience.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                } else {
                    // A wake-up that comes between the check and here is not lost: it makes `park` return at once.
                    std::thread::park();
                }
            };
            if self.stop.load(Ordering::Relaxed) {
                return;
            }
            seen = epoch;
            let count = epoch & ((1 << CREW_BITS) - 1);
            if index >= count {
                continue;
            }
            // SAFETY: the epoch was acquired, so the job written before it is visible, and it stays alive until
            // `running`, which counts this thread, is 0.
            if let Some(job) = unsafe { *self.job.get() } {
                let member = Member { index, count, shared: self };
                // SAFETY: as above.
                let outcome = catch_unwind(AssertUnwindSafe(|| unsafe { (*job)(member) }));
                if outcome.is_err() {
                    self.broken.store(true, Ordering::Release);
                }
            }
            self.running.fetch_sub(1, Ordering::Release);
            self.wake();
        }
    }
}

/// How many threads to start of those that a job may have: not more than the cores that this process may run on, as threads that take
/// turns on a core are waited for at every barrier.
pub(crate) fn within_cores(threads: u32) -> usize {
    let threads = threads.max(1) as usize;
    std::thread::available_parallelism().map_or(threads, |cores| threads.min(cores.get()))
}

/// A fixed number of threads that wait for jobs.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    crew: Crew,
}

impl Pool {
    /// `threads` in all, the caller of [`Pool::run`] included; at least one.
    pub(crate) fn new(threads: usize) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            epoch: AtomicUsize::new(0),
            job: UnsafeCell::new(None),
            running: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            broken: AtomicBool::new(false),
            arrived: AtomicUsize::new(0),
            generation: AtomicUsize::new(0),
            patience: AtomicU32::new(*SPINS.end()),
            slept: AtomicU64::new(0),
            sleepers: AtomicUsize::new(0),
            bed: Mutex::new(()),
            alarm: Condvar::new(),
        });
        let count = threads.clamp(1, (1 << CREW_BITS) - 1);
        let workers = Vec::with_capacity(count - 1);
        let mut pool = Self { shared: Arc::clone(&shared), workers, crew: Crew::new(count) };
        for index in 1..count {
            let shared = Arc::clone(&shared);
            let thread = std::thread::Builder::new().name(format!("native-{index}"));
            pool.workers.push(thread.spawn(move || shared.serve(index))?);
        }
        Ok(pool)
    }

    /// How many threads a job runs on at most.
    pub(crate) fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Runs `job` on all threads, or on as many as get their cores ([`Crew`]), and returns when all have finished. Jobs of the same
    /// `size` are about as much work.
    ///
    /// # Panics
    /// If the job panics on any thread.
    pub(crate) fn run(&mut self, size: usize, job: &(dyn Fn(Member<'_>) + Sync)) {
        let shared = &*self.shared;
        let (count, begun) = (self.crew.threads(), Instant::now());
        #[allow(clippy::transmute_ptr_to_ptr)] // a cast cannot lengthen the lifetime of a trait object
        // SAFETY: only the lifetime is erased. This function returns after `running` fell to 0, and no thread
        // touches the job after it decremented `running`.
        let erased: *const Job<'static> = unsafe { std::mem::transmute(std::ptr::from_ref::<Job<'_>>(job)) };
        shared.broken.store(false, Ordering::Relaxed);
        shared.arrived.store(0, Ordering::Relaxed);
        shared.slept.store(0, Ordering::Relaxed);
        // SAFETY: `&mut self` and `running == 0`: nobody reads the job now.
        unsafe { *shared.job.get() = Some(erased) };
        shared.running.store(count - 1, Ordering::Relaxed);
        let jobs = (shared.epoch.load(Ordering::Relaxed) >> CREW_BITS).wrapping_add(1);
        shared.epoch.store((jobs << CREW_BITS) | count, Ordering::Release);
        for worker in &self.workers[..count - 1] {
            worker.thread().unpark();
        }
        let outcome = catch_unwind(AssertUnwindSafe(|| job(Member { index: 0, count, shared })));
        if outcome.is_err() {
            shared.broken.store(true, Ordering::Release);
        }
        shared.wake();
        shared.wait(|| shared.running.load(Ordering::Acquire) == 0);
        if let Err(panic) = outcome {
            resume_unwind(panic);
        }
        assert!(
            !shared.broken.load(Ordering::Acquire),
            "a thread of the native engine panicked; see the log above"
        );
        let slept = Duration::from_nanos(shared.slept.load(Ordering::Relaxed));
        self.crew.done(size, begun.elapsed(), slept);
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        for worker in self.workers.drain(..) {
            worker.thread().unpark();
            let _ = worker.join();
        }
    }
}

/// A mutable slice that several threads write at once, each its own part.
#[derive(Clone, Copy)]
pub(crate) struct Shares<'a, T> {
    begin: *mut T,
    len: usize,
    life: std::marker::PhantomData<&'a mut [T]>,
}

// SAFETY: access goes through `Shares::part`, whose callers promise that parts in use at once do not overlap.
unsafe impl<T: Send> Sync for Shares<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Send for Shares<'_, T> {}

impl<'a, T> Shares<'a, T> {
    /// Takes the slice for as long as the parts live.
    pub(crate) fn new(slice: &'a mut [T]) -> Self {
        Self { begin: slice.as_mut_ptr(), len: slice.len(), life: std::marker::PhantomData }
    }

    /// Where the slice begins.
    pub(crate) fn begin(&self) -> *mut T {
        self.begin
    }

    /// `len` elements from `begin`.
    ///
    /// # Safety
    /// No other thread uses any of them until the next barrier.
    ///
    /// # Panics
    /// If the slice does not hold them.
    #[allow(clippy::mut_from_ref)] // that is its purpose; see Safety
    pub(crate) unsafe fn part(&self, begin: usize, len: usize) -> &mut [T] {
        assert!(begin <= self.len && len <= self.len - begin, "part {begin}+{len} of {}", self.len);
        // SAFETY: inside the slice by the check; not aliased by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.begin.add(begin), len) }
    }

    /// The whole slice, to read.
    ///
    /// # Safety
    /// No thread writes the elements read before the next barrier.
    pub(crate) unsafe fn whole(&self) -> &[T] {
        // SAFETY: the slice is alive and, by the caller's promise, not written.
        unsafe { std::slice::from_raw_parts(self.begin, self.len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_thread_runs_every_job_and_barriers_part_its_phases() {
        let mut pool = Pool::new(3).unwrap();
        for round in 0..200 {
            let mut cells = [0usize; 3];
            let mut sums = [0usize; 3];
            {
                let cells = Shares::new(&mut cells);
                let sums = Shares::new(&mut sums);
                // Of another size each, so that none is tried with fewer.
                pool.run(round, &|member| {
                    // SAFETY: each thread writes its own cell, reads all after the barrier.
                    unsafe { cells.part(member.index, 1)[0] = round + member.index };
                    member.barrier();
                    // SAFETY: as above.
                    unsafe { sums.part(member.index, 1)[0] = cells.whole().iter().sum() };
                });
            }
            assert_eq!(sums, [3 * round + 3; 3]);
        }
    }

    #[test]
    fn a_panic_on_one_thread_reaches_the_caller_and_the_pool_works_on() {
        let mut pool = Pool::new(2).unwrap();
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            pool.run(1, &|member| {
                assert!(member.index == 0, "thread 1 fails");
                member.barrier();
            });
        }));
        assert!(outcome.is_err());
        let count = AtomicUsize::new(0);
        pool.run(1, &|_| {
            count.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(count.into_inner(), 2);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn whoever_is_confined_to_one_core_starts_one_thread_and_no_thread_leaves_the_core() {
        use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
        // In a thread of its own, as the mask is inherited: so a process has it that `taskset` started.
        let confined = std::thread::spawn(|| {
            let all = sched_getaffinity(None).unwrap();
            let core = (0..CpuSet::MAX_CPU).find(|core| all.is_set(*core)).unwrap();
            let mut one = CpuSet::new();
            one.set(core);
            sched_setaffinity(None, &one).unwrap();
            assert_eq!([within_cores(0), within_cores(1), within_cores(8)], [1; 3]);
            let mut pool = Pool::new(3).unwrap();
            for round in 0..20 {
                pool.run(round, &|_| assert_eq!(sched_getaffinity(None).unwrap(), one));
            }
        });
        confined.join().unwrap();
    }

    #[test]
    fn shares_cover_everything_once() {
        let pool = Pool::new(1).unwrap();
        for items in [0, 1, 15, 16, 17, 100] {
            let mut next = 0;
            for index in 0..5 {
                let range = Member { index, count: 5, shared: &pool.shared }.share(items, 16);
                assert_eq!(range.start, next.min(items));
                next = range.end;
            }
            assert_eq!(next, items);
        }
    }

    #[test]
    fn what_several_owners_have_is_shared_once_too() {
        let pool = Pool::new(1).unwrap();
        let owners = [(3, 'a'), (0, 'b'), (5, 'c'), (1, 'd')];
        let mut shared = Vec::new();
        for index in 0..4 {
            let member = Member { index, count: 4, shared: &pool.shared };
            let mine = member.share_of_each(owners.into_iter());
            shared.extend(mine.flat_map(|(items, owner)| items.map(move |item| (owner, item))));
        }
        let due = owners.into_iter().flat_map(|(items, owner)| (0..items).map(move |item| (owner, item)));
        assert!(due.eq(shared));
    }
}
