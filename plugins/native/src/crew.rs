//! How many threads take part in a job: all, unless somebody else wants their cores.
//!
//! A token's threads meet after every step. Where another process runs on one of their cores, all wait for the thread that waits
//! for its turn there, some tens of times a token, and one thread fewer is several times as fast. Whether it is can only be tried:
//! jobs that threads overslept are a reason to try fewer (one; where that does not help two, four …); that some time has passed, to
//! try one more.

use std::time::Duration;

/// Jobs whose mean time stands for how fast a number of threads is.
const WINDOW: u32 = 8;
/// Jobs that another number of threads is tried for.
const TRIAL: u32 = 4;
/// A job is overslept if threads slept such a part of it, together, waiting for each other. (Of a long job any thread sleeps for a
/// moment now and then: fewer threads would only lose by it.)
const SLEPT: f64 = 0.25;
/// Of the jobs of a window so many were overslept: somebody else is there.
const OVERSLEPT: u32 = 3;
/// What another number of threads must take at most, as a part of the present one's time.
const BETTER: f64 = 0.9;
/// Windows until a number of threads is tried again, at first and at most; what failed is left alone for longer each time.
const PAUSE: std::ops::RangeInclusive<u32> = 4..=16;

/// Jobs that may go by without a verdict, because their sizes change, until all threads take part again.
const UNJUDGED: u32 = 64;

/// Chooses a number of threads, job by job.
#[derive(Debug)]
pub(crate) struct Crew {
    most: usize,
    now: usize,
    /// What jobs are compared: those of the same size.
    size: usize,
    window: Sum,
    trial: Option<Trial>,
    /// Jobs since the last window or trial that was whole.
    unjudged: u32,
    /// By how many threads fewer the next trial would be.
    fewer: usize,
    /// Windows to wait before the next trial, and how many those after a failed one will be.
    pause: u32,
    pauses: u32,
}

/// Jobs and their seconds.
#[derive(Debug, Default, Clone, Copy)]
struct Sum {
    jobs: u32,
    overslept: u32,
    seconds: f64,
}

#[derive(Debug, Clone, Copy)]
struct Trial {
    threads: usize,
    sum: Sum,
    /// Seconds that its jobs may take together.
    most: f64,
}

impl Crew {
    /// Of at most so many threads; all of them at first.
    pub(crate) fn new(most: usize) -> Self {
        let (window, pause) = (Sum::default(), *PAUSE.start());
        Self { most, now: most, size: 0, window, trial: None, unjudged: 0, fewer: 1, pause: 0, pauses: pause }
    }

    /// Threads that take part in the next job.
    pub(crate) fn threads(&self) -> usize {
        self.trial.map_or(self.now, |trial| trial.threads)
    }

    /// A job of this size took so long with [`Crew::threads`], of which its threads slept so much, together.
    pub(crate) fn done(&mut self, size: usize, took: Duration, slept: Duration) {
        if self.most == 1 {
            return;
        }
        if size != self.size {
            (self.size, self.window, self.trial) = (size, Sum::default(), None);
        }
        self.unjudged += 1;
        if self.unjudged > UNJUDGED {
            (self.now, self.unjudged) = (self.most, 0);
        }
        let overslept = slept.as_secs_f64() > SLEPT * took.as_secs_f64();
        let add = |sum: &mut Sum| {
            sum.jobs += 1;
            sum.overslept += u32::from(overslept);
            sum.seconds += took.as_secs_f64();
        };
        let Some(mut trial) = self.trial else {
            add(&mut self.window);
            // Where there is reason enough for a trial that is due, nobody need wait until the window is full.
            let enough = self.pause <= 1 && self.window.overslept == OVERSLEPT;
            if self.window.jobs == WINDOW || enough {
                self.consider();
            }
            return;
        };
        add(&mut trial.sum);
        self.trial = Some(trial);
        let better = trial.sum.seconds <= trial.most;
        if better && trial.sum.jobs < TRIAL {
            return;
        }
        (self.trial, self.unjudged) = (None, 0);
        if better {
            self.now = trial.threads;
            (self.fewer, self.pauses) = (1, *PAUSE.start());
        } else if trial.threads < self.now && 2 * self.fewer < self.now {
            // At once: what the present number takes is still known.
            self.fewer *= 2;
            self.trial =
                Some(Trial { threads: self.now - self.fewer, sum: Sum::default(), most: trial.most });
            return;
        } else {
            (self.fewer, self.pauses) = (1, (2 * self.pauses).min(*PAUSE.end()));
        }
        self.pause = self.pauses;
    }

