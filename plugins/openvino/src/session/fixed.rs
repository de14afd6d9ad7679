//! Models whose shapes are fixed when they are compiled, as NPUs want them.
//!
//! OpenVINO's NPU plugin makes two models of a stateful one: the first takes a prompt, filled up to a fixed length, the second a
//! single token, and it hands keys and values over. It tells the last token's logits alone, a prompt begins a sequence anew, and no
//! entry can be masked out: so what lies before a wanted row goes in as a prompt, the rest token by token, and a
//! sequence that lost an entry is computed again. The property `NPUW_DEVICES=CPU` runs all of it without an NPU.

use drophammer_sdk::Result;

use super::{Entry, OpenVinoSession, unsupported};
use crate::runtime::{Numbers, Request};

/// The plugin rounds lengths up to multiples of this.
const STEP: u32 = 64;
/// Tokens beyond the longest prompt that keys and values have room for; the least that the plugin plans with.
const RESPONSE: u32 = 128;
/// So many tokens of a sequence that goes on are computed one by one; more are worth computing all of it as a prompt.
const FEW: usize = 8;

/// Whether models for this device have fixed shapes.
pub(super) fn is_for(device: &str) -> bool {
    device == "NPU" || device.starts_with("NPU.")
}

/// Properties that make both models of a language model; its keys and values are `[batch, heads, tokens, width]`.
pub(super) fn properties(context: u32) -> [(&'static str, String); 6] {
    [
        ("NPU_USE_NPUW", "YES".to_owned()),
        ("NPUW_LLM", "YES".to_owned()),
        ("NPUW_LLM_BATCH_DIM", "0".to_owned()),
        ("NPUW_LLM_SEQ_LEN_DIM", "2".to_owned()),
        ("NPUW_LLM_MAX_PROMPT_LEN", context.next_multiple_of(STEP).to_string()),
        ("NPUW_LLM_MIN_RESPONSE_LEN", RESPONSE.to_string()),
    ]
}

impl OpenVinoSession {
    /// Runs `new` entries of a sequence; writes the rows of those in `wanted` (ascending).
    pub(super) fn run_fixed(
        &mut self,
        sequence: usize,
        new: &[Entry],
        wanted: &[usize],
        out: &mut [f32],
    ) -> Result<()> {
        let width = self.limits.output_width as usize;
        let state = &mut self.sequences[sequence];
        let before: Vec<Entry> = state.entries().collect();
        let first = wanted.first().map_or(new.len(), |row| row + 1);
        let ahead = state.due.len() + first;
        let anew = state.request.is_none() || state.held.len() < 2 || ahead > FEW;
        let done = if anew { 0 } else { state.held.len() };
        let all: Vec<Entry> = before.iter().chain(new).copied().collect();
        if anew && all.first().is_some_and(|entry| entry.position != 0) {
            return Err(unsupported(
                format!("a sequence that begins at position {} cannot run on an NPU", all[0].position),
                "Use another device, or let the sequence begin at position 0.",
            ));
        }
        if anew {
            state.request = Some(self.compiled.request()?);
        }
        let Some(request) = state.request.as_mut() else { return Ok(()) };
        let mut rows = out.chunks_exact_mut(width).zip(wanted.iter().map(|row| before.len() + row));
        let mut row = rows.next();
        let mut at = done;
        while at < all.len() {
            // Requests share what a prompt leaves until a token takes it over: the prompt's last token follows it at once.
            let end = if at == 0 { (before.len() + first - 1).max(1) } else { at + 1 };
            if let Err(error) = infer(request, &all[..end], at) {
                // What the request holds now is unknown.
                state.refill(before);
                return Err(error);
            }
            if let Some((out, _)) = row.take_if(|(_, row)| *row + 1 == end) {
                request.output(|values| {
                    out.copy_from_slice(&values[values.len().saturating_sub(width)..]);
                    Ok(())
                })?;
                row = rows.next();
            }
            at = end;
        }
        state.held = all.into_iter().map(Some).collect();
        state.due.clear();
        Ok(())
    }
}

/// Runs the entries from `first` on, after those before it.
fn infer(request: &mut Request, entries: &[Entry], first: usize) -> Result<()> {
    let ids: Vec<i64> = entries[first..].iter().map(|entry| entry.token.into()).collect();
    let positions: Vec<i64> = entries[first..].iter().map(|entry| entry.position.into()).collect();
    let (time, whole) = (ids.len() as i64, entries.len() as i64);
    request.set("input_ids", &[1, time], Numbers::I64(&ids))?;
    request.set("attention_mask", &[1, whole], Numbers::I64(&vec![1; entries.len()]))?;
    request.set("position_ids", &[1, time], Numbers::I64(&positions))?;
    request.set("beam_idx", &[1], Numbers::I32(&[0]))?;
    request.infer()
}
