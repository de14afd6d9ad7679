//! One text on its way: what is read, what is generated, when it ends.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use drophammer_sdk::{BackendError, ErrorCode};

use super::draft::Drafting;
use super::request::{Event, EventKind, FinishReason, RequestId, Timings, Usage};
use super::stop_strings::StopStrings;
use crate::constrain::Constraint;
use crate::sampler::Sampler;
use crate::tokenizer::{Detokenizer, Tokenizer};

/// One choice of a request.
#[derive(Debug)]
pub(super) struct Task {
    pub(super) request: RequestId,
    pub(super) choice: u32,
    /// Prompt and generated tokens; the last generated one is read in the next step.
    pub(super) tokens: Vec<u32>,
    /// How many of them the session has read.
    pub(super) read: usize,
    pub(super) prompt_length: usize,
    /// The most tokens to generate.
    pub(super) limit: u32,
    pub(super) ignore_end: bool,
    pub(super) sampler: Sampler,
    pub(super) constraint: Option<Constraint>,
    pub(super) text: Detokenizer,
    pub(super) stops: StopStrings,
    /// Whether the request's first choice has read the prompt: then the others can copy it.
    pub(super) prompt_read: Arc<AtomicBool>,
    pub(super) submitted: f64,
    pub(super) started: f64,
    pub(super) first_token: Option<f64>,
    pub(super) reused: usize,
    pub(super) generated: u32,
    pub(super) drafting: Drafting,
}

impl Task {
    /// Whether it may start: other choices of a request wait until the first has read the prompt.
    pub(super) fn is_ready(&self) -> bool {
        self.choice == 0 || self.prompt_read.load(Relaxed)
    }

    /// Tokens the session has to read before the next one can be chosen.
    pub(super) fn unread(&self) -> &[u32] {
        &self.tokens[self.read..]
    }

    /// Whether all that is missing is the token generated last.
    pub(super) fn is_decoding(&self) -> bool {
        self.read >= self.prompt_length
    }

    /// How many tokens to guess after the last one: at most `most`, and never up to the limit, whose token is the last. None
    /// while the prompt is read.
    pub(super) fn draft_wish(&self, most: usize) -> usize {
        let left = (self.limit - self.generated).saturating_sub(1) as usize;
        let generating = self.is_decoding() && self.unread().len() == 1;
        if generating { self.drafting.wish(most.min(left)) } else { 0 }
    }

    pub(super) fn event(&self, kind: EventKind) -> Event {
        Event { request: self.request, choice: self.choice, kind }
    }

    /// Chooses the next token. `row` is used up.
    pub(super) fn advance(&mut self, row: &mut [f32], tokenizer: &Tokenizer, now: f64) -> Vec<Event> {
        match self.choose(row, tokenizer, now) {
            Ok(events) => events,
            Err(error) => vec![self.event(EventKind::Failed(error))],
        }
    }

    fn choose(
        &mut self,
        row: &mut [f32],
        tokenizer: &Tokenizer,
        now: f64,
    ) -> Result<Vec<Event>, BackendError> {
        let failed = |message: String| BackendError::new(ErrorCode::Failed, message);
        // A padded vocabulary has rows without a token.
        let known = row.len().min(tokenizer.len());
        let mask =
            self.constraint.as_mut().map(Constraint::mask).transpose().map_err(|e| failed(e.to_string()))?;
        let choice =
            self.sampler.choose(&mut row[..known], mask.as_ref()).map_err(|e| failed(e.to_string()))?;
        let token = choice.token;
        self.generated += 1;
        self.first_token.get_or_insert(now);
        if let Some(constraint) = &mut self.constraint {
            constraint.accept(token).map_err(|e| failed(e.to_string()))?;
        }
        if tokenizer.ends_generation(token) && !self.ignore_end {
            return Ok(vec![self.finish(FinishReason::EndOfText, now)]);
        }
        let released = self.stops.push(&self.text.push(tokenizer, token));
        let token_event =
            self.event(EventKind::Token { text: released.text, token, logprobs: choice.logprobs });
        let reason = if let Some(stop) = released.stop {
            Some(FinishReason::StopText(stop))
        } else if self.constraint.as_ref().is_some_and(Constraint::is_complete) {
            Some(FinishReason::ConstraintComplete)
        } else {
            (self.generated >= self.limit).then_some(FinishReason::Length)
        };
        self.tokens.push(token);
        let last = reason.map(|reason| self.finish(reason, now));
        Ok(std::iter::once(token_event).chain(last).collect())
    }

    /// Ends the text.
    pub(super) fn finish(&mut self, reason: FinishReason, now: f64) -> Event {
        let (text, reason) = if matches!(reason, FinishReason::StopText(_)) {
            (String::new(), reason)
        } else {
            let released = self.stops.push(&self.text.finish());
            match released.stop {
                Some(stop) => (released.text, FinishReason::StopText(stop)),
                None => (released.text + &self.stops.finish(), reason),
            }
        };
        let usage = Usage {
            prompt_tokens: self.prompt_length as u32,
            reused_tokens: self.reused as u32,
            completion_tokens: self.generated,
        };
        let timings = Timings {
            started: self.started - self.submitted,
            first_token: self.first_token.map(|at| at - self.submitted),
            finished: now - self.submitted,
        };
        self.event(EventKind::Finished { text, reason, usage, timings })
    }
}

impl Drop for Task {
    /// However the first choice ends, the others need not wait for it any longer.
    fn drop(&mut self) {
        if self.choice == 0 {
            self.prompt_read.store(true, Relaxed);
        }
    }
}
