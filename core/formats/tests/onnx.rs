//! ONNX graphs survive writing and reading, their weights included; hostile ones are refused.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;

use drophammer_formats::onnx::{
    self, Attribute, Dimension, ElementType, Graph, Initializer, InitializerData, Model, Node, ValueInfo,
};
use drophammer_formats::placed::PlacedFiles;
use drophammer_formats::{DType, Error, Source, SourceKind};
use proptest::prelude::*;

fn value(name: &str, shape: &[Dimension]) -> ValueInfo {
    ValueInfo { name: name.into(), element_type: Some(ElementType(1)), shape: Some(shape.to_vec()) }
}

fn constant(name: &str, element_type: ElementType, shape: &[u64], data: Vec<u8>) -> Initializer {
    Initializer {
        name: name.into(),
        element_type,
        shape: shape.to_vec(),
        data: InitializerData::Inline(data),
    }
}

/// One of everything: `y = x · w` beside a constant, an `If` with a graph inside, and every kind of attribute.
fn model() -> Model {
    let inner = Graph { name: "then".into(), outputs: vec![value("z", &[])], ..Graph::default() };
    let attributes = vec![
        ("f".into(), Attribute::Float(0.0)),
        ("i".into(), Attribute::Int(-3)),
        ("s".into(), Attribute::String(b"text".to_vec())),
        ("t".into(), Attribute::Tensor(Box::new(constant("", ElementType(7), &[1], vec![1; 8])))),
        ("g".into(), Attribute::Graph(Box::new(inner))),
        ("fs".into(), Attribute::Floats(vec![1.0, -2.0])),
        ("is".into(), Attribute::Ints(vec![0, -1, 1 << 40])),
        ("ss".into(), Attribute::Strings(vec![b"a".to_vec(), vec![]])),
    ];
    let node = |op_type: &str, inputs: &[&str], outputs: &[&str]| Node {
        op_type: op_type.into(),
        inputs: inputs.iter().map(|&name| name.into()).collect(),
        outputs: outputs.iter().map(|&name| name.into()).collect(),
        ..Node::default()
    };
    let batch = Dimension::Named("batch".into());
    Model {
        ir_version: 10,
        producer_name: "drophammer".into(),
        producer_version: "0".into(),
        opsets: vec![(String::new(), 21), ("com.microsoft".into(), 1)],
        metadata: vec![("key".into(), "value".into())],
        graph: Graph {
            name: "g".into(),
            nodes: vec![
                node("MatMul", &["x", "w"], &["y"]),
                Node {
                    attributes,
                    domain: "com.microsoft".into(),
                    name: "n".into(),
                    ..node("Odd", &["", "y"], &["q"])
                },
            ],
            initializers: vec![
                constant("w", ElementType(1), &[4, 2], vec![]),
                constant("packed", ElementType::INT4, &[3], vec![0x21, 0x03]),
                constant("shape", ElementType(7), &[2], vec![9; 16]),
                constant("h", ElementType(10), &[5], vec![]),
            ],
            inputs: vec![value("x", &[batch, Dimension::Fixed(4)])],
            outputs: vec![value("y", &[Dimension::Named(String::new()), Dimension::Fixed(0)])],
            value_infos: vec![ValueInfo { name: "q".into(), ..ValueInfo::default() }],
            sparse: 0,
        },
        functions: 0,
    }
}

/// The model's own file, without external data.
fn written(model: &Model, external: &[usize]) -> Vec<u8> {
    onnx::plan("m", model, external).unwrap().side_files.remove(0).1
}

#[test]
fn a_model_with_external_weights_reads_back_the_same() {
    let model = model();
    let layout = onnx::plan("m", &model, &[0, 3]).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let files = PlacedFiles::create(dir.path(), layout).unwrap();
    files.write_at(0, 0, &[1; 32]).unwrap();
    files.write_at(1, 0, &[2; 10]).unwrap();
    files.finish().unwrap();

    let source = Source::open(dir.path()).unwrap();
    assert_eq!(source.kind(), SourceKind::Onnx);
    let weights = source.tensor("w").unwrap();
    assert_eq!(
        (weights.dtype, &weights.shape[..], source.bytes(weights)),
        (DType::F32, &[4, 2][..], &[1u8; 32][..])
    );
    assert_eq!(source.bytes(source.tensor("h").unwrap()), [2; 10]);
    assert_eq!(source.bytes(source.tensor("shape").unwrap()), [9; 16]);
    assert_eq!(source.files().len(), 2);

    let mut read = source.onnx().unwrap().clone();
    let file = fs::read(dir.path().join("m.onnx")).unwrap();
    let restore = |tensor: &mut Initializer| match &tensor.data {
        InitializerData::InFile(range) => {
            tensor.data = InitializerData::Inline(file[range.start as usize..range.end as usize].to_vec());
        }
        InitializerData::External { location, .. } => {
            assert_eq!(location, "m.onnx.data");
            tensor.data = InitializerData::Inline(vec![]);
        }
        InitializerData::Inline(_) => {}
    };
    read.graph.initializers.iter_mut().for_each(restore);
    for (_, attribute) in read.graph.nodes.iter_mut().flat_map(|node| &mut node.attributes) {
        if let Attribute::Tensor(tensor) = attribute {
            restore(tensor);
        }
    }
    assert_eq!(read, model);

    fs::remove_file(dir.path().join("m.onnx.data")).unwrap();
    let error = Source::open(dir.path()).unwrap_err();
    assert!(matches!(&error, Error::MissingShard { missing, .. } if missing == &["m.onnx.data"]), "{error}");
}

