//! Whole numbers with ranges known beforehand: pairs of `QuantizeLinear` and `DequantizeLinear` around operations, which ONNX Runtime and
//! accelerators' compilers turn into operations on whole numbers.
//!
//! An operation that is taken reads decoded codes and nothing else, and what it makes becomes codes at once. Operations that are left
//! see no difference: values keep their names. Weights have a scale per output channel, biases 32 bits.

use std::collections::{HashMap, HashSet};

use drophammer_formats::onnx::{Attribute, ElementType, Node};
use drophammer_models::export::onnx::{Encoding, Range, Ranges};

use super::FLOAT;
use super::draft::{Draft, RUNTIME_DOMAIN};
use super::fold::{int, output_axis};
use super::pick::Pick;
use super::saturate::narrowed;
use super::weight::{Channels, Form, INT8, scales};

const INT32: ElementType = ElementType(6);
/// Operations whose output holds some of their first input's values.
const MOVES: [&str; 8] =
    ["Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Slice", "MaxPool", "Identity"];
/// Operations that go on what a convolution or product makes before it is rounded.
const ACTIVATIONS: [&str; 2] = ["Relu", "Clip"];
/// Other operations that ONNX Runtime's kernels do on codes.
const KERNELS: [&str; 6] = ["Add", "GlobalAveragePool", "AveragePool", "Concat", "Resize", "Sigmoid"];
/// Where a bias in 32 bits has room to spare.
const BIAS_TOP: f32 = (1u32 << 30) as f32;

/// How far beyond what samples show codes of 16 bits reach: they are many, and other inputs go further.
const MARGIN: f32 = 1.5;

/// Which operations are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// Those that ONNX Runtime's own kernels do on codes. Products of values, and sums with constants are left: they are parts of gates,
    /// norms and activations, which bear rounding badly.
    Kernels,
    /// Everything on floats, as accelerators want it.
    Everything,
}

/// How a node's inputs are taken.
enum Take {
    /// The value's codes.
    Value,
    /// A weight: codes with a scale per channel along an axis.
    Weight { axis: usize },
    /// A bias of 32 bits, in steps of value times weight.
    Bias,
    /// As it is.
    Plain,
}

struct Pass<'d, 'g> {
    draft: &'d mut Draft<'g>,
    bits: u8,
    ranges: &'d Ranges,
    /// The domain of the pairs: ONNX's own where its operator set knows what is needed.
    domain: &'static str,
    /// The type of weights' codes, and their zero.
    weight_codes: (ElementType, u8),
    /// Scales per channel by weight, once it is encoded.
    weights: HashMap<String, Vec<f32>>,
    encodings: HashMap<String, Encoding>,
    encoded: HashSet<String>,
    /// Channels of values that are decoded channel by channel.
    guarded: HashMap<String, u64>,
    nodes: Vec<Node>,
    decoders: usize,
}

