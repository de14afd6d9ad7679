//! What the session's sequences hold, and who uses them.

use drophammer_sdk::{ErrorCode, Result, Session};

#[derive(Debug, Default, Clone)]
struct Slot {
    /// The tokens in the cache, from position 0.
    cached: Vec<u32>,
    busy: bool,
    /// Counts up; the least recently used slot is given away first.
    last_used: u64,
}

/// One slot per sequence of the session.
#[derive(Debug)]
pub(super) struct Slots {
    all: Vec<Slot>,
    uses: u64,
    /// Whether the backend can copy between sequences; found out by trying.
    can_copy: bool,
}

impl Slots {
    pub(super) fn new(count: u32) -> Self {
        Self { all: vec![Slot::default(); count as usize], uses: 0, can_copy: true }
    }

    pub(super) fn has_idle(&self) -> bool {
        self.all.iter().any(|slot| !slot.busy)
    }

    /// Takes a sequence for a prompt. Returns it with the number of the prompt's tokens it already holds, fewer than
    /// all: the last one must be read for its output.
    pub(super) fn acquire(
        &mut self,
        session: &mut dyn Session,
        prompt: &[u32],
    ) -> Result<Option<(u32, usize)>> {
        let Some(own) = self.best(prompt, |slot| !slot.busy) else { return Ok(None) };
        let shared = |index: usize| self.shared(index, prompt);
        let any = self.best(prompt, |_| true).unwrap_or(own);
        let victim = self.least_useful();
        let lost = self.all[own].cached.len() - shared(own);
        let source = if shared(any) > shared(own) { any } else { own };
        // A copy saves reading when another sequence shares more; it saves what taking over would cut off when there is
        // an empty sequence, or one that is older and the cut would be the larger part.
        let (empty, older) = {
            let (victim, own) = (&self.all[victim], &self.all[own]);
            (victim.cached.is_empty(), victim.last_used < own.last_used)
        };
        let worth = source != own || (lost > 0 && (empty || (older && lost > shared(own))));
        let copying = self.can_copy && worth && victim != source && shared(source) > 0;
        let (target, reused) = if copying { (victim, shared(source)) } else { (own, shared(own)) };
        if copying {
            match session.copy(source as u32, target as u32, 0, reused as u32) {
                Ok(()) => self.all[target].cached = prompt[..reused].to_vec(),
                Err(error) if error.code == ErrorCode::UnsupportedInput => {
                    self.can_copy = false;
                    return self.acquire(session, prompt);
                }
                Err(error) => return Err(error),
            }
        } else if self.all[own].cached.len() > reused {
            session.remove(own as u32, reused as u32, u32::MAX)?;
            self.all[own].cached.truncate(reused);
        }
        self.all[target].busy = true;
        self.touch(target);
        Ok(Some((target as u32, reused)))
    }

    /// How many of the prompt's tokens, without the last, a slot begins with.
    fn shared(&self, index: usize, prompt: &[u32]) -> usize {
        let usable = &prompt[..prompt.len().saturating_sub(1)];
        self.all[index].cached.iter().zip(usable).take_while(|(a, b)| a == b).count()
    }

    /// The slot that shares most; among equals the one that loses least, then the least recently used.
    fn best(&self, prompt: &[u32], wanted: impl Fn(&Slot) -> bool) -> Option<usize> {
        let wanted = (0..self.all.len()).filter(|&index| wanted(&self.all[index]));
        wanted.min_by_key(|&index| {
            let slot = &self.all[index];
            (std::cmp::Reverse(self.shared(index, prompt)), slot.cached.len(), slot.last_used)
        })
    }

    /// The idle slot to give away: an empty one, or the least recently used.
    fn least_useful(&self) -> usize {
        let idle = (0..self.all.len()).filter(|&index| !self.all[index].busy);
        idle.min_by_key(|&index| (!self.all[index].cached.is_empty(), self.all[index].last_used)).unwrap_or(0)
    }

    fn touch(&mut self, index: usize) {
        self.uses += 1;
        self.all[index].last_used = self.uses;
    }

    /// Takes note of tokens that the session has read.
    pub(super) fn read(&mut self, slot: u32, tokens: &[u32]) {
        self.all[slot as usize].cached.extend_from_slice(tokens);
    }

    /// Gives a sequence back; it keeps its tokens for others.
    pub(super) fn release(&mut self, slot: u32) {
        self.all[slot as usize].busy = false;
        self.touch(slot as usize);
    }

    /// Gives a sequence back whose content is uncertain.
    pub(super) fn discard(&mut self, session: &mut dyn Session, slot: u32) {
        // A session that fails here fails again on the next use, which reports it.
        if session.remove(slot, 0, u32::MAX).is_err() {
            tracing::warn!(sequence = slot, "the session could not forget a sequence after a failure");
        }
        self.all[slot as usize].cached.clear();
        self.release(slot);
    }
}
