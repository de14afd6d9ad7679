//! Activations as whole numbers: a float graph becomes one whose every value passes a `QuantizeLinear` and a `DequantizeLinear`.
//!
//! That pair is how ONNX says "this value is stored as codes of this encoding", and what accelerators' compilers look for. Ranges come
//! from running the float graph on sample text ([`coded`](super::watch::coded) names whose). Values that are only
//! moved keep the encoding of what they are moved from, and a cache keeps one encoding wherever it is read, so that nothing is rounded
//! twice.

use std::collections::{BTreeMap, HashMap, HashSet};

use drophammer_formats::onnx::{ElementType, Graph, Initializer, InitializerData, Model, Node};

use super::emit::{FLOAT, INT8, UINT8};

const UINT16: ElementType = ElementType(4);
/// Operations whose output holds some of their first input's values.
pub(super) const MOVES: [&str; 7] =
    ["Reshape", "Transpose", "Slice", "Split", "Squeeze", "Unsqueeze", "Gather"];

/// The least and the largest value seen, by the value's name.
pub type Ranges = BTreeMap<String, Range>;

/// The least and the largest value.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Range {
    /// The least.
    pub low: f32,
    /// The largest.
    pub high: f32,
}

impl Range {
    /// The range of some numbers and zero.
    pub fn of(values: &[f32]) -> Self {
        values.iter().fold(Self { low: 0.0, high: 0.0 }, |range, &x| range.with(Self { low: x, high: x }))
    }

    /// Both together.
    #[must_use]
    pub fn with(self, other: Self) -> Self {
        Self { low: self.low.min(other.low), high: self.high.max(other.high) }
    }

    /// The encoding that covers it with so many bits. Zero is always met exactly.
    pub fn encoding(self, bits: u8) -> Encoding {
        let Self { low, high } = self.with(Self { low: 0.0, high: 0.0 });
        let top = ((1u32 << bits) - 1) as f32;
        let scale = ((high - low) / top).max(1e-9);
        let zero = (-low / scale).round().clamp(0.0, top) as u16;
        Encoding { scale, zero, bits }
    }
}

/// `scale · (code - zero)`, codes of so many bits from 0 on.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Encoding {
    /// The step between codes.
    pub scale: f32,
    /// The code of zero.
    pub zero: u16,
    /// 8 or 16.
    pub bits: u8,
}

impl Encoding {
    fn code(self, x: f32) -> u16 {
        let top = ((1u32 << self.bits) - 1) as f32;
        ((x / self.scale).round_ties_even() + f32::from(self.zero)).clamp(0.0, top) as u16
    }

    /// Writes the codes of some numbers.
    pub fn encode_into(self, values: &[f32], out: &mut [u8]) {
        match self.bits {
            8 => values.iter().zip(out).for_each(|(x, out)| *out = self.code(*x) as u8),
            _ => values
                .iter()
                .zip(out.as_chunks_mut::<2>().0)
                .for_each(|(x, out)| *out = self.code(*x).to_le_bytes()),
        }
    }

    /// The codes' type.
    pub fn element_type(self) -> ElementType {
        code_type(self.bits)
    }

    /// Scale and zero point as initializers, `{name}/scale` and `{name}/zero`.
    pub fn parameters(self, name: &str) -> [Initializer; 2] {
        let zero = if self.bits == 8 { vec![self.zero as u8] } else { self.zero.to_le_bytes().to_vec() };
        let initializer = |what: &str, element_type, bytes| Initializer {
            name: format!("{name}/{what}"),
            element_type,
            shape: Vec::new(),
            data: InitializerData::Inline(bytes),
        };
        [
            initializer("scale", FLOAT, self.scale.to_le_bytes().to_vec()),
            initializer("zero", self.element_type(), zero),
        ]
    }
}

/// The element type of codes of so many bits.
pub(super) fn code_type(bits: u8) -> ElementType {
    if bits == 8 { UINT8 } else { UINT16 }
}

/// Names of values that are no floats.
pub(super) fn integers(graph: &Graph) -> HashSet<String> {
    let inputs = graph.inputs.iter().filter(|input| input.element_type != Some(FLOAT)).map(|i| &i.name);
    let constants = graph.initializers.iter().filter(|tensor| tensor.element_type != FLOAT).map(|i| &i.name);
    let places =
        graph.nodes.iter().filter(|node| node.op_type == "TopK").filter_map(|node| node.outputs.get(1));
    inputs.chain(constants).chain(places).cloned().collect()
}

/// What becomes of values, besides what their ranges say.
#[derive(Debug, Default)]
pub(super) struct Hints {
    /// Values that have another's encoding.
    pub(super) ties: HashMap<String, String>,
    /// Values that stay floats, whatever moves them.
    pub(super) floats: HashSet<String>,
}