impl Draft<'_> {
    /// The graph with whole numbers: activations of `bits` bits, weights of eight.
    #[must_use]
    pub fn static_int(mut self, bits: u8, ranges: &Ranges, pick: &Pick, reach: Reach) -> Self {
        let ranges = &narrowed(&self, ranges);
        let nodes = std::mem::take(&mut self.model.graph.nodes);
        // What only goes on with a value is taken where that comes in codes: elsewhere it would be rounded for nothing.
        let mut coded: HashSet<&str> = HashSet::new();
        let mut taken = Vec::with_capacity(nodes.len());
        for node in &nodes {
            let goes_on = node.inputs.iter().any(|name| coded.contains(name.as_str()));
            let begins =
                reach == Reach::Everything || matches!(node.op_type.as_str(), "Conv" | "MatMul" | "Gemm");
            let take = (begins || goes_on) && !pick.leaves(node) && takes(&self, node, ranges, reach);
            if take {
                coded.extend(node.outputs.iter().map(String::as_str));
            }
            taken.push(take);
        }
        let standard = if bits == 8 { 13 } else { 21 };
        let domain = if self.opset() < standard { RUNTIME_DOMAIN } else { "" };
        if !domain.is_empty() {
            self.import_runtime();
        }
        self.model.graph.nodes.clone_from(&nodes);
        let readers = self.readers();
        self.model.graph.nodes.clear();
        let inner = inner(&nodes, &taken, &readers);
        let mut by_taken: HashMap<&str, usize> = HashMap::new();
        for (node, _) in nodes.iter().zip(&taken).filter(|(_, taken)| **taken) {
            node.inputs.iter().for_each(|name| *by_taken.entry(name).or_default() += 1);
        }
        let guarded = match reach {
            Reach::Kernels => guarded(&self, &nodes, &taken),
            Reach::Everything => HashMap::new(),
        };
        // Whoever runs everything in whole numbers knows signed weights alone; codes of 16 bits are multiplied as floats.
        let by_kernels = reach == Reach::Kernels && bits == 8;
        let weight_codes = if by_kernels { self.exact_codes() } else { (INT8, 0) };
        let mut pass = Pass {
            draft: &mut self,
            bits,
            ranges,
            domain,
            weight_codes,
            weights: HashMap::new(),
            encodings: HashMap::new(),
            encoded: HashSet::new(),
            guarded,
            nodes: Vec::new(),
            decoders: 0,
        };
        for (node, taken) in nodes.iter().zip(&taken) {
            if *taken {
                // Whoever is left reads a value by its own name.
                let plainly = |name: &str| readers.get(name).copied() > by_taken.get(name).copied();
                pass.take(node, &inner, plainly);
            } else {
                pass.nodes.push(node.clone());
            }
        }
        let nodes = pass.nodes;
        let count = taken.iter().filter(|taken| **taken).count();
        self.notes.push(format!(
            "{count} of {} operations are in whole numbers: activations of {bits} bits, weights of 8 by output channel",
            taken.len()
        ));
        self.model.graph.nodes = nodes;
        if by_kernels {
            self.tell_processors();
        }
        self.tell_branches();
        self.prune();
        self
    }
}

/// Values that operations left in floats multiply with constant weights, and their channels, which are their second dimension. Between
/// codes ONNX Runtime rounds the weights of such an operation to eight bits with one scale (`WeightBiasQuantization` in its
/// `qdq_transformer`), unless what it reads is decoded with more than one scale.
fn guarded(draft: &Draft<'_>, nodes: &[Node], taken: &[bool]) -> HashMap<String, u64> {
    let left = nodes.iter().zip(taken).filter(|(_, taken)| !**taken).map(|(node, _)| node);
    let guard = |node: &Node| {
        let shape = &draft.constant(node.inputs.get(1)?)?.shape;
        let axis = |axis: usize| shape.get(axis).copied();
        let channels = match node.op_type.as_str() {
            "Conv" => axis(1)? * u64::try_from(int(node, "group").unwrap_or(1)).ok()?,
            "ConvTranspose" => axis(0)?,
            "Gemm" if int(node, "transA").unwrap_or(0) == 0 => {
                axis(usize::from(int(node, "transB").unwrap_or(0) != 0))?
            }
            _ => return None,
        };
        Some((node.inputs.first()?.clone(), channels))
    };
    left.filter_map(guard).collect()
}

/// Values that lie between an operation and the activation that alone reads them: they are never rounded.
fn inner(nodes: &[Node], taken: &[bool], readers: &HashMap<String, usize>) -> HashSet<String> {
    let made: HashSet<&str> = nodes
        .iter()
        .zip(taken)
        .filter(|(node, taken)| {
            let makes = ["Conv", "ConvTranspose", "Gemm", "MatMul", "Add", "Mul"];
            **taken && makes.contains(&node.op_type.as_str())
        })
        .filter_map(|(node, _)| Some(node.outputs.first()?.as_str()))
        .collect();
    let activations = nodes
        .iter()
        .zip(taken)
        .filter(|(node, taken)| **taken && ACTIVATIONS.contains(&node.op_type.as_str()));
    let before = activations.filter_map(|(node, _)| node.inputs.first());
    before.filter(|name| made.contains(name.as_str()) && readers.get(*name) == Some(&1)).cloned().collect()
}

