//! Attention of a step: keys and values into the cache, then queries over it.
#![allow(unsafe_code)] // threads write disjoint heads of shared buffers; each block says which

use std::ops::Range;

use super::execute::{Frame, Scratch};
use super::runs::Run;
use super::step::Attention;
use crate::kernels::attention::{self, HeadTask, QUERIES, Query, Sight};
use crate::threads::Member;

impl Frame<'_> {
    pub(super) fn attention(&self, attention: &Attention, member: Member<'_>, scratch: &mut Scratch) {
        let Attention { q, k, v, layer, heads, kv_heads, .. } = *attention;
        let shape = self.cache.layer(layer);
        let runs = self.runs(k.domain);
        for item in member.share(runs.len() * kv_heads, 1) {
            let (run, head) = (&runs[item / kv_heads], item % kv_heads);
            for t in run.begin..run.begin + run.len {
                // SAFETY: each token's slot of each head is one thread's; keys and values are only read here.
                unsafe {
                    if let Some(rotate) = &attention.rotate_k {
                        self.rotate(rotate, k, t, head);
                    }
                    let key = self.read(k, t * k.width + head * shape.key_width, shape.key_width);
                    let value = self.read(v, t * v.width + head * shape.value_width, shape.value_width);
                    self.cache.write(self.path, layer, head, self.places[t], key, value);
                }
            }
        }
        member.barrier();
        let sinks = self.vector(attention.sinks);
        let group = heads / kv_heads;
        for (number, run) in self.runs(q.domain).iter().enumerate() {
            // Threads take turns at shares of heads, which may differ by one.
            let share = member.turned(number).share(heads, 1);
            let mut head = share.start;
            while head < share.end {
                // Heads that share keys go through them together, as far as there is room for their queries.
                let together = (QUERIES / run.len).min(group - head % group).min(share.end - head);
                self.attend(attention, run, head..head + together, sinks, scratch);
                head += together;
            }
        }
    }

    /// Attends for all rows of a run in some heads that share keys; at most [`QUERIES`] queries.
    fn attend(
        &self,
        attention: &Attention,
        run: &Run,
        heads: Range<usize>,
        sinks: Option<&[f32]>,
        scratch: &mut Scratch,
    ) {
        let Attention { q, out, layer, .. } = *attention;
        let shape = self.cache.layer(layer);
        let nothing = Sight { from: 0, to: 0 };
        let unused = Query { q: std::ptr::null(), out: std::ptr::null_mut(), sight: nothing, sink: None };
        let mut queries = [unused; QUERIES];
        let rows = run.begin..run.begin + run.len;
        let asked = heads.clone().flat_map(|head| rows.clone().map(move |row| (head, row)));
        let (mut from, mut to) = (u32::MAX, 0);
        for (query, (head, row)) in queries.iter_mut().zip(asked) {
            if let Some(rotate) = &attention.rotate_q {
                // SAFETY: each head of each row is one thread's.
                unsafe { self.rotate(rotate, q, row, head) };
            }
            let token = self.tokens[self.token(q.domain, row)];
            let sight = sees(token.position, attention.window, attention.causal);
            (from, to) = (from.min(sight.from), to.max(sight.to));
            *query = Query {
                q: self.begin(q).wrapping_add(row * q.width + head * shape.key_width),
                out: self.begin(out).wrapping_add(row * out.width + head * shape.value_width),
                sight,
                sink: sinks.map(|sinks| sinks[head]),
            };
        }
        let task = HeadTask {
            stored: self.cache.stored(),
            key_width: shape.key_width,
            value_width: shape.value_width,
            value_stride: shape.value_stride(),
            scale: attention.scale,
            softcap: attention.softcap,
            queries: &queries[..heads.len() * run.len],
        };
        let kv_head = heads.start / (attention.heads / attention.kv_heads);
        let pages = self.cache.pages(run.sequence, layer, kv_head, from, to);
        // SAFETY: queries were written before the step; each head of each run is one thread's output.
        unsafe { attention::attend(self.path, task, pages, &mut scratch.attention) };
    }
}

/// What a token at `position` may see.
pub(super) fn sees(position: u32, window: Option<u32>, causal: bool) -> Sight {
    match (causal, window) {
        (true, None) => Sight { from: 0, to: position },
        (true, Some(window)) => Sight { from: (position + 1).saturating_sub(window), to: position },
        (false, None) => Sight { from: 0, to: u32::MAX },
        (false, Some(window)) => {
            Sight { from: position.saturating_sub(window / 2), to: position.saturating_add(window / 2) }
        }
    }
}
