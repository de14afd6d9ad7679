//! Writing ONNX models, with the weights in external data laid out beforehand.

use super::model::{Attribute, Dimension, Graph, Initializer, InitializerData, Model, Node, ValueInfo};
use super::wire::Writer;
use crate::error::Fault;
use crate::layout::{FilePlan, Layout, Place};

/// External tensors begin at multiples of this, so that runtimes can map them.
const ALIGNMENT: u64 = 4096;

/// Plans `{stem}.onnx` and `{stem}.onnx.data`: the initializers named in `external` go to the data file, at places
/// that [`PlacedFiles`](crate::placed::PlacedFiles) fills; all others keep the data they have inline.
///
/// `external` holds indices into `model.graph.initializers`; the layout's places are in its order.
///
/// # Errors
/// [`Fault::Shape`] for an initializer of unknown size, [`Fault::Unclaimed`] for data that are neither inline nor in
/// `external` (they belong to another file).
pub fn plan(stem: &str, model: &Model, external: &[usize]) -> Result<Layout, Fault> {
    let mut model = model.clone();
    let location = format!("{stem}.onnx.data");
    let mut places = Vec::with_capacity(external.len());
    let mut end = 0u64;
    for &index in external {
        let Some(tensor) = model.graph.initializers.get_mut(index) else {
            return Err(Fault::Unclaimed { begin: index as u64, end: index as u64 });
        };
        let fault = |problem: &str| Fault::Shape {
            tensor: tensor.name.clone(),
            shape: tensor.shape.clone(),
            problem: problem.into(),
        };
        let len =
            tensor.element_type.byte_len(&tensor.shape).ok_or_else(|| fault("its size is not known"))?;
        let offset = end.checked_next_multiple_of(ALIGNMENT).ok_or_else(|| fault("the file is too large"))?;
        end = offset.checked_add(len).ok_or_else(|| fault("the file is too large"))?;
        places.push(Place { file: 0, offset, len });
        tensor.data = InitializerData::External { location: location.clone(), offset, length: Some(len) };
    }
    let files = if external.is_empty() {
        Vec::new()
    } else {
        vec![FilePlan { name: location, header: Vec::new(), len: end }]
    };
    let side_files = vec![(format!("{stem}.onnx"), encode(&model)?)];
    Ok(Layout { files, places, side_files })
}

fn encode(model: &Model) -> Result<Vec<u8>, Fault> {
    let mut out = Writer::default();
    out.int(1, model.ir_version);
    out.string(2, &model.producer_name);
    out.string(3, &model.producer_version);
    let mut graph = Writer::default();
    write_graph(&model.graph, &mut graph)?;
    out.element(7, &graph.bytes);
    for (domain, version) in &model.opsets {
        out.message(8, |out| {
            out.string(1, domain);
            out.int(2, *version);
        });
    }
    for (key, value) in &model.metadata {
        write_property(14, key, value, &mut out);
    }
    Ok(out.bytes)
}

fn write_property(field: u64, key: &str, value: &str, out: &mut Writer) {
    out.message(field, |out| {
        out.string(1, key);
        out.string(2, value);
    });
}

fn write_graph(graph: &Graph, out: &mut Writer) -> Result<(), Fault> {
    for node in &graph.nodes {
        let mut inner = Writer::default();
        write_node(node, &mut inner)?;
        out.element(1, &inner.bytes);
    }
    out.string(2, &graph.name);
    for tensor in &graph.initializers {
        let mut inner = Writer::default();
        write_initializer(tensor, &mut inner)?;
        out.element(5, &inner.bytes);
    }
    for (field, infos) in [(11, &graph.inputs), (12, &graph.outputs), (13, &graph.value_infos)] {
        for info in infos {
            out.message(field, |out| write_value_info(info, out));
        }
    }
    Ok(())
}

fn write_node(node: &Node, out: &mut Writer) -> Result<(), Fault> {
    node.inputs.iter().for_each(|name| out.element(1, name.as_bytes()));
    node.outputs.iter().for_each(|name| out.element(2, name.as_bytes()));
    out.string(3, &node.name);
    out.string(4, &node.op_type);
    for (name, value) in &node.attributes {
        let mut inner = Writer::default();
        inner.string(1, name);
        write_attribute(value, &mut inner)?;
        out.element(5, &inner.bytes);
    }
    out.string(7, &node.domain);
    Ok(())
}

fn write_attribute(value: &Attribute, out: &mut Writer) -> Result<(), Fault> {
    let kind = match value {
        Attribute::Float(value) => {
            out.float(2, *value);
            1
        }
        Attribute::Int(value) => {
            out.int(3, *value);
            2
        }
        Attribute::String(value) => {
            out.element(4, value);
            3
        }
        Attribute::Tensor(tensor) => {
            let mut inner = Writer::default();
            write_initializer(tensor, &mut inner)?;
            out.element(5, &inner.bytes);
            4
        }
        Attribute::Graph(graph) => {
            let mut inner = Writer::default();
            write_graph(graph, &mut inner)?;
            out.element(6, &inner.bytes);
            5
        }
        Attribute::Floats(values) => {
            for value in values {
                out.float(7, *value);
            }
            6
        }
        Attribute::Ints(values) => {
            out.message(8, |out| values.iter().for_each(|value| out.varint(*value as u64)));
            7
        }
        Attribute::Strings(values) => {
            for value in values {
                out.element(9, value);
            }
            8
        }
        Attribute::Other(kind) => {
            let problem = format!("attributes of type {kind} cannot be written");
            return Err(Fault::Metadata { key: "attribute".into(), problem });
        }
    };
    out.int(20, kind);
    Ok(())
}

fn write_value_info(info: &ValueInfo, out: &mut Writer) {
    out.string(1, &info.name);
    let Some(element_type) = info.element_type else { return };
    out.message(2, |out| {
        out.message(1, |out| {
            out.int(1, element_type.0.into());
            let Some(shape) = &info.shape else { return };
            out.message(2, |out| {
                for dimension in shape {
                    out.message(1, |out| match dimension {
                        // A size of zero must be told: left out it would mean unknown.
                        Dimension::Fixed(size) => {
                            out.varint(1 << 3);
                            out.varint(*size as u64);
                        }
                        Dimension::Named(name) => out.string(2, name),
                    });
                }
            });
        });
    });
}

fn write_initializer(tensor: &Initializer, out: &mut Writer) -> Result<(), Fault> {
    if !tensor.shape.is_empty() {
        out.message(1, |out| tensor.shape.iter().for_each(|dimension| out.varint(*dimension)));
    }
    out.int(2, tensor.element_type.0.into());
    out.string(8, &tensor.name);
    match &tensor.data {
        InitializerData::Inline(bytes) => out.element(9, bytes),
        InitializerData::InFile(range) => {
            return Err(Fault::Unclaimed { begin: range.start, end: range.end });
        }
        InitializerData::External { location, offset, length } => {
            write_property(13, "location", location, out);
            write_property(13, "offset", &offset.to_string(), out);
            if let Some(length) = length {
                write_property(13, "length", &length.to_string(), out);
            }
            out.int(14, 1);
        }
    }
    Ok(())
}
