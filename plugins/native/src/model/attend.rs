//! Attention of a step: keys and values into the cache, then queries over it.
#![allow(unsafe_code)] // threads write disjoint heads of shared buffers; each block says which

use super::execute::{Frame, Scratch};
use super::step::Attention;
use crate::kernels::attention::{self, HeadTask, QUERIES, Sight};
use crate::threads::Member;

impl Frame<'_> {
    pub(super) fn attention(&self, attention: &Attention, member: Member<'_>, scratch: &mut Scratch) {
        let Attention { q, k, v, out, layer, heads, kv_heads, .. } = *attention;
        let shape = self.cache.layer(layer);
        let mine = |items: usize| (member.index..items).step_by(member.count);
        for item in mine(self.runs.len() * kv_heads) {
            let (run, head) = (&self.runs[item / kv_heads], item % kv_heads);
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
        // Neighbouring items cost alike and go to different threads.
        for item in mine(self.runs.len() * heads) {
            let (run, head) = (&self.runs[item / heads], item % heads);
            if let Some(rotate) = &attention.rotate_q {
                for t in run.begin..run.begin + run.len {
                    // SAFETY: each head of each row is one thread's.
                    unsafe { self.rotate(rotate, q, t, head) };
                }
            }
            let mut sights = [Sight { from: 0, to: 0 }; QUERIES];
            for (sight, token) in sights.iter_mut().zip(&self.tokens[run.begin..run.begin + run.len]) {
                *sight = sees(token.position, attention.window, attention.causal);
            }
            let sights = &sights[..run.len];
            let from = sights.iter().map(|sight| sight.from).min().unwrap_or(0);
            let to = sights.iter().map(|sight| sight.to).max().unwrap_or(0);
            let task = HeadTask {
                stored: self.cache.stored(),
                key_width: shape.key_width,
                value_width: shape.value_width,
                value_stride: shape.value_stride(),
                scale: attention.scale,
                softcap: attention.softcap,
                sink: sinks.map(|sinks| sinks[head]),
                q: self.begin(q).wrapping_add(run.begin * q.width + head * shape.key_width),
                q_stride: q.width,
                sights,
                out: self.begin(out).wrapping_add(run.begin * out.width + head * shape.value_width),
                out_stride: out.width,
            };
            let pages = self.cache.pages(run.sequence, layer, head / (heads / kv_heads), from, to);
            // SAFETY: queries were written before the step; each head of each run is one thread's output.
            unsafe { attention::attend(self.path, task, pages, &mut scratch.attention) };
        }
    }
}

fn sees(position: u32, window: Option<u32>, causal: bool) -> Sight {
    match (causal, window) {
        (true, None) => Sight { from: 0, to: position },
        (true, Some(window)) => Sight { from: (position + 1).saturating_sub(window), to: position },
        (false, None) => Sight { from: 0, to: u32::MAX },
        (false, Some(window)) => {
            Sight { from: position.saturating_sub(window / 2), to: position.saturating_add(window / 2) }
        }
    }
}