/// A graph on its way.
struct Pass<'a> {
    graph: &'a Graph,
    bits: u8,
    ranges: &'a Ranges,
    hints: &'a Hints,
    floats: HashSet<String>,
    producers: HashMap<&'a str, &'a Node>,
    constants: HashMap<&'a str, &'a Initializer>,
    integers: HashSet<String>,
    encodings: HashMap<String, Encoding>,
    /// Values that a node of the graph decodes already.
    decoded: HashSet<String>,
    quantized: HashSet<String>,
    nodes: Vec<Node>,
    initializers: Vec<Initializer>,
}

/// The graph with activations of so many bits.
///
/// # Errors
/// The name of a value whose range is not known.
pub(super) fn quantized(model: &Model, bits: u8, ranges: &Ranges, hints: &Hints) -> Result<Model, String> {
    let graph = &model.graph;
    let producers = graph.nodes.iter().flat_map(|node| node.outputs.iter().map(move |o| (o.as_str(), node)));
    let mut pass = Pass {
        graph,
        bits,
        ranges,
        hints,
        floats: hints.floats.clone(),
        producers: producers.collect(),
        constants: graph.initializers.iter().map(|tensor| (tensor.name.as_str(), tensor)).collect(),
        integers: integers(graph),
        encodings: HashMap::new(),
        decoded: HashSet::new(),
        quantized: HashSet::new(),
        nodes: Vec::new(),
        initializers: graph.initializers.clone(),
    };
    for node in &graph.nodes {
        pass.node(node)?;
    }
    for output in &graph.outputs {
        let codes = pass.codes(&output.name)?;
        pass.decode(&output.name, &codes, output.name.clone());
    }
    let (nodes, initializers) = (pass.nodes, pass.initializers);
    let used: HashSet<&str> = nodes.iter().flat_map(|node| node.inputs.iter().map(String::as_str)).collect();
    // Places of external data are told by index: what is no longer used is emptied, not removed.
    let initializers = initializers
        .iter()
        .map(|tensor| {
            let inline = matches!(&tensor.data, InitializerData::Inline(bytes) if !bytes.is_empty());
            if inline && !used.contains(tensor.name.as_str()) {
                let data = InitializerData::Inline(vec![0; 4]);
                return Initializer { name: tensor.name.clone(), element_type: FLOAT, shape: vec![1], data };
            }
            tensor.clone()
        })
        .collect();
    let mut model = model.clone();
    (model.graph.nodes, model.graph.initializers) = (nodes, initializers);
    Ok(model)
}

impl<'a> Pass<'a> {
    fn node(&mut self, node: &'a Node) -> Result<(), String> {
        if node.op_type == "DequantizeLinear" {
            self.decoded.extend(node.outputs.iter().cloned());
            self.nodes.push(node.clone());
            return Ok(());
        }
        let first_is_float = node.inputs.first().is_some_and(|first| self.floats.contains(first));
        if first_is_float && MOVES.contains(&node.op_type.as_str()) {
            self.floats.extend(node.outputs.iter().cloned());
        }
        // What computes in floats takes its constants as such.
        let in_floats = first_is_float || node.outputs.iter().any(|output| self.floats.contains(output));
        let mut inputs = Vec::with_capacity(node.inputs.len());
        for (place, input) in node.inputs.iter().enumerate() {
            let plain = input.is_empty()
                || self.decoded.contains(input)
                || self.integers.contains(input.as_str())
                || self.floats.contains(input)
                || (in_floats && self.constants.contains_key(input.as_str()));
            if plain {
                inputs.push(input.clone());
                continue;
            }
            let weight = node.op_type == "MatMul" && place == 1;
            let codes = match self.constants.get(input.as_str()) {
                Some(tensor) => self.constant(tensor, weight)?,
                None => self.codes(input)?,
            };
            let name = format!("{input}/decoded {}", self.nodes.len());
            self.decode(input, &codes, name.clone());
            inputs.push(name);
        }
        let outputs = node.outputs.iter().map(|output| self.raw(output)).collect();
        self.nodes.push(Node { inputs, outputs, ..node.clone() });
        Ok(())
    }

    /// What a value's float is called: outputs of the graph are decoded from codes under their own name.
    fn raw(&self, value: &str) -> String {
        if self.graph.outputs.iter().any(|output| output.name == value) {
            format!("{value}/float")
        } else {
            value.to_owned()
        }
    }

