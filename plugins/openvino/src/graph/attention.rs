//! Attention: keys and values in variables, masks, and the two forms of the product.

use drophammer_formats::openvino::{Element, Port};
use drophammer_models::graph::AttentionSpec;

use super::{Emitter, Form, Value};

/// What is added to scores that do not count: the most that half precision holds.
const MASKED: f32 = -65504.0;

impl Emitter<'_> {
    pub(super) fn attend(&mut self, q: &Value, k: &Value, v: &Value, spec: &AttentionSpec) -> Value {
        let q = self.lanes(q, spec.heads);
        let mut k = self.lanes(k, spec.kv_heads);
        let mut v = self.lanes(v, spec.kv_heads);
        if spec.causal {
            k = self.remembered(k, spec, "key", spec.key_width);
            v = self.remembered(v, spec, "value", spec.value_width);
        }
        let k = self.repeated(k, spec, spec.key_width);
        let v = self.repeated(v, spec, spec.value_width);
        let mask = self.mask(spec.window, spec.causal);
        // The runtime's own operation has no cap, no extra logits, and values as wide as keys.
        let own = spec.softcap.is_none() && spec.sinks.is_none() && spec.key_width == spec.value_width;
        let mixed = if own { self.fused(q, k, v, mask, spec) } else { self.spelled_out(q, k, v, mask, spec) };
        let width = spec.heads * spec.value_width;
        let value = Value { port: mixed, width, form: Form::Lanes(spec.heads) };
        Self::of_rows(self.rows(&value), width)
    }

    /// Appends this step's keys or values to the layer's variable; gives all of them.
    fn remembered(&mut self, now: Port, spec: &AttentionSpec, what: &str, width: u32) -> Port {
        let Some(beam) = self.inputs.beam else { return now };
        let layer = spec.layer;
        let id = format!("past_key_values.{layer}.{what}present.{layer}.{what}");
        let (heads, width) = (i64::from(spec.kv_heads), i64::from(width));
        let sizes = self.i64s(&[heads, 0, width]);
        let sizes = self.concat(&[self.inputs.batch, sizes], 0);
        let nothing = self.float(0.0, 0);
        let empty =
            self.net.add("Broadcast", "opset3", &[("mode", "numpy")], &[nothing, sizes], Element::F32);
        let shape = format!("?,{heads},?,{width}");
        let attributes = [("variable_id", id.as_str()), ("variable_type", "f32"), ("variable_shape", &shape)];
        let past = self.net.add("ReadValue", "opset6", &attributes, &[empty], Element::F32);
        let past = self.gather(past, beam, 0);
        let all = self.concat(&[past, now], 2);
        self.net.add("Assign", "opset6", &attributes, &[all], Element::F32);
        all
    }

    /// Each key/value head once per query head that reads it.
    fn repeated(&mut self, x: Port, spec: &AttentionSpec, width: u32) -> Port {
        let times = spec.heads / spec.kv_heads;
        if times == 1 {
            return x;
        }
        let x = self.unsqueeze(x, &[2]);
        let shape = self.i64s(&[spec.kv_heads.into(), times.into(), 1, width.into()]);
        let shape = self.concat(&[self.inputs.batch, shape], 0);
        let x = self.broadcast(x, shape);
        self.reshape(x, &[0, spec.heads.into(), -1, width.into()])
    }

    fn fused(&mut self, q: Port, k: Port, v: Port, mask: Port, spec: &AttentionSpec) -> Port {
        let mut inputs = vec![q, k, v, mask];
        if (spec.scale * (spec.key_width as f32).sqrt() - 1.0).abs() > 1e-6 {
            inputs.push(self.float(spec.scale, 0));
        }
        self.net.add("ScaledDotProductAttention", "opset13", &[("causal", "false")], &inputs, Element::F32)
    }

    fn spelled_out(&mut self, q: Port, k: Port, v: Port, mask: Port, spec: &AttentionSpec) -> Port {
        let scale = self.float(spec.scale, 4);
        let q = self.mul_ports(q, scale);
        let mut scores = self.matmul(q, k, true);
        if let Some(cap) = spec.softcap {
            scores = self.capped(scores, cap, 4);
        }
        scores = self.add_ports(scores, mask);
        let Some(sinks) = spec.sinks else {
            let weights = self.softmax(scores, -1);
            return self.matmul(weights, v, false);
        };
        let sinks = self.vector(sinks, &[1, spec.heads.into(), 1, 1]);
        let time = self.size_of(q, 2, &[1]);
        let one = self.i64s(&[1]);
        let shape = self.concat(&[self.inputs.batch, one, time, one], 0);
        let sinks = self.broadcast(sinks, shape);
        let scores = self.concat(&[scores, sinks], -1);
        let weights = self.softmax(scores, -1);
        let weights = self.slice(weights, 3, 0, -1);
        self.matmul(weights, v, false)
    }

    /// What is added to scores, `[batch, 1, time, all]` (encoders without a window: `[batch, 1, 1, all]`).
    fn mask(&mut self, window: Option<u32>, causal: bool) -> Port {
        if let Some(&mask) = self.masks.get(&(window, causal)) {
            return mask;
        }
        let there = self.unsqueeze(self.inputs.mask, &[1, 2]);
        let mut seen = self.convert(there, Element::Boolean);
        if causal {
            let near = self.earlier();
            seen = self.binary("LogicalAnd", near, seen, Element::Boolean);
        }
        if let Some(window) = window {
            let near = if causal { self.within(window) } else { self.around(window) };
            seen = self.binary("LogicalAnd", near, seen, Element::Boolean);
        }
        let (zero, masked) = (self.float(0.0, 0), self.float(MASKED, 0));
        let mask = self.select(seen, zero, masked);
        self.masks.insert((window, causal), mask);
        mask
    }

    /// Whether a key came no later than the query, by their places: `[time, all]`.
    fn earlier(&mut self) -> Port {
        let time = self.size_of(self.inputs.ids, 1, &[]);
        let all = self.size_of(self.inputs.mask, 1, &[]);
        let past = self.binary("Subtract", all, time, Element::I64);
        let one = self.i64_scalar(1);
        let queries = self.range(past, all, one);
        let queries = self.unsqueeze(queries, &[1]);
        let keys = self.range_to(all);
        let keys = self.unsqueeze(keys, &[0]);
        self.binary("LessEqual", keys, queries, Element::Boolean)
    }

    /// Whether a key is less than `window` positions before the query: `[batch, 1, time, all]`.
    fn within(&mut self, window: u32) -> Port {
        let axis = self.i64_scalar(1);
        let attributes = [("exclusive", "false"), ("reverse", "false")];
        let counted = self.net.add("CumSum", "opset3", &attributes, &[self.inputs.mask, axis], Element::I64);
        let time = self.size_of(self.inputs.ids, 1, &[1]);
        let zero = self.i64s(&[0]);
        let past = self.binary("Subtract", zero, time, Element::I64);
        let [end, step, along] = [i64::MAX, 1, 1].map(|value| self.i64s(&[value]));
        let queries = self.op("Slice", "opset8", &[counted, past, end, step, along], Element::I64);
        let queries = self.unsqueeze(queries, &[1, 3]);
        let keys = self.unsqueeze(counted, &[1, 2]);
        let distance = self.binary("Subtract", queries, keys, Element::I64);
        let window = self.i64_scalar(window.into());
        self.binary("Less", distance, window, Element::Boolean)
    }

    /// Whether two tokens of an encoder are at most half a window apart: `[time, time]`.
    fn around(&mut self, window: u32) -> Port {
        let time = self.size_of(self.inputs.ids, 1, &[]);
        let places = self.range_to(time);
        let (queries, keys) = (self.unsqueeze(places, &[1]), self.unsqueeze(places, &[0]));
        let distance = self.binary("Subtract", queries, keys, Element::I64);
        let distance = self.op("Abs", "opset1", &[distance], Element::I64);
        let half = self.i64_scalar(i64::from(window / 2));
        self.binary("LessEqual", distance, half, Element::Boolean)
    }
}
