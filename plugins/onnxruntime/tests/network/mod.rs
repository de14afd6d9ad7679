//! A small network that tests make things of, and what it is fed with.

#![allow(clippy::unwrap_used)] // a test stops at the first surprise

pub(crate) mod samples;

use std::path::{Path, PathBuf};

use drophammer_formats::onnx::{
    self, Attribute, Dimension, ElementType, Graph, Initializer, InitializerData, Model, Node, ValueInfo,
};
use drophammer_sdk::{ForgeRequest, Goal};

/// What is to be made.
pub(crate) fn goal(format: &str, scheme: &str, options: &[(&str, &str)]) -> Goal {
    let options = options.iter().map(|(name, value)| ((*name).to_owned(), (*value).into())).collect();
    Goal { format: format.into(), scheme: scheme.into(), options }
}

/// That it be made of a source, into a directory.
pub(crate) fn request(source: &Path, goal: Goal, staging: &Path) -> ForgeRequest {
    ForgeRequest {
        source: source.to_owned(),
        goal,
        staging: staging.to_owned(),
        name: "model".into(),
        ..ForgeRequest::default()
    }
}

fn node(kind: &str, inputs: &[&str], output: &str, attributes: Vec<(String, Attribute)>) -> Node {
    Node {
        op_type: kind.into(),
        inputs: inputs.iter().map(|&name| name.to_owned()).collect(),
        outputs: vec![output.to_owned()],
        attributes,
        ..Node::default()
    }
}

/// Numbers that look random.
pub(crate) fn numbers(count: u64, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let next = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..count).map(next).collect()
}

fn constant(name: &str, shape: &[u64], seed: u64) -> Initializer {
    let values = numbers(shape.iter().product(), seed);
    Initializer {
        name: name.into(),
        element_type: ElementType(1),
        shape: shape.to_vec(),
        data: InitializerData::Inline(values.iter().flat_map(|x| (x * 0.3).to_le_bytes()).collect()),
    }
}

/// A small network for images, in an operator set: as many as there are at a time, of 3 channels by 16 by 16, to ten numbers each.
pub(crate) fn network(opset: i64) -> Model {
    let value = |name: &str, shape: &[i64]| ValueInfo {
        name: name.into(),
        element_type: Some(ElementType(1)),
        shape: Some(shape.iter().map(|size| Dimension::Fixed(*size)).collect()),
    };
    let same = || vec![("pads".to_owned(), Attribute::Ints(vec![1, 1, 1, 1]))];
    let group = |count: i64| {
        let mut attributes = same();
        attributes.push(("group".into(), Attribute::Int(count)));
        attributes
    };
    Model {
        ir_version: 8,
        opsets: vec![(String::new(), opset)],
        graph: Graph {
            name: "g".into(),
            nodes: vec![
                node("Conv", &["x", "w1", "b1"], "c1", same()),
                node("Relu", &["c1"], "r1", vec![]),
                node("Conv", &["r1", "w2", "b2"], "c2", group(16)),
                node("Mul", &["c2", "scale"], "m2", vec![]),
                node("Add", &["m2", "r1"], "sum", vec![]),
                node("MaxPool", &["sum"], "pool", vec![("kernel_shape".into(), Attribute::Ints(vec![2, 2]))]),
                node("Conv", &["pool", "w3"], "c3", vec![]),
                node("GlobalAveragePool", &["c3"], "g3", vec![]),
                node("Flatten", &["g3"], "flat", vec![]),
                node("Gemm", &["flat", "w4", "b4"], "y", vec![("transB".into(), Attribute::Int(1))]),
            ],
            initializers: vec![
                constant("w1", &[16, 3, 3, 3], 1),
                constant("b1", &[16], 2),
                constant("w2", &[16, 1, 3, 3], 3),
                constant("b2", &[16], 4),
                constant("scale", &[1, 16, 1, 1], 5),
                constant("w3", &[32, 16, 1, 1], 6),
                constant("w4", &[10, 32], 7),
                constant("b4", &[10], 8),
            ],
            inputs: vec![value("x", &[-1, 3, 16, 16])],
            outputs: vec![value("y", &[-1, 10])],
            ..Graph::default()
        },
        ..Model::default()
    }
}

