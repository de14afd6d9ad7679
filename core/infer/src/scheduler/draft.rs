//! Drafts: guesses at the next tokens of a text, which one batch checks together.
//!
//! A text that repeats itself (code being edited, a document being quoted) goes on where its last words stood before as
//! it went on there. Reading several tokens at once costs a session little more than reading one, so such a guess is
//! read along with the last token: each row of logits chooses its token as ever, and where that is the guessed one, the
//! next row stands for a step that need not be made. What is chosen never depends on the guess.

/// Tokens that must be the same before a place is believed to repeat.
const PATTERN: usize = 3;
/// Tokens without a draft after one whose first token was wrong.
const PAUSE: usize = 4;

/// One text's drafts.
#[derive(Debug, Clone)]
pub(super) struct Drafting {
    /// How many tokens to guess: more while guesses are right.
    length: usize,
    pause: usize,
}

impl Default for Drafting {
    fn default() -> Self {
        Self { length: 2, pause: 0 }
    }
}

impl Drafting {
    /// How many tokens to guess now, at most `most`.
    pub(super) fn wish(&self, most: usize) -> usize {
        if self.pause > 0 { 0 } else { self.length.min(most) }
    }

    /// Takes note of what became of a step's draft of `drafted` tokens, of which `accepted` were right.
    pub(super) fn learn(&mut self, drafted: usize, accepted: usize) {
        if drafted == 0 {
            self.pause = self.pause.saturating_sub(1);
        } else if accepted == 0 {
            (self.length, self.pause) = (2, PAUSE);
        } else if accepted == drafted {
            self.length += 2;
        } else {
            self.length = accepted + 1;
        }
    }
}

/// What followed the latest earlier place where the last tokens stood.
pub(super) fn look_up(tokens: &[u32], most: usize) -> &[u32] {
    let pattern = tokens.len().checked_sub(PATTERN).filter(|&at| at > 0 && most > 0);
    let Some(pattern) = pattern else { return &[] };
    let place = tokens[..tokens.len() - 1].windows(PATTERN).rposition(|window| *window == tokens[pattern..]);
    place.map_or(&[], |at| {
        let next = at + PATTERN;
        &tokens[next..(next + most).min(tokens.len())]
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_repetition_is_continued() {
        for (tokens, most, expected) in [
            (vec![1, 2, 3, 7, 8, 1, 2, 3], 4, vec![7, 8, 1, 2]),
            (vec![1, 2, 3, 7, 1, 2, 3, 9, 1, 2, 3], 1, vec![9]),
            (vec![5, 5, 5, 5], 3, vec![5]),
            (vec![1, 2, 3, 4], 3, vec![]),
            (vec![1, 2], 3, vec![]),
            (vec![1, 2, 3, 7, 8, 1, 2, 3], 0, vec![]),
            (vec![], 3, vec![]),
        ] {
            assert_eq!(look_up(&tokens, most), expected, "{tokens:?}");
        }
    }

    #[test]
    fn drafts_grow_while_they_are_right_and_pause_when_they_are_wrong() {
        let mut drafting = Drafting::default();
        assert_eq!((drafting.wish(9), drafting.wish(1)), (2, 1));
        drafting.learn(2, 2);
        drafting.learn(4, 4);
        assert_eq!(drafting.length, 6);
        drafting.learn(6, 2);
        assert_eq!(drafting.length, 3);
        drafting.learn(3, 0);
        (0..PAUSE).for_each(|_| {
            assert_eq!(drafting.wish(9), 0);
            drafting.learn(0, 0);
        });
        assert_eq!(drafting.wish(9), 2);
    }
}