/// Whether a node can be taken, and how far that reaches.
fn takes(draft: &Draft<'_>, node: &Node, ranges: &Ranges, reach: Reach) -> bool {
    let kind = node.op_type.as_str();
    let single = node.outputs.iter().filter(|name| !name.is_empty()).count() == 1;
    if !node.domain.is_empty()
        || !single
        || !node.outputs.first().is_some_and(|name| ranges.contains_key(name))
    {
        return false;
    }
    let product = matches!(kind, "Conv" | "ConvTranspose" | "MatMul" | "Gemm");
    let known = match reach {
        Reach::Kernels => {
            let listed = [&MOVES[..], &ACTIVATIONS, &KERNELS].iter().any(|kinds| kinds.contains(&kind));
            listed || matches!(kind, "Conv" | "MatMul" | "Gemm")
        }
        Reach::Everything => !matches!(kind, "QuantizeLinear" | "DequantizeLinear" | "Cast"),
    };
    let values = node.inputs.iter().enumerate().filter(|(place, _)| matters(kind, *place));
    let mut values = values.filter(|(_, name)| !name.is_empty());
    known
        && (kind != "Gemm" || plain_gemm(node))
        && (kind != "Resize" || reach == Reach::Everything || nearest(node))
        && values.all(|(place, name)| {
            if ranges.contains_key(name) {
                return true;
            }
            let constant = draft.constant(name).is_some_and(|tensor| tensor.element_type == FLOAT);
            // Constants are few: weights, and others where everything is taken.
            constant
                && (product && place > 0 || reach == Reach::Everything)
                && sound(draft, node, place, name)
        })
}

/// Whether a constant can be encoded where it stands.
fn sound(draft: &Draft<'_>, node: &Node, place: usize, name: &str) -> bool {
    let Some(floats) = draft.floats(name) else { return false };
    // A bias goes in steps of value times weight, which only a constant weight has.
    let bias = place == 2 && matches!(node.op_type.as_str(), "Conv" | "ConvTranspose" | "Gemm");
    let weight = || node.inputs.get(1).is_some_and(|weight| draft.constant(weight).is_some());
    floats.iter().all(|x| x.is_finite()) && (!bias || weight())
}

/// Whether an input is a value, and not a size, an axis or a bound.
fn matters(kind: &str, place: usize) -> bool {
    match kind {
        "Resize" | "Clip" | "Pad" | "Gather" | "Split" | "TopK" | "Expand" | "Tile" | "ReduceMean"
        | "ReduceSum" | "ReduceMax" | "ReduceMin" => place == 0,
        "Where" => place > 0,
        _ => place == 0 || !MOVES.contains(&kind),
    }
}

pub(super) fn plain_gemm(node: &Node) -> bool {
    let float = |name: &str| {
        node.attributes
            .iter()
            .all(|(key, value)| key != name || matches!(value, Attribute::Float(x) if *x == 1.0))
    };
    float("alpha") && float("beta") && int(node, "transA").unwrap_or(0) == 0
}

fn nearest(node: &Node) -> bool {
    let mode = node.attributes.iter().find(|(name, _)| name == "mode");
    mode.is_none_or(|(_, value)| matches!(value, Attribute::String(mode) if mode == b"nearest"))
}

/// The value whose encoding a node's output has.
fn tied(node: &Node) -> Option<String> {
    let kind = node.op_type.as_str();
    let moves = MOVES.contains(&kind) || kind == "Resize" && nearest(node);
    node.inputs.first().filter(|_| moves).cloned()
}

