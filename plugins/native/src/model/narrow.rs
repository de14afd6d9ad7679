//! Leaves out rows that nobody reads.
//!
//! Behind the last keys and values each row depends on its own token alone, and outputs are wanted of few: of a prompt's last token,
//! say. The rows of others are dropped where the queries of the last layer begin, rather than before the head.
//!
//! ```text
//! norm → q, k, v → attention → … → wanted      norm → k, v → attention → … → wanted
//!                                          →   wanted → norm → q ↗
//! ```

use std::collections::{HashMap, HashSet};

use super::step::{Domain, Norm, Step, Value};

/// Gives what only wanted rows need of to [`Domain::Late`]. Values keep their numbers.
pub(crate) fn narrow(mut steps: Vec<Step>, result: Value) -> Vec<Step> {
    let all = read_of_all_tokens(&mut steps, result);
    let next =
        1 + steps.iter_mut().flat_map(|step| step.values().1).map(|value| value.index).max().unwrap_or(0);
    let mut narrower = Narrower { all, next, norms: HashMap::new(), kept: HashMap::new(), done: Vec::new() };
    for step in steps {
        narrower.push(step);
    }
    narrower.done
}

/// Values of which rows of every token are read.
fn read_of_all_tokens(steps: &mut [Step], result: Value) -> HashSet<usize> {
    let mut all = HashSet::new();
    if result.domain == Domain::Tokens {
        all.insert(result.index);
    }
    for step in steps.iter_mut().rev() {
        if let Step::Attention(attention) = step {
            all.extend([attention.k.index, attention.v.index]);
            if all.contains(&attention.out.index) {
                all.insert(attention.q.index);
            }
            continue;
        }
        // Everything else makes rows of rows, but what makes them of tokens and what drops them.
        let (begins, drops) = (matches!(step, Step::Embed { .. }), matches!(step, Step::Wanted { .. }));
        let (reads, writes) = step.values();
        if begins {
            all.extend(writes.iter().map(|value| value.index));
        } else if !drops && writes.iter().any(|value| all.contains(&value.index)) {
            all.extend(reads.iter().map(|value| value.index));
        }
    }
    all
}

struct Narrower {
    all: HashSet<usize>,
    /// Number of the next new value.
    next: usize,
    /// Norms of all rows, by their output.
    norms: HashMap<usize, Norm>,
    /// What holds the late rows of values of all tokens.
    kept: HashMap<usize, Value>,
    done: Vec<Step>,
}

impl Narrower {
    fn is_late(&self, value: Value) -> bool {
        value.domain == Domain::Tokens && !self.all.contains(&value.index)
    }

    /// The value's late rows.
    fn late(&mut self, value: Value) -> Value {
        if value.domain != Domain::Tokens {
            return value;
        }
        if self.is_late(value) {
            return Value { domain: Domain::Late, ..value };
        }
        if let Some(&kept) = self.kept.get(&value.index) {
            return kept;
        }
        // Normalized again, so that what reads all rows of the norm can still be joined with it.
        let norm = self.norms.get(&value.index).cloned();
        let x = norm.as_ref().map(|norm| self.late(norm.x));
        let out = Value { index: self.next, domain: Domain::Late, ..value };
        self.next += 1;
        self.done.push(match (norm, x) {
            (Some(norm), Some(x)) => Step::Norm(Norm { x, out, ..norm }),
            _ => Step::Wanted { x: value, out },
        });
        self.kept.insert(value.index, out);
        out
    }

    fn push(&mut self, mut step: Step) {
        match &mut step {
            Step::Attention(attention) => {
                if self.is_late(attention.out) {
                    attention.q = self.late(attention.q);
                    attention.out = self.late(attention.out);
                }
            }
            Step::Linear { x, norm: None, products, gating: None } => {
                let (late, rest): (Vec<_>, Vec<_>) =
                    products.iter().copied().partition(|product| self.is_late(product.out));
                let x = *x;
                if !rest.is_empty() {
                    self.done.push(Step::Linear { x, norm: None, products: rest, gating: None });
                }
                if !late.is_empty() {
                    let x = self.late(x);
                    let products = late.into_iter().map(|mut product| {
                        product.out = self.late(product.out);
                        product
                    });
                    let products = products.collect();
                    self.done.push(Step::Linear { x, norm: None, products, gating: None });
                }
                return;
            }
            Step::Rope(rotate) => {
                if self.is_late(rotate.x) {
                    rotate.x = self.late(rotate.x);
                }
            }
            Step::Wanted { x, .. } => {
                if self.is_late(*x) {
                    *x = self.late(*x);
                }
            }
            step => {
                if let Step::Norm(norm) = step {
                    self.norms.insert(norm.out.index, norm.clone());
                }
                let (reads, mut writes) = step.values();
                if writes.iter().all(|value| self.is_late(**value)) {
                    for value in reads {
                        *value = self.late(*value);
                    }
                    for value in &mut writes {
                        **value = self.late(**value);
                    }
                }
            }
        }
        self.done.push(step);
    }
}

#[cfg(test)]
mod tests {
    use drophammer_models::Checkpoint;
    use drophammer_models::build_decoder;

    use super::super::record::Recorder;
    use super::*;

    #[test]
    fn of_the_last_layer_keys_and_values_alone_take_every_token() {
        let fixture = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/shakespeare-llama");
        let mut recorder = Recorder::default();
        let result = build_decoder(&mut recorder, Checkpoint::open(fixture).unwrap().description()).unwrap();
        let of_all = |steps: &[Step]| {
            let products = steps.iter().filter_map(|step| match step {
                Step::Linear { products, .. } => Some(products),
                _ => None,
            });
            products.flatten().filter(|product| product.out.domain == Domain::Tokens).count()
        };
        let before = of_all(&recorder.steps);
        let steps = narrow(recorder.steps, result);
        // Queries, attention's output, gate, up and down of one of four layers.
        assert_eq!((before, of_all(&steps)), (28, 23));
        for mut step in steps {
            let wanted = matches!(step, Step::Wanted { .. });
            let attention = matches!(step, Step::Attention(_));
            let (reads, writes) = step.values();
            let same = reads
                .iter()
                .chain(&writes)
                .all(|value| value.domain == writes.first().map_or(value.domain, |w| w.domain));
            assert!(wanted || attention || same, "rows of one domain make rows of another");
        }
    }
}
