use super::*;

pub(super) fn node(kind: &str, inputs: &[&str], output: &str) -> Node {
    Node {
        op_type: kind.into(),
        inputs: inputs.iter().map(|&name| name.to_owned()).collect(),
        outputs: vec![output.to_owned()],
        ..Node::default()
    }
}

fn floats(name: &str, shape: &[u64], data: InitializerData) -> Initializer {
    Initializer { name: name.into(), element_type: FLOAT, shape: shape.to_vec(), data }
}

fn inline(values: impl IntoIterator<Item = f32>) -> InitializerData {
    InitializerData::Inline(values.into_iter().flat_map(f32::to_le_bytes).collect())
}

pub(super) fn value(name: &str, shape: &[i64]) -> ValueInfo {
    let shape = shape.iter().map(|size| Dimension::Fixed(*size)).collect();
    ValueInfo { name: name.into(), element_type: Some(FLOAT), shape: Some(shape) }
}

/// A convolution, a scale and a norm after it, an activation, and a product; constants as exporters leave them, in nodes.
fn model() -> Model {
    let weight = floats("", &[4, 2, 3, 3], inline((0..72).map(|i| i as f32 / 36.0 - 1.0)));
    let mut constant = node("Constant", &[], "w");
    constant.attributes.push(("value".into(), Attribute::Tensor(Box::new(weight))));
    let mut half = node("Constant", &[], "half");
    half.attributes.push(("value_float".into(), Attribute::Float(0.5)));
    let per_channel = |name: &str, x: f32| floats(name, &[4], inline((0..4).map(|i| x + i as f32)));
    Model {
        ir_version: 8,
        opsets: vec![(String::new(), 12)],
        graph: Graph {
            nodes: vec![
                constant,
                half,
                node("Conv", &["x", "w"], "c"),
                node("Mul", &["half", "c"], "m"),
                node("BatchNormalization", &["m", "scale", "bias", "mean", "variance"], "n"),
                node("Relu", &["n"], "r"),
                node("GlobalAveragePool", &["r"], "p"),
                node("Flatten", &["p"], "f"),
                node("Gemm", &["f", "g", "b"], "y"),
            ],
            initializers: vec![
                per_channel("scale", 1.0),
                per_channel("bias", -2.0),
                per_channel("mean", 0.25),
                per_channel("variance", 1.0),
                floats("g", &[4, 5], inline((0..20).map(|i| i as f32 / 10.0 - 1.0))),
                floats("b", &[5], inline((0..5).map(|i| i as f32))),
            ],
            inputs: vec![value("x", &[-1, 2, 8, 8])],
            outputs: vec![value("y", &[-1, 5])],
            ..Graph::default()
        },
        ..Model::default()
    }
}

pub(super) fn save(model: &Model, directory: &Path) -> PathBuf {
    let layout = onnx::plan("m", model, &[]).unwrap();
    let path = directory.join("m.onnx");
    std::fs::write(&path, &layout.side_files[0].1).unwrap();
    path
}

fn refusal(model: &Model) -> BackendError {
    let place = tempfile::tempdir().unwrap();
    PlainGraph::open(&save(model, place.path())).unwrap_err()
}

#[test]
fn graphs_that_cannot_be_written_again_or_run_are_refused_by_name() {
    type Spoil = fn(&mut Model);
    let cases: [(Spoil, ErrorCode, &str); 7] = [
        (|m| m.opsets[0].1 = 99, ErrorCode::UnsupportedInput, "operator set 99"),
        (|m| m.opsets[0].1 = 5, ErrorCode::UnsupportedInput, "operator set 5"),
        (
            |m| m.graph.nodes[5].domain = "acme.vision".into(),
            ErrorCode::UnsupportedInput,
            "acme.vision::Relu",
        ),
        (
            |m| {
                let inner = Graph {
                    nodes: vec![Node { domain: "in.side".into(), ..node("Odd", &[], "q") }],
                    ..Graph::default()
                };
                m.graph.nodes[5].attributes.push(("then_branch".into(), Attribute::Graph(Box::new(inner))));
            },
            ErrorCode::UnsupportedInput,
            "in.side::Odd",
        ),
        (|m| m.graph.inputs[0].element_type = None, ErrorCode::UnsupportedInput, "input `x` is no tensor"),
        (
            |m| {
                let data =
                    InitializerData::External { location: "gone.bin".into(), offset: 0, length: Some(80) };
                m.graph.initializers[4].data = data;
            },
            ErrorCode::InvalidInput,
            "gone.bin",
        ),
        (
            |m| {
                let data =
                    InitializerData::External { location: "../up.bin".into(), offset: 0, length: Some(80) };
                m.graph.initializers[4].data = data;
            },
            ErrorCode::InvalidInput,
            "not a plain path inside its directory",
        ),
    ];
    for (spoil, code, words) in cases {
        let mut model = model();
        spoil(&mut model);
        let error = refusal(&model);
        assert!(error.code == code && error.message.contains(words) && !error.help.is_empty(), "{error:?}");
    }
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("m.onnx");
    std::fs::write(&path, b"\x0a\xff not a graph").unwrap();
    assert_eq!(PlainGraph::open(&path).unwrap_err().code, ErrorCode::InvalidInput);
    // A file of more than protobuf can tell, without its bytes.
    std::fs::File::create(&path).unwrap().set_len(LARGEST_FILE + 1).unwrap();
    let error = PlainGraph::open(&path).unwrap_err();
    assert!(
        error.message.contains("more than protobuf") && error.help.contains("external data"),
        "{error:?}"
    );
}

