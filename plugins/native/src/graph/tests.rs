use drophammer_formats::onnx::Attribute;

use super::*;

fn floats(shape: &[usize], numbers: &[f32]) -> Tensor {
    Tensor::floats(shape.to_vec(), numbers.to_vec()).unwrap()
}

fn integers(numbers: &[i64]) -> Tensor {
    Tensor::integers(vec![numbers.len()], numbers.to_vec()).unwrap()
}

fn node(op: &str, attributes: &[(&str, Attribute)], inputs: usize, outputs: usize) -> Node {
    Node {
        op_type: op.into(),
        inputs: (0..inputs).map(|place| format!("in {place}")).collect(),
        outputs: (0..outputs).map(|place| format!("out {place}")).collect(),
        attributes: attributes.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect(),
        ..Node::default()
    }
}

fn outputs(op: &str, attributes: &[(&str, Attribute)], operands: &[Tensor], count: usize) -> Vec<Tensor> {
    let node = node(op, attributes, operands.len(), count);
    let values: HashMap<&str, Tensor> =
        node.inputs.iter().map(String::as_str).zip(operands.iter().cloned()).collect();
    let mut pool = Pool::new(2).unwrap();
    outputs_of(&node, &HashMap::new(), &values, &mut pool, Path::chosen()).unwrap()
}

fn near(tensor: &Tensor, expected: &[f32]) {
    let numbers = tensor.as_floats().unwrap();
    assert_eq!(numbers.len(), expected.len(), "{numbers:?}");
    for (x, due) in numbers.iter().zip(expected) {
        assert!((x - due).abs() <= 1e-5 * due.abs().max(1.0), "{numbers:?} instead of {expected:?}");
    }
}

/// An operation, its attributes and operands, and the numbers that are due.
type Case<'a> = (&'a str, Vec<(&'a str, Attribute)>, Vec<Tensor>, &'a [f32]);

