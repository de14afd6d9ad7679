//! The OpenVINO `Graph`: writes an architecture down as an IR network, in the patterns that the runtime's plugins fuse.
//!
//! The forms used here, and what each fuses to on a processor: RMS normalization spelled out (`RMS`), rotation by
//! halves (`RoPE`), keys and values in variables that `beam_idx` reorders (`ScaledDotProductAttentionWithKVCache`),
//! compressed weights behind a conversion, zero point and scale (`FullyConnected` with integer weights).
//!
//! A decoder reads `input_ids`, `attention_mask`, `position_ids` (all `[batch, …]`, 64-bit) and `beam_idx`, and gives
//! `logits`; an encoder reads the first two (and segments, where it has them) and gives `last_hidden_state`. Positions in
//! windows are counted by summing the attention mask, so masked-out cache entries take no place.

mod attention;
mod experts;
mod rotation;
mod weights;

use std::collections::{BTreeMap, HashMap};

use drophammer_formats::openvino::{Element, Network, Port};
use drophammer_models::description::{Description, ModelKind};
use drophammer_models::graph::{
    Activation, AttentionSpec, ExpertSpec, Gating, Graph, Index, Linear, Norm, NormKind, Pooling, RopeSpec,
    Scope, Table,
};
use drophammer_models::{WeightId, build_decoder, build_encoder};

pub(crate) use weights::{Planned, Weights};

/// Activations: rows, or heads of rows on their way into attention.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Value {
    port: Port,
    width: u32,
    form: Form,
}

/// How the numbers of a value lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// `[batch, time, width]`.
    Rows,
    /// `[batch, time, heads, width / heads]`.
    Heads(u32),
    /// `[batch, heads, time, width / heads]`.
    Lanes(u32),
}

/// An operation that IR has no form for, in words.
#[derive(Debug)]
pub(crate) struct Unsupported(pub(crate) String);

type Emitted<T = Value> = Result<T, Unsupported>;

/// A network under construction.
pub(crate) struct Emitter<'a> {
    net: Network,
    weights: Weights<'a>,
    constants: HashMap<(Element, Vec<u64>, Vec<u8>), Port>,
    rotations: HashMap<usize, [Port; 2]>,
    masks: HashMap<(Option<u32>, bool), Port>,
    inputs: Inputs,
    /// Where rows that nobody wants can be left out.
    wanted: Option<Port>,
}

/// What the model reads, and sizes of it.
struct Inputs {
    ids: Port,
    mask: Port,
    positions: Port,
    beam: Option<Port>,
    types: Option<Port>,
    /// `[1]`, 64-bit.
    batch: Port,
}

/// A finished network and the tensors that go with it.
pub(crate) struct Emission {
    pub(crate) network: Network,
    pub(crate) weights: Vec<Planned>,
    /// Groups that took the place of others: wanted, used, columns; and how many.
    pub(crate) fallbacks: BTreeMap<(u32, u32, u64), u32>,
}

/// Writes down the model that a description describes.
///
/// # Errors
/// Operations without a form in IR.
pub(crate) fn emit(description: &Description, weights: Weights<'_>) -> Emitted<Emission> {
    let mut emitter = Emitter::new(description, weights);
    let result = match description.kind {
        ModelKind::Decoder => build_decoder(&mut emitter, description)?,
        ModelKind::Encoder => build_encoder(&mut emitter, description)?,
    };
    let rows = emitter.rows(&result);
    let name = if description.kind == ModelKind::Decoder { "logits" } else { "last_hidden_state" };
    emitter.net.enter(String::new());
    emitter.net.result(name, rows);
    if let Some(wanted) = emitter.wanted {
        // For this project's sessions: rows nobody asks for can be left out behind this operation.
        let layer = emitter.net.layer_id(wanted).to_string();
        emitter.net.tell("drophammer/wanted", &layer);
        let one = emitter.net.inline_offset(&1i64.to_le_bytes());
        emitter.net.tell("drophammer/one", &one.to_string());
    }
    emitter.net.tell("drophammer/context", &description.context.to_string());
    emitter.net.tell("drophammer/vocabulary", &description.vocabulary.to_string());
    let (weights, fallbacks) = emitter.weights.finish();
    Ok(Emission { network: emitter.net, weights, fallbacks })
}

