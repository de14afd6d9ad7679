//! Which tokens may come next.

/// One bit per token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenMask {
    bits: Vec<u32>,
    tokens: usize,
}

impl TokenMask {
    /// Nothing may come.
    pub fn none(tokens: usize) -> Self {
        Self { bits: vec![0; tokens.div_ceil(32)], tokens }
    }

    /// From words of 32 bits, lowest bit first; tokens beyond them may not come.
    pub fn from_words(words: &[u32], tokens: usize) -> Self {
        let mut bits = words.to_vec();
        bits.resize(tokens.div_ceil(32), 0);
        Self { bits, tokens }
    }

    /// Adds a token.
    pub fn allow(&mut self, token: u32) {
        if (token as usize) < self.tokens {
            self.bits[token as usize / 32] |= 1 << (token % 32);
        }
    }

    /// Whether a token may come.
    pub fn allows(&self, token: u32) -> bool {
        (token as usize) < self.tokens && (self.bits[token as usize / 32] >> (token % 32)) & 1 == 1
    }

    /// Sets the logits of all other tokens to minus infinity.
    pub fn apply(&self, logits: &mut [f32]) {
        let (known, beyond) = logits.split_at_mut(self.tokens.min(logits.len()));
        for (word, chunk) in self.bits.iter().zip(known.chunks_mut(32)) {
            if *word == u32::MAX {
                continue;
            }
            for (bit, logit) in chunk.iter_mut().enumerate() {
                if (word >> bit) & 1 == 0 {
                    *logit = f32::NEG_INFINITY;
                }
            }
        }
        beyond.fill(f32::NEG_INFINITY);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_allowed_tokens_keep_their_logits_and_those_beyond_the_mask_go() {
        let mut mask = TokenMask::none(70);
        for token in [0, 31, 32, 69, 70] {
            mask.allow(token);
        }
        let mut logits = vec![1.0; 80];
        mask.apply(&mut logits);
        let left: Vec<usize> = (0..80).filter(|&token| logits[token] == 1.0).collect();
        assert_eq!(left, [0, 31, 32, 69]);
        assert!(mask.allows(69) && !mask.allows(70) && !mask.allows(1));
    }
}
