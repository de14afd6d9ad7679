//! How far a value's codes have to reach: not beyond where whoever reads it gives the same anyway. A gate's sigmoid is one from eleven on,
//! and an activation that is spelled out with a cube reaches a hundred thousand where its tanh is one from six on.

use std::collections::HashMap;

use drophammer_formats::onnx::{Attribute, Node};
use drophammer_models::export::onnx::{Range, Ranges};

use super::draft::Draft;
use super::walk;

/// Beyond this a tanh is one within sixteen bits.
const TANH: f32 = 6.0;
/// Beyond this a sigmoid is one within sixteen bits.
const SIGMOID: f32 = 11.1;
/// Operations that give their first input's values as they are.
const KEEPS: [&str; 6] = ["Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Identity"];
/// What somebody reads who needs all of it.
const ALL: Range = Range { low: f32::NEG_INFINITY, high: f32::INFINITY };

/// The ranges, cut to what readers tell apart.
pub(super) fn narrowed(draft: &Draft<'_>, ranges: &Ranges) -> Ranges {
    let graph = &draft.model.graph;
    let mut needs: HashMap<&str, Range> =
        graph.outputs.iter().map(|output| (output.name.as_str(), ALL)).collect();
    for (_, value) in graph.nodes.iter().flat_map(|node| &node.attributes) {
        if let Attribute::Graph(inner) = value {
            walk(inner, &mut |graph| {
                needs.extend(
                    graph.nodes.iter().flat_map(|node| &node.inputs).map(|name| (name.as_str(), ALL)),
                );
            });
        }
    }
    // Readers come behind what they read.
    for node in graph.nodes.iter().rev() {
        let output = node.outputs.first().and_then(|name| needs.get(name.as_str()).copied()).unwrap_or(ALL);
        for (place, name) in node.inputs.iter().enumerate() {
            let own = need(draft, ranges, node, place, output).unwrap_or(ALL);
            let known = needs.entry(name).or_insert(own);
            *known = Range { low: known.low.min(own.low), high: known.high.max(own.high) };
        }
    }
    let cut = |(name, range): (&String, &Range)| {
        let need = needs.get(name.as_str()).copied().unwrap_or(ALL);
        let bounded = |x: f32| x.max(need.low).min(need.high);
        (name.clone(), Range { low: bounded(range.low), high: bounded(range.high) })
    };
    ranges.iter().map(cut).collect()
}

/// What a node needs of one of its inputs, where of its output only `output` matters; `None` for all.
fn need(draft: &Draft<'_>, ranges: &Ranges, node: &Node, place: usize, output: Range) -> Option<Range> {
    let around = |bound: f32| Range { low: -bound, high: bound };
    let kind = node.op_type.as_str();
    if !node.domain.is_empty() || place > 0 && !matches!(kind, "Add" | "Mul") {
        return None;
    }
    let constant = |place: usize| {
        let floats = draft.floats(node.inputs.get(place)?)?;
        (!floats.is_empty()).then_some(floats)
    };
    Some(match kind {
        "Tanh" => around(TANH),
        "Sigmoid" => around(SIGMOID),
        "HardSigmoid" => {
            let alpha = float(node, "alpha").unwrap_or(0.2);
            let beta = float(node, "beta").unwrap_or(0.5);
            (alpha > 0.0).then(|| Range { low: -beta / alpha, high: (1.0 - beta) / alpha })?
        }
        "Clip" => {
            let bound = |place, name| constant(place).map(|x| x[0]).or_else(|| float(node, name));
            Range {
                low: bound(1, "min").unwrap_or(f32::NEG_INFINITY),
                high: bound(2, "max").unwrap_or(f32::INFINITY),
            }
        }
        "Relu" => Range { low: 0.0, high: output.high.max(0.0) },
        "Add" => {
            let other = node.inputs.get(1 - place)?;
            let known = || ranges.get(other).copied();
            let other = known().or_else(|| constant(1 - place).map(|floats| Range::of(&floats)))?;
            Range { low: output.low - other.high, high: output.high - other.low }
        }
        "Mul" => {
            let least = constant(1 - place)?.iter().fold(f32::INFINITY, |least, x| least.min(x.abs()));
            let bound = output.high.max(-output.low) / least;
            (bound >= 0.0).then(|| around(bound))?
        }
        _ if KEEPS.contains(&kind) => output,
        _ => return None,
    })
}

fn float(node: &Node, name: &str) -> Option<f32> {
    node.attributes.iter().find_map(|(key, value)| match value {
        Attribute::Float(x) if key == name => Some(*x),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use drophammer_formats::onnx::{Initializer, InitializerData, Model};

    use super::super::tests::{node, save, value};
    use super::super::{FLOAT, PlainGraph};
    use super::*;

    fn constant(name: &str, x: f32) -> Initializer {
        let data = InitializerData::Inline(x.to_le_bytes().to_vec());
        Initializer { name: name.into(), element_type: FLOAT, shape: vec![], data }
    }

    #[test]
    fn codes_reach_no_further_than_readers_tell_apart() {
        let mut model = Model { ir_version: 8, opsets: vec![(String::new(), 13)], ..Model::default() };
        let graph = &mut model.graph;
        // Half of x times one and the tanh of 0.8 (x + cube), a bounded value, and one that two read.
        graph.nodes = vec![
            node("Mul", &["x", "square"], "cube"),
            node("Add", &["x", "cube"], "sum"),
            node("Mul", &["sum", "factor"], "scaled"),
            node("Tanh", &["scaled"], "tanh"),
            node("Mul", &["x", "tanh"], "y"),
            node("Clip", &["wide", "none", "six"], "clipped"),
            node("Sigmoid", &["both"], "gate"),
            node("Mul", &["both", "gate"], "gated"),
        ];
        graph.initializers =
            [("factor", 0.8), ("none", 0.0), ("six", 6.0)].map(|(n, x)| constant(n, x)).into();
        graph.inputs = ["x", "square", "wide", "both"].map(|name| value(name, &[4])).into();
        graph.outputs = ["y", "clipped", "gated"].map(|name| value(name, &[4])).into();
        let place = tempfile::tempdir().unwrap();
        let graph = PlainGraph::open(&save(&model, place.path())).unwrap();
        let range = |low, high| Range { low, high };
        let ranges: Ranges = [
            ("x", range(-100.0, 100.0)),
            ("cube", range(-1e5, 1e5)),
            ("sum", range(-1e5, 1e5)),
            ("scaled", range(-8e4, 8e4)),
            ("wide", range(-40.0, 40.0)),
            ("both", range(-40.0, 40.0)),
            ("y", range(-100.0, 100.0)),
        ]
        .map(|(name, range)| (name.to_owned(), range))
        .into();
        let found = narrowed(&Draft::new(&graph), &ranges);
        assert_eq!(found["scaled"], range(-6.0, 6.0));
        assert_eq!(found["sum"], range(-7.5, 7.5));
        assert_eq!(found["cube"], range(-107.5, 107.5));
        assert_eq!(found["wide"], range(0.0, 6.0));
        for whole in ["x", "both", "y"] {
            assert_eq!(found[whole], ranges[whole], "{whole}");
        }
    }
}