impl<'a> Emitter<'a> {
    fn new(description: &Description, weights: Weights<'a>) -> Self {
        let mut net = Network::new("model");
        let decoder = description.kind == ModelKind::Decoder;
        let ids = net.parameter("input_ids", Element::I64, &[-1, -1]);
        let mask = net.parameter("attention_mask", Element::I64, &[-1, -1]);
        let positions = decoder.then(|| net.parameter("position_ids", Element::I64, &[-1, -1]));
        let beam = decoder.then(|| net.parameter("beam_idx", Element::I32, &[-1]));
        let types = (description.embedding.token_types > 0)
            .then(|| net.parameter("token_type_ids", Element::I64, &[-1, -1]));
        let inputs = Inputs { ids, mask, positions: ids, beam, types, batch: ids };
        let mut emitter = Self {
            net,
            weights,
            constants: HashMap::new(),
            rotations: HashMap::new(),
            masks: HashMap::new(),
            inputs,
            wanted: None,
        };
        emitter.inputs.batch = emitter.size_of(ids, 0, &[1]);
        emitter.inputs.positions = positions.unwrap_or_else(|| emitter.counted_positions(ids));
        emitter
    }

    /// 0, 1, 2, … along the time of `ids`, as `[1, time]`.
    fn counted_positions(&mut self, ids: Port) -> Port {
        let time = self.size_of(ids, 1, &[]);
        let range = self.range_to(time);
        let axis = self.i64s(&[0]);
        self.op("Unsqueeze", "opset1", &[range, axis], Element::I64)
    }

    fn op(&mut self, kind: &'static str, set: &'static str, inputs: &[Port], element: Element) -> Port {
        self.net.add(kind, set, &[], inputs, element)
    }

    fn constant(&mut self, element: Element, shape: &[u64], bytes: Vec<u8>) -> Port {
        let key = (element, shape.to_vec(), bytes);
        if let Some(&port) = self.constants.get(&key) {
            return port;
        }
        let port = self.net.constant(element, shape, &key.2);
        self.constants.insert(key, port);
        port
    }

    /// A list of 64-bit numbers.
    fn i64s(&mut self, values: &[i64]) -> Port {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.constant(Element::I64, &[values.len() as u64], bytes)
    }

    fn i64_scalar(&mut self, value: i64) -> Port {
        self.constant(Element::I64, &[], value.to_le_bytes().to_vec())
    }

    fn floats(&mut self, shape: &[u64], values: &[f32]) -> Port {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.constant(Element::F32, shape, bytes)
    }

    /// One number that broadcasts over `rank` dimensions.
    fn float(&mut self, value: f32, rank: usize) -> Port {
        self.floats(&vec![1; rank], &[value])
    }

    fn binary(&mut self, kind: &'static str, a: Port, b: Port, element: Element) -> Port {
        self.net.add(kind, "opset1", &[("auto_broadcast", "numpy")], &[a, b], element)
    }

    fn add_ports(&mut self, a: Port, b: Port) -> Port {
        self.binary("Add", a, b, Element::F32)
    }

    fn mul_ports(&mut self, a: Port, b: Port) -> Port {
        self.binary("Multiply", a, b, Element::F32)
    }

    fn convert(&mut self, x: Port, to: Element) -> Port {
        self.net.add("Convert", "opset1", &[("destination_type", to.name())], &[x], to)
    }

    fn matmul(&mut self, a: Port, b: Port, transpose_b: bool) -> Port {
        let transpose = if transpose_b { "true" } else { "false" };
        let attributes = [("transpose_a", "false"), ("transpose_b", transpose)];
        self.net.add("MatMul", "opset1", &attributes, &[a, b], Element::F32)
    }

    /// With 0 for dimensions that stay and -1 for the one that is inferred.
    fn reshape(&mut self, x: Port, shape: &[i64]) -> Port {
        let shape = self.i64s(shape);
        let element = self.net.element(x);
        self.net.add("Reshape", "opset1", &[("special_zero", "true")], &[x, shape], element)
    }

    fn transpose(&mut self, x: Port, order: &[i64]) -> Port {
        let order = self.i64s(order);
        let element = self.net.element(x);
        self.op("Transpose", "opset1", &[x, order], element)
    }

    fn unsqueeze(&mut self, x: Port, axes: &[i64]) -> Port {
        let axes = self.i64s(axes);
        let element = self.net.element(x);
        self.op("Unsqueeze", "opset1", &[x, axes], element)
    }

    fn concat(&mut self, parts: &[Port], axis: i64) -> Port {
        let element = self.net.element(parts[0]);
        self.net.add("Concat", "opset1", &[("axis", &axis.to_string())], parts, element)
    }

