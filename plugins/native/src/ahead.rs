//! Whether one token's products ask for weights ahead of reading them ([`fetch_ahead`](crate::kernels::fetch_ahead)).
//!
//! Some processors fetch a stream of memory that well by themselves that asking costs a tenth to a fifth of the speed (Zen 4); others stop
//! at every page, and asking gains a quarter to a half (Zen 5). So it is tried.

use std::time::Duration;

/// Tokens that a trial takes, by turns with and without.
const TRIAL: u32 = 16;
/// Tokens until it is tried again: whoever shares the memory may have changed.
const PAUSE: u32 = 1024;

/// Chooses, token by token.
#[derive(Debug)]
pub(crate) struct Ahead {
    /// Tokens since the last trial began.
    token: u32,
    /// Shortest of the trial, without and with asking.
    best: [Duration; 2],
    choice: bool,
}

impl Ahead {
    pub(crate) fn new() -> Self {
        Self { token: 0, best: [Duration::MAX; 2], choice: true }
    }

    /// Whether the next token's products ask ahead.
    pub(crate) fn asks(&self) -> bool {
        if self.token < TRIAL { self.token % 2 == 1 } else { self.choice }
    }

    /// What was learnt, for products of more tokens.
    pub(crate) fn choice(&self) -> bool {
        self.choice
    }

    /// A token took so long with [`Ahead::asks`].
    pub(crate) fn done(&mut self, took: Duration) {
        if self.token < TRIAL {
            let best = &mut self.best[usize::from(self.asks())];
            *best = took.min(*best);
        }
        self.token += 1;
        if self.token == TRIAL {
            self.choice = self.best[1] < self.best[0];
        } else if self.token == TRIAL + PAUSE {
            *self = Self { choice: self.choice, ..Self::new() };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tokens that asked, of so many that take `with` or `without`.
    fn asked(ahead: &mut Ahead, tokens: u32, with: u64, without: u64) -> usize {
        let mut asked = 0;
        for token in 0..tokens {
            asked += usize::from(ahead.asks());
            // Sometimes somebody else is in the way.
            let disturbed = if token % 5 == 0 { 3 } else { 1 };
            ahead.done(Duration::from_micros(disturbed * if ahead.asks() { with } else { without }));
        }
        asked
    }

    #[test]
    fn what_was_faster_is_done_until_it_is_tried_again() {
        for (with, without, kept) in [(100, 110, PAUSE as usize), (110, 100, 0)] {
            let mut ahead = Ahead::new();
            assert_eq!(asked(&mut ahead, TRIAL, with, without), TRIAL as usize / 2);
            assert_eq!(ahead.choice(), kept > 0);
            assert_eq!(asked(&mut ahead, PAUSE, with, without), kept);
            // The machine is another one now.
            assert_eq!(asked(&mut ahead, TRIAL, without, with), TRIAL as usize / 2);
            assert_eq!(ahead.choice(), kept == 0);
        }
    }
}