#[test]
fn external_data_that_end_too_early_are_refused() {
    let place = tempfile::tempdir().unwrap();
    let mut model = model();
    let data = InitializerData::External { location: "w.bin".into(), offset: 8, length: Some(80) };
    model.graph.initializers[4].data = data;
    let path = save(&model, place.path());
    std::fs::write(place.path().join("w.bin"), [0; 87]).unwrap();
    assert!(PlainGraph::open(&path).unwrap_err().message.contains("outside of their file"));
    std::fs::write(place.path().join("w.bin"), [0; 88]).unwrap();
    assert_eq!(PlainGraph::open(&path).unwrap().parameters(), 72 + 1 + 16 + 20 + 5);
}

#[test]
fn constants_are_lifted_and_steps_after_a_convolution_are_folded_into_it() {
    let place = tempfile::tempdir().unwrap();
    let graph = PlainGraph::open(&save(&model(), place.path())).unwrap();
    assert_eq!(graph.inputs()[0].to_string(), "`x` (float32 [?, 2, 8, 8])");
    let draft = Draft::new(&graph).folded();
    let kinds: Vec<&str> = draft.model().graph.nodes.iter().map(|node| node.op_type.as_str()).collect();
    assert_eq!(kinds, ["Conv", "Relu", "GlobalAveragePool", "Flatten", "Gemm"]);
    let conv = &draft.model().graph.nodes[0];
    assert_eq!(conv.outputs, ["n"]);
    let (weight, bias) = (draft.floats("w").unwrap(), draft.floats(&conv.inputs[2]).unwrap());
    for (channel, bias) in bias.iter().enumerate() {
        let (scale, mean, variance) = (1.0 + channel as f32, 0.25 + channel as f32, 1.0 + channel as f32);
        let factor = scale / (variance + 1e-5).sqrt();
        let first = channel * 18;
        assert!((weight[first] - (first as f32 / 36.0 - 1.0) * 0.5 * factor).abs() < 1e-6);
        assert!((bias - (-2.0 + channel as f32 - mean * factor)).abs() < 1e-5);
    }
}

#[test]
fn what_is_written_reads_back_whether_weights_lie_inside_or_beside() {
    let place = tempfile::tempdir().unwrap();
    let mut big = model();
    let many = 64 * 80;
    big.graph.initializers.push(floats(
        "big",
        &[64, 80],
        inline((0..many).map(|i| (i % 200) as f32 - 100.0)),
    ));
    big.graph.nodes.push(node("MatMul", &["z", "big"], "q"));
    big.graph.inputs.push(value("z", &[1, 64]));
    big.graph.outputs.push(value("q", &[1, 80]));
    let graph = PlainGraph::open(&save(&big, place.path())).unwrap();
    let mut drafts = vec![Draft::new(&graph), Draft::new(&graph).halves()];
    drafts.push(Draft::new(&graph).dynamic_int(&Pick::default()).unwrap());
    for draft in drafts {
        let mut found = Vec::new();
        for inside in [u64::MAX, 0] {
            let draft = Draft { inside_most: inside, ..draft.clone() };
            let out = tempfile::tempdir().unwrap();
            let layout = draft.layout("out").unwrap();
            let beside = layout.files.len();
            assert_eq!(beside, usize::from(inside == 0));
            let items = draft.items().unwrap();
            let digest = crate::Recipe::new("test", "0", "s").digest();
            let options = drophammer_quant::pass::Options::default();
            drophammer_quant::pass::forge(out.path(), layout, &items, digest, &options, &Silent).unwrap();
            let again = PlainGraph::open(&out.path().join("out.onnx")).unwrap();
            let tensors = &again.model().graph.initializers;
            found.push(
                tensors
                    .iter()
                    .map(|t| (t.name.clone(), again.bytes(t).unwrap().to_vec()))
                    .collect::<Vec<_>>(),
            );
        }
        assert_eq!(found[0], found[1]);
        assert!(found[0].iter().any(|(name, bytes)| name.starts_with("big") && bytes.len() >= many));
    }
}