    /// Elements `from..to` along an axis.
    fn slice(&mut self, x: Port, axis: i64, from: i64, to: i64) -> Port {
        let [from, to, step, axis] = [from, to, 1, axis].map(|value| self.i64s(&[value]));
        let element = self.net.element(x);
        self.op("Slice", "opset8", &[x, from, to, step, axis], element)
    }

    fn gather(&mut self, table: Port, index: Port, axis: i64) -> Port {
        let axis = self.i64_scalar(axis);
        let element = self.net.element(table);
        self.net.add("Gather", "opset8", &[("batch_dims", "0")], &[table, index, axis], element)
    }

    fn reduce(&mut self, kind: &'static str, x: Port, axis: i64, keep: bool) -> Port {
        let axis = self.i64s(&[axis]);
        let element = self.net.element(x);
        let keep = if keep { "true" } else { "false" };
        self.net.add(kind, "opset1", &[("keep_dims", keep)], &[x, axis], element)
    }

    fn softmax(&mut self, x: Port, axis: i64) -> Port {
        self.net.add("SoftMax", "opset8", &[("axis", &axis.to_string())], &[x], Element::F32)
    }

    fn broadcast(&mut self, x: Port, shape: Port) -> Port {
        let element = self.net.element(x);
        self.net.add("Broadcast", "opset3", &[("mode", "bidirectional")], &[x, shape], element)
    }

    /// One dimension of a value, as a list of one number (`shape` `[1]`) or a number (`[]`).
    fn size_of(&mut self, x: Port, dimension: i64, shape: &[u64]) -> Port {
        let sizes = self.net.add("ShapeOf", "opset3", &[("output_type", "i64")], &[x], Element::I64);
        let index = self.constant(Element::I64, shape, dimension.to_le_bytes().to_vec());
        self.gather(sizes, index, 0)
    }

    /// 0, 1, … below `end`, a number.
    fn range_to(&mut self, end: Port) -> Port {
        let (zero, one) = (self.i64_scalar(0), self.i64_scalar(1));
        self.range(zero, end, one)
    }

    fn range(&mut self, begin: Port, end: Port, step: Port) -> Port {
        self.net.add("Range", "opset4", &[("output_type", "i64")], &[begin, end, step], Element::I64)
    }

    /// A value as rows.
    fn rows(&mut self, x: &Value) -> Port {
        match x.form {
            Form::Rows => x.port,
            Form::Heads(_) => self.reshape(x.port, &[0, 0, i64::from(x.width)]),
            Form::Lanes(_) => {
                let heads = self.transpose(x.port, &[0, 2, 1, 3]);
                self.reshape(heads, &[0, 0, i64::from(x.width)])
            }
        }
    }

    /// A value as heads in each row: `[batch, time, heads, width]`.
    fn heads(&mut self, x: &Value, heads: u32) -> Port {
        match x.form {
            Form::Heads(own) if own == heads => x.port,
            Form::Lanes(own) if own == heads => self.transpose(x.port, &[0, 2, 1, 3]),
            _ => {
                let rows = self.rows(x);
                self.reshape(rows, &[0, 0, i64::from(heads), i64::from(x.width / heads)])
            }
        }
    }

    /// A value as rows of each head: `[batch, heads, time, width]`.
    fn lanes(&mut self, x: &Value, heads: u32) -> Port {
        match x.form {
            Form::Lanes(own) if own == heads => x.port,
            _ => {
                let heads = self.heads(x, heads);
                self.transpose(heads, &[0, 2, 1, 3])
            }
        }
    }

    fn of_rows(port: Port, width: u32) -> Value {
        Value { port, width, form: Form::Rows }
    }

    /// A weight as floats.
    fn weight(&mut self, id: WeightId, shape: &[u64]) -> Port {
        self.weights.port(&mut self.net, id, shape)
    }

    fn vector(&mut self, id: WeightId, shape: &[u64]) -> Port {
        self.weights.vector(&mut self.net, id, shape)
    }

    fn activated(&mut self, x: Port, activation: Activation) -> Port {
        match activation {
            Activation::Silu => self.op("Swish", "opset4", &[x], Element::F32),
            Activation::Gelu => {
                self.net.add("Gelu", "opset7", &[("approximation_mode", "ERF")], &[x], Element::F32)
            }
            Activation::GeluTanh => {
                self.net.add("Gelu", "opset7", &[("approximation_mode", "TANH")], &[x], Element::F32)
            }
            Activation::Relu => self.op("ReLU", "opset1", &[x], Element::F32),
            Activation::ReluSquared => {
                let x = self.op("ReLU", "opset1", &[x], Element::F32);
                self.mul_ports(x, x)
            }
            Activation::Sigmoid => self.op("Sigmoid", "opset1", &[x], Element::F32),
            Activation::Tanh => self.op("Tanh", "opset1", &[x], Element::F32),
        }
    }

