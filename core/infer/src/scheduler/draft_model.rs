//! A second, cheaper model of the same vocabulary, which says what the first will probably say.
//!
//! (Leviathan, Kalman and Matias, "Fast Inference from Transformers via Speculative Decoding", 2023; here guesses are the
//! cheaper model's most probable tokens, and count only where the first model's own choice is the same.)

use drophammer_sdk::{BackendError, Batch, ErrorCode, Limits, OutputKind, Result, Session, most_likely};

/// A text that is to be continued.
pub(super) struct Wanted<'t> {
    /// The sequence it has in both sessions.
    pub(super) slot: u32,
    pub(super) tokens: &'t [u32],
    /// The most tokens to guess.
    pub(super) most: usize,
}

/// The cheaper model.
pub(super) struct DraftModel {
    session: Box<dyn Session>,
    limits: Limits,
    /// What each of its sequences holds.
    read: Vec<Vec<u32>>,
    rows: Vec<f32>,
}

impl DraftModel {
    /// Takes over a session that guesses for one with these limits.
    ///
    /// # Errors
    /// [`ErrorCode::InvalidRequest`] when it has another vocabulary or fewer sequences.
    pub(super) fn new(session: Box<dyn Session>, of: Limits) -> Result<Self> {
        let limits = session.limits();
        let unfit = |what: &str, own: u32, due: u32| {
            let message = format!("the draft model has {own} {what}, the model {due}");
            BackendError::new(ErrorCode::InvalidRequest, message)
                .with_help("take a smaller artifact of the same model, or one of its family, as draft")
        };
        if limits.output_kind != OutputKind::Logits || limits.output_width != of.output_width {
            return Err(unfit("logits", limits.output_width, of.output_width));
        }
        if limits.max_sequences < of.max_sequences {
            return Err(unfit("sequences", limits.max_sequences, of.max_sequences));
        }
        let read = vec![Vec::new(); limits.max_sequences as usize];
        Ok(Self { session, limits, read, rows: Vec::new() })
    }

    /// The probable continuation of each text, at most as long as wanted and as the context allows.
    ///
    /// # Errors
    /// The session's.
    pub(super) fn guess(&mut self, texts: &[Wanted<'_>]) -> Result<Vec<Vec<u32>>> {
        let mut guesses = vec![Vec::new(); texts.len()];
        for text in texts {
            let read = &mut self.read[text.slot as usize];
            // The last token is read again where there is nothing new: its row is what is wanted.
            let usable = &text.tokens[..text.tokens.len().saturating_sub(1)];
            let same = read.iter().zip(usable).take_while(|(a, b)| a == b).count();
            if same < read.len() {
                self.session.remove(text.slot, same as u32, u32::MAX)?;
                read.truncate(same);
            }
        }
        while self.push(texts, &mut guesses)? {}
        Ok(guesses)
    }

    /// One batch: what the texts and guesses have that was not read yet. Whether there was anything.
    fn push(&mut self, texts: &[Wanted<'_>], guesses: &mut [Vec<u32>]) -> Result<bool> {
        let (mut tokens, mut positions, mut sequences, mut outputs) = (vec![], vec![], vec![], vec![]);
        let mut finished = Vec::new();
        for (index, (text, guess)) in texts.iter().zip(&*guesses).enumerate() {
            let read = &mut self.read[text.slot as usize];
            let whole = text.tokens.len() + guess.len();
            if guess.len() >= text.most || whole > self.limits.context as usize {
                continue;
            }
            let room = (self.limits.max_batch as usize).saturating_sub(tokens.len());
            let begin = read.len();
            let end = whole.min(begin + room);
            read.extend(text.tokens.iter().chain(guess).skip(begin).take(end - begin));
            tokens.extend_from_slice(&read[begin..]);
            positions.extend(begin as u32..end as u32);
            sequences.extend(std::iter::repeat_n(text.slot, end - begin));
            if end == whole && begin < end {
                outputs.push(tokens.len() as u32 - 1);
                finished.push(index);
            }
        }
        if tokens.is_empty() {
            return Ok(false);
        }
        let width = self.limits.output_width as usize;
        self.rows.resize(outputs.len() * width, 0.0);
        let batch =
            Batch { tokens: &tokens, positions: &positions, sequences: &sequences, outputs: &outputs };
        self.session.forward(batch, &mut self.rows)?;
        for (index, row) in finished.into_iter().zip(self.rows.chunks_exact(width)) {
            guesses[index].push(most_likely(row).unwrap_or(0) as u32);
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::HashSession;

    #[test]
    fn texts_go_on_as_the_model_would_say_whatever_was_read_before() {
        let session = || HashSession::new(50, 64, 3, 8);
        let mut model = DraftModel::new(Box::new(session()), session().limits()).unwrap();
        let long: Vec<u32> = (0..30).map(|i| i * 7 % 50).collect();
        let due = |tokens: &[u32], most| session().greedy(tokens, most);
        for texts in [
            vec![(0, long.clone(), 3), (2, vec![5, 6], 1)],
            vec![(0, [&long[..], &due(&long, 2), &[9]].concat(), 4)],
            vec![(0, long[..12].to_vec(), 2), (1, vec![1], 0), (2, vec![5, 6], 5)],
        ] {
            let wanted: Vec<Wanted<'_>> = (texts.iter())
                .map(|(slot, tokens, most)| Wanted { slot: *slot, tokens, most: *most })
                .collect();
            let expected: Vec<_> = texts.iter().map(|(_, tokens, most)| due(tokens, *most)).collect();
            assert_eq!(model.guess(&wanted).unwrap(), expected);
        }
        // No further than the context goes.
        let full = vec![1; 63];
        let wanted = [Wanted { slot: 1, tokens: &full, most: 9 }];
        assert_eq!(model.guess(&wanted).unwrap()[0].len(), 2);
    }

    #[test]
    fn another_vocabulary_and_too_few_sequences_are_refused() {
        let of = HashSession::new(50, 64, 3, 8).limits();
        for session in [HashSession::new(51, 64, 3, 8), HashSession::new(50, 64, 2, 8)] {
            let refused = DraftModel::new(Box::new(session), of).err().unwrap();
            assert_eq!(refused.code, ErrorCode::InvalidRequest);
        }
    }
}
