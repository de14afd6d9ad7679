//! What a request may say about sampling.

/// How tokens are chosen. The default is the model's own distribution.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplingParameters {
    /// Divides the logits; 0 takes the most likely token.
    pub temperature: f32,
    /// Keeps this many most likely tokens; 0 keeps all.
    pub top_k: u32,
    /// Keeps the fewest most likely tokens that together have this probability; 1 keeps all.
    pub top_p: f32,
    /// Keeps tokens at least this many times as likely as the most likely one; 0 keeps all.
    pub min_p: f32,
    /// Keeps the tokens whose surprise is nearest to the expected one, up to this probability; 1 keeps all.
    pub typical_p: f32,
    /// Divides positive logits of tokens seen in prompt or answer, multiplies negative ones; 1 changes nothing.
    pub repetition_penalty: f32,
    /// Taken from the logits of tokens in the answer, once.
    pub presence_penalty: f32,
    /// Taken from the logits of tokens in the answer, for each time they came.
    pub frequency_penalty: f32,
    /// Added to the logits of tokens.
    pub logit_bias: Vec<(u32, f32)>,
    /// `None`: no log-probabilities; `Some(n)`: of the chosen token and the `n` most likely ones.
    pub top_logprobs: Option<u32>,
}

impl Default for SamplingParameters {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            typical_p: 1.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            top_logprobs: None,
        }
    }
}

/// A value outside its range.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{name} is {value}; it must be {range}")]
pub struct InvalidParameter {
    /// The field's name.
    pub name: &'static str,
    /// What it is.
    pub value: f32,
    /// What it may be.
    pub range: &'static str,
}

/// The most log-probabilities a request may ask for per token.
pub const MOST_LOGPROBS: u32 = 128;

impl SamplingParameters {
    /// Always the most likely token.
    pub fn greedy() -> Self {
        Self { temperature: 0.0, ..Self::default() }
    }

    /// Checks every value.
    ///
    /// # Errors
    /// The first value out of its range.
    pub fn validate(&self) -> Result<(), InvalidParameter> {
        let finite = |x: f32| x.is_finite();
        let checks = [
            ("temperature", self.temperature, "0 to 100", (0.0..=100.0).contains(&self.temperature)),
            ("top_p", self.top_p, "above 0, at most 1", self.top_p > 0.0 && self.top_p <= 1.0),
            ("min_p", self.min_p, "0 to 1", (0.0..=1.0).contains(&self.min_p)),
            (
                "typical_p",
                self.typical_p,
                "above 0, at most 1",
                self.typical_p > 0.0 && self.typical_p <= 1.0,
            ),
            (
                "repetition_penalty",
                self.repetition_penalty,
                "above 0 and finite",
                self.repetition_penalty > 0.0 && finite(self.repetition_penalty),
            ),
            ("presence_penalty", self.presence_penalty, "finite", finite(self.presence_penalty)),
            ("frequency_penalty", self.frequency_penalty, "finite", finite(self.frequency_penalty)),
        ];
        for (name, value, range, sound) in checks {
            if !sound {
                return Err(InvalidParameter { name, value, range });
            }
        }
        // Minus infinity forbids a token; plus infinity and not-a-number mean nothing.
        if let Some(&(_, value)) = self.logit_bias.iter().find(|(_, b)| b.is_nan() || *b == f32::INFINITY) {
            return Err(InvalidParameter { name: "logit_bias", value, range: "a number or minus infinity" });
        }
        match self.top_logprobs {
            Some(count) if count > MOST_LOGPROBS => {
                Err(InvalidParameter { name: "top_logprobs", value: count as f32, range: "at most 128" })
            }
            _ => Ok(()),
        }
    }
}
