//! The mixture that loses least within a size, or is smallest within a loss.
//!
//! Every tensor comes with candidate types, their bytes and what they cost (any additive measure of loss: a calibrated
//! KL divergence, or the importance-weighted error scaled by the tensor's sensitivity). Choosing one candidate per tensor is a
//! multiple-choice knapsack. On the lower convex hull of each tensor's candidates, steps taken in the order of what a byte
//! buys solve its continuous relaxation exactly (Sinha and Zoltners, 1979); what room remains is then filled by exchanges.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use drophammer_formats::DType;

/// One way to store a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Candidate {
    /// The type.
    pub dtype: DType,
    /// Bytes of the tensor in it.
    pub bytes: u64,
    /// What it loses.
    pub cost: f64,
}

/// A tensor and the ways to store it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Item {
    /// The tensor.
    pub name: String,
    /// The ways; at least one.
    pub candidates: Vec<Candidate>,
}

/// What to keep within.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Limit {
    /// At most so many bytes, losing as little as possible.
    Bytes(u64),
    /// At most so much loss, in as few bytes as possible.
    Cost(f64),
}

/// One tensor's place in a plan.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// The tensor.
    pub name: String,
    /// What was chosen.
    pub chosen: Candidate,
    /// The next larger choice that was considered, if any.
    pub next: Option<Candidate>,
}

impl Entry {
    /// What a mebibyte spent on the next larger choice would save.
    pub fn next_saving(&self) -> Option<f64> {
        let next = self.next?;
        Some(
            (self.chosen.cost - next.cost)
                / (next.bytes.checked_sub(self.chosen.bytes)? as f64 / (1 << 20) as f64),
        )
    }

    /// Why this type, in a sentence.
    pub fn explain(&self) -> String {
        let Candidate { dtype, bytes, cost } = self.chosen;
        let size = mebibytes(bytes);
        match (self.next, self.next_saving()) {
            (Some(next), Some(saving)) => format!(
                "{} is {dtype} ({size} MiB, loses {cost:.3e}): {} would take {} MiB and save {saving:.3e} per MiB more",
                self.name,
                next.dtype,
                mebibytes(next.bytes),
            ),
            _ => format!("{} is {dtype} ({size} MiB, loses {cost:.3e}): no candidate loses less", self.name),
        }
    }
}

fn mebibytes(bytes: u64) -> String {
    format!("{:.2}", bytes as f64 / (1 << 20) as f64)
}

/// A choice for every tensor, in the order given.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// What it was solved for.
    pub limit: Limit,
    /// The choices.
    pub entries: Vec<Entry>,
    /// Bytes of all tensors.
    pub bytes: u64,
    /// Loss of all tensors.
    pub cost: f64,
}

/// Why there is no plan.
#[derive(Debug, Error, PartialEq)]
#[non_exhaustive]
pub enum BudgetError {
    /// Nothing fits.
    #[error("a budget of {given} bytes cannot be met: the least possible is {least} bytes ({}); allow that much, or smaller types", mebibytes(*least) + " MiB")]
    TooSmall {
        /// The budget.
        given: u64,
        /// The smallest total.
        least: u64,
    },
    /// No mixture is so exact.
    #[error(
        "a loss of at most {given:e} cannot be met: the least possible is {least:e}; allow that much, or larger types"
    )]
    TooExact {
        /// The most that may be lost.
        given: f64,
        /// The smallest total.
        least: f64,
    },
    /// A tensor has nothing to choose from, or costs that are not numbers.
    #[error(
        "{name} has no usable candidate: every cost must be a finite number; measure its sensitivity again"
    )]
    NoCandidate {
        /// The tensor.
        name: String,
    },
}

/// A step along a tensor's hull.
#[derive(Clone, Copy)]
struct Step {
    item: usize,
    to: usize,
    bytes: u64,
    saving: f64,
}

impl Step {
    fn per_byte(&self) -> f64 {
        self.saving / self.bytes as f64
    }
}