/// What an operation makes of some operands. Expected numbers are ONNX's definitions, worked out apart from this code.
#[test]
fn operations_are_as_onnx_defines_them() {
    let x = floats(&[2, 3], &[-1.0, 0.0, 2.0, 0.5, -0.25, 1.0]);
    let int = |value: i64| Attribute::Int(value);
    let last = ("axis", int(-1));
    let tanh = ("approximate", Attribute::String(b"tanh".to_vec()));
    let column = floats(&[2, 1], &[2.0, -4.0]);
    let number = |value: f32| floats(&[], &[value]);
    let cases: Vec<Case<'_>> = vec![
        ("Add", vec![], vec![x.clone(), column.clone()], &[1.0, 2.0, 4.0, -3.5, -4.25, -3.0]),
        (
            "Sub",
            vec![],
            vec![x.clone(), floats(&[3], &[1.0, 2.0, 3.0])],
            &[-2.0, -2.0, -1.0, -0.5, -2.25, -2.0],
        ),
        ("Mul", vec![], vec![x.clone(), number(-2.0)], &[2.0, 0.0, -4.0, -1.0, 0.5, -2.0]),
        ("Div", vec![], vec![x.clone(), column], &[-0.5, 0.0, 1.0, -0.125, 0.0625, -0.25]),
        ("Min", vec![], vec![x.clone(), number(0.25)], &[-1.0, 0.0, 0.25, 0.25, -0.25, 0.25]),
        ("Max", vec![], vec![x.clone(), number(0.25)], &[0.25, 0.25, 2.0, 0.5, 0.25, 1.0]),
        ("Neg", vec![], vec![x.clone()], &[1.0, 0.0, -2.0, -0.5, 0.25, -1.0]),
        ("Relu", vec![], vec![x.clone()], &[0.0, 0.0, 2.0, 0.5, 0.0, 1.0]),
        ("Clip", vec![], vec![x.clone(), number(-0.5), number(0.75)], &[-0.5, 0.0, 0.75, 0.5, -0.25, 0.75]),
        ("Sigmoid", vec![], vec![x.clone()], &[0.268_941, 0.5, 0.880_797, 0.622_459, 0.437_823, 0.731_059]),
        ("Tanh", vec![], vec![x.clone()], &[-0.761_594, 0.0, 0.964_028, 0.462_117, -0.244_919, 0.761_594]),
        ("Gelu", vec![], vec![x.clone()], &[-0.158_655, 0.0, 1.954_5, 0.345_731, -0.100_323, 0.841_345]),
        (
            "Gelu",
            vec![tanh],
            vec![x.clone()],
            &[-0.158_808, 0.0, 1.954_598, 0.345_714, -0.100_325, 0.841_192],
        ),
        (
            "Softmax",
            vec![last.clone()],
            vec![x.clone()],
            &[0.042_010, 0.114_195, 0.843_795, 0.320_401, 0.151_347, 0.528_252],
        ),
        (
            "RMSNormalization",
            vec![("epsilon", Attribute::Float(0.25))],
            vec![x.clone(), floats(&[3], &[1.0, 2.0, -1.0])],
            &[-0.722_315, 0.0, -1.444_63, 0.603_023, -0.603_023, -1.206_045],
        ),
        (
            "LayerNormalization",
            vec![("epsilon", Attribute::Float(0.0)), last.clone()],
            vec![x.clone(), floats(&[3], &[1.0, 1.0, 2.0]), floats(&[3], &[0.0, 1.0, 0.0])],
            &[-1.069_045, 0.732_739, 2.672_612, 0.162_221, -0.297_771, 2.271_1],
        ),
        ("ReduceSum", vec![], vec![x.clone(), integers(&[-1])], &[1.0, 1.25]),
        ("Reshape", vec![], vec![x.clone(), integers(&[3, -1])], &[-1.0, 0.0, 2.0, 0.5, -0.25, 1.0]),
        (
            "Transpose",
            vec![("perm", Attribute::Ints(vec![1, 0]))],
            vec![x.clone()],
            &[-1.0, 0.5, 0.0, -0.25, 2.0, 1.0],
        ),
        (
            "Slice",
            vec![],
            vec![x.clone(), integers(&[-2]), integers(&[i64::MAX]), integers(&[1])],
            &[0.0, 2.0, -0.25, 1.0],
        ),
        (
            "Concat",
            vec![("axis", int(1))],
            vec![x.clone(), floats(&[2, 1], &[7.0, 8.0])],
            &[-1.0, 0.0, 2.0, 7.0, 0.5, -0.25, 1.0, 8.0],
        ),
        (
            "Tile",
            vec![],
            vec![floats(&[1, 2], &[1.0, 2.0]), integers(&[2, 2])],
            &[1.0, 2.0, 1.0, 2.0, 1.0, 2.0, 1.0, 2.0],
        ),
        ("Expand", vec![], vec![floats(&[2, 1], &[1.0, 2.0]), integers(&[2, 2])], &[1.0, 1.0, 2.0, 2.0]),
        (
            "GatherElements",
            vec![last.clone()],
            vec![x.clone(), Tensor::integers(vec![2, 2], vec![2, 0, -2, 1]).unwrap()],
            &[2.0, -1.0, -0.25, -0.25],
        ),
        (
            "ScatterElements",
            vec![last.clone()],
            vec![x.clone(), Tensor::integers(vec![2, 1], vec![1, 2]).unwrap(), floats(&[2, 1], &[9.0, 8.0])],
            &[-1.0, 9.0, 2.0, 0.5, -0.25, 8.0],
        ),
        (
            "Where",
            vec![],
            vec![Tensor::integers(vec![2, 1], vec![1, 0]).unwrap(), x.clone(), number(5.0)],
            &[-1.0, 0.0, 2.0, 5.0, 5.0, 5.0],
        ),
        ("Cast", vec![("to", int(1))], vec![integers(&[3, -1])], &[3.0, -1.0]),
        ("Gemm", vec![("transB", int(1))], vec![x.clone(), floats(&[1, 3], &[1.0, 2.0, 3.0])], &[5.0, 3.0]),
        ("MatMul", vec![], vec![x.clone(), floats(&[3, 1], &[1.0, 2.0, 3.0])], &[5.0, 3.0]),
    ];
    for (op, attributes, operands, expected) in cases {
        let made = outputs(op, &attributes, &operands, 1);
        assert_eq!(made.len(), 1, "{op}");
        near(&made[0], expected);
    }
    let parts = outputs("Split", std::slice::from_ref(&last), &[x.clone(), integers(&[1, 2])], 2);
    assert_eq!([parts[0].shape(), parts[1].shape()], [[2, 1], [2, 2]]);
    near(&parts[1], &[0.0, 2.0, -0.25, 1.0]);
    let top = outputs("TopK", &[last], &[floats(&[1, 4], &[1.0, 3.0, 3.0, 2.0]), integers(&[3])], 2);
    near(&top[0], &[3.0, 3.0, 2.0]);
    assert_eq!(top[1], Tensor::integers(vec![1, 3], vec![1, 2, 3]).unwrap());
    let once = outputs("Unsqueeze", &[], &[x, integers(&[-1, 0])], 1);
    assert_eq!(once[0].shape(), [1, 2, 3, 1]);
}