struct Silent;

impl drophammer_quant::pass::Progress for Silent {
    fn advanced(&self, _: drophammer_quant::pass::Advance<'_>) {}
    fn cancelled(&self) -> bool {
        false
    }
}

#[test]
fn excluded_operations_stay_as_they_are() {
    use drophammer_models::export::onnx::{Range, Ranges};
    let place = tempfile::tempdir().unwrap();
    let graph = PlainGraph::open(&save(&model(), place.path())).unwrap();
    let ranges: Ranges = ["x", "n", "r", "p", "f", "y"]
        .iter()
        .map(|name| ((*name).to_owned(), Range { low: -1.0, high: 3.0 }))
        .collect();
    let goal = |exclude: &str| drophammer_sdk::Goal {
        options: [("exclude".to_owned(), exclude.into())].into_iter().collect(),
        ..drophammer_sdk::Goal::default()
    };
    let pick = Pick::of(&goal("Gemm"), &graph.model().graph).unwrap();
    let count = |draft: &Draft<'_>, kind: &str| {
        draft.model().graph.nodes.iter().filter(|node| node.op_type == kind).count()
    };
    let whole = Draft::new(&graph).folded().static_int(8, &ranges, &Pick::default(), Reach::Kernels);
    // x, r, p, f, y become codes; n lies between a convolution and its activation.
    assert_eq!(count(&whole, "QuantizeLinear"), 5);
    assert!(
        whole
            .model()
            .graph
            .nodes
            .iter()
            .all(|node| node.op_type != "QuantizeLinear" || node.domain == "com.microsoft")
    );
    let without = Draft::new(&graph).folded().static_int(8, &ranges, &pick, Reach::Kernels);
    assert_eq!(count(&without, "QuantizeLinear"), 4);
    let gemm = without.model().graph.nodes.iter().find(|node| node.op_type == "Gemm").unwrap();
    assert_eq!(gemm.inputs, ["f", "g", "b"]);
    // Its input is decoded once more, under its own name: channel by channel, or ONNX Runtime would round its weights after all.
    let nodes = &without.model().graph.nodes;
    let own = nodes.iter().find(|node| node.op_type == "DequantizeLinear" && node.outputs == ["f"]).unwrap();
    assert_eq!(own.attributes, [("axis".to_owned(), Attribute::Int(1))]);
    for parameter in &own.inputs[1..] {
        assert_eq!(without.constant(parameter).unwrap().shape, [4], "{parameter}");
    }
    let dynamic = Draft::new(&graph).dynamic_int(&pick).unwrap();
    assert_eq!(
        (count(&dynamic, "ConvInteger"), count(&dynamic, "MatMulInteger"), count(&dynamic, "Gemm")),
        (1, 0, 1)
    );
}

#[test]
fn a_portable_graph_has_codes_that_every_processor_multiplies_and_another_tells_whom_it_is_for() {
    let place = tempfile::tempdir().unwrap();
    let graph = PlainGraph::open(&save(&model(), place.path())).unwrap();
    let made = |portable: serde_json::Value| {
        let options = [("portable".to_owned(), portable)].into_iter().collect();
        let goal = drophammer_sdk::Goal { options, ..drophammer_sdk::Goal::default() };
        Draft::new(&graph).for_processors(&goal)?.dynamic_int(&Pick::default())
    };
    let weights = |draft: &Draft<'_>| draft.constant("g/codes").unwrap().element_type;
    let told = |draft: &Draft<'_>| draft.notes.iter().any(|note| note.contains("portable=true"));
    let portable = made(true.into()).unwrap();
    assert_eq!((weights(&portable), told(&portable)), (weight::UINT8, false));
    let own = made(false.into()).unwrap();
    assert_eq!(weights(&own), weight::exact(false).0);
    let fastest_here_alone = cfg!(target_arch = "x86_64") && weights(&own) == weight::INT8;
    assert_eq!(told(&own), fastest_here_alone, "{:?}", own.notes);
    assert!(made("yes".into()).is_err());
}