impl Pass<'_, '_> {
    /// Takes a node: its inputs decoded, its output encoded.
    fn take(&mut self, node: &Node, inner: &HashSet<String>, plainly: impl Fn(&str) -> bool) {
        let mut inputs = Vec::with_capacity(node.inputs.len());
        for (place, name) in node.inputs.iter().enumerate() {
            inputs.push(if name.is_empty() || inner.contains(name) {
                name.clone()
            } else {
                match self.how(node, place, name) {
                    Take::Plain => name.clone(),
                    Take::Value => self.value(name),
                    Take::Weight { axis } => self.weight(node, name, axis),
                    Take::Bias => self.bias(node, name),
                }
            });
        }
        let mut taken = Node { inputs, ..node.clone() };
        let output = taken.outputs.first().cloned().unwrap_or_default();
        if inner.contains(&output) {
            self.nodes.push(taken);
            return;
        }
        let float = format!("{output}/float");
        for name in &mut taken.outputs {
            if *name == output {
                name.clone_from(&float);
            }
        }
        let tied = tied(node);
        self.nodes.push(taken);
        self.encode(&output, &float, tied);
        if plainly(&output) {
            self.decode_plainly(&output);
        }
    }

    fn how(&self, node: &Node, place: usize, name: &str) -> Take {
        let kind = node.op_type.as_str();
        if !matters(kind, place) {
            return Take::Plain;
        }
        if self.ranges.contains_key(name) {
            return Take::Value;
        }
        let Some(tensor) = self.draft.constant(name).filter(|tensor| tensor.element_type == FLOAT) else {
            return Take::Plain;
        };
        let axis = match (kind, place) {
            ("MatMul", 1) if tensor.shape.len() == 2 => Some(1),
            ("Gemm", 1) => Some(usize::from(int(node, "transB").unwrap_or(0) == 0)),
            ("Conv" | "ConvTranspose", 1) => output_axis(node).or(Some(0)),
            ("Conv" | "ConvTranspose" | "Gemm", 2) => return Take::Bias,
            _ => None,
        };
        axis.map_or(Take::Value, |axis| Take::Weight { axis })
    }

    /// A value, decoded from its codes for one reader.
    fn value(&mut self, name: &str) -> String {
        if !self.encoded.contains(name) {
            if self.ranges.contains_key(name) {
                self.encode(name, name, None);
            } else {
                self.constant(name);
            }
        }
        self.decoders += 1;
        let output = format!("{name}/decoded {}", self.decoders);
        self.decode(name, output.clone(), None);
        output
    }

    /// A constant that is no weight, as codes like a value's.
    fn constant(&mut self, name: &str) {
        let floats = self.draft.floats(name).unwrap_or_default();
        let encoding = Range::of(&floats).encoding(self.bits);
        let mut codes = vec![0; floats.len() * usize::from(self.bits) / 8];
        encoding.encode_into(&floats, &mut codes);
        let shape = self.draft.constant(name).map(|tensor| tensor.shape.clone()).unwrap_or_default();
        self.draft.hold(&format!("{name}/codes"), encoding.element_type(), &shape, codes);
        self.declare(name, encoding);
        self.encoded.insert(name.to_owned());
    }

    fn declare(&mut self, name: &str, encoding: Encoding) {
        self.draft.model.graph.initializers.extend(encoding.parameters(name));
        self.encodings.insert(name.to_owned(), encoding);
    }

    /// Makes codes of the floats of that name, by the range of the value or as another's.
    fn encode(&mut self, value: &str, float: &str, tied: Option<String>) {
        let tied = tied.and_then(|other| self.encodings.get(&other).copied());
        let mut range = self.ranges.get(value).copied().unwrap_or(Range { low: 0.0, high: 0.0 });
        if self.bits == 16 {
            range = Range { low: range.low * MARGIN, high: range.high * MARGIN };
        }
        self.declare(value, tied.unwrap_or_else(|| range.encoding(self.bits)));
        self.pair("QuantizeLinear", float, value, format!("{value}/codes"), None);
        self.encoded.insert(value.to_owned());
    }

    fn decode(&mut self, value: &str, output: String, axis: Option<usize>) {
        self.pair("DequantizeLinear", &format!("{value}/codes"), value, output, axis);
    }