#[test]
fn products_of_batches_are_the_sums_in_double_precision() {
    let wave = |n: usize, step: f32| (0..n).map(|i| (i as f32 * step).sin()).collect::<Vec<_>>();
    for [batches, rows, depth, columns] in [[1, 1, 1, 1], [3, 5, 7, 17], [2, 13, 33, 40]] {
        let (a, b) = (wave(batches * rows * depth, 0.37), wave(batches * depth * columns, 0.61));
        let operands = [floats(&[batches, rows, depth], &a), floats(&[batches, depth, columns], &b)];
        let made = outputs("MatMul", &[], &operands, 1);
        assert_eq!(made[0].shape(), [batches, rows, columns]);
        let at = |batch: usize, row: usize, column: usize| -> f32 {
            let term = |k: usize| {
                f64::from(a[(batch * rows + row) * depth + k])
                    * f64::from(b[(batch * depth + k) * columns + column])
            };
            (0..depth).map(term).sum::<f64>() as f32
        };
        let expected: Vec<f32> = (0..batches * rows * columns)
            .map(|place| at(place / columns / rows, place / columns % rows, place % columns))
            .collect();
        near(&made[0], &expected);
    }
}

#[test]
fn operands_that_do_not_fit_are_refused_by_name() {
    let x = floats(&[2, 3], &[0.0; 6]);
    let cases = [
        ("Add", vec![x.clone(), floats(&[2], &[0.0; 2])], "[2, 3] with [2]"),
        ("MatMul", vec![x.clone(), x.clone()], "times"),
        ("Erf", vec![x.clone()], "the native engine has no Erf"),
        ("Reshape", vec![x.clone(), integers(&[5])], "as [5]"),
        ("Slice", vec![x.clone(), integers(&[0]), integers(&[1]), integers(&[4])], "dimension 4"),
        ("Softmax", vec![integers(&[1])], "integers where floats are expected"),
        ("Clip", vec![x], "operand 1 is missing"),
    ];
    for (op, operands, told) in cases {
        let node = node(op, &[], operands.len(), 1);
        let values: HashMap<&str, Tensor> =
            node.inputs.iter().map(String::as_str).zip(operands.iter().cloned()).collect();
        let mut pool = Pool::new(1).unwrap();
        let fault = outputs_of(&node, &HashMap::new(), &values, &mut pool, Path::chosen()).unwrap_err();
        assert!(fault.contains(told), "{op}: {fault}");
    }
}
