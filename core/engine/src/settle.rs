//! Whether a dropped path has come to rest.
//!
//! The watcher tells what it sees ([`Sight`]) whenever something moved or the time named by the last verdict came;
//! the verdict says when to look again. A path is settled when nothing about it changed for the quiet time *and*
//! nothing announced by its own headers, indices or siblings is missing.

use std::time::Duration;

/// What the watcher sees of a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sight {
    /// Changes whenever a file's name, length or modification time does.
    pub fingerprint: u64,
    /// What is known to be missing, in words; `None` when everything announced is there.
    pub waits_for: Option<String>,
}

/// How patient the watcher is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// How long nothing may change.
    pub quiet: Duration,
    /// How often to look at an incomplete path that does not move; it doubles up to [`Patience::longest`].
    pub look: Duration,
    /// The longest pause between two looks.
    pub longest: Duration,
}

/// The watcher's verdict on a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Complete and at rest.
    Settled,
    /// Look again at this moment, or when something moves.
    LookAt {
        /// On the same scale as the moments given in.
        moment: Duration,
        /// What it waits for, if it is more than quiet.
        waits_for: Option<String>,
    },
}

/// One path's way to rest. Moments are times since any fixed start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settling {
    fingerprint: Option<u64>,
    still_since: Duration,
    pause: Duration,
}

impl Settling {
    /// A path first noticed at `now`.
    pub fn noticed(now: Duration) -> Self {
        Self { fingerprint: None, still_since: now, pause: Duration::ZERO }
    }

    /// The system said that something about the path changed, whatever a look will show.
    pub fn touched(&mut self, now: Duration) {
        self.still_since = now;
        self.pause = Duration::ZERO;
    }

    /// When to look first.
    pub fn first_look(&self, patience: &Patience) -> Duration {
        self.still_since + patience.quiet
    }

    /// Judges what is seen at `now`.
    pub fn look(&mut self, now: Duration, sight: &Sight, patience: &Patience) -> Verdict {
        if self.fingerprint != Some(sight.fingerprint) {
            // The first sight does not restart the quiet time: nothing is known to have moved.
            if self.fingerprint.is_some() {
                self.touched(now);
            }
            self.fingerprint = Some(sight.fingerprint);
        }
        let quiet_at = self.still_since + patience.quiet;
        if now < quiet_at {
            return Verdict::LookAt { moment: quiet_at, waits_for: sight.waits_for.clone() };
        }
        if sight.waits_for.is_none() {
            return Verdict::Settled;
        }
        self.pause = (self.pause * 2).clamp(patience.look, patience.longest.max(patience.look));
        Verdict::LookAt { moment: now + self.pause, waits_for: sight.waits_for.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Patience = Patience {
        quiet: Duration::from_millis(250),
        look: Duration::from_millis(500),
        longest: Duration::from_secs(4),
    };

    fn ms(moment: u64) -> Duration {
        Duration::from_millis(moment)
    }

    fn sight(fingerprint: u64, waits_for: Option<&str>) -> Sight {
        Sight { fingerprint, waits_for: waits_for.map(str::to_owned) }
    }

    #[test]
    fn a_complete_path_settles_exactly_when_the_quiet_time_is_over() {
        let mut path = Settling::noticed(ms(1000));
        assert_eq!(path.first_look(&PATIENCE), ms(1250));
        let early = path.look(ms(1100), &sight(1, None), &PATIENCE);
        assert_eq!(early, Verdict::LookAt { moment: ms(1250), waits_for: None });
        assert_eq!(path.look(ms(1250), &sight(1, None), &PATIENCE), Verdict::Settled);
    }

    #[test]
    fn a_file_that_keeps_growing_never_settles() {
        let mut path = Settling::noticed(ms(0));
        let mut now = ms(250);
        for step in 0..1000 {
            let Verdict::LookAt { moment, .. } = path.look(now, &sight(step, None), &PATIENCE) else {
                assert_eq!(step, 0, "settled while growing");
                path.touched(now);
                continue;
            };
            now = moment;
        }
    }

    #[test]
    fn a_change_seen_without_a_system_event_starts_the_quiet_time_anew() {
        let mut path = Settling::noticed(ms(0));
        assert!(matches!(path.look(ms(100), &sight(1, None), &PATIENCE), Verdict::LookAt { .. }));
        let verdict = path.look(ms(300), &sight(2, None), &PATIENCE);
        assert_eq!(verdict, Verdict::LookAt { moment: ms(550), waits_for: None });
    }

    #[test]
    fn an_incomplete_path_is_looked_at_less_and_less_often_until_it_moves() {
        let mut path = Settling::noticed(ms(0));
        let missing = sight(1, Some("model-00002-of-00002.safetensors is missing"));
        let mut now = ms(250);
        let mut pauses = Vec::new();
        for _ in 0..6 {
            let Verdict::LookAt { moment, waits_for } = path.look(now, &missing, &PATIENCE) else { panic!() };
            assert_eq!(waits_for, missing.waits_for);
            pauses.push(moment.as_millis() - now.as_millis());
            now = moment;
        }
        assert_eq!(pauses, [500, 1000, 2000, 4000, 4000, 4000]);
        path.touched(now);
        assert_eq!(
            path.look(now + ms(250), &sight(2, None), &PATIENCE),
            Verdict::LookAt { moment: now + ms(500), waits_for: None }
        );
        assert_eq!(path.look(now + ms(500), &sight(2, None), &PATIENCE), Verdict::Settled);
    }
}
