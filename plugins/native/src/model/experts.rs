//! Mixtures of experts: which token goes to which expert, and room for the rows that do.

#![allow(unsafe_code)] // threads write disjoint rows of shared buffers; each block says which

use drophammer_models::graph::{Routing, Scoring};

use super::execute::{Frame, Scratch};
use super::products::{Form, Work};
use super::step::{Experts, Step};
use crate::kernels::LANES;
use crate::kernels::float::Rows;
use crate::kernels::rows::{self, Binary};
use crate::memory::Aligned;
use crate::threads::{Member, Shares};

/// One token's use of one expert.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Choice {
    pub(crate) expert: u32,
    pub(crate) token: u32,
    pub(crate) weight: f32,
}

/// Who uses which expert, ordered by expert.
#[derive(Default)]
pub(crate) struct RoutePlan {
    pub(crate) choices: Vec<Choice>,
    // What a token's choice is made with.
    scores: Vec<f32>,
    ranking: Vec<u32>,
    weights: Vec<f32>,
    groups: Vec<(u32, f32)>,
    ranks: Vec<f32>,
}

impl RoutePlan {
    /// Each used expert with the slots that are its.
    pub(crate) fn experts(&self) -> impl Iterator<Item = (usize, std::ops::Range<usize>)> + Clone + '_ {
        let mut begin = 0;
        self.choices.chunk_by(|a, b| a.expert == b.expert).map(move |same| {
            let slots = begin..begin + same.len();
            begin = slots.end;
            (same[0].expert as usize, slots)
        })
    }
}

/// Buffers for the rows of all chosen experts.
pub(crate) struct ExpertRoom {
    plan: Vec<RoutePlan>,
    x: Aligned<f32>,
    gate: Aligned<f32>,
    up: Aligned<f32>,
}

/// The same, as threads share it.
pub(crate) struct SharedRoom<'a> {
    plan: Shares<'a, RoutePlan>,
    pub(crate) x: Shares<'a, f32>,
    pub(crate) gate: Shares<'a, f32>,
    pub(crate) up: Shares<'a, f32>,
}

impl ExpertRoom {
    /// Enough for `chunk` tokens at every mixture of the program; `None` if it has none.
    pub(crate) fn for_steps(steps: &[Step], chunk: usize) -> Option<Self> {
        let mixtures = steps.iter().filter_map(|step| match step {
            Step::Experts(experts) => Some(experts),
            _ => None,
        });
        let slots = mixtures.clone().map(|e| e.routing.used as usize).max()? * chunk;
        let hidden = mixtures.clone().map(|e| e.x.width).max()?;
        let width = mixtures.map(|e| e.width).max()?;
        Some(Self {
            plan: vec![RoutePlan::default()],
            x: Aligned::zeroed(slots * hidden),
            gate: Aligned::zeroed(slots * width),
            up: Aligned::zeroed(slots * width),
        })
    }

    pub(crate) fn shared(&mut self) -> SharedRoom<'_> {
        SharedRoom {
            plan: Shares::new(&mut self.plan),
            x: Shares::new(&mut self.x),
            gate: Shares::new(&mut self.gate),
            up: Shares::new(&mut self.up),
        }
    }
}

impl SharedRoom<'_> {
    /// The plan, to write by one thread or to read by all.
    ///
    /// # Safety
    /// As for [`Shares::part`].
    #[allow(unsafe_code, clippy::mut_from_ref)] // passes the promise of `Shares::part` on
    pub(crate) unsafe fn plan(&self) -> &mut RoutePlan {
        // SAFETY: the caller's promise.
        unsafe { &mut self.plan.part(0, 1)[0] }
    }
}

