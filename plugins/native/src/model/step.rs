//! A model as a list of steps over numbered buffers: what the recorder writes and the executor runs.

use std::collections::HashMap;

use drophammer_models::graph::{Gating, Index, Routing};
use drophammer_models::rope::RopeLayout;

use crate::kernels::rows::{Binary, Unary};

/// How many rows a value has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Domain {
    /// One per token of the batch.
    Tokens,
    /// One per token that an output is wanted of; while somebody counts what matrices are multiplied with, one per token.
    Late,
    /// One per output the caller wants.
    Outputs,
}

/// A value: rows of `width` floats. Before buffers are assigned `index` numbers values, after that buffers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Value {
    pub(crate) index: usize,
    pub(crate) width: usize,
    pub(crate) domain: Domain,
}

/// `out = x · Wᵀ + b`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Product {
    /// Number of the matrix.
    pub(crate) matrix: usize,
    /// Number of the vector.
    pub(crate) bias: Option<usize>,
    pub(crate) out: Value,
    /// Whether the product is added to what `out` holds.
    pub(crate) accumulate: bool,
}

/// A norm of rows, or of equal parts of them.
#[derive(Debug, Clone)]
pub(crate) struct Norm {
    pub(crate) x: Value,
    pub(crate) out: Value,
    pub(crate) weight: Option<usize>,
    pub(crate) bias: Option<usize>,
    pub(crate) epsilon: f32,
    pub(crate) centred: bool,
    /// What is normalized together.
    pub(crate) width: usize,
    /// Whether each part of the row has its own gain.
    pub(crate) per_group: bool,
}

/// A rotation of heads, in place.
#[derive(Debug, Clone)]
pub(crate) struct Rotate {
    pub(crate) x: Value,
    pub(crate) heads: usize,
    pub(crate) start: usize,
    pub(crate) table: usize,
    pub(crate) layout: RopeLayout,
}

/// One step. Steps follow one another; within one, threads share the work.
#[derive(Debug, Clone)]
pub(crate) enum Step {
    Embed {
        table: usize,
        index: Index,
        out: Value,
    },
    Linear {
        /// What is multiplied: an input, or the output of `norm`.
        x: Value,
        /// Done first.
        norm: Option<Norm>,
        products: Vec<Product>,
        /// Two products become one, in the place of the first.
        gating: Option<Gating>,
    },
    Norm(Norm),
    Rope(Rotate),
    Attention(Attention),
    JoinHeads {
        per_head: Value,
        shared: Value,
        heads: usize,
        out: Value,
    },
    Unary {
        x: Value,
        what: Unary,
        out: Value,
    },
    Binary {
        a: Value,
        b: Value,
        what: Binary,
        out: Value,
    },
    /// Multiplies each row by its one number.
    ScaleRows {
        x: Value,
        factors: Value,
        out: Value,
    },
    Experts(Experts),
    /// Keeps the rows that are in the domain of `out`.
    Wanted {
        x: Value,
        out: Value,
    },
}

#[derive(Debug, Clone)]
pub(crate) struct Attention {
    pub(crate) q: Value,
    pub(crate) k: Value,
    pub(crate) v: Value,
    pub(crate) out: Value,
    pub(crate) layer: usize,
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) scale: f32,
    pub(crate) softcap: Option<f32>,
    pub(crate) window: Option<u32>,
    pub(crate) sinks: Option<usize>,
    pub(crate) causal: bool,
    /// Rotations of queries and keys that are done on the way.
    pub(crate) rotate_q: Option<Rotate>,
    pub(crate) rotate_k: Option<Rotate>,
}

#[derive(Debug, Clone)]
pub(crate) struct Experts {
    pub(crate) x: Value,
    pub(crate) logits: Value,
    pub(crate) out: Value,
    pub(crate) routing: Routing,
    pub(crate) correction: Option<usize>,
    /// Numbers of the experts' matrices.
    pub(crate) gate: Vec<usize>,
    pub(crate) up: Vec<usize>,
    pub(crate) down: Vec<usize>,
    /// Numbers of their biases, one vector for each expert; empty where there are none.
    pub(crate) gate_bias: Vec<usize>,
    pub(crate) up_bias: Vec<usize>,
    pub(crate) down_bias: Vec<usize>,
    pub(crate) gating: Gating,
    pub(crate) width: usize,
}

