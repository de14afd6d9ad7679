//! The native `Graph`: writes down the operations of an architecture once, as [`Step`]s.
//!
//! Recording instead of executing at each call costs nothing per token: no names are looked up, no buffer is allocated,
//! and neighbouring operations can be joined.

use std::collections::HashMap;

use drophammer_models::WeightId;
use drophammer_models::graph::{
    Activation, AttentionSpec, ExpertSpec, Gating, Graph, Index, Linear, Norm, NormKind, Pooling, RopeSpec,
    Table,
};
use drophammer_models::rope::Rope;

use super::step::{self, Attention, Domain, Experts, Product, Rotate, Step, Value};
use crate::cache::LayerShape;
use crate::kernels::rows::{Binary, Unary};

/// A matrix that steps refer to by number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct MatrixRef {
    pub(crate) weight: WeightId,
    /// Which of a stack, and how many there are.
    pub(crate) expert: Option<(usize, usize)>,
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    /// Whether only rows are looked up in it.
    pub(crate) table: bool,
}

/// A vector that steps refer to by number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct VectorRef {
    pub(crate) weight: WeightId,
    /// Its part of the whole, for biases of experts.
    pub(crate) expert: Option<(usize, usize)>,
    pub(crate) len: usize,
}

/// What was recorded.
#[derive(Default)]
pub(crate) struct Recorder {
    pub(crate) steps: Vec<Step>,
    pub(crate) matrices: Vec<MatrixRef>,
    pub(crate) vectors: Vec<VectorRef>,
    pub(crate) ropes: Vec<Rope>,
    pub(crate) caches: Vec<LayerShape>,
    matrix_numbers: HashMap<MatrixRef, usize>,
    vector_numbers: HashMap<VectorRef, usize>,
    values: usize,
}

/// An operation that this backend cannot do, in words.
#[derive(Debug)]
pub(crate) struct Unsupported(pub(crate) String);

type Recorded<T = Value> = Result<T, Unsupported>;

impl Recorder {
    fn value(&mut self, width: usize, domain: Domain) -> Value {
        self.values += 1;
        Value { index: self.values - 1, width, domain }
    }

    fn matrix(&mut self, reference: MatrixRef) -> usize {
        *self.matrix_numbers.entry(reference).or_insert_with(|| {
            self.matrices.push(reference);
            self.matrices.len() - 1
        })
    }

    fn vector(&mut self, weight: WeightId, len: usize) -> usize {
        self.vector_part(VectorRef { weight, expert: None, len })
    }

    fn vector_part(&mut self, reference: VectorRef) -> usize {
        *self.vector_numbers.entry(reference).or_insert_with(|| {
            self.vectors.push(reference);
            self.vectors.len() - 1
        })
    }

    fn product(&mut self, linear: &Linear, domain: Domain) -> Product {
        let (rows, columns) = (linear.outputs as usize, linear.inputs as usize);
        Product {
            matrix: self.matrix(MatrixRef {
                weight: linear.weight,
                expert: None,
                rows,
                columns,
                table: false,
            }),
            bias: linear.bias.map(|bias| self.vector(bias, rows)),
            out: self.value(rows, domain),
            accumulate: false,
        }
    }

    /// Matrices and biases of all experts.
    fn stack(&mut self, linear: &Linear, experts: usize) -> (Vec<usize>, Vec<usize>) {
        let (rows, columns) = (linear.outputs as usize, linear.inputs as usize);
        let part = |e| Some((e, experts));
        let matrices = (0..experts)
            .map(|e| {
                self.matrix(MatrixRef { weight: linear.weight, expert: part(e), rows, columns, table: false })
            })
            .collect();
        let biases = linear.bias.map_or_else(Vec::new, |weight| {
            (0..experts).map(|e| self.vector_part(VectorRef { weight, expert: part(e), len: rows })).collect()
        });
        (matrices, biases)
    }

    fn unary(&mut self, x: &Value, what: Unary) -> Value {
        let out = self.value(x.width, x.domain);
        self.steps.push(Step::Unary { x: *x, what, out });
        out
    }

    fn binary(&mut self, a: &Value, b: &Value, what: Binary) -> Recorded {
        if a.width != b.width || a.domain != b.domain {
            return Err(Unsupported(format!(
                "element-wise operation on rows of {} and {} numbers",
                a.width, b.width
            )));
        }
        let out = self.value(a.width, a.domain);
        self.steps.push(Step::Binary { a: *a, b: *b, what, out });
        Ok(out)
    }
}

impl Graph for Recorder {
    type Value = Value;
    type Error = Unsupported;

    fn embedding(&mut self, table: &Table, index: Index) -> Recorded {
        let (rows, width) = (table.rows as usize, table.width as usize);
        let reference = MatrixRef { weight: table.weight, expert: None, rows, columns: width, table: true };
        let table = self.matrix(reference);
        let out = self.value(width, Domain::Tokens);
        self.steps.push(Step::Embed { table, index, out });
        Ok(out)
    }

    fn linear(&mut self, x: &Value, linear: &Linear) -> Recorded {
        let [out] = self.linears(x, &[*linear])?;
        Ok(out)
    }

    fn linears<const N: usize>(&mut self, x: &Value, linears: &[Linear; N]) -> Recorded<[Value; N]> {
        if let Some(linear) = linears.iter().find(|linear| linear.inputs as usize != x.width) {
            return Err(Unsupported(format!(
                "{} takes {} numbers, not {}",
                linear.weight, linear.inputs, x.width
            )));
        }
        let products = linears.each_ref().map(|linear| self.product(linear, x.domain));
        self.steps.push(Step::Linear { x: *x, norm: None, products: products.to_vec(), gating: None });
        Ok(products.map(|product| product.out))
    }

