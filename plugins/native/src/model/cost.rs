//! What the steps of a run cost: bytes that have to come from memory, operations that have to be done.
//!
//! Activations and norms stay in caches and count nothing; a weight counts once per run, however many tokens use it.

use drophammer_sdk::profile::Arithmetic;

use super::attend::sees;
use super::execute::Frame;
use super::record::MatrixRef;
use super::step::{Experts, Step};
use crate::kernels::attention::{PAGE, Stored};
use crate::kernels::tile::Takes;

/// Least cost of a step.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Cost {
    /// Bytes of weights, keys and values that are read.
    pub(crate) bytes: u64,
    /// Multiplications and additions.
    pub(crate) operations: u64,
}

/// What a step computes.
pub(crate) fn name(step: &Step, references: &[MatrixRef]) -> String {
    let plain = match step {
        Step::Linear { products, .. } => {
            let mut names: Vec<String> =
                products.iter().map(|p| words(&format!("{:?}", references[p.matrix].weight.role))).collect();
            names.dedup();
            return names.join(", ");
        }
        Step::Experts(_) => "experts",
        Step::Attention(_) => "attention",
        Step::Embed { .. } => "embedding",
        Step::Norm(_) => "norm",
        Step::Rope(_) => "rotation",
        Step::JoinHeads { .. } | Step::Unary { .. } | Step::Binary { .. } | Step::ScaleRows { .. } => {
            "element by element"
        }
        Step::Wanted { .. } => "wanted rows",
    };
    plain.to_owned()
}

/// `AttentionOutput` as `attention output`.
fn words(name: &str) -> String {
    let mut words = String::new();
    for letter in name.chars() {
        if letter.is_uppercase() && !words.is_empty() {
            words.push(' ');
        }
        words.extend(letter.to_lowercase());
    }
    words
}

impl Frame<'_> {
    /// What `step` multiplies with in this run.
    pub(super) fn arithmetic(&self, step: &Step) -> Arithmetic {
        let many = |domain| self.spans(domain).iter().any(|span| span.many);
        let integers = |number: usize, many| match self.program.matrices[number].takes(self.path, many) {
            Takes::Codes | Takes::Words => true,
            // (Tiles multiply faster than any limit that is measured; that of integers is the nearest.)
            Takes::Scaled => self.path.has_tiles(),
            Takes::Floats => false,
        };
        let any = match step {
            Step::Linear { x, products, .. } => {
                let many = many(x.domain);
                products.iter().any(|product| integers(product.matrix, many))
            }
            Step::Experts(e) => {
                let many = many(e.x.domain);
                [&e.gate, &e.up, &e.down].into_iter().flatten().any(|&matrix| integers(matrix, many))
            }
            Step::Attention(_) => self.cache.stored() == Stored::Word,
            _ => false,
        };
        if any { Arithmetic::Integer } else { Arithmetic::Float }
    }

    /// What `step` costs in this run.
    pub(super) fn cost(&self, step: &Step) -> Cost {
        match step {
            Step::Linear { x, products, .. } => {
                let rows = self.rows(x.domain);
                products
                    .iter()
                    .fold(Cost::default(), |sum, product| sum.and(self.product(product.matrix, rows)))
            }
            Step::Experts(experts) => self.experts_cost(experts),
            Step::Attention(attention) => {
                let shape = self.cache.layer(attention.layer);
                let width = (shape.key_width + shape.value_width) as u64;
                let position = (shape.bytes(self.cache.stored()) / PAGE) as u64;
                let last = self.tokens.iter().map(|token| token.position).max().unwrap_or(0);
                let mut cost = Cost::default();
                for run in self.runs(attention.q.domain) {
                    let mut longest = 0;
                    for row in run.begin..run.begin + run.len {
                        let token = self.tokens[self.token(attention.q.domain, row)];
                        let sight = sees(token.position, attention.window, attention.causal);
                        let seen = u64::from(sight.to.min(last) - sight.from + 1);
                        cost.operations += 2 * attention.heads as u64 * width * seen;
                        longest = seen.max(longest);
                    }
                    cost.bytes += longest * position;
                }
                cost
            }
            _ => Cost::default(),
        }
    }

    fn product(&self, matrix: usize, rows: usize) -> Cost {
        let matrix = &self.program.matrices[matrix];
        if rows == 0 {
            return Cost::default();
        }
        Cost { bytes: matrix.bytes() as u64, operations: 2 * (rows * matrix.rows * matrix.columns) as u64 }
    }

    /// As if no two tokens shared an expert, while there are enough.
    fn experts_cost(&self, experts: &Experts) -> Cost {
        let tokens = self.rows(experts.x.domain);
        let uses = tokens * experts.routing.used as usize;
        let used = uses.min(experts.gate.len());
        let one = [&experts.gate, &experts.up, &experts.down]
            .into_iter()
            .filter_map(|matrices| matrices.first())
            .fold(Cost::default(), |sum, &matrix| sum.and(self.product(matrix, 1)));
        Cost { bytes: one.bytes * used as u64, operations: one.operations * uses as u64 }
    }
}

impl Cost {
    fn and(self, other: Self) -> Self {
        Self { bytes: self.bytes + other.bytes, operations: self.operations + other.operations }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn names_become_words() {
        assert_eq!(super::words("AttentionOutput"), "attention output");
        assert_eq!(super::words("Query"), "query");
    }
}
