//! Joins neighbouring steps, so that threads meet less often and rows are touched while they are near.
//!
//! ```text
//! norm → linear                      the linear's threads normalize what they read
//! linear → add to the residual       the product is added where it would have been written
//! linear (gate, up) → gated          each thread gates the rows it has just computed
//! rope, rope → attention             heads are rotated by the thread that uses them
//! ```

use std::collections::HashMap;

use super::step::{Rotate, Step, Value};
use crate::kernels::rows::Binary;

/// Joins what can be joined; values keep their numbers. Returns where the result is now.
pub(crate) fn fuse(steps: Vec<Step>, result: Value) -> (Vec<Step>, Value) {
    let mut fuser = Fuser { reads: count_reads(&steps, result), renamed: HashMap::new(), done: Vec::new() };
    for mut step in steps {
        let (reads, writes) = step.values();
        for value in reads.into_iter().chain(writes) {
            fuser.rename(value);
        }
        fuser.push(step);
    }
    let mut result = result;
    fuser.rename(&mut result);
    (fuser.done, result)
}

fn count_reads(steps: &[Step], result: Value) -> HashMap<usize, usize> {
    let mut reads: HashMap<usize, usize> = HashMap::from([(result.index, 1)]);
    for step in steps {
        for value in step.clone().values().0 {
            *reads.entry(value.index).or_default() += 1;
        }
    }
    reads
}

struct Fuser {
    /// How often each value is read, in place or not.
    reads: HashMap<usize, usize>,
    /// Values that live on in another's place.
    renamed: HashMap<usize, usize>,
    done: Vec<Step>,
}

impl Fuser {
    fn rename(&self, value: &mut Value) {
        while let Some(&other) = self.renamed.get(&value.index) {
            value.index = other;
        }
    }

    /// Whether exactly one step reads the value.
    fn read_once(&self, value: Value) -> bool {
        self.reads.get(&value.index) == Some(&1)
    }

    /// Takes over the readers of `from`.
    fn replace(&mut self, from: Value, to: Value) {
        let reads = self.reads.remove(&from.index).unwrap_or(0);
        // The two reads that the joined step had are gone, or done in place.
        *self.reads.entry(to.index).or_default() += reads;
        self.renamed.insert(from.index, to.index);
    }

    fn push(&mut self, step: Step) {
        match step {
            Step::Linear { x, norm: None, products, gating: None } => {
                let norm = match self.done.last() {
                    Some(Step::Norm(norm)) if norm.out == x && self.read_once(x) => Some(norm.clone()),
                    _ => None,
                };
                if norm.is_some() {
                    self.done.pop();
                }
                self.done.push(Step::Linear { x, norm, products, gating: None });
            }
            Step::Binary { a, b, what: Binary::Add, out } => self.residual(a, b, out),
            Step::Binary { a, b, what: Binary::Gated(gating), out } => {
                let single = self.read_once(a) && self.read_once(b);
                if let Some(Step::Linear { products, gating: own @ None, .. }) = self.done.last_mut()
                    && let [gate, up] = products.as_slice()
                    && gate.out == a
                    && up.out == b
                    && single
                {
                    *own = Some(gating);
                    self.replace(out, a);
                } else {
                    self.done.push(Step::Binary { a, b, what: Binary::Gated(gating), out });
                }
            }
            Step::Attention(mut attention) => {
                while let Some(Step::Rope(rotate)) = self.done.last() {
                    let own = match rotate.x {
                        x if x == attention.q => &mut attention.rotate_q,
                        x if x == attention.k => &mut attention.rotate_k,
                        _ => break,
                    };
                    if own.is_some() {
                        break;
                    }
                    *own = Some(rotate.clone());
                    self.done.pop();
                }
                self.done.push(Step::Attention(attention));
            }
            other => self.done.push(other),
        }
    }

    /// `out = a + b` where one of them is the last product and the other is not read again.
    fn residual(&mut self, a: Value, b: Value, out: Value) {
        if let Some(Step::Linear { x, norm, products, gating: None }) = self.done.last()
            && let [product] = products.as_slice()
            && !product.accumulate
        {
            let other = if product.out == a { b } else { a };
            let is_product = product.out == a || product.out == b;
            // The residual's last reader is this sum; and what is multiplied lies elsewhere.
            let input = norm.as_ref().map_or(*x, |norm| norm.x);
            if is_product && other != product.out && input != other && self.reads_left(other) == 1 {
                if let Some(Step::Linear { products, .. }) = self.done.last_mut() {
                    products[0].out = other;
                    products[0].accumulate = true;
                }
                self.replace(out, other);
                return;
            }
        }
        self.done.push(Step::Binary { a, b, what: Binary::Add, out });
    }

    /// Readers of a value that are still to come, this one included.
    fn reads_left(&self, value: Value) -> usize {
        let mut left = self.reads.get(&value.index).copied().unwrap_or(0);
        for step in &self.done {
            let mut step = step.clone();
            left -= step.values().0.iter().filter(|read| read.index == value.index).count().min(left);
        }
        left
    }
}

/// Rotations apply to heads of a row.
impl Rotate {
    /// Floats of a head.
    pub(crate) fn head_width(&self) -> usize {
        self.x.width / self.heads
    }
}
