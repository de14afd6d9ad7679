//! Rotation of heads by position.
//!
//! Sines and cosines are computed in the graph from `position_ids`, once per rotation and for all layers. Pairs lie in
//! halves: checkpoints are asked for rows in that order.

use drophammer_formats::openvino::{Element, Port};
use drophammer_models::graph::RopeSpec;
use drophammer_models::rope::{Rope, RopeLayout, RopeScaling};

use super::{Emitted, Emitter, Form, Unsupported, Value};

/// "To the end" of a slice.
const END: i64 = i64::MAX;

impl Emitter<'_> {
    pub(super) fn rotate(&mut self, x: &Value, spec: &RopeSpec<'_>) -> Emitted {
        if spec.rope.layout != RopeLayout::Halves {
            return Err(Unsupported("rotation of neighbouring pairs".into()));
        }
        let lanes = self.lanes(x, spec.heads);
        let [cos, sin] = self.rotation(spec.index, spec.rope);
        let (start, width, whole) =
            (i64::from(spec.start), i64::from(spec.rope.width), i64::from(spec.head_width));
        let turned = if width == whole { lanes } else { self.slice(lanes, 3, start, start + width) };
        let second = self.slice(turned, 3, width / 2, END);
        let first = self.slice(turned, 3, 0, width / 2);
        let minus = self.float(-1.0, 4);
        let second = self.mul_ports(second, minus);
        let swapped = self.concat(&[second, first], -1);
        let straight = self.mul_ports(turned, cos);
        let across = self.mul_ports(swapped, sin);
        let mut port = self.add_ports(straight, across);
        if width != whole {
            let mut parts = Vec::with_capacity(3);
            if start > 0 {
                parts.push(self.slice(lanes, 3, 0, start));
            }
            parts.push(port);
            if start + width < whole {
                parts.push(self.slice(lanes, 3, start + width, END));
            }
            port = self.concat(&parts, -1);
        }
        Ok(Value { port, width: x.width, form: Form::Lanes(spec.heads) })
    }

    /// Cosines and sines, `[batch, 1, time, width]`.
    fn rotation(&mut self, index: usize, rope: &Rope) -> [Port; 2] {
        if let Some(&tables) = self.rotations.get(&index) {
            return tables;
        }
        let positions = self.unsqueeze(self.inputs.positions, &[1]);
        let positions = self.convert(positions, Element::F32);
        let (frequencies, magnitude) = self.frequencies(rope);
        let angles = self.matmul(frequencies, positions, false);
        let angles = self.transpose(angles, &[0, 2, 1]);
        let angles = self.concat(&[angles, angles], -1);
        let tables = ["Cos", "Sin"].map(|function| {
            let mut table = self.op(function, "opset1", &[angles], Element::F32);
            if magnitude != 1.0 {
                let magnitude = self.float(magnitude, 3);
                table = self.mul_ports(table, magnitude);
            }
            self.unsqueeze(table, &[1])
        });
        self.rotations.insert(index, tables);
        tables
    }

    /// Radians per position, `[1, width / 2, 1]` (or one such table per batch), and the tables' multiplier.
    fn frequencies(&mut self, rope: &Rope) -> (Port, f32) {
        let pairs = u64::from(rope.width / 2);
        let short = rope.table(1);
        let plain = self.floats(&[1, pairs, 1], &short.frequencies);
        let frequencies = match &rope.scaling {
            RopeScaling::Long { original, .. } => {
                let long = rope.table(u32::MAX).frequencies;
                let long = self.floats(&[1, pairs, 1], &long);
                let length = self.length();
                let original = self.i64_scalar(i64::from(*original));
                let beyond = self.binary("Greater", length, original, Element::Boolean);
                self.select(beyond, long, plain)
            }
            RopeScaling::Dynamic { factor, original } => self.dynamic(rope, *factor as f32, *original),
            _ => plain,
        };
        let one = self.i64s(&[1]);
        let shape = self.concat(&[self.inputs.batch, one, one], 0);
        (self.broadcast(frequencies, shape), short.magnitude)
    }

    /// One more than the highest position of this step.
    fn length(&mut self) -> Port {
        let axes = self.i64s(&[0, 1]);
        let highest = self.net.add(
            "ReduceMax",
            "opset1",
            &[("keep_dims", "false")],
            &[self.inputs.positions, axes],
            Element::I64,
        );
        let one = self.i64_scalar(1);
        self.binary("Add", highest, one, Element::I64)
    }

    /// Frequencies whose base grows with the length: `(base · growth)^(−2i / width)`, by logarithms.
    fn dynamic(&mut self, rope: &Rope, factor: f32, original: u32) -> Port {
        let pairs = rope.width / 2;
        let length = self.length();
        let least = self.i64_scalar(original.into());
        let length = self.binary("Maximum", length, least, Element::I64);
        let length = self.convert(length, Element::F32);
        let slope = self.float(factor / original.max(1) as f32, 0);
        let stretch = self.mul_ports(length, slope);
        let shift = self.float(-(factor - 1.0), 0);
        let stretch = self.add_ports(stretch, shift);
        let log = self.op("Log", "opset1", &[stretch], Element::F32);
        let width = f64::from(rope.width);
        // ln(base · stretch^(w / (w − 2))) = ln base + w / (w − 2) · ln stretch
        let power = self.float((width / (width - 2.0).max(1.0)) as f32, 0);
        let log = self.mul_ports(log, power);
        let base = self.float(rope.theta.ln() as f32, 0);
        let log = self.add_ports(log, base);
        let exponents: Vec<f32> = (0..pairs).map(|i| (-f64::from(2 * i) / width) as f32).collect();
        let exponents = self.floats(&[1, u64::from(pairs), 1], &exponents);
        let log = self.mul_ports(exponents, log);
        self.op("Exp", "opset1", &[log], Element::F32)
    }

    pub(super) fn select(&mut self, condition: Port, yes: Port, no: Port) -> Port {
        let element = self.net.element(yes);
        self.net.add("Select", "opset1", &[("auto_broadcast", "numpy")], &[condition, yes, no], element)
    }
}
