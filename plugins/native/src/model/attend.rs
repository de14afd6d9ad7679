//! Attention of a step: keys and values into the cache, then queries over it.
#![allow(unsafe_code)] // threads write disjoint heads of shared buffers; each block says which

use std::ops::Range;

use super::execute::{Frame, Scratch};
use super::runs::Run;
use super::step::Attention;
use crate::kernels::attention::{self, HeadTask, PageOfHead, QUERIES, Query, Sight};
#[cfg(target_arch = "x86_64")]
use crate::kernels::attention::{Stored, tiled};
use crate::threads::Member;

impl Frame<'_> {
    pub(super) fn attention(&self, attention: &Attention, member: Member<'_>, scratch: &mut Scratch) {
        let Attention { q, k, v, layer, kv_heads, .. } = *attention;
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
        for span in self.spans(q.domain) {
            let runs = self.runs(q.domain);
            let of_row = |row| runs.partition_point(|run| run.begin < row);
            let runs = &runs[of_row(span.rows.start)..of_row(span.rows.end)];
            #[cfg(target_arch = "x86_64")]
            if span.many && self.path.has_tiles() && self.cache.stored() == Stored::Word {
                self.attend_by_tiles(attention, runs, member, scratch);
                continue;
            }
            self.attend_run_by_run(attention, runs, member, scratch);
        }
    }

    fn attend_run_by_run(
        &self,
        attention: &Attention,
        runs: &[Run],
        member: Member<'_>,
        scratch: &mut Scratch,
    ) {
        let Attention { heads, kv_heads, .. } = *attention;
        let group = heads / kv_heads;
        for (number, run) in runs.iter().enumerate() {
            // Threads take turns at shares of heads, which may differ by one.
            let share = member.turned(number).share(heads, 1);
            let mut head = share.start;
            while head < share.end {
                // Heads that share keys go through them together, as far as there is room for their queries.
                let together = (QUERIES / run.len).min(group - head % group).min(share.end - head);
                self.attend(attention, run, head..head + together, scratch);
                head += together;
            }
        }
    }

    /// By tiles, which take more queries at once: those of two neighbouring runs, in as many heads that share keys as there is room for.
    #[cfg(target_arch = "x86_64")]
    fn attend_by_tiles(
        &self,
        attention: &Attention,
        runs: &[Run],
        member: Member<'_>,
        scratch: &mut Scratch,
    ) {
        let Attention { heads, kv_heads, .. } = *attention;
        let group = heads / kv_heads;
        let mut queries = [Query::NONE; tiled::GROUPS * tiled::GROUP];
        let mut item = 0;
        for runs in runs.chunk_by(|a, b| a.sequence == b.sequence).flat_map(|runs| runs.chunks(2)) {
            for head in (0..heads).step_by(group) {
                for first in (head..head + group).step_by(tiled::GROUPS / 2) {
                    // Later runs see more: every other round goes backwards, so that shares are even.
                    let (round, turn) = (item / member.count, item % member.count);
                    item += 1;
                    if member.index != if round % 2 == 0 { turn } else { member.count - 1 - turn } {
                        continue;
                    }
                    let together = first..(first + tiled::GROUPS / 2).min(head + group);
                    let queries = &mut queries[..together.len() * runs.len() * tiled::GROUP];
                    let (task, pages) = self.ask(attention, together, runs, tiled::GROUP, queries);
                    // SAFETY: queries were written before the step; each head of each run is one thread's output; only paths with
                    // tiles have tiled spans.
                    unsafe { tiled::attend(task, pages, &mut scratch.attention_tiles) };
                }
            }
        }
    }

    /// Attends for all rows of a run in some heads that share keys; at most [`QUERIES`] queries.
    fn attend(&self, attention: &Attention, run: &Run, heads: Range<usize>, scratch: &mut Scratch) {
        let mut queries = [Query::NONE; QUERIES];
        let queries = &mut queries[..heads.len() * run.len];
        let (task, pages) = self.ask(attention, heads, std::slice::from_ref(run), run.len, queries);
        // SAFETY: queries were written before the step; each head of each run is one thread's output.
        unsafe { attention::attend(self.path, task, pages, &mut scratch.attention) };
    }

    /// Writes down the queries of a sequence's runs in heads that share keys, which are this thread's, each run's `apart` from the next
    /// one's; gives back what is asked with them, and the pages that they see together.
    fn ask<'a>(
        &'a self,
        attention: &Attention,
        heads: Range<usize>,
        runs: &[Run],
        apart: usize,
        queries: &'a mut [Query],
    ) -> (HeadTask<'a>, impl Iterator<Item = PageOfHead> + use<'a>) {
        let Attention { q, out, layer, .. } = *attention;
        let shape = self.cache.layer(layer);
        let sinks = self.vector(attention.sinks);
        let kv_head = heads.start / (attention.heads / attention.kv_heads);
        let (mut from, mut to) = (u32::MAX, 0);
        queries.fill(Query::NONE);
        let asked = heads.flat_map(|head| runs.iter().map(move |run| (head, run)));
        for (queries, (head, run)) in queries.chunks_mut(apart).zip(asked) {
            for (query, row) in queries.iter_mut().zip(run.begin..run.begin + run.len) {
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
        }
        let task = HeadTask {
            stored: self.cache.stored(),
            key_width: shape.key_width,
            value_width: shape.value_width,
            value_stride: shape.value_stride(),
            scale: attention.scale,
            softcap: attention.softcap,
            queries,
        };
        (task, self.cache.pages(runs[0].sequence, layer, kv_head, from, to))
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
