//! Mixtures of experts: which token goes to which expert, and their products.
//!
//! Each use of an expert by a token is a *slot*. Slots are in the order of their experts, so that an expert's are neighbouring rows,
//! which its matrices are multiplied by at once; the rows of quantized ones lie in whole panels for each expert.

#![allow(unsafe_code)] // threads write disjoint rows of shared buffers; each block says which

use std::ops::Range;

use drophammer_models::graph::{Routing, Scoring};

use super::execute::{Frame, Program, Scratch};
use super::forms::{Form, Forms, Rooms};
use super::products::Work;
use super::runs::Span;
use super::step::{Experts, Step};
use crate::kernels::activation::TILED_PANEL;
use crate::kernels::float::Rows;
use crate::kernels::rows;
use crate::kernels::tile::Takes;
use crate::kernels::{LANES, Path};
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
    pub(crate) fn experts(&self) -> impl Iterator<Item = (usize, Range<usize>)> + Clone + '_ {
        let mut begin = 0;
        self.choices.chunk_by(|a, b| a.expert == b.expert).map(move |same| {
            let slots = begin..begin + same.len();
            begin = slots.end;
            (same[0].expert as usize, slots)
        })
    }
}

/// Buffers for the rows of all slots.
pub(crate) struct ExpertRoom {
    plan: Vec<RoutePlan>,
    x: Aligned<f32>,
    gated: Aligned<f32>,
    forms: Forms,
}

/// The same, as threads share it.
pub(crate) struct SharedRoom<'a> {
    plan: Shares<'a, RoutePlan>,
    /// What goes into experts, where it is needed as floats; then what comes out of them.
    x: Shares<'a, f32>,
    gated: Shares<'a, f32>,
    forms: Rooms,
}

impl ExpertRoom {
    /// Enough for `chunk` tokens at every mixture of the program; `None` if it has none.
    pub(crate) fn for_program(program: &Program, path: Path, chunk: usize) -> Option<Self> {
        let mixtures = program.steps.iter().filter_map(|step| match step {
            Step::Experts(experts) => Some(experts),
            _ => None,
        });
        let slots = mixtures.clone().map(|e| e.routing.used as usize).max()? * chunk;
        let experts = mixtures.clone().map(|e| e.gate.len()).max()?;
        let hidden = mixtures.clone().map(|e| e.x.width).max()?;
        let width = mixtures.clone().map(|e| e.width).max()?;
        // Every expert's last panel may be filled up.
        let rows = slots + (TILED_PANEL - 1) * experts.min(slots);
        let matrices = mixtures.clone().flat_map(|e| [&e.gate, &e.up, &e.down]).flatten();
        Some(Self {
            plan: vec![RoutePlan::default()],
            x: Aligned::zeroed(slots * hidden),
            gated: Aligned::zeroed(slots * width),
            forms: Forms::new(path, rows, matrices.map(|&number| &program.matrices[number])),
        })
    }