#[test]
fn an_attribute_of_zero_is_told_and_not_left_to_a_default() {
    let mut model = model();
    model.graph.nodes[0].attributes.push(("axis".into(), Attribute::Int(0)));
    // The name, field 3 with a zero, and the kind in field 20.
    let due = b"\x0a\x04axis\x18\x00\xa0\x01\x02";
    assert!(written(&model, &[0, 3]).windows(due.len()).any(|bytes| bytes == due));
}

#[test]
fn typed_lists_read_as_the_bytes_of_their_type() {
    // graph { initializer { dims: 2, data_type: 10 (float16), int32_data: [0x3c00, 0xc000], name: "a" } }
    let tensor = b"\x08\x02\x10\x0a\x2a\x05\x80\x78\x80\x80\x03\x42\x01a";
    let graph = [&[0x2a, tensor.len() as u8][..], tensor].concat();
    let file = [&[0x3a, graph.len() as u8][..], &graph].concat();
    let read = onnx::parse(&file).unwrap();
    assert_eq!(read.graph.initializers[0].data, InitializerData::Inline(vec![0, 0x3c, 0, 0xc0]));
}

#[test]
fn each_broken_onnx_file_is_refused_with_the_reason() {
    for location in ["", "../x.bin", "/etc/passwd", "a/../../x", "a//b", "C:\\x.bin", "."] {
        let mut model = model();
        let data = InitializerData::External { location: location.into(), offset: 0, length: None };
        model.graph.initializers[0].data = data;
        let message = onnx::parse(&written(&model, &[])).expect_err(location).to_string();
        assert!(message.contains("not a plain path inside its directory"), "{message}");
    }
    assert!(onnx::check_external_path("weights/model.data").is_ok());

    let mut deep = Graph::default();
    for _ in 0..20 {
        let attributes = vec![("g".to_owned(), Attribute::Graph(Box::new(deep)))];
        deep = Graph { nodes: vec![Node { attributes, ..Node::default() }], ..Graph::default() };
    }
    let mut wrong_size = model();
    wrong_size.graph.initializers[2].shape = vec![3];
    let many = {
        let graph = b"\x0a\x00".repeat((1 << 21) + 1);
        let mut file = vec![0x3a, 0x82, 0x80, 0x80, 0x02];
        file.extend(graph);
        file
    };
    let table: &[(Vec<u8>, &str)] = &[
        (vec![], "holds no graph"),
        (b"PK\x03\x04".to_vec(), "not valid protobuf"),
        (vec![0xff; 12], "longer than ten bytes"),
        (vec![0x3a, 0xff, 0xff, 0xff, 0xff, 0x0f], "needs 4294967295 bytes"),
        (vec![0x02, 0x00], "the number 0"),
        (written(&Model { graph: deep, ..Model::default() }, &[]), "nested more than 16"),
        (written(&wrong_size, &[0, 3]), "takes 24 bytes"),
        (many, "graph objects"),
    ];
    for (bytes, words) in table {
        let message = onnx::parse(bytes).expect_err(words).to_string();
        assert!(message.contains(words), "{message:?} does not say {words:?}");
    }
}

#[test]
fn a_model_cut_or_flipped_anywhere_never_panics() {
    let bytes = written(&model(), &[0, 3]);
    for len in 0..bytes.len() {
        let _ = onnx::parse(&bytes[..len]);
    }
    let mut bytes = bytes;
    for bit in 0..bytes.len() * 8 {
        bytes[bit / 8] ^= 1 << (bit % 8);
        let _ = onnx::parse(&bytes);
        bytes[bit / 8] ^= 1 << (bit % 8);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = onnx::parse(&bytes);
        let graph = [&[0x3a, bytes.len() as u8 & 0x7f][..], &bytes].concat();
        let _ = onnx::parse(&graph);
    }
}