/// The same network, whose last numbers go one way of two.
pub(crate) fn branching() -> Model {
    let mut model = network(13);
    let way = |kind: &str| {
        let output = ValueInfo { name: kind.into(), element_type: Some(ElementType(1)), shape: None };
        let nodes = vec![node(kind, &["y"], kind, vec![])];
        Attribute::Graph(Box::new(Graph {
            name: kind.into(),
            nodes,
            outputs: vec![output],
            ..Graph::default()
        }))
    };
    let ways = vec![("then_branch".to_owned(), way("Neg")), ("else_branch".to_owned(), way("Abs"))];
    model.graph.nodes.push(node("ReduceMax", &["x"], "most", vec![("keepdims".into(), Attribute::Int(0))]));
    model.graph.nodes.push(node("Greater", &["most", "bound"], "beyond", vec![]));
    model.graph.nodes.push(node("If", &["beyond"], "chosen", ways));
    model.graph.initializers.push(constant("bound", &[], 10));
    model.graph.outputs[0].name = "chosen".into();
    model
}

/// Writes a model into a directory.
pub(crate) fn save(model: &Model, directory: &Path) -> PathBuf {
    let path = directory.join("net.onnx");
    std::fs::write(&path, &onnx::plan("net", model, &[]).unwrap().side_files[0].1).unwrap();
    path
}

/// Writes arrays as NumPy does.
pub(crate) fn npy(path: &Path, shape: &[u64], values: &[f32]) {
    let sizes = shape.iter().fold(String::new(), |text, size| text + &size.to_string() + ",");
    let header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({sizes}), }}");
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((header.len() as u16).to_le_bytes());
    bytes.extend(header.as_bytes());
    bytes.extend(values.iter().flat_map(|x| x.to_le_bytes()));
    std::fs::write(path, bytes).unwrap();
}

/// A change to a graph.
type Spoil = fn(&mut Model);

/// The first weight's data, in another file.
fn beside(model: &mut Model, location: &str) {
    let data = InitializerData::External { location: location.into(), offset: 0, length: Some(1728) };
    model.graph.initializers[0].data = data;
}

/// Files that nothing can be made of, in directories of their own below this one, and what is to be said of each.
pub(crate) fn refused(directory: &Path) -> Vec<(PathBuf, &'static str)> {
    let spoiled: [(Spoil, &str); 5] = [
        (|model| model.graph.nodes[1].domain = "acme".into(), "acme::Relu"),
        (|model| model.opsets[0].1 = 5, "operator set 5"),
        (|model| model.opsets[0].1 = 99, "operator set 99"),
        (|model| beside(model, "../up.bin"), "not a plain path inside its directory"),
        (|model| beside(model, "gone.bin"), "external data are missing"),
    ];
    let folder = |number: usize| {
        let folder = directory.join(number.to_string());
        std::fs::create_dir(&folder).unwrap();
        folder
    };
    let mut all = Vec::new();
    for (number, (spoil, message)) in spoiled.into_iter().enumerate() {
        let mut model = network(13);
        spoil(&mut model);
        all.push((save(&model, &folder(number)), message));
    }
    let garbled = folder(all.len()).join("net.onnx");
    std::fs::write(&garbled, b"\x0a\xff not a graph").unwrap();
    all.push((garbled, "net.onnx"));
    // Larger than protobuf can tell, without its bytes.
    let large = folder(all.len()).join("net.onnx");
    std::fs::File::create(&large).unwrap().set_len(1 << 31).unwrap();
    all.push((large, "more than protobuf can tell"));
    all
}