impl Step {
    /// Values that are read or changed in place, then values that are written.
    pub(crate) fn values(&mut self) -> (Vec<&mut Value>, Vec<&mut Value>) {
        match self {
            Step::Embed { out, .. } => (vec![], vec![out]),
            Step::Linear { x, norm, products, gating } => {
                let (mut reads, mut writes) = match norm {
                    Some(norm) => (vec![&mut norm.x], vec![x]),
                    None => (vec![x], vec![]),
                };
                // (What is gated has one output.)
                let outputs = if gating.is_some() { 1 } else { products.len() };
                for product in &mut products[..outputs] {
                    let list = if product.accumulate { &mut reads } else { &mut writes };
                    list.push(&mut product.out);
                }
                (reads, writes)
            }
            Step::Norm(Norm { x, out, .. }) | Step::Unary { x, out, .. } | Step::Wanted { x, out } => {
                (vec![x], vec![out])
            }
            Step::Rope(Rotate { x, .. }) => (vec![x], vec![]),
            Step::Attention(a) => (vec![&mut a.q, &mut a.k, &mut a.v], vec![&mut a.out]),
            Step::JoinHeads { per_head, shared, out, .. } => (vec![per_head, shared], vec![out]),
            Step::Binary { a, b, out, .. } => (vec![a, b], vec![out]),
            Step::ScaleRows { x, factors, out } => (vec![x, factors], vec![out]),
            Step::Experts(e) => (vec![&mut e.x, &mut e.logits], vec![&mut e.out]),
        }
    }

    /// Whether an output may take over the buffer of an input that nobody reads later: each element (or row) depends on
    /// the same element (or row) alone.
    fn works_in_place(&self) -> bool {
        matches!(self, Step::Unary { .. } | Step::Binary { .. } | Step::ScaleRows { .. })
    }
}

/// A buffer of the executor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Buffer {
    pub(crate) width: usize,
    pub(crate) domain: Domain,
}

/// Gives values buffers, reusing each after its last reader; returns the buffers and the result's place.
pub(crate) fn assign_buffers(steps: &mut [Step], result: Value) -> (Vec<Buffer>, Value) {
    let mut last_read: HashMap<usize, usize> = HashMap::new();
    for (number, step) in steps.iter_mut().enumerate() {
        for value in step.values().0 {
            last_read.insert(value.index, number);
        }
    }
    last_read.insert(result.index, usize::MAX);
    let mut buffers: Vec<Buffer> = Vec::new();
    let mut free: Vec<usize> = Vec::new();
    let mut place: HashMap<usize, usize> = HashMap::new();
    for (number, step) in steps.iter_mut().enumerate() {
        let in_place = step.works_in_place();
        let (reads, writes) = step.values();
        let mut ended = Vec::new();
        for value in reads {
            let buffer = place[&value.index];
            if last_read[&value.index] == number && !ended.contains(&buffer) {
                ended.push(buffer);
            }
            value.index = buffer;
        }
        if in_place {
            free.append(&mut ended);
        }
        for value in writes {
            let wish = Buffer { width: value.width, domain: value.domain };
            let buffer = if let Some(at) = free.iter().rposition(|&b| buffers[b] == wish) {
                free.swap_remove(at)
            } else {
                buffers.push(wish);
                buffers.len() - 1
            };
            if last_read.get(&value.index).is_none_or(|&last| last <= number) {
                ended.push(buffer); // of use within the step only
            }
            place.insert(value.index, buffer);
            value.index = buffer;
        }
        free.append(&mut ended);
    }
    (buffers, Value { index: place[&result.index], ..result })
}
