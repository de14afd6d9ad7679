//! Which values of a float graph have to be looked at while it runs, and outputs that tell how far they reach.

use std::collections::HashSet;

use drophammer_formats::onnx::{Attribute, Graph, Node, ValueInfo};

use super::emit::FLOAT;
use super::qdq::{MOVES, integers};

/// What [`watch`] adds to a value's name for its least number.
pub const WATCH_LOW: &str = "/low";
/// The same for its largest.
pub const WATCH_HIGH: &str = "/high";

/// The values of a graph whose range has to be known where activations become whole numbers. Those of `floats` stay floats whatever
/// becomes of the others.
pub(super) fn coded(graph: &Graph, floats: &HashSet<String>) -> Vec<String> {
    let integers = integers(graph);
    let unknown =
        |node: &&Node| !MOVES.contains(&node.op_type.as_str()) && node.op_type != "DequantizeLinear";
    let values = graph.nodes.iter().filter(unknown).flat_map(|node| &node.outputs);
    let inputs = graph.inputs.iter().map(|input| &input.name);
    let known = |name: &&String| integers.contains(name.as_str()) || floats.contains(name.as_str());
    values.chain(inputs).filter(|name| !known(name)).cloned().collect()
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
            graph.nodes.push(Node {
                name: output.clone(),
                op_type: op.into(),
                inputs: vec![value.clone()],
                outputs: vec![output.clone()],
                attributes: vec![("keepdims".into(), Attribute::Int(0))],
                ..Node::default()
            });
            let shape = Some(Vec::new());
            graph.outputs.push(ValueInfo { name: output, element_type: Some(FLOAT), shape });
        }
    }
}