/// Solves for a limit.
///
/// # Errors
/// [`BudgetError`] if no mixture meets the limit, or an item cannot be used.
pub fn solve(items: &[Item], limit: Limit) -> Result<Plan, BudgetError> {
    let sorted = items.iter().map(useful).collect::<Result<Vec<_>, _>>()?;
    let hulls: Vec<Vec<usize>> = sorted.iter().map(|candidates| hull(candidates)).collect();
    let mut steps: Vec<Step> = Vec::new();
    for (item, (candidates, hull)) in sorted.iter().zip(&hulls).enumerate() {
        steps.extend(hull.windows(2).map(|pair| {
            let (from, to) = (candidates[pair[0]], candidates[pair[1]]);
            Step { item, to: pair[1], bytes: to.bytes - from.bytes, saving: from.cost - to.cost }
        }));
    }
    // Savings per byte fall along each hull, so this order never takes a tensor's steps out of turn.
    steps.sort_by(|a, b| {
        b.per_byte().total_cmp(&a.per_byte()).then(a.item.cmp(&b.item)).then(a.to.cmp(&b.to))
    });

    let mut chosen = vec![0usize; items.len()];
    let mut bytes: u64 = sorted.iter().map(|candidates| candidates[0].bytes).sum();
    let mut cost: f64 = sorted.iter().map(|candidates| candidates[0].cost).sum();
    match limit {
        Limit::Bytes(given) => {
            if bytes > given {
                return Err(BudgetError::TooSmall { given, least: bytes });
            }
            let mut closed = vec![false; items.len()];
            for step in &steps {
                if closed[step.item] {
                    continue;
                }
                if bytes + step.bytes > given {
                    closed[step.item] = true;
                    continue;
                }
                chosen[step.item] = step.to;
                bytes += step.bytes;
            }
            exchange(&sorted, &mut chosen, given - bytes);
        }
        Limit::Cost(given) => {
            let least = sorted.iter().map(|candidates| candidates[candidates.len() - 1].cost).sum();
            for step in &steps {
                if cost <= given {
                    break;
                }
                chosen[step.item] = step.to;
                cost -= step.saving;
            }
            if cost > given && (cost - given).abs() > 1e-9 * given.abs() {
                return Err(BudgetError::TooExact { given, least });
            }
        }
    }

    let entries: Vec<Entry> = items
        .iter()
        .zip(&sorted)
        .zip(&chosen)
        .map(|((item, candidates), &chosen)| Entry {
            name: item.name.clone(),
            chosen: candidates[chosen],
            next: candidates.get(chosen + 1).copied(),
        })
        .collect();
    let bytes = entries.iter().map(|entry| entry.chosen.bytes).sum();
    let cost = entries.iter().map(|entry| entry.chosen.cost).sum();
    Ok(Plan { limit, entries, bytes, cost })
}

/// The candidates worth considering, by size: each larger one loses less.
fn useful(item: &Item) -> Result<Vec<Candidate>, BudgetError> {
    let mut candidates: Vec<Candidate> =
        item.candidates.iter().copied().filter(|c| c.cost.is_finite()).collect();
    candidates
        .sort_by(|a, b| a.bytes.cmp(&b.bytes).then(a.cost.total_cmp(&b.cost)).then(a.dtype.cmp(&b.dtype)));
    let mut kept: Vec<Candidate> = Vec::with_capacity(candidates.len());
    for candidate in candidates {
        if kept.last().is_none_or(|last| candidate.cost < last.cost) {
            kept.push(candidate);
        }
    }
    if kept.is_empty() { Err(BudgetError::NoCandidate { name: item.name.clone() }) } else { Ok(kept) }
}

/// The places of the candidates on the lower convex hull of bytes and cost.
fn hull(candidates: &[Candidate]) -> Vec<usize> {
    let slope = |a: usize, b: usize| {
        (candidates[a].cost - candidates[b].cost) / (candidates[b].bytes - candidates[a].bytes) as f64
    };
    let mut hull: Vec<usize> = Vec::with_capacity(candidates.len());
    for next in 0..candidates.len() {
        while let [.., before, last] = hull[..] {
            if slope(before, last) > slope(last, next) {
                break;
            }
            hull.pop();
        }
        hull.push(next);
    }
    hull
}

