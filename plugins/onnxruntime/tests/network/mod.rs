//! A small network that tests make things of, and what it is fed with.

#![allow(clippy::unwrap_used)] // a test stops at the first surprise

use std::path::{Path, PathBuf};

use drophammer_formats::onnx::{
    self, Attribute, Dimension, ElementType, Graph, Initializer, InitializerData, Model, Node, ValueInfo,
};

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
