//! Float graphs that tell about their values while they run: how far they reach, and how they go together.

use std::collections::HashSet;

use drophammer_formats::onnx::{Attribute, Graph, Initializer, InitializerData, Model, Node, ValueInfo};
use drophammer_quant::compensate::WINDOW;

use super::emit::{FLOAT, INT64};
use super::qdq::{MOVES, integers};

/// What [`watch`] adds to a value's name for its least number.
pub const WATCH_LOW: &str = "/low";
/// The same for its largest.
pub const WATCH_HIGH: &str = "/high";

/// And for the mean of its squares.
pub const WATCH_SQUARE: &str = "/square";

/// The float graph with three more outputs for each value whose range has to be known: `{value}/low`, `{value}/high` and
/// `{value}/square`. Those of `floats` stay floats whatever becomes of the others.
pub(super) fn watched(mut model: Model, floats: &HashSet<String>) -> (Model, Vec<String>) {
    let graph = &mut model.graph;
    let integers = integers(graph);
    let unknown =
        |node: &&Node| !MOVES.contains(&node.op_type.as_str()) && node.op_type != "DequantizeLinear";
    let values = graph.nodes.iter().filter(unknown).flat_map(|node| &node.outputs);
    let inputs = graph.inputs.iter().map(|input| &input.name);
    let known = |name: &&String| integers.contains(name.as_str()) || floats.contains(name.as_str());
    let values: Vec<String> = values.chain(inputs).filter(|name| !known(name)).cloned().collect();
    watch(graph, &values);
    for value in &values {
        let (squares, output) = (format!("{value}/squares"), format!("{value}{WATCH_SQUARE}"));
        add(graph, "Mul", &[value, value], &squares, Vec::new());
        add(graph, "ReduceMean", &[&squares], &output, vec![("keepdims", Attribute::Int(0))]);
        tell(graph, output, Some(Vec::new()));
    }
    (model, values)
}

/// Sums that are only computed with: what is moved becomes a matrix's input, or a cache's.
pub(super) fn sums(graph: &Graph) -> Vec<String> {
    let moves = graph.nodes.iter().filter(|node| MOVES.contains(&node.op_type.as_str()));
    let moved: HashSet<&String> =
        moves.flat_map(|node| &node.inputs).chain(graph.outputs.iter().map(|output| &output.name)).collect();
    let sums = graph.nodes.iter().filter(|node| node.op_type == "Add").flat_map(|node| &node.outputs);
    sums.filter(|sum| !moved.contains(sum)).cloned().collect()
}

/// Adds outputs that tell the least and the largest number of values.
pub fn watch(graph: &mut Graph, values: &[String]) {
    for value in values {
        for (op, what) in [("ReduceMin", WATCH_LOW), ("ReduceMax", WATCH_HIGH)] {
            let output = format!("{value}{what}");
            add(graph, op, &[value], &output, vec![("keepdims", Attribute::Int(0))]);
            tell(graph, output, Some(Vec::new()));
        }
    }
}

/// A value whose rows a graph multiplies with each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Multiplied {
    /// Its name.
    pub value: String,
    /// Numbers in a row.
    pub columns: usize,
}

impl Multiplied {
    /// The outputs that hold the sums over rows of `x·xᵀ`, one for each window of
    /// [`Products`](drophammer_quant::compensate::Products), in order.
    pub fn outputs(&self) -> impl Iterator<Item = String> {
        (0..self.columns).step_by(WINDOW).map(|first| format!("{}/products {first}", self.value))
    }

    /// Adds these outputs.
    pub(super) fn watch(&self, graph: &mut Graph) {
        let ints = |graph: &mut Graph, name: &str, values: &[i64]| {
            let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            graph.initializers.push(Initializer {
                name: name.to_owned(),
                element_type: INT64,
                shape: vec![values.len() as u64],
                data: InitializerData::Inline(bytes),
            });
        };
        let rows = format!("{}/rows", self.value);
        let shape = format!("{rows}/shape");
        ints(graph, &shape, &[-1, self.columns as i64]);
        add(graph, "Reshape", &[&self.value, &shape], &rows, Vec::new());
        for (first, output) in (0..self.columns).step_by(WINDOW).zip(self.outputs()) {
            let (window, [begin, end, axis]) =
                (format!("{output}/of"), ["begin", "end", "axis"].map(|what| format!("{output}/{what}")));
            ints(graph, &begin, &[first as i64]);
            ints(graph, &end, &[(first + WINDOW).min(self.columns) as i64]);
            ints(graph, &axis, &[1]);
            add(graph, "Slice", &[&rows, &begin, &end, &axis], &window, Vec::new());
            add(graph, "Gemm", &[&window, &window], &output, vec![("transA", Attribute::Int(1))]);
            tell(graph, output, None);
        }
    }
}

fn add(graph: &mut Graph, op: &str, inputs: &[&str], output: &str, attributes: Vec<(&str, Attribute)>) {
    graph.nodes.push(Node {
        name: output.to_owned(),
        op_type: op.into(),
        inputs: inputs.iter().map(|&name| name.to_owned()).collect(),
        outputs: vec![output.to_owned()],
        attributes: attributes.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
        ..Node::default()
    });
}

pub(super) fn tell(graph: &mut Graph, name: String, shape: Option<Vec<drophammer_formats::onnx::Dimension>>) {
    graph.outputs.push(ValueInfo { name, element_type: Some(FLOAT), shape });
}