    /// Decodes a value under its own name, for those who are left.
    fn decode_plainly(&mut self, value: &str) {
        let guarded = self.guarded.get(value).copied().zip(self.encodings.get(value).copied());
        let Some((channels, encoding)) = guarded else { return self.decode(value, value.to_owned(), None) };
        let parameters = format!("{value}/by channel");
        let count = channels as usize;
        let zero =
            if self.bits == 8 { vec![encoding.zero as u8] } else { encoding.zero.to_le_bytes().into() };
        self.draft.hold_floats(&format!("{parameters}/scale"), &[channels], &vec![encoding.scale; count]);
        let zeros = zero.repeat(count);
        self.draft.hold(&format!("{parameters}/zero"), encoding.element_type(), &[channels], zeros);
        self.pair("DequantizeLinear", &format!("{value}/codes"), &parameters, value.to_owned(), Some(1));
    }

    fn pair(&mut self, kind: &str, input: &str, parameters: &str, output: String, axis: Option<usize>) {
        let axis = axis.map(|axis| ("axis".to_owned(), Attribute::Int(axis as i64)));
        self.nodes.push(Node {
            name: format!("{output}/{kind}"),
            op_type: kind.into(),
            domain: self.domain.into(),
            inputs: vec![input.to_owned(), format!("{parameters}/scale"), format!("{parameters}/zero")],
            outputs: vec![output],
            attributes: axis.into_iter().collect(),
        });
    }

    /// The step of a node's first input.
    fn step(&self, node: &Node) -> f32 {
        node.inputs.first().and_then(|name| self.encodings.get(name)).map_or(1.0, |encoding| encoding.scale)
    }

    /// A weight's codes, with a scale per channel, decoded.
    fn weight(&mut self, node: &Node, name: &str, axis: usize) -> String {
        let output = format!("{name}/decoded");
        if self.weights.contains_key(name) {
            return output;
        }
        let (Some(floats), Some((of, ..)), Some(tensor)) =
            (self.draft.floats(name), self.draft.origin(name), self.draft.constant(name))
        else {
            return name.to_owned();
        };
        let channels = Channels::along(axis, &tensor.shape);
        let mut steps = scales(&floats, channels).unwrap_or_default();
        // A bias that is large beside its weights needs their steps larger, or 32 bits do not hold it.
        if let Some(bias) = node.inputs.get(2).and_then(|bias| self.draft.floats(bias)) {
            let least = BIAS_TOP * self.step(node);
            steps.iter_mut().zip(&bias).for_each(|(step, bias)| *step = step.max(bias.abs() / least));
        }
        let count = steps.len() as u64;
        let (element, zero) = self.weight_codes;
        self.draft.make(
            of,
            &format!("{name}/codes"),
            element,
            channels,
            Form::Codes { scales: steps.clone(), zero },
        );
        self.draft.hold_floats(&format!("{name}/scale"), &[count], &steps);
        self.draft.hold(&format!("{name}/zero"), element, &[count], vec![zero; steps.len()]);
        self.decode(name, output.clone(), Some(axis));
        self.weights.insert(name.to_owned(), steps);
        output
    }

    /// A bias in steps of value times weight, decoded.
    fn bias(&mut self, node: &Node, name: &str) -> String {
        let steps = node.inputs.get(1).and_then(|weight| self.weights.get(weight));
        let (Some(steps), Some(bias)) = (steps, self.draft.floats(name)) else { return name.to_owned() };
        if bias.len() != steps.len() {
            return name.to_owned();
        }
        let step = self.step(node);
        let steps: Vec<f32> = steps.iter().map(|scale| scale * step).collect();
        let codes =
            bias.iter().zip(&steps).flat_map(|(x, step)| ((x / step).round_ties_even() as i32).to_le_bytes());
        let codes = codes.collect();
        let own = format!("{}/bias", node.outputs.first().map_or("", String::as_str));
        let count = steps.len() as u64;
        self.draft.hold(&format!("{own}/codes"), INT32, &[count], codes);
        self.draft.hold_floats(&format!("{own}/scale"), &[count], &steps);
        self.draft.hold(&format!("{own}/zero"), INT32, &[count], vec![0; steps.len() * 4]);
        let output = format!("{own}/decoded");
        self.decode(&own, output.clone(), Some(0));
        output
    }
}