    fn encoding(&mut self, value: &str) -> Result<Encoding, String> {
        if let Some(encoding) = self.encodings.get(value) {
            return Ok(*encoding);
        }
        let range = |low, high| Range { low, high }.encoding(self.bits);
        let producer = self.producers.get(value).copied();
        let moved = producer.filter(|node| MOVES.contains(&node.op_type.as_str()));
        let encoding = if let Some(other) = self.hints.ties.get(value) {
            self.encoding(&other.clone())?
        } else if let Some(from) = moved.and_then(|node| node.inputs.first()) {
            self.encoding(from)?
        } else if let Some(table) = producer.filter(|node| node.op_type == "DequantizeLinear") {
            self.told(table).ok_or_else(|| value.to_owned())?
        } else if producer.is_some_and(|node| node.op_type == "Softmax") {
            range(0.0, 1.0)
        } else {
            self.ranges.get(value).ok_or_else(|| value.to_owned())?.encoding(self.bits)
        };
        self.encodings.insert(value.to_owned(), encoding);
        Ok(encoding)
    }

    /// The encoding that a node of the graph decodes by.
    fn told(&self, node: &Node) -> Option<Encoding> {
        let bytes = |input: usize| match &self.constants.get(node.inputs.get(input)?.as_str())?.data {
            InitializerData::Inline(bytes) => Some(bytes.as_slice()),
            _ => None,
        };
        let scale = f32::from_le_bytes(bytes(1)?.try_into().ok()?);
        let (zero, bits) = match bytes(2)? {
            [zero] => (u16::from(*zero), 8),
            [low, high] => (u16::from_le_bytes([*low, *high]), 16),
            _ => return None,
        };
        Some(Encoding { scale, zero, bits })
    }

    fn declare(&mut self, name: &str, encoding: Encoding) {
        if self.quantized.insert(format!("{name}/scale")) {
            self.initializers.extend(encoding.parameters(name));
        }
    }

    /// The codes of a value, made where they are first asked for.
    fn codes(&mut self, value: &str) -> Result<String, String> {
        let codes = format!("{value}/codes");
        if self.quantized.contains(&codes) {
            return Ok(codes);
        }
        let encoding = self.encoding(value)?;
        self.declare(value, encoding);
        let inputs = vec![self.raw(value), format!("{value}/scale"), format!("{value}/zero")];
        self.nodes.push(Node {
            name: codes.clone(),
            op_type: "QuantizeLinear".into(),
            inputs,
            outputs: vec![codes.clone()],
            ..Node::default()
        });
        self.quantized.insert(codes.clone());
        Ok(codes)
    }

    /// A constant's codes. The second factor of a product is a weight: eight bits around zero.
    fn constant(&mut self, tensor: &Initializer, weight: bool) -> Result<String, String> {
        let codes = format!("{}/codes", tensor.name);
        if self.quantized.contains(&codes) {
            return Ok(codes);
        }
        let InitializerData::Inline(bytes) = &tensor.data else { return Err(tensor.name.clone()) };
        let values: Vec<f32> = bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        let range = Range::of(&values);
        let (kind, data) = if weight {
            let largest = range.high.max(-range.low).max(1e-9);
            let scale = largest / 127.0;
            let [mut step, mut zero] = Encoding { scale, zero: 0, bits: 8 }.parameters(&tensor.name);
            (step.element_type, zero.element_type) = (FLOAT, INT8);
            self.quantized.insert(format!("{}/scale", tensor.name));
            self.initializers.extend([step, zero]);
            (INT8, values.iter().map(|x| (x / scale).round_ties_even() as i8 as u8).collect())
        } else {
            let encoding = range.encoding(self.bits);
            self.declare(&tensor.name, encoding);
            let mut data = vec![0; values.len() * usize::from(self.bits) / 8];
            encoding.encode_into(&values, &mut data);
            (code_type(self.bits), data)
        };
        self.initializers.push(Initializer {
            name: codes.clone(),
            element_type: kind,
            shape: tensor.shape.clone(),
            data: InitializerData::Inline(data),
        });
        self.quantized.insert(codes.clone());
        Ok(codes)
    }

    /// A node that makes floats of a value's codes. Every reader has its own: compilers take the pair around each operation.
    fn decode(&mut self, value: &str, codes: &str, output: String) {
        self.nodes.push(Node {
            name: format!("{output}/decode"),
            op_type: "DequantizeLinear".into(),
            inputs: vec![codes.to_owned(), format!("{value}/scale"), format!("{value}/zero")],
            outputs: vec![output],
            ..Node::default()
        });
    }
}

#[cfg(test)]
mod tests {
    use drophammer_formats::onnx::ValueInfo;

    use super::super::watch::coded;
    use super::*;

    fn node(op: &str, inputs: &[&str], output: &str) -> Node {
        Node {
            op_type: op.into(),
            inputs: inputs.iter().map(|&name| name.to_owned()).collect(),
            outputs: vec![output.to_owned()],
            ..Node::default()
        }
    }

    fn info(name: &str) -> ValueInfo {
        ValueInfo { name: name.into(), element_type: Some(FLOAT), shape: None }
    }