    /// After a window: is there a reason to try another number?
    fn consider(&mut self) {
        let window = std::mem::take(&mut self.window);
        self.unjudged = 0;
        self.pause = self.pause.saturating_sub(1);
        let threads = if window.overslept >= OVERSLEPT && self.now > 1 {
            self.now - self.fewer
        } else if self.now < self.most {
            self.now + 1
        } else {
            return;
        };
        if self.pause == 0 {
            let most = BETTER * window.seconds / f64::from(window.jobs) * f64::from(TRIAL);
            self.trial = Some(Trial { threads, sum: Sum::default(), most });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a token takes on so many threads of a machine of four cores, of which others keep `busy`, and what threads sleep of it.
    fn token(threads: usize, busy: usize) -> (Duration, Duration) {
        let late = threads + busy > 4;
        let alone = Duration::from_secs_f64(0.004 / threads as f64);
        if late { (8 * alone, 7 * alone) } else { (alone, alone / 10) }
    }

    /// Tokens per second of so many.
    fn rate(crew: &mut Crew, busy: usize, tokens: u32) -> f64 {
        let mut whole = 0.0;
        for _ in 0..tokens {
            let (took, slept) = token(crew.threads(), busy);
            crew.done(1, took, slept);
            whole += took.as_secs_f64();
        }
        f64::from(tokens) / whole
    }

    #[test]
    fn threads_make_room_for_others_and_come_back() {
        let mut crew = Crew::new(4);
        let free = rate(&mut crew, 0, 500);
        assert!((free - 1000.0).abs() < 1.0 && crew.threads() == 4, "{free}");
        rate(&mut crew, 2, 200);
        let beside = rate(&mut crew, 2, 1000);
        assert!(beside > 0.9 * 500.0, "two cores are left: {beside}");
        rate(&mut crew, 0, 400);
        let again = rate(&mut crew, 0, 500);
        assert!(again > 999.0, "{again}");
    }

    #[test]
    fn of_many_threads_as_many_as_are_in_the_way_make_room_within_a_few_tokens() {
        let mut crew = Crew::new(16);
        for _ in 0..OVERSLEPT + 3 * TRIAL {
            let late = crew.threads() + 4 > 16;
            let [took, slept] = if late { [50, 48] } else { [2, 0] }.map(Duration::from_millis);
            crew.done(1, took, slept);
        }
        assert_eq!((crew.threads(), crew.trial.is_none()), (12, true));
    }

    #[test]
    fn a_moments_sleep_in_long_jobs_is_no_reason_for_fewer_threads() {
        let mut crew = Crew::new(2);
        for _ in 0..100 {
            crew.done(512, Duration::from_millis(800), Duration::from_millis(20));
            assert_eq!(crew.threads(), 2);
        }
    }

    #[test]
    fn jobs_of_another_size_end_a_trial() {
        let mut crew = Crew::new(2);
        for _ in 0..OVERSLEPT {
            crew.done(1, Duration::from_millis(9), Duration::from_millis(5));
        }
        assert_eq!(crew.threads(), 1, "a trial");
        crew.done(512, Duration::from_millis(900), Duration::ZERO);
        assert_eq!(crew.threads(), 2);
    }

    #[test]
    fn who_cannot_be_judged_gets_all_threads() {
        let mut crew = Crew::new(2);
        for _ in 0..100 {
            let (took, slept) = token(2 * crew.threads(), 2);
            crew.done(1, took, slept);
        }
        assert_eq!(crew.threads(), 1);
        for job in 0..100 {
            crew.done(job % 3 + 1, Duration::from_millis(1), Duration::ZERO);
        }
        assert_eq!(crew.threads(), 2);
    }

    #[test]
    fn one_thread_stays_one() {
        let mut crew = Crew::new(1);
        assert!(rate(&mut crew, 4, 100) > 0.0 && crew.threads() == 1);
    }
}
