//! Mixtures of experts: routing spelled out, all experts as one batched product.
//!
//! Every expert sees every token and those not chosen get weight 0: exact, and the form that runtimes recognize and cut
//! down to the chosen ones where they can.

use drophammer_formats::openvino::{Element, Port};
use drophammer_models::graph::{ExpertGroups, ExpertSpec, Linear, Routing, Scoring};

use super::{Emitter, Value};

impl Emitter<'_> {
    pub(super) fn mixture(&mut self, x: &Value, spec: &ExpertSpec) -> Value {
        let rows = self.rows(x);
        let logits = self.linear_rows(rows, &spec.router);
        let experts = i64::from(spec.routing.experts);
        let logits = self.reshape(logits, &[-1, experts]);
        let weights = self.routed(logits, &spec.routing);
        // [experts, tokens, 1]
        let weights = self.transpose(weights, &[1, 0]);
        let weights = self.unsqueeze(weights, &[2]);
        // Every expert's own copy of all tokens.
        let tokens = self.reshape(rows, &[-1, i64::from(x.width)]);
        let times = self.i64s(&[experts, 1]);
        let tokens = self.op("Tile", "opset1", &[tokens, times], Element::F32);
        let tokens = self.reshape(tokens, &[experts, -1, i64::from(x.width)]);
        let gate = self.stacked(tokens, &spec.gate, spec.routing.experts);
        let up = self.stacked(tokens, &spec.up, spec.routing.experts);
        let inner = self.gate(gate, up, spec.gating, 3);
        let out = self.stacked(inner, &spec.down, spec.routing.experts);
        let out = self.mul_ports(out, weights);
        let out = self.reduce("ReduceSum", out, 0, false);
        let sizes = self.net.add("ShapeOf", "opset3", &[("output_type", "i64")], &[rows], Element::I64);
        let out =
            self.net.add("Reshape", "opset1", &[("special_zero", "false")], &[out, sizes], Element::F32);
        Self::of_rows(out, spec.down.outputs)
    }

    fn linear_rows(&mut self, rows: Port, linear: &Linear) -> Port {
        let weight = self.weight(linear.weight, &[linear.outputs.into(), linear.inputs.into()]);
        let out = self.matmul(rows, weight, true);
        match linear.bias {
            Some(bias) => {
                let bias = self.vector(bias, &[1, 1, linear.outputs.into()]);
                self.add_ports(out, bias)
            }
            None => out,
        }
    }

    /// The same product for each expert: `[experts, tokens, outputs]`.
    fn stacked(&mut self, x: Port, linear: &Linear, experts: u32) -> Port {
        let (outputs, inputs) = (u64::from(linear.outputs), u64::from(linear.inputs));
        let weight = self.weight(linear.weight, &[experts.into(), outputs, inputs]);
        let out = self.matmul(x, weight, true);
        match linear.bias {
            Some(bias) => {
                let bias = self.vector(bias, &[experts.into(), 1, outputs]);
                self.add_ports(out, bias)
            }
            None => out,
        }
    }

    /// Weight of each expert for each token, 0 for those not chosen: `[tokens, experts]`.
    fn routed(&mut self, logits: Port, routing: &Routing) -> Port {
        let scores = match routing.scoring {
            Scoring::Softmax => self.softmax(logits, -1),
            Scoring::SoftmaxOfChosen => logits,
            Scoring::Sigmoid => self.op("Sigmoid", "opset1", &[logits], Element::F32),
        };
        let mut choice = scores;
        if let Some(correction) = routing.correction {
            let correction = self.vector(correction, &[1, routing.experts.into()]);
            choice = self.add_ports(choice, correction);
        }
        if let Some(groups) = routing.groups {
            choice = self.of_best_groups(choice, routing.experts, groups);
        }
        let chosen = self.top(choice, routing.used, -1).output(1);
        let mut weights =
            self.net.add("GatherElements", "opset6", &[("axis", "1")], &[scores, chosen], Element::F32);
        if routing.scoring == Scoring::SoftmaxOfChosen {
            weights = self.softmax(weights, -1);
        }
        if routing.normalize {
            let sum = self.reduce("ReduceSum", weights, -1, true);
            let least = self.float(1e-20, 2);
            let sum = self.add_ports(sum, least);
            weights = self.binary("Divide", weights, sum, Element::F32);
        }
        if routing.scale != 1.0 {
            let scale = self.float(routing.scale, 2);
            weights = self.mul_ports(weights, scale);
        }
        let zero = self.float(0.0, 2);
        let nothing = self.mul_ports(logits, zero);
        let axis = self.i64_scalar(1);
        self.op("ScatterElementsUpdate", "opset3", &[nothing, chosen, weights, axis], Element::F32)
    }

    /// Values and indices of the largest `count` along an axis.
    fn top(&mut self, x: Port, count: u32, axis: i64) -> Port {
        let count = self.i64_scalar(count.into());
        let axis = axis.to_string();
        let attributes =
            [("axis", axis.as_str()), ("mode", "max"), ("sort", "value"), ("index_element_type", "i64")];
        self.net.add_many("TopK", "opset3", &attributes, &[x, count], &[Element::F32, Element::I64])
    }

    /// Scores of experts outside the best groups pushed below all others.
    fn of_best_groups(&mut self, scores: Port, experts: u32, groups: ExpertGroups) -> Port {
        let (count, size) = (i64::from(groups.count), i64::from(experts / groups.count));
        let grouped = self.reshape(scores, &[-1, count, size]);
        let best = self.top(grouped, groups.best, -1);
        let sums = self.reduce("ReduceSum", best, -1, false);
        let kept = self.top(sums, groups.used, -1);
        let zero = self.float(0.0, 2);
        let out = self.mul_ports(sums, zero);
        let ones = self.mul_ports(kept, zero);
        let one = self.float(1.0, 2);
        let ones = self.add_ports(ones, one);
        let axis = self.i64_scalar(1);
        let kept =
            self.op("ScatterElementsUpdate", "opset3", &[out, kept.output(1), ones, axis], Element::F32);
        let kept = self.convert(kept, Element::Boolean);
        let kept = self.unsqueeze(kept, &[2]);
        let below = self.float(f32::MIN, 3);
        let choice = self.select(kept, grouped, below);
        self.reshape(choice, &[-1, i64::from(experts)])
    }
}