    /// Gate and up of the same shape; `rank` is that of both.
    fn gate(&mut self, gate: Port, up: Port, gating: Gating, rank: usize) -> Port {
        match gating {
            Gating::By(activation) => {
                let gate = self.activated(gate, activation);
                self.mul_ports(gate, up)
            }
            Gating::Clamped { alpha, limit } => {
                let least = (-limit).to_string();
                let most = limit.to_string();
                let up =
                    self.net.add("Clamp", "opset1", &[("min", &least), ("max", &most)], &[up], Element::F32);
                let one = self.float(1.0, rank);
                let up = self.add_ports(up, one);
                let bound = self.float(limit, rank);
                let gate = self.binary("Minimum", gate, bound, Element::F32);
                let alpha = self.float(alpha, rank);
                let steep = self.mul_ports(gate, alpha);
                let sigmoid = self.op("Sigmoid", "opset1", &[steep], Element::F32);
                let gate = self.mul_ports(gate, sigmoid);
                self.mul_ports(up, gate)
            }
        }
    }

    fn capped(&mut self, x: Port, cap: f32, rank: usize) -> Port {
        let down = self.float(1.0 / cap, rank);
        let up = self.float(cap, rank);
        let x = self.mul_ports(x, down);
        let x = self.op("Tanh", "opset1", &[x], Element::F32);
        self.mul_ports(x, up)
    }

    /// `x / sqrt(mean(x²) + ε) · w` over the last of `rank` dimensions.
    fn rms(&mut self, x: Port, epsilon: f32, gain: Option<Port>, rank: usize) -> Port {
        let two = self.float(2.0, rank);
        let squared = self.binary("Power", x, two, Element::F32);
        let mean = self.reduce("ReduceMean", squared, -1, true);
        let epsilon = self.float(epsilon, rank);
        let mean = self.add_ports(mean, epsilon);
        let root = self.op("Sqrt", "opset1", &[mean], Element::F32);
        let one = self.float(1.0, rank);
        let inverse = self.net.add(
            "Divide",
            "opset1",
            &[("auto_broadcast", "numpy"), ("m_pythondiv", "true")],
            &[one, root],
            Element::F32,
        );
        let x = self.mul_ports(x, inverse);
        gain.map_or(x, |gain| self.mul_ports(x, gain))
    }

    fn layer_norm(&mut self, x: Port, epsilon: f32, gain: Option<Port>) -> Port {
        let axes = self.i64s(&[-1]);
        let attributes = [
            ("eps", epsilon.to_string()),
            ("eps_mode", "INSIDE_SQRT".into()),
            ("normalize_variance", "true".into()),
        ];
        let attributes = attributes.each_ref().map(|(key, value)| (*key, value.as_str()));
        let x = self.net.add("MVN", "opset6", &attributes, &[x, axes], Element::F32);
        gain.map_or(x, |gain| self.mul_ports(x, gain))
    }
}