    pub(crate) fn shared(&mut self) -> SharedRoom<'_> {
        SharedRoom {
            plan: Shares::new(&mut self.plan),
            x: Shares::new(&mut self.x),
            gated: Shares::new(&mut self.gated),
            forms: self.forms.rooms(),
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

/// One expert's slots, and their rows as its matrices take them.
struct Use {
    expert: usize,
    slots: Range<usize>,
    form: Form,
}

impl Frame<'_> {
    /// All rows, span by span.
    pub(super) fn mixture(&self, step: &Experts, member: Member<'_>, scratch: &mut Scratch) {
        let Some(room) = &self.experts else { return };
        self.span_by_span(step.x.domain, member, |span| self.mixture_of(span, step, room, member, scratch));
    }

    fn mixture_of(
        &self,
        span: &Span,
        step: &Experts,
        room: &SharedRoom<'_>,
        member: Member<'_>,
        scratch: &mut Scratch,
    ) {
        let (hidden, width) = (step.x.width, step.width);
        let (first, tokens) = (span.rows.start, span.rows.len());
        if member.index == 0 {
            // SAFETY: the other threads wait at the barrier below.
            unsafe {
                let (at, len) = (first * step.logits.width, tokens * step.logits.width);
                let correction = self.vector(step.correction);
                route(self.read(step.logits, at, len), &step.routing, correction, room.plan());
            }
        }
        member.barrier();
        // SAFETY: written before the barrier, only read after it.
        let plan = unsafe { room.plan() };
        // SAFETY: nobody writes what goes into a mixture during its step.
        let row_of = |slot: usize| unsafe {
            self.read(step.x, (first + plan.choices[slot].token as usize) * hidden, hidden)
        };
        let stacks = [step.gate.as_slice(), &step.up];
        if self.takes(&stacks, plan, span.many, Takes::Floats) || self.observer.is_some() {
            for slot in member.share(plan.choices.len(), 1) {
                // SAFETY: each slot is one thread's.
                unsafe { room.x.part(slot * hidden, hidden) }.copy_from_slice(row_of(slot));
            }
        }
        let uses = self.uses(&stacks, hidden, plan, room, span.many);
        self.put(uses.clone(), row_of, member);
        member.barrier();
        self.observe(&step.gate, plan, (room.x.begin(), hidden), member, scratch);
        scratch.unpacked.forget();
        let strips = width.div_ceil(LANES);
        for (strips, Use { expert, slots, form }) in member.share_of_each(uses.map(|one| (strips, one))) {
            let at = |begin: *mut f32, width: usize| begin.wrapping_add(slots.start * width);
            let halves = [(&step.gate, &step.gate_bias), (&step.up, &step.up_bias)];
            let halves = halves.map(|(matrices, biases)| Work {
                matrix: &self.program.matrices[matrices[expert]],
                bias: self.vector(biases.get(expert).copied()),
                x: Rows { begin: at(room.x.begin(), hidden), stride: hidden },
                form,
                tokens: slots.len(),
                out: at(room.gated.begin(), width),
                out_stride: width,
                accumulate: false,
            });
            self.gated(step.gating, &halves, strips, scratch);
        }
        member.barrier();
        self.observe(&step.down, plan, (room.gated.begin(), width), member, scratch);
        let uses = self.uses(&[&step.down], width, plan, room, span.many);
        // SAFETY: gated before the barrier, only read after it.
        let row_of = |slot: usize| unsafe { &room.gated.whole()[slot * width..][..width] };
        self.put(uses.clone(), row_of, member);
        member.barrier();
        scratch.unpacked.forget();
        let work = uses.map(|Use { expert, slots, form }| Work {
            matrix: &self.program.matrices[step.down[expert]],
            bias: self.vector(step.down_bias.get(expert).copied()),
            x: Rows { begin: room.gated.begin().wrapping_add(slots.start * width), stride: width },
            form,
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
            unsafe { self.write(step.out, (first + token) * hidden, hidden).fill(0.0) };
        }
        for (slot, choice) in plan.choices.iter().enumerate() {
            if share.contains(&(choice.token as usize)) {
                // SAFETY: each row is one thread's; slots are only read.
                unsafe {
                    let y = &room.x.whole()[slot * hidden..][..hidden];
                    let out = self.write(step.out, (first + choice.token as usize) * hidden, hidden);
                    rows::add_scaled(self.path, y, choice.weight, out);
                }
            }
        }
    }

    /// Whether any matrix of the experts that are used takes this.
    fn takes(&self, stacks: &[&[usize]], plan: &RoutePlan, many: bool, form: Takes) -> bool {
        let takes = |number: usize| self.program.matrices[number].takes(self.path, many) == form;
        plan.experts().any(|(expert, _)| stacks.iter().any(|stack| takes(stack[expert])))
    }

    /// The experts that are used, with places for the rows of their slots, which matrices of these stacks have so many columns for.
    fn uses<'u>(
        &'u self,
        stacks: &[&[usize]],
        columns: usize,
        plan: &'u RoutePlan,
        room: &'u SharedRoom<'_>,
        many: bool,
    ) -> impl Iterator<Item = Use> + Clone + use<'u> {
        let taken = [Takes::Codes, Takes::Words, Takes::Scaled]
            .map(|form| (form, self.takes(stacks, plan, many, form)));
        let mut row = 0;
        plan.experts().map(move |(expert, slots)| {
            let takes = |form| taken.contains(&(form, true));
            let form = room.forms.form(self.path, row, slots.len(), columns, takes);
            row += form.rows();
            Use { expert, slots, form }
        })
    }

    /// Puts the rows of slots in their places.
    fn put<'r>(
        &self,
        uses: impl Iterator<Item = Use> + Clone,
        row_of: impl Fn(usize) -> &'r [f32],
        member: Member<'_>,
    ) {
        for (rows, Use { slots, form, .. }) in member.share_of_each(uses.map(|one| (one.form.rows(), one))) {
            for row in rows {
                let x = (row < slots.len()).then(|| row_of(slots.start + row));
                // SAFETY: each row is one thread's; rows beyond the slots fill a panel up.
                unsafe { form.put(self.path, row, x) };
            }
        }
    }

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