    #[test]
    fn encodings_meet_zero_and_the_ends_of_their_range() {
        for bits in [8, 16] {
            for (low, high) in [(-3.0, 5.0), (1.0, 2.0), (-4.0, -1.0), (0.0, 0.0)] {
                let encoding = Range { low, high }.encoding(bits);
                let back = |x: f32| (f32::from(encoding.code(x)) - f32::from(encoding.zero)) * encoding.scale;
                assert_eq!(back(0.0), 0.0, "{low} {high}");
                for x in [low, high] {
                    assert!(
                        (back(x) - x).abs() <= encoding.scale * 0.51,
                        "{x} became {} with {bits} bits",
                        back(x)
                    );
                }
                assert_eq!(encoding.code(1e9), ((1u32 << bits) - 1) as u16);
            }
        }
    }

    #[test]
    fn every_value_has_codes_and_moved_ones_those_of_their_source() {
        let graph = Graph {
            nodes: vec![
                node("Transpose", &["x"], "turned"),
                node("Add", &["turned", "kept"], "sum"),
                node("Concat", &["sum", "past"], "all"),
            ],
            inputs: vec![info("x"), info("past")],
            outputs: vec![info("sum"), info("all")],
            initializers: vec![Initializer {
                name: "kept".into(),
                element_type: FLOAT,
                shape: vec![2],
                data: InitializerData::Inline([1.0f32, -1.0].iter().flat_map(|x| x.to_le_bytes()).collect()),
            }],
            ..Graph::default()
        };
        let model = Model { graph, ..Model::default() };
        assert_eq!(coded(&model.graph, &HashSet::new()), ["sum", "all", "x", "past"]);
        let range = |low, high| Range { low, high };
        let ranges = Ranges::from([("x".into(), range(-1.0, 1.0)), ("sum".into(), range(-2.0, 2.0))]);
        let ties = HashMap::from([("past".into(), "sum".into()), ("all".into(), "sum".into())]);
        let mut hints = Hints { ties, ..Hints::default() };
        let quantized = super::quantized(&model, 16, &ranges, &hints).unwrap();
        let scale = |value: &str| {
            let name = format!("{value}/scale");
            let found = quantized.graph.initializers.iter().find(|tensor| tensor.name == name).unwrap();
            found.data.clone()
        };
        assert_eq!(scale("turned"), scale("x"));
        assert_eq!(scale("all"), scale("sum"));
        assert_eq!(scale("past"), scale("sum"));
        let of = |kind: &str| quantized.graph.nodes.iter().filter(|node| node.op_type == kind).count();
        // x, turned, sum, past, all; a decoder for each reader and each output.
        assert_eq!((of("QuantizeLinear"), of("DequantizeLinear")), (5, 5 + 2));
        hints.floats.insert("turned".into());
        let partly = super::quantized(&model, 16, &ranges, &hints).unwrap();
        let sum = partly.graph.nodes.iter().find(|node| node.op_type == "Add").unwrap();
        assert_eq!(sum.inputs[0], "turned", "a value that stays a float is read as it is");
        let error = super::quantized(&model, 16, &Ranges::new(), &Hints::default()).unwrap_err();
        assert_eq!(error, "x");
    }

    #[test]
    fn a_sum_that_stays_float_is_read_as_such_with_its_constants() {
        let gain = Initializer {
            name: "gain".into(),
            element_type: FLOAT,
            shape: vec![1],
            data: InitializerData::Inline(1.0f32.to_le_bytes().to_vec()),
        };
        let graph = Graph {
            nodes: vec![
                node("Add", &["x", "y"], "sum"),
                node("RMSNormalization", &["sum", "gain"], "scaled"),
                node("Add", &["x", "x"], "moved"),
                node("Transpose", &["moved"], "turned"),
                node("Mul", &["scaled", "turned"], "all"),
            ],
            inputs: vec![info("x"), info("y")],
            outputs: vec![info("all")],
            initializers: vec![gain],
            ..Graph::default()
        };
        assert_eq!(super::super::watch::sums(&graph), ["sum"]);
        let range = Range { low: -1.0, high: 1.0 };
        let ranges = ["x", "y", "scaled", "moved", "all"].map(|name| (name.to_owned(), range)).into();
        let hints = Hints { floats: ["sum".to_owned()].into(), ..Hints::default() };
        let model = quantized(&Model { graph, ..Model::default() }, 16, &ranges, &hints).unwrap();
        let reads =
            |op: &str| model.graph.nodes.iter().find(|node| node.op_type == op).unwrap().inputs.clone();
        assert_eq!(reads("RMSNormalization"), ["sum", "gain"]);
        assert!(reads("Add").iter().chain(&reads("Mul")).all(|input| input.contains("/decoded")));
        assert!(model.graph.initializers.iter().any(|tensor| tensor.name == "gain" && tensor.shape == [1]));
    }
}