impl Graph for Emitter<'_> {
    type Value = Value;
    type Error = Unsupported;

    fn enter(&mut self, scope: Scope) {
        self.net.enter(match scope {
            Scope::Embedding => "embedding".to_owned(),
            Scope::Attention(layer) => format!("layers.{layer}.attention"),
            Scope::FeedForward(layer) => format!("layers.{layer}.feed_forward"),
            Scope::Head => "head".to_owned(),
        });
    }

    fn embedding(&mut self, table: &Table, index: Index) -> Emitted {
        let weight = self.weight(table.weight, &[table.rows.into(), table.width.into()]);
        let index = match index {
            Index::Tokens => self.inputs.ids,
            Index::Positions { offset: 0 } => self.inputs.positions,
            Index::Positions { offset } => {
                let offset = self.i64s(&[offset.into()]);
                self.binary("Add", self.inputs.positions, offset, Element::I64)
            }
            Index::TokenTypes => {
                self.inputs.types.ok_or_else(|| Unsupported("segments without a table".into()))?
            }
        };
        let index = self.convert(index, Element::I32);
        let axis = self.constant(Element::I32, &[], 0i32.to_le_bytes().to_vec());
        let rows =
            self.net.add("Gather", "opset8", &[("batch_dims", "0")], &[weight, index, axis], Element::F32);
        Ok(Self::of_rows(rows, table.width))
    }

    fn linear(&mut self, x: &Value, linear: &Linear) -> Emitted {
        if linear.inputs != x.width {
            return Err(Unsupported(format!(
                "{} takes {} numbers, not {}",
                linear.weight, linear.inputs, x.width
            )));
        }
        let rows = self.rows(x);
        let weight = self.weight(linear.weight, &[linear.outputs.into(), linear.inputs.into()]);
        let mut out = self.matmul(rows, weight, true);
        if let Some(bias) = linear.bias {
            let bias = self.vector(bias, &[1, 1, linear.outputs.into()]);
            out = self.add_ports(out, bias);
        }
        Ok(Self::of_rows(out, linear.outputs))
    }

    fn norm(&mut self, x: &Value, norm: &Norm) -> Emitted {
        let width = u64::from(norm.width);
        let grouped = norm.groups > 1 || norm.width != x.width;
        let groups = if norm.per_group { u64::from(norm.groups) } else { 1 };
        let shape: &[u64] = if grouped { &[1, 1, groups, width] } else { &[1, 1, width] };
        let port = if grouped { self.heads(x, norm.groups) } else { self.rows(x) };
        let gain = norm.weight.map(|weight| self.vector(weight, shape));
        let mut out = match norm.kind {
            NormKind::Rms => self.rms(port, norm.epsilon, gain, shape.len()),
            NormKind::Layer => self.layer_norm(port, norm.epsilon, gain),
        };
        if let Some(bias) = norm.bias {
            let bias = self.vector(bias, shape);
            out = self.add_ports(out, bias);
        }
        let form = if grouped { Form::Heads(norm.groups) } else { Form::Rows };
        Ok(Value { port: out, width: x.width, form })
    }

    fn rope(&mut self, x: &Value, spec: &RopeSpec<'_>) -> Emitted {
        self.rotate(x, spec)
    }

    fn attention(&mut self, q: &Value, k: &Value, v: &Value, spec: &AttentionSpec) -> Emitted {
        Ok(self.attend(q, k, v, spec))
    }

    fn join_heads(&mut self, per_head: &Value, shared: &Value, heads: u32) -> Emitted {
        let own = self.heads(per_head, heads);
        let one = self.heads(shared, 1);
        let shape = self.i64s(&[1, 1, heads.into(), 1]);
        let each = self.broadcast(one, shape);
        let port = self.concat(&[own, each], 3);
        Ok(Value { port, width: per_head.width + heads * shared.width, form: Form::Heads(heads) })
    }

    fn activate(&mut self, x: &Value, activation: Activation) -> Emitted {
        let rows = self.rows(x);
        Ok(Self::of_rows(self.activated(rows, activation), x.width))
    }

    fn gated(&mut self, gate: &Value, up: &Value, gating: Gating) -> Emitted {
        let (g, u) = (self.rows(gate), self.rows(up));
        Ok(Self::of_rows(self.gate(g, u, gating, 3), gate.width))
    }

    fn experts(&mut self, x: &Value, spec: &ExpertSpec) -> Emitted {
        Ok(self.mixture(x, spec))
    }

    fn add(&mut self, a: &Value, b: &Value) -> Emitted {
        let (left, right) = (self.rows(a), self.rows(b));
        Ok(Self::of_rows(self.add_ports(left, right), a.width))
    }

    fn mul(&mut self, a: &Value, b: &Value) -> Emitted {
        let (left, right) = (self.rows(a), self.rows(b));
        Ok(Self::of_rows(self.mul_ports(left, right), a.width))
    }

    fn scale(&mut self, x: &Value, factor: f32) -> Emitted {
        let rows = self.rows(x);
        let factor = self.float(factor, 3);
        Ok(Self::of_rows(self.mul_ports(rows, factor), x.width))
    }

    fn softcap(&mut self, x: &Value, cap: f32) -> Emitted {
        let rows = self.rows(x);
        Ok(Self::of_rows(self.capped(rows, cap, 3), x.width))
    }

    fn wanted(&mut self, x: &Value) -> Emitted {
        let rows = self.rows(x);
        self.wanted = Some(rows);
        Ok(Self::of_rows(rows, x.width))
    }

    fn pool(&mut self, _: &Value, _: Pooling) -> Emitted {
        Err(Unsupported("pooling, which is the host's".into()))
    }
}
