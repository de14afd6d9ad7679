//! Whole numbers with ranges found as values come: products and convolutions on codes of eight bits, everything else in floats. Needs no
//! samples.

use std::collections::HashMap;

use drophammer_formats::onnx::{Attribute, Node};
use drophammer_sdk::{BackendError, ErrorCode, Result};

use super::FLOAT;
use super::draft::Draft;
use super::fold::int;
use super::pick::Pick;
use super::weight::{Channels, Form, UINT8, scales};

/// Where `DynamicQuantizeLinear` begins.
const LEAST_OPSET: i64 = 11;

impl Draft<'_> {
    /// The graph with products and convolutions by constant weights on whole numbers.
    ///
    /// # Errors
    /// [`ErrorCode::UnsupportedInput`] for graphs in an older operator set than has what is needed, or without such a product.
    pub fn dynamic_int(mut self, pick: &Pick) -> Result<Self> {
        let unsupported = |message: String, help: &str| {
            BackendError::new(ErrorCode::UnsupportedInput, message).with_help(help)
        };
        if self.opset() < LEAST_OPSET {
            let message = format!("operator set {} has no whole numbers by the value", self.opset());
            return Err(unsupported(message, "Choose qdq_int8, or export it for operator set 11 or later."));
        }
        let mut pass = Pass { draft: &mut self, nodes: Vec::new(), values: HashMap::new() };
        let (mut taken, all) = (0, pass.draft.model.graph.nodes.len());
        for node in std::mem::take(&mut pass.draft.model.graph.nodes) {
            if !pick.leaves(&node) && pass.take(&node).is_some() {
                taken += 1;
            } else {
                pass.nodes.push(node);
            }
        }
        let nodes = pass.nodes;
        if taken == 0 {
            return Err(unsupported(
                "none of its products and convolutions has a constant weight in float32".into(),
                "Choose fp32 or fp16.",
            ));
        }
        self.model.graph.nodes = nodes;
        self.notes.push(format!(
            "{taken} of {all} operations multiply in eight bits: weights by output channel, values by the range that comes"
        ));
        self.tell_processors();
        self.tell_branches();
        self.prune();
        Ok(self)
    }
}

struct Pass<'d, 'g> {
    draft: &'d mut Draft<'g>,
    nodes: Vec<Node>,
    /// Encoded values, by name, and what their codes are called.
    values: HashMap<String, String>,
}

impl Pass<'_, '_> {
    /// Takes a node, if it is a product or convolution of a value and a weight.
    fn take(&mut self, node: &Node) -> Option<()> {
        if !node.domain.is_empty() {
            return None;
        }
        let (value, weight) = (node.inputs.first()?, node.inputs.get(1)?);
        let output = node.outputs.first()?;
        let shape = self.draft.constant(weight)?.shape.clone();
        let bias = node.inputs.get(2).filter(|name| !name.is_empty());
        if self.draft.constant(value).is_some() {
            return None;
        }
        let (kind, axis, unsigned) = match node.op_type.as_str() {
            "MatMul" if shape.len() == 2 => ("MatMulInteger", 1, false),
            "Gemm" if shape.len() == 2 && super::static_int::plain_gemm(node) => {
                ("MatMulInteger", usize::from(int(node, "transB").unwrap_or(0) == 0), false)
            }
            // Kernels for convolutions group by group are slower than those on floats.
            "Conv" if int(node, "group").unwrap_or(1) == 1 => ("ConvInteger", 0, true),
            _ => return None,
        };
        let floats = self.draft.floats(weight)?;
        let convolution = kind == "ConvInteger";
        let bias = match bias {
            Some(name) if convolution => Some((name, self.draft.floats(name)?)),
            Some(name) => Some((name, Vec::new())),
            None => None,
        };
        let channels = Channels::along(axis, &shape);
        let steps = scales(&floats, channels)?;
        let (of, ..) = self.draft.origin(weight)?;
        let count = steps.len() as u64;
        // One size for each axis after the outputs' own, so that it spreads over them.
        let spread: Vec<u64> = if convolution {
            [count].into_iter().chain(shape[2..].iter().map(|_| 1)).collect()
        } else {
            vec![count]
        };
        let codes = format!("{weight}/codes");
        if !self.draft.weights.contains_key(&codes) {
            let (element, zero) = if unsigned { (UINT8, 128) } else { self.draft.exact_codes() };
            self.draft.make(of, &codes, element, channels, Form::Codes { scales: steps.clone(), zero });
            self.draft.hold_floats(&format!("{weight}/scale"), &spread, &steps);
            self.draft.hold(&format!("{weight}/zero"), element, &[], vec![zero]);
        }
        let x = self.encoded(value);
        let mut factor = codes;
        if kind == "MatMulInteger" && axis == 0 {
            let turned = format!("{output}/turned");
            self.add("Transpose", &[&factor], &[&turned], vec![]);
            factor = turned;
        }
        let product = format!("{output}/whole");
        let zeros = [format!("{x}/zero"), format!("{weight}/zero")];
        let attributes = if convolution { node.attributes.clone() } else { Vec::new() };
        self.add(kind, &[&format!("{x}/codes"), &factor, &zeros[0], &zeros[1]], &[&product], attributes);
        let float = format!("{output}/single");
        self.add("Cast", &[&product], &[&float], vec![("to".into(), Attribute::Int(FLOAT.0.into()))]);
        let step = format!("{output}/step");
        self.add("Mul", &[&format!("{x}/scale"), &format!("{weight}/scale")], &[&step], vec![]);
        let Some((bias, floats)) = bias else {
            self.add("Mul", &[&float, &step], &[output], vec![]);
            return Some(());
        };
        let scaled = format!("{output}/scaled");
        self.add("Mul", &[&float, &step], &[&scaled], vec![]);
        let mut addend = bias.clone();
        if convolution {
            addend = format!("{output}/bias");
            self.draft.hold_floats(&addend, &spread, &floats);
        }
        self.add("Add", &[&scaled, &addend], &[output], vec![]);
        Some(())
    }

    /// What the codes of a value begin with: made where they are first asked for.
    fn encoded(&mut self, value: &str) -> String {
        if let Some(known) = self.values.get(value) {
            return known.clone();
        }
        let base = format!("{value}/encoded");
        let outputs = ["codes", "scale", "zero"].map(|what| format!("{base}/{what}"));
        self.add("DynamicQuantizeLinear", &[value], &[&outputs[0], &outputs[1], &outputs[2]], vec![]);
        self.values.insert(value.to_owned(), base.clone());
        base
    }

    fn add(&mut self, kind: &str, inputs: &[&str], outputs: &[&str], attributes: Vec<(String, Attribute)>) {
        self.nodes.push(Node {
            name: format!("{}/{kind}", outputs[0]),
            op_type: kind.into(),
            inputs: inputs.iter().map(|&name| name.to_owned()).collect(),
            outputs: outputs.iter().map(|&name| name.to_owned()).collect(),
            attributes,
            ..Node::default()
        });
    }
}
