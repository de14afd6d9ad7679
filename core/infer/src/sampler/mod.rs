//! From a row of logits to the next token.
//!
//! The order is Hugging Face's and vLLM's: penalties and biases change the logits, a constraint removes what may not
//! come, temperature flattens or sharpens, then top-k, typical, top-p and min-p each keep a part of the distribution,
//! and one draw decides. Temperature 0 takes the most likely token (the lowest id among equals). The same seed,
//! parameters and logits give the same tokens on every machine.

mod draw;
mod parameters;
mod random;

use std::collections::HashMap;

pub use draw::log_sum_exp;
pub use parameters::{InvalidParameter, MOST_LOGPROBS, SamplingParameters};

use draw::Candidates;
use random::SplitMix64;

use crate::constrain::TokenMask;

/// Why no token could be chosen.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SamplingError {
    /// The model's output is no number.
    #[error(
        "the model gave a logit that is not a number for token {token}; its weights or this backend's arithmetic \
         overflow: try another precision or backend"
    )]
    NotANumber {
        /// Whose logit.
        token: u32,
    },
    /// Nothing may come.
    #[error("no token is left to choose from; loosen the constraint or the logit biases")]
    NothingLeft,
}

/// Natural logarithms of probabilities under the model's own distribution, before anything in
/// [`SamplingParameters`] changes it.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenLogprobs {
    /// Of the chosen token.
    pub logprob: f32,
    /// The most likely tokens, most likely first.
    pub top: Vec<(u32, f32)>,
}

/// What was chosen.
#[derive(Debug, Clone, PartialEq)]
pub struct Choice {
    /// The token.
    pub token: u32,
    /// Where asked for.
    pub logprobs: Option<TokenLogprobs>,
}

/// Chooses the tokens of one text.
#[derive(Debug, Clone)]
pub struct Sampler {
    parameters: SamplingParameters,
    random: SplitMix64,
    generated: HashMap<u32, u32>,
    prompt: HashMap<u32, u32>,
}

impl Sampler {
    /// For a text that continues `prompt`, whose tokens count for the repetition penalty.
    ///
    /// # Errors
    /// [`InvalidParameter`] naming the first value out of its range.
    pub fn new(parameters: SamplingParameters, seed: u64, prompt: &[u32]) -> Result<Self, InvalidParameter> {
        parameters.validate()?;
        let mut counts = HashMap::new();
        if parameters.repetition_penalty != 1.0 {
            for &token in prompt {
                *counts.entry(token).or_insert(0) += 1;
            }
        }
        Ok(Self { random: SplitMix64::new(seed), parameters, generated: HashMap::new(), prompt: counts })
    }

    /// Chooses the next token from its logits, which are used up. Only tokens in `mask` may come.
    ///
    /// # Errors
    /// [`SamplingError`].
    pub fn choose(&mut self, logits: &mut [f32], mask: Option<&TokenMask>) -> Result<Choice, SamplingError> {
        if let Some(token) = logits.iter().position(|logit| logit.is_nan()) {
            return Err(SamplingError::NotANumber { token: token as u32 });
        }
        let original = self.parameters.top_logprobs.map(|count| original_logprobs(logits, count));
        self.penalize(logits);
        for &(token, bias) in &self.parameters.logit_bias {
            if let Some(logit) = logits.get_mut(token as usize) {
                *logit += bias;
            }
        }
        if let Some(mask) = mask {
            mask.apply(logits);
        }
        let token = self.draw(logits).ok_or(SamplingError::NothingLeft)?;
        *self.generated.entry(token).or_insert(0) += 1;
        let logprobs = original.map(|(original, top)| TokenLogprobs { logprob: original.of(token), top });
        Ok(Choice { token, logprobs })
    }

    fn draw(&mut self, logits: &[f32]) -> Option<u32> {
        let p = &self.parameters;
        if p.temperature == 0.0 || p.top_k == 1 {
            return draw::most_likely(logits);
        }
        let mut candidates = Candidates::new(logits, p.temperature, p.top_k)?;
        candidates.keep_typical(p.typical_p);
        candidates.keep_top_p(p.top_p);
        candidates.keep_min_p(p.min_p);
        candidates.pick(self.random.unit())
    }

    /// Repetition: Keskar et al. 2019, <https://arxiv.org/abs/1909.05858>, over prompt and generated tokens.
    /// Presence and frequency: as OpenAI's API defines them, over generated tokens.
    fn penalize(&self, logits: &mut [f32]) {
        let p = &self.parameters;
        if p.repetition_penalty != 1.0 {
            let only_prompt = self.prompt.keys().filter(|token| !self.generated.contains_key(token));
            for &token in only_prompt.chain(self.generated.keys()) {
                if let Some(logit) = logits.get_mut(token as usize) {
                    let factor = if *logit > 0.0 { 1.0 / p.repetition_penalty } else { p.repetition_penalty };
                    *logit *= factor;
                }
            }
        }
        if p.presence_penalty != 0.0 || p.frequency_penalty != 0.0 {
            for (&token, &count) in &self.generated {
                if let Some(logit) = logits.get_mut(token as usize) {
                    *logit -= p.presence_penalty + p.frequency_penalty * count as f32;
                }
            }
        }
    }
}

/// Log-probabilities of a row that is about to change: those of the most likely tokens are taken at once, the row is
/// kept for the chosen one.
fn original_logprobs(logits: &[f32], count: u32) -> (Original, Vec<(u32, f32)>) {
    let original = Original { logits: logits.to_vec(), normalizer: log_sum_exp(logits) };
    let top =
        draw::top(logits, count as usize).into_iter().map(|token| (token, original.of(token))).collect();
    (original, top)
}

struct Original {
    logits: Vec<f32>,
    normalizer: f64,
}

impl Original {
    fn of(&self, token: u32) -> f32 {
        self.logits
            .get(token as usize)
            .map_or(f32::NEG_INFINITY, |&l| (f64::from(l) - self.normalizer) as f32)
    }
}

#[cfg(test)]
mod tests;