    fn norm(&mut self, x: &Value, norm: &Norm) -> Recorded {
        let (width, groups) = (norm.width as usize, norm.groups as usize);
        if width * groups != x.width {
            return Err(Unsupported(format!("a norm of {groups} × {width} on rows of {}", x.width)));
        }
        let len = if norm.per_group { x.width } else { width };
        let out = self.value(x.width, x.domain);
        let step = step::Norm {
            x: *x,
            out,
            weight: norm.weight.map(|weight| self.vector(weight, len)),
            bias: norm.bias.map(|bias| self.vector(bias, len)),
            epsilon: norm.epsilon,
            centred: norm.kind == NormKind::Layer,
            width,
            per_group: norm.per_group,
        };
        self.steps.push(Step::Norm(step));
        Ok(out)
    }

    fn rope(&mut self, x: &Value, spec: &RopeSpec<'_>) -> Recorded {
        let table = self.ropes.iter().position(|known| known == spec.rope).unwrap_or_else(|| {
            self.ropes.push(spec.rope.clone());
            self.ropes.len() - 1
        });
        let (heads, start) = (spec.heads as usize, spec.start as usize);
        if x.width != heads * spec.head_width as usize
            || start + spec.rope.width as usize > spec.head_width as usize
        {
            return Err(Unsupported(format!("a rotation of {heads} heads on rows of {}", x.width)));
        }
        // In place: builders never use a value again that they have rotated.
        self.steps.push(Step::Rope(Rotate { x: *x, heads, start, table, layout: spec.rope.layout }));
        Ok(*x)
    }

    fn attention(&mut self, q: &Value, k: &Value, v: &Value, spec: &AttentionSpec) -> Recorded {
        let shape = LayerShape {
            kv_heads: spec.kv_heads as usize,
            key_width: spec.key_width as usize,
            value_width: spec.value_width as usize,
        };
        let layer = self.caches.len();
        self.caches.push(shape);
        let out = self.value(spec.heads as usize * shape.value_width, q.domain);
        let sinks = spec.sinks.map(|sinks| self.vector(sinks, spec.heads as usize));
        self.steps.push(Step::Attention(Attention {
            q: *q,
            k: *k,
            v: *v,
            out,
            layer,
            heads: spec.heads as usize,
            kv_heads: shape.kv_heads,
            scale: spec.scale,
            softcap: spec.softcap,
            window: spec.window,
            sinks,
            causal: spec.causal,
            rotate_q: None,
            rotate_k: None,
        }));
        Ok(out)
    }

    fn join_heads(&mut self, per_head: &Value, shared: &Value, heads: u32) -> Recorded {
        let out = self.value(per_head.width + heads as usize * shared.width, per_head.domain);
        self.steps.push(Step::JoinHeads { per_head: *per_head, shared: *shared, heads: heads as usize, out });
        Ok(out)
    }

    fn activate(&mut self, x: &Value, activation: Activation) -> Recorded {
        Ok(self.unary(x, Unary::Activate(activation)))
    }

    fn gated(&mut self, gate: &Value, up: &Value, gating: Gating) -> Recorded {
        self.binary(gate, up, Binary::Gated(gating))
    }

    fn experts(&mut self, x: &Value, spec: &ExpertSpec) -> Recorded {
        let logits = self.linear(x, &spec.router)?;
        let count = spec.routing.experts as usize;
        let (gate, gate_bias) = self.stack(&spec.gate, count);
        let (up, up_bias) = self.stack(&spec.up, count);
        let (down, down_bias) = self.stack(&spec.down, count);
        let out = self.value(spec.down.outputs as usize, x.domain);
        let correction = spec.routing.correction.map(|weight| self.vector(weight, count));
        self.steps.push(Step::Experts(Experts {
            x: *x,
            logits,
            out,
            routing: spec.routing,
            correction,
            gate,
            up,
            down,
            gate_bias,
            up_bias,
            down_bias,
            gating: spec.gating,
            width: spec.gate.outputs as usize,
        }));
        Ok(out)
    }

    fn add(&mut self, a: &Value, b: &Value) -> Recorded {
        self.binary(a, b, Binary::Add)
    }

    fn mul(&mut self, a: &Value, b: &Value) -> Recorded {
        if b.width == 1 && a.width != 1 {
            let out = self.value(a.width, a.domain);
            self.steps.push(Step::ScaleRows { x: *a, factors: *b, out });
            return Ok(out);
        }
        self.binary(a, b, Binary::Mul)
    }

    fn scale(&mut self, x: &Value, factor: f32) -> Recorded {
        Ok(self.unary(x, Unary::Scale(factor)))
    }

    fn softcap(&mut self, x: &Value, cap: f32) -> Recorded {
        Ok(self.unary(x, Unary::Softcap(cap)))
    }

    fn wanted(&mut self, x: &Value) -> Recorded {
        let out = self.value(x.width, Domain::Outputs);
        self.steps.push(Step::Wanted { x: *x, out });
        Ok(out)
    }

    fn pool(&mut self, x: &Value, pooling: Pooling) -> Recorded {
        let _ = (x, pooling);
        Err(Unsupported("pooling, which is the host's".into()))
    }
}