/// Chooses experts for each row of router logits.
pub(crate) fn route(logits: &[f32], routing: &Routing, correction: Option<&[f32]>, plan: &mut RoutePlan) {
    let (experts, used) = (routing.experts as usize, routing.used as usize);
    let RoutePlan { choices, scores, ranking, weights, groups: best, ranks } = plan;
    choices.clear();
    for (token, logits) in logits.chunks_exact(experts).enumerate() {
        scores.clear();
        scores.extend_from_slice(logits);
        match routing.scoring {
            Scoring::Softmax => softmax(scores),
            Scoring::Sigmoid => scores.iter_mut().for_each(|x| *x = 1.0 / (1.0 + (-*x).exp())),
            Scoring::SoftmaxOfChosen => {}
        }
        let rank = |e: u32| scores[e as usize] + correction.map_or(0.0, |c| c[e as usize]);
        ranking.clear();
        ranking.extend(0..routing.experts);
        if let Some(groups) = routing.groups {
            let size = experts / groups.count as usize;
            best.clear();
            best.extend((0..groups.count).map(|group| {
                ranks.clear();
                ranks.extend((0..size as u32).map(|e| rank(group * size as u32 + e)));
                ranks.sort_unstable_by(|a, b| b.total_cmp(a));
                (group, ranks.iter().take(groups.best as usize).sum())
            }));
            best.sort_unstable_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
            best.truncate(groups.used as usize);
            ranking.retain(|e| best.iter().any(|(group, _)| *e as usize / size == *group as usize));
        }
        ranking.sort_unstable_by(|a, b| rank(*b).total_cmp(&rank(*a)).then(a.cmp(b)));
        ranking.truncate(used);
        weights.clear();
        weights.extend(ranking.iter().map(|e| scores[*e as usize]));
        if routing.scoring == Scoring::SoftmaxOfChosen {
            softmax(weights);
        }
        if routing.normalize {
            let sum: f32 = weights.iter().sum();
            for weight in &mut *weights {
                *weight /= sum.max(f32::MIN_POSITIVE);
            }
        }
        choices.extend(ranking.iter().zip(&*weights).map(|(expert, weight)| Choice {
            expert: *expert,
            token: token as u32,
            weight: weight * routing.scale,
        }));
    }
    choices.sort_unstable_by_key(|choice| (choice.expert, choice.token));
}

fn softmax(x: &mut [f32]) {
    let top = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    for x in &mut *x {
        *x = (*x - top).exp();
    }
    let sum: f32 = x.iter().sum();
    for x in x {
        *x /= sum;
    }
}

impl Frame<'_> {
    pub(super) fn mixture(&self, step: &Experts, member: Member<'_>, scratch: &mut Scratch) {
        let Some(room) = &self.experts else { return };
        let (tokens, used) = (self.rows(step.x.domain), step.routing.used as usize);
        let (hidden, width) = (step.x.width, step.width);
        if member.index == 0 {
            // SAFETY: the other threads wait at the barrier below.
            unsafe {
                let logits = self.read(step.logits, 0, tokens * step.logits.width);
                route(logits, &step.routing, self.vector(step.correction), room.plan());
            }
        }
        member.barrier();
        // SAFETY: written before the barrier, only read after it.
        let plan = unsafe { room.plan() };
        for (slot, choice) in plan.choices.iter().enumerate() {
            if slot % member.count == member.index {
                // SAFETY: each slot is one thread's.
                unsafe {
                    let x = self.read(step.x, choice.token as usize * hidden, hidden);
                    room.x.part(slot * hidden, hidden).copy_from_slice(x);
                }
            }
        }
        member.barrier();
        self.observe(&step.gate, plan, (room.x.begin(), hidden), member, scratch);
        let input = |begin: *mut f32, width: usize, slot: usize| Rows {
            begin: begin.wrapping_add(slot * width),
            stride: width,
        };
        let halves =
            [(&step.gate, &step.gate_bias, room.gate.begin()), (&step.up, &step.up_bias, room.up.begin())];
        let work = halves.iter().flat_map(|(matrices, biases, out)| {
            plan.experts().map(move |(expert, slots)| Work {
                matrix: &self.program.matrices[matrices[expert]],
                bias: self.vector(biases.get(expert).copied()),
                x: input(room.x.begin(), hidden, slots.start),
                form: Form::default(),
                tokens: slots.len(),
                out: out.wrapping_add(slots.start * width),
                out_stride: width,
                accumulate: false,
            })
        });
        self.multiply(work, member, scratch);
        member.barrier();
        let share = member.share(tokens * used * width, LANES);
        let (gate, up) =
            (room.gate.begin().wrapping_add(share.start), room.up.begin().wrapping_add(share.start));
        // SAFETY: each element is one thread's.
        unsafe { rows::binary(self.path, Binary::Gated(step.gating), gate, up, gate, share.len()) };
        member.barrier();
        self.observe(&step.down, plan, (room.gate.begin(), width), member, scratch);
        let work = plan.experts().map(|(expert, slots)| Work {
            matrix: &self.program.matrices[step.down[expert]],
            bias: self.vector(step.down_bias.get(expert).copied()),
            x: input(room.gate.begin(), width, slots.start),
            form: Form::default(),
            tokens: slots.len(),
            out: room.x.begin().wrapping_add(slots.start * hidden),
            out_stride: hidden,
            accumulate: false,
        });
        self.multiply(work, member, scratch);
        member.barrier();
        let share = member.share(tokens, 1);
        for token in share.clone() {
            // SAFETY: each row is one thread's.
            unsafe { self.write(step.out, token * hidden, hidden).fill(0.0) };
        }
        for (slot, choice) in plan.choices.iter().enumerate() {
            if share.contains(&(choice.token as usize)) {
                // SAFETY: each row is one thread's; slots are only read.
                unsafe {
                    let y = &room.x.whole()[slot * hidden..][..hidden];
                    let out = self.write(step.out, choice.token as usize * hidden, hidden);
                    rows::add_scaled(self.path, y, choice.weight, out);
                }
            }
        }
    }
}

