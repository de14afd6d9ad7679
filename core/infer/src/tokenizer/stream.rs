//! From a stream of tokens to a stream of text.

use super::Tokenizer;

/// Turns tokens into text as they arrive, and never gives out half a character: bytes that may still become one are
/// held back (three at most), bytes that cannot read as `U+FFFD`. What it gives out, concatenated, is what
/// decoding all the bytes at once would give.
#[derive(Debug, Clone, Default)]
pub struct Detokenizer {
    pending: Vec<u8>,
    /// Nothing has been given out and the text starts here.
    at_start: bool,
}

impl Detokenizer {
    /// For text that starts with the first token: the space some tokenizers put before a text is taken away.
    pub fn at_start() -> Self {
        Self { pending: Vec::new(), at_start: true }
    }

    /// For text that continues other text.
    pub fn continuing() -> Self {
        Self::default()
    }

    /// For text generated after a prompt: continues it, unless the prompt ends with a special token.
    pub fn after(tokenizer: &Tokenizer, prompt: &[u32]) -> Self {
        match prompt.last() {
            Some(&last) if !tokenizer.is_special(last) => Self::continuing(),
            _ => Self::at_start(),
        }
    }

    /// The text that is certain after this token. Special tokens are no text.
    pub fn push(&mut self, tokenizer: &Tokenizer, id: u32) -> String {
        if tokenizer.is_special(id) {
            return self.finish();
        }
        let mut bytes = tokenizer.token_bytes(id);
        if self.at_start && !bytes.is_empty() {
            self.at_start = false;
            for _ in 0..tokenizer.leading_spaces() {
                bytes = bytes.strip_prefix(b" ").unwrap_or(bytes);
            }
        }
        self.push_bytes(bytes)
    }

    /// The text that is certain after these bytes.
    pub fn push_bytes(&mut self, bytes: &[u8]) -> String {
        self.pending.extend_from_slice(bytes);
        let mut text = String::new();
        let mut taken = 0;
        while taken < self.pending.len() {
            match std::str::from_utf8(&self.pending[taken..]) {
                Ok(rest) => {
                    text.push_str(rest);
                    taken = self.pending.len();
                }
                Err(error) => {
                    let valid = &self.pending[taken..taken + error.valid_up_to()];
                    text.push_str(&String::from_utf8_lossy(valid));
                    taken += error.valid_up_to();
                    // Without a length the rest is a character that is not complete yet.
                    let Some(length) = error.error_len() else { break };
                    text.push(char::REPLACEMENT_CHARACTER);
                    taken += length;
                }
            }
        }
        self.pending.drain(..taken);
        text
    }

    /// Ends the text: bytes still held back read as `U+FFFD`.
    pub fn finish(&mut self) -> String {
        let rest = String::from_utf8_lossy(&self.pending).into_owned();
        self.pending.clear();
        rest
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_cut_of_any_bytes_reads_as_the_whole_would(
            bytes in prop_oneof![
                proptest::collection::vec(any::<u8>(), 0..64),
                any::<String>().prop_map(String::into_bytes),
            ],
            cut in 1usize..5,
        ) {
            let mut stream = Detokenizer::continuing();
            let mut text = String::new();
            for chunk in bytes.chunks(cut) {
                text.push_str(&stream.push_bytes(chunk));
                prop_assert!(stream.pending.len() <= 3);
            }
            text.push_str(&stream.finish());
            prop_assert_eq!(text, String::from_utf8_lossy(&bytes).into_owned());
        }
    }
}
