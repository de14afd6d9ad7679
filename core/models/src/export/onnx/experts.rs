//! Mixtures of experts: in one operator of ONNX Runtime's where it has one for them, which computes the chosen experts alone; else all of
//! them, weighted by 0 where they are not chosen.
//!
//! Routing is spelled out in both forms, so that every rule of it is the same in all. The operators choose once more among the weights
//! that it gives, of which only those of the chosen experts are above 0.

use drophammer_formats::DType;
use drophammer_formats::onnx::Attribute;

use super::emit::{Emitter, FLOAT, MICROSOFT, UINT8, Value};
use super::matrices::name_of;
use super::scheme::Storage;
use super::weights::{Matrix, Part, element_type};
use crate::error::Result;
use crate::graph::{Activation, ExpertSpec, Gating, Graph, Linear, Routing, Scoring};
use crate::weight::WeightId;

fn int(value: impl Into<i64>) -> Attribute {
    Attribute::Int(value.into())
}

/// The most experts of a graph that computes them all.
const MOST_AT_ONCE: u32 = 32;

/// A stack's initializers; empty names for what it has not.
struct Stack {
    data: String,
    scales: String,
    points: String,
}

impl Emitter<'_> {
    /// What a mixture of experts makes of `x`.
    pub(super) fn mixture(&mut self, x: &Value, spec: &ExpertSpec) -> Result<Value> {
        let experts = spec.routing.experts;
        if self.fixed.is_some() && experts > MOST_AT_ONCE {
            return Err(self.unsupported(&format!(
                "a mixture of {experts} experts in graphs of fixed shapes, which compute all for every token ({MOST_AT_ONCE} at most)"
            )));
        }
        let logits = self.product(&x.0, &spec.router, None)?;
        let first = self.graph.nodes.len();
        let weights = self.routing_weights(&logits, &spec.routing)?;
        if let Some(fixed) = &mut self.fixed {
            // Rounded scores could choose others.
            let made = self.graph.nodes.iter().skip(first).flat_map(|node| node.outputs.iter().cloned());
            fixed.hints.floats.extend(made.filter(|made| *made != weights));
            return self.each_expert(x, &weights, spec);
        }
        match self.fused_experts(&x.0, &weights, spec)? {
            Some(y) => Ok(y),
            None => self.each_expert(x, &weights, spec),
        }
    }

    /// The operator for a whole mixture; `None` where it has no place for an activation, a bias or a width.
    fn fused_experts(&mut self, x: &str, weights: &str, spec: &ExpertSpec) -> Result<Option<Value>> {
        let (alpha, beta, limit) = match spec.gating {
            Gating::By(Activation::Silu) => (1.0, 0.0, None),
            Gating::Clamped { alpha, limit } => (alpha, 1.0, Some(limit)),
            Gating::By(_) => return Ok(None),
        };
        if spec.gate.bias.is_some() != spec.up.bias.is_some() {
            return Ok(None);
        }
        // One length of blocks for both products: the shorter, which divides both.
        let [storage, other] =
            [spec.gate.inputs, spec.down.inputs].map(|columns| self.scheme.for_columns(columns.into()));
        let storage = match (storage, other) {
            (Storage::Blocks { block, .. }, Storage::Blocks { block: shorter, .. }) if shorter < block => {
                other
            }
            (Storage::Blocks { .. }, Storage::Blocks { .. }) => storage,
            (Storage::Float(one), Storage::Float(same)) if one == same => storage,
            _ => return Ok(None),
        };
        if storage != self.scheme.storage {
            self.widths.extend([spec.gate.inputs, spec.down.inputs].map(u64::from));
        }
        let experts = spec.routing.experts;
        let first = self.stack(&spec.gate, Some(spec.up.weight), experts, storage);
        let second = self.stack(&spec.down, None, experts, storage);
        let biases = [
            self.stacked_bias(&spec.gate, spec.up.bias, experts)?,
            self.stacked_bias(&spec.down, None, experts)?,
        ];
        let flat = self.reshape(weights, &[-1, experts.into()]);
        let mut attributes = vec![
            ("k", int(spec.routing.used)),
            ("activation_type", Attribute::String(b"swiglu".to_vec())),
            // Gate and up lie in turns.
            ("swiglu_fusion", int(1)),
            ("activation_alpha", Attribute::Float(alpha)),
            ("activation_beta", Attribute::Float(beta)),
        ];
        attributes.extend(limit.map(|limit| ("swiglu_limit", Attribute::Float(limit))));
        let Storage::Blocks { bits, block, .. } = storage else {
            // It makes shares of what it is given by the exponential: of the weights' logarithms the weights' shares of their sum.
            attributes.push(("normalize_routing_weights", int(1)));
            let logs = self.op("Log", &[&flat], Vec::new());
            let inputs = [x, &logs, &first.data, &biases[0], &second.data, &biases[1]];
            let y = self.op_of(MICROSOFT, "MoE", &inputs, attributes);
            let axes = self.ints(&[-1]);
            let sum = self.op("ReduceSum", &[weights, &axes], Vec::new());
            return Ok(Some(Value(self.op("Mul", &[&y, &sum], Vec::new()))));
        };
        if bits == 8 {
            self.about_experts = Some(
                "experts of 8 bits are multiplied with activations rounded to 8 bits, by ONNX Runtime's only kernel for them",
            );
        }
        attributes.extend([
            ("normalize_routing_weights", int(0)),
            ("expert_weight_bits", int(bits)),
            ("block_size", int(block)),
            ("weights_prepacked", int(0)),
            ("accuracy_level", int(if bits == 2 { 0 } else { 4 })),
        ]);
        let inputs = [
            x,
            &flat,
            &first.data,
            &first.scales,
            &biases[0],
            &second.data,
            &second.scales,
            &biases[1],
            "",
            "",
            "",
            &first.points,
            &second.points,
            "",
            &flat,
        ];
        Ok(Some(Value(self.op_of(MICROSOFT, "QMoE", &inputs, attributes))))
    }

    /// A stack's initializers, its rows in turns with another's of the same shape where one is named.
    fn stack(&mut self, linear: &Linear, beside: Option<WeightId>, experts: u32, storage: Storage) -> Stack {
        let turns = if beside.is_some() { 2 } else { 1 };
        let (count, each, columns) =
            (u64::from(experts), turns * u64::from(linear.outputs), u64::from(linear.inputs));
        let data = match beside {
            Some(beside) => format!("{}_{:?}", name_of(linear.weight), beside.role),
            None => name_of(linear.weight),
        };
        let mut stack = Stack { data, scales: String::new(), points: String::new() };
        let mut outputs = Vec::new();
        if let Storage::Blocks { bits, block, symmetric } = storage {
            let groups = columns / u64::from(block);
            let packed = |count: u64| (count * u64::from(bits)).div_ceil(8);
            stack.scales = format!("{}.scales", stack.data);
            outputs.push(self.external(stack.data.clone(), UINT8, vec![count, each, packed(columns)]));
            outputs.push(self.external(stack.scales.clone(), FLOAT, vec![count, each, groups]));
            if !symmetric {
                stack.points = format!("{}.zero_points", stack.data);
                let shape = vec![count, each, packed(groups)];
                outputs.push(self.external(stack.points.clone(), UINT8, shape));
            }
        } else if let Storage::Float(dtype) = storage {
            let shape = vec![count, each, columns];
            outputs.push(self.external(stack.data.clone(), element_type(dtype), shape));
            if dtype != DType::F32 {
                stack.data = self.cast(&stack.data, FLOAT);
            }
        }
        self.matrices.push(Matrix {
            id: linear.weight,
            part: Part::Stack(experts, beside),
            rows: count * each,
            columns,
            storage,
            outputs,
            encoding: None,
        });
        stack
    }

    /// A stack's biases, `[experts, width]`, in turns with another's where one is named; an empty name where it has none.
    fn stacked_bias(&mut self, linear: &Linear, beside: Option<WeightId>, experts: u32) -> Result<String> {
        let Some(bias) = linear.bias else { return Ok(String::new()) };
        let mut values = self.checkpoint.weight(bias)?.to_vec()?;
        if let Some(beside) = beside {
            let other = self.checkpoint.weight(beside)?.to_vec()?;
            values = values.iter().zip(&other).flat_map(|(one, other)| [*one, *other]).collect();
        }
        let width = values.len() as u64 / u64::from(experts.max(1));
        Ok(self.numbers(&format!("{bias} {beside:?}"), &[experts.into(), width], &values))
    }

    /// All experts, one after the other.
    fn each_expert(&mut self, x: &Value, weights: &str, spec: &ExpertSpec) -> Result<Value> {
        self.about_experts =
            Some("every expert is computed for every token, and weighted by 0 where it is not chosen");
        let count = spec.routing.experts;
        let number = self.graph.nodes.len();
        let columns: Vec<String> = (0..count).map(|expert| format!("/experts_{number}:{expert}")).collect();
        let outputs: Vec<&str> = columns.iter().map(String::as_str).collect();
        let attributes = vec![("axis", int(-1)), ("num_outputs", int(count))];
        self.node("Split", "", &[weights], &outputs, attributes);
        let mut sum: Option<String> = None;
        for (number, weight) in (0..count).zip(&columns) {
            let expert = Some((number, count));
            let gate = Value(self.product(&x.0, &spec.gate, expert)?);
            let up = Value(self.product(&x.0, &spec.up, expert)?);
            let inner = self.gated(&gate, &up, spec.gating)?;
            let y = self.product(&inner.0, &spec.down, expert)?;
            let y = self.op("Mul", &[&y, weight], Vec::new());
            sum = Some(match sum {
                Some(sum) => self.op("Add", &[&sum, &y], Vec::new()),
                None => y,
            });
        }
        sum.map(Value).ok_or_else(|| self.unsupported("a mixture of no experts"))
    }

    /// Every expert's weight for every token, 0 where it is not chosen: `[batch, time, experts]`.
    fn routing_weights(&mut self, logits: &str, routing: &Routing) -> Result<String> {
        let scores = match routing.scoring {
            Scoring::Softmax => self.op("Softmax", &[logits], vec![("axis", int(-1))]),
            Scoring::Sigmoid => self.op("Sigmoid", &[logits], Vec::new()),
            Scoring::SoftmaxOfChosen => logits.to_owned(),
        };
        let mut chosen_by = scores.clone();
        if let Some(correction) = routing.correction {
            let correction = self.vector(correction, None)?;
            chosen_by = self.op("Add", &[&chosen_by, &correction], Vec::new());
        }
        if let Some(groups) = routing.groups {
            let (count, each) = (i64::from(groups.count), i64::from(routing.experts / groups.count));
            let cut = self.reshape(&chosen_by, &[0, 0, count, each]);
            let best = self.ints(&[groups.best.into()]);
            let [best, _] = self.top(&cut, &best);
            let axes = self.ints(&[-1]);
            let of_group = self.op("ReduceSum", &[&best, &axes], vec![("keepdims", int(0))]);
            let used = self.ints(&[groups.used.into()]);
            let [_, kept] = self.top(&of_group, &used);
            let none = self.zeros_like(&of_group, groups.count);
            let shape = self.op("Shape", &[&kept], Vec::new());
            let one = self.number(1.0);
            let ones = self.op("Expand", &[&one, &shape], Vec::new());
            let flags = self.op("ScatterElements", &[&none, &kept, &ones], vec![("axis", int(-1))]);
            let flags = self.op("Unsqueeze", &[&flags, &axes], Vec::new());
            let flags = self.cast(&flags, drophammer_formats::onnx::ElementType(9));
            let floor = self.number(match routing.scoring {
                Scoring::Sigmoid => 0.0,
                // Within half precision, which compilers take.
                Scoring::Softmax | Scoring::SoftmaxOfChosen => -3e4,
            });
            let cut = self.op("Where", &[&flags, &cut, &floor], Vec::new());
            chosen_by = self.reshape(&cut, &[0, 0, -1]);
        }
        let used = self.ints(&[routing.used.into()]);
        let [_, chosen] = self.top(&chosen_by, &used);
        let mut weights = self.op("GatherElements", &[&scores, &chosen], vec![("axis", int(-1))]);
        if routing.scoring == Scoring::SoftmaxOfChosen {
            weights = self.op("Softmax", &[&weights], vec![("axis", int(-1))]);
        }
        if routing.normalize {
            let axes = self.ints(&[-1]);
            let sum = self.op("ReduceSum", &[&weights, &axes], Vec::new());
            let least = self.number(1e-20);
            let sum = self.op("Add", &[&sum, &least], Vec::new());
            weights = self.op("Div", &[&weights, &sum], Vec::new());
        }
        if routing.scale != 1.0 {
            let scale = self.number(routing.scale);
            weights = self.op("Mul", &[&weights, &scale], Vec::new());
        }
        let none = self.zeros_like(&scores, routing.experts);
        Ok(self.op("ScatterElements", &[&none, &chosen, &weights], vec![("axis", int(-1))]))
    }

    /// The largest of the last dimension: values and places.
    fn top(&mut self, x: &str, count: &str) -> [String; 2] {
        let number = self.graph.nodes.len();
        let outputs = [format!("/top_{number}:0"), format!("/top_{number}:1")];
        self.node("TopK", "", &[x, count], &[&outputs[0], &outputs[1]], vec![("axis", int(-1))]);
        outputs
    }

    /// As many zeros as `x` has numbers, in rows of `width`.
    fn zeros_like(&mut self, x: &str, width: u32) -> String {
        if let Some(tokens) = self.fixed.as_ref().map(|fixed| fixed.tokens) {
            let zeros = vec![0.0; (tokens * width) as usize];
            return self.numbers(&format!("zeros {width}"), &[1, tokens.into(), width.into()], &zeros);
        }
        let zero = self.number(0.0);
        self.op("Mul", &[x, &zero], Vec::new())
    }
}