/// Fills the room that is left: single upgrades to any candidate that fits, then upgrades paid for by one downgrade.
fn exchange(items: &[Vec<Candidate>], chosen: &mut [usize], mut room: u64) {
    // Every exchange lowers the cost, so this ends; the bound keeps models of many tensors quick.
    for _ in 0..4 * items.len() {
        let mut best: Option<(f64, Vec<(usize, usize)>)> = None;
        let mut consider = |saving: f64, change: Vec<(usize, usize)>| {
            if saving > best.as_ref().map_or(0.0, |(best, _)| *best) {
                best = Some((saving, change));
            }
        };
        for (i, candidates) in items.iter().enumerate() {
            let now = candidates[chosen[i]];
            for (up, candidate) in candidates.iter().enumerate().skip(chosen[i] + 1) {
                let (needed, saving) = (candidate.bytes - now.bytes, now.cost - candidate.cost);
                if needed <= room {
                    consider(saving, vec![(i, up)]);
                    continue;
                }
                for (j, others) in items.iter().enumerate().filter(|(j, _)| *j != i) {
                    let Some(down) = chosen[j].checked_sub(1) else { continue };
                    let (from, to) = (others[chosen[j]], others[down]);
                    if needed <= room + (from.bytes - to.bytes) {
                        consider(saving - (to.cost - from.cost), vec![(j, down), (i, up)]);
                    }
                }
            }
        }
        let Some((_, change)) = best else { return };
        for (item, to) in change {
            room = room + items[item][chosen[item]].bytes - items[item][to].bytes;
            chosen[item] = to;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn item(name: &str, candidates: &[(u64, f64)]) -> Item {
        let types = [DType::Q2K, DType::Q3K, DType::Q4K, DType::Q5K, DType::Q6K];
        let candidates = candidates
            .iter()
            .zip(types)
            .map(|(&(bytes, cost), dtype)| Candidate { dtype, bytes, cost })
            .collect();
        Item { name: name.into(), candidates }
    }

    /// The least cost by trying everything.
    fn exhaustive(items: &[Item], limit: u64) -> Option<f64> {
        let Some((first, rest)) = items.split_first() else { return Some(0.0) };
        first
            .candidates
            .iter()
            .filter(|c| c.bytes <= limit)
            .filter_map(|c| Some(c.cost + exhaustive(rest, limit - c.bytes)?))
            .min_by(f64::total_cmp)
    }

    #[test]
    fn bytes_go_where_they_save_most() {
        let items =
            [item("robust", &[(10, 1.0), (20, 0.9)]), item("delicate", &[(10, 9.0), (20, 3.0), (30, 1.0)])];
        let plan = solve(&items, Limit::Bytes(40)).unwrap();
        assert_eq!((plan.bytes, plan.cost), (40, 2.0));
        assert_eq!(plan.entries[0].chosen.dtype, DType::Q2K);
        assert_eq!(plan.entries[1].chosen.dtype, DType::Q4K);
        insta::assert_snapshot!(plan.entries[0].explain());
        insta::assert_snapshot!(plan.entries[1].explain());
        let saved: Plan = serde_json::from_str(&serde_json::to_string(&plan).unwrap()).unwrap();
        assert_eq!(saved, plan);
    }

    #[test]
    fn a_limit_on_loss_takes_the_fewest_steps() {
        let items = [item("a", &[(10, 5.0), (20, 1.0)]), item("b", &[(10, 4.0), (20, 3.5)])];
        let plan = solve(&items, Limit::Cost(5.0)).unwrap();
        assert_eq!((plan.bytes, plan.cost), (30, 5.0));
    }

    #[test]
    fn limits_that_cannot_be_met_say_the_least_possible() {
        let items = [item("a", &[(10, 5.0), (20, 1.0)]), item("b", &[(10, 4.0)])];
        assert_eq!(solve(&items, Limit::Bytes(19)), Err(BudgetError::TooSmall { given: 19, least: 20 }));
        assert_eq!(solve(&items, Limit::Cost(4.5)), Err(BudgetError::TooExact { given: 4.5, least: 5.0 }));
        let unusable = [item("a", &[(10, f64::NAN)])];
        assert_eq!(solve(&unusable, Limit::Bytes(99)), Err(BudgetError::NoCandidate { name: "a".into() }));
        insta::assert_snapshot!(solve(&items, Limit::Bytes(19)).unwrap_err());
    }

    proptest! {
        #[test]
        fn plans_keep_the_limit_and_come_close_to_the_best_of_all(
            sizes in prop::collection::vec(prop::collection::vec((1u64..60, 0.0f64..10.0), 1..5), 1..6),
            limit in 1u64..250,
        ) {
            let items: Vec<Item> = sizes.iter().map(|candidates| item("t", candidates)).collect();
            match (solve(&items, Limit::Bytes(limit)), exhaustive(&items, limit)) {
                (Ok(plan), Some(best)) => {
                    prop_assert!(plan.bytes <= limit);
                    // The relaxation bounds the gap by what one tensor's largest step saves.
                    prop_assert!(plan.cost >= best - 1e-9 && plan.cost <= best + 10.0);
                }
                (Err(_), None) => {}
                (plan, best) => prop_assert!(false, "{plan:?} but best {best:?}"),
            }
        }
    }
}