impl Frame<'_> {
    /// Counts the rows in the slots of each expert, where somebody counts.
    fn observe(
        &self,
        stack: &[usize],
        plan: &RoutePlan,
        (rows, width): (*const f32, usize),
        member: Member<'_>,
        scratch: &mut Scratch,
    ) {
        let Some(observer) = self.observer else { return };
        for (expert, slots) in plan.experts() {
            // SAFETY: slots were filled before the last barrier and are only read until the next.
            let rows =
                unsafe { std::slice::from_raw_parts(rows.add(slots.start * width), slots.len() * width) };
            observer.count(self.path, stack[expert], rows, member, &mut scratch.counted);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use drophammer_models::graph::ExpertGroups;

    fn routing() -> Routing {
        Routing {
            experts: 4,
            used: 2,
            scoring: Scoring::Softmax,
            normalize: true,
            scale: 1.0,
            correction: None,
            groups: None,
        }
    }

    #[test]
    fn the_best_experts_are_chosen_and_slots_are_grouped_by_expert() {
        let mut plan = RoutePlan::default();
        route(&[0.0, 2.0, 1.0, -1.0, 5.0, 0.0, 0.0, 4.0], &routing(), None, &mut plan);
        let who: Vec<(u32, u32)> = plan.choices.iter().map(|c| (c.expert, c.token)).collect();
        assert_eq!(who, [(0, 1), (1, 0), (2, 0), (3, 1)]);
        assert_eq!(
            plan.experts().map(|(e, s)| (e, s.start)).collect::<Vec<_>>(),
            [(0, 0), (1, 1), (2, 2), (3, 3)]
        );
        let sum: f32 = plan.choices.iter().filter(|c| c.token == 0).map(|c| c.weight).sum();
        assert!((sum - 1.0).abs() < 1e-6);
    }

    #[test]
    fn a_correction_changes_the_choice_but_not_the_weights_and_groups_limit_it() {
        let mut plan = RoutePlan::default();
        let sigmoid = Routing { scoring: Scoring::Sigmoid, normalize: false, used: 1, ..routing() };
        route(&[0.0, 2.0, 1.0, 0.5], &sigmoid, Some(&[9.0, 0.0, 0.0, 0.0]), &mut plan);
        assert_eq!(plan.choices, [Choice { expert: 0, token: 0, weight: 0.5 }]);
        let groups = Some(ExpertGroups { count: 2, used: 1, best: 2 });
        route(&[0.0, 2.0, 1.9, 1.9], &Routing { groups, ..sigmoid }, None, &mut plan);
        assert_eq!(plan.choices[0].expert, 2, "expert 1 is the best, but its group is not");
    }
}
