//! Parsing an ONNX file.

use super::model::{
    Attribute, Dimension, ElementType, Graph, Initializer, InitializerData, Model, Node, ValueInfo,
};
use super::wire::{Message, Wire};
use crate::error::Fault;
use crate::tensor::MAX_DIMENSIONS;

/// Graphs inside attributes of nodes inside graphs: deeper than any exporter nests control flow.
const MAX_DEPTH: usize = 16;
/// Nodes, tensors, values and attributes together. In the file two bytes can make one; in memory each takes hundreds.
const MAX_OBJECTS: usize = 1 << 21;

/// Parses a model.
///
/// # Errors
/// Any [`Fault`] of the wire format, of nesting, of counts, or of an initializer whose data do not fit its shape.
pub fn parse(file: &[u8]) -> Result<Model, Fault> {
    let mut parser = Parser { objects: 0 };
    let mut model = Model::default();
    let mut has_graph = false;
    let mut message = Message::new(file, 0);
    while let Some((number, wire)) = message.field()? {
        match (number, wire) {
            (1, Wire::Varint(version)) => model.ir_version = version as i64,
            (2, wire) => model.producer_name = text(wire, "the producer's name")?,
            (3, wire) => model.producer_version = text(wire, "the producer's version")?,
            (7, Wire::Bytes(bytes, at)) => {
                model.graph = parser.graph(Message::new(bytes, at), 0)?;
                has_graph = true;
            }
            (8, Wire::Bytes(bytes, at)) => {
                let opset = parser.opset(Message::new(bytes, at))?;
                model.opsets.push(opset);
            }
            (14, Wire::Bytes(bytes, at)) => {
                let property = parser.property(Message::new(bytes, at))?;
                model.metadata.push(property);
            }
            (25, Wire::Bytes(..)) => model.functions += 1,
            _ => {}
        }
    }
    if !has_graph {
        return Err(Fault::Magic { found: "no ONNX model: it holds no graph".into() });
    }
    Ok(model)
}

/// Refuses a path of external data that could leave the model's directory.
///
/// # Errors
/// [`Fault::UnsafePath`].
pub fn check_external_path(location: &str) -> Result<(), Fault> {
    let plain = |part: &str| !part.is_empty() && part != "." && part != "..";
    if location.split('/').all(plain) && !location.contains(['\\', ':', '\0']) {
        return Ok(());
    }
    Err(Fault::UnsafePath { what: "an initializer", name: location.to_owned() })
}

fn text(wire: Wire<'_>, what: &'static str) -> Result<String, Fault> {
    match wire {
        Wire::Bytes(bytes, offset) => {
            std::str::from_utf8(bytes).map(str::to_owned).map_err(|_| Fault::Utf8 { what, offset })
        }
        _ => Ok(String::new()),
    }
}

/// Numbers of a repeated field, one or packed.
fn varints(wire: Wire<'_>, out: &mut Vec<u64>) -> Result<(), Fault> {
    match wire {
        Wire::Varint(value) => out.push(value),
        Wire::Bytes(bytes, at) => {
            let mut packed = Message::new(bytes, at);
            while !packed.is_at_end() {
                out.push(packed.varint()?);
            }
        }
        Wire::Fixed32(_) | Wire::Fixed64(_) => {}
    }
    Ok(())
}

/// Fixed-width numbers of a repeated field, one or packed, as their little-endian bytes.
fn fixed(wire: Wire<'_>, out: &mut Vec<u8>) {
    match wire {
        Wire::Fixed32(bytes) => out.extend(bytes),
        Wire::Fixed64(bytes) => out.extend(bytes),
        Wire::Bytes(bytes, _) => out.extend(bytes),
        Wire::Varint(_) => {}
    }
}

struct Parser {
    objects: usize,
}

impl Parser {
    fn count(&mut self, message: &Message<'_>) -> Result<(), Fault> {
        self.objects += 1;
        if self.objects > MAX_OBJECTS {
            let (count, possible) = (self.objects as u64, MAX_OBJECTS as u64);
            return Err(Fault::Count { what: "graph objects", count, possible, offset: message.offset() });
        }
        Ok(())
    }

    fn opset(&mut self, mut message: Message<'_>) -> Result<(String, i64), Fault> {
        self.count(&message)?;
        let mut opset = (String::new(), 0);
        while let Some((number, wire)) = message.field()? {
            match (number, wire) {
                (1, wire) => opset.0 = text(wire, "an operator domain")?,
                (2, Wire::Varint(version)) => opset.1 = version as i64,
                _ => {}
            }
        }
        Ok(opset)
    }

    fn property(&mut self, mut message: Message<'_>) -> Result<(String, String), Fault> {
        self.count(&message)?;
        let mut property = (String::new(), String::new());
        while let Some((number, wire)) = message.field()? {
            match number {
                1 => property.0 = text(wire, "a property's key")?,
                2 => property.1 = text(wire, "a property's value")?,
                _ => {}
            }
        }
        Ok(property)
    }

    fn graph(&mut self, mut message: Message<'_>, depth: usize) -> Result<Graph, Fault> {
        self.count(&message)?;
        if depth >= MAX_DEPTH {
            return Err(Fault::Nesting { what: "a graph", limit: MAX_DEPTH, offset: message.offset() });
        }
        let mut graph = Graph::default();
        while let Some((number, wire)) = message.field()? {
            match (number, wire) {
                (1, Wire::Bytes(bytes, at)) => graph.nodes.push(self.node(Message::new(bytes, at), depth)?),
                (2, wire) => graph.name = text(wire, "a graph's name")?,
                (5, Wire::Bytes(bytes, at)) => {
                    graph.initializers.push(self.initializer(Message::new(bytes, at))?);
                }
                (11, Wire::Bytes(bytes, at)) => graph.inputs.push(self.value_info(Message::new(bytes, at))?),
                (12, Wire::Bytes(bytes, at)) => graph.outputs.push(self.value_info(Message::new(bytes, at))?),
                (13, Wire::Bytes(bytes, at)) => {
                    graph.value_infos.push(self.value_info(Message::new(bytes, at))?);
                }
                (15, Wire::Bytes(..)) => graph.sparse += 1,
                _ => {}
            }
        }
        Ok(graph)
    }

    fn node(&mut self, mut message: Message<'_>, depth: usize) -> Result<Node, Fault> {
        self.count(&message)?;
        let mut node = Node::default();
        while let Some((number, wire)) = message.field()? {
            match (number, wire) {
                (1, wire) => {
                    self.count(&message)?;
                    node.inputs.push(text(wire, "a node's input")?);
                }
                (2, wire) => {
                    self.count(&message)?;
                    node.outputs.push(text(wire, "a node's output")?);
                }
                (3, wire) => node.name = text(wire, "a node's name")?,
                (4, wire) => node.op_type = text(wire, "a node's operator")?,
                (5, Wire::Bytes(bytes, at)) => {
                    node.attributes.push(self.attribute(Message::new(bytes, at), depth)?);
                }
                (7, wire) => node.domain = text(wire, "a node's domain")?,
                _ => {}
            }
        }
        Ok(node)
    }

    fn attribute(&mut self, mut message: Message<'_>, depth: usize) -> Result<(String, Attribute), Fault> {
        self.count(&message)?;
        let mut name = String::new();
        let mut kind = 0;
        let mut value = None;
        let (mut float, mut int, mut bytes_value) = (0.0, 0, Vec::new());
        let (mut floats, mut ints, mut strings) = (Vec::new(), Vec::new(), Vec::new());
        while let Some((number, wire)) = message.field()? {
            match (number, wire) {
                (1, wire) => name = text(wire, "an attribute's name")?,
                (2, Wire::Fixed32(bytes)) => float = f32::from_le_bytes(bytes),
                (3, Wire::Varint(number)) => int = number as i64,
                (4, Wire::Bytes(bytes, _)) => bytes_value = bytes.to_vec(),
                (5, Wire::Bytes(bytes, at)) => {
                    value = Some(Attribute::Tensor(Box::new(self.initializer(Message::new(bytes, at))?)));
                }
                (6, Wire::Bytes(bytes, at)) => {
                    value = Some(Attribute::Graph(Box::new(self.graph(Message::new(bytes, at), depth + 1)?)));
                }
                (7, wire) => fixed(wire, &mut floats),
                (8, wire) => varints(wire, &mut ints)?,
                (9, Wire::Bytes(bytes, _)) => {
                    self.count(&message)?;
                    strings.push(bytes.to_vec());
                }
                (20, Wire::Varint(number)) => kind = number,
                _ => {}
            }
        }
        let value = match (kind, value) {
            (1, _) => Attribute::Float(float),
            (2, _) => Attribute::Int(int),
            (3, _) => Attribute::String(bytes_value),
            (4 | 5, Some(value)) => value,
            (6, _) => {
                let (chunks, _) = floats.as_chunks::<4>();
                Attribute::Floats(chunks.iter().map(|&chunk| f32::from_le_bytes(chunk)).collect())
            }
            (7, _) => Attribute::Ints(ints.into_iter().map(|number| number as i64).collect()),
            (8, _) => Attribute::Strings(strings),
            (other, _) => Attribute::Other(other),
        };
        Ok((name, value))
    }

    fn value_info(&mut self, mut message: Message<'_>) -> Result<ValueInfo, Fault> {
        self.count(&message)?;
        let mut info = ValueInfo::default();
        while let Some((number, wire)) = message.field()? {
            match (number, wire) {
                (1, wire) => info.name = text(wire, "a value's name")?,
                (2, Wire::Bytes(bytes, at)) => {
                    let mut kinds = Message::new(bytes, at);
                    while let Some((number, wire)) = kinds.field()? {
                        if let (1, Wire::Bytes(bytes, at)) = (number, wire) {
                            self.tensor_type(Message::new(bytes, at), &mut info)?;
                        }
                    }
                }
                _ => {}
            }
        }
        Ok(info)
    }

    fn tensor_type(&mut self, mut message: Message<'_>, info: &mut ValueInfo) -> Result<(), Fault> {
        while let Some((number, wire)) = message.field()? {
            match (number, wire) {
                (1, Wire::Varint(kind)) => info.element_type = Some(ElementType(kind as i32)),
                (2, Wire::Bytes(bytes, at)) => {
                    let mut shape = Vec::new();
                    let mut dimensions = Message::new(bytes, at);
                    while let Some((number, wire)) = dimensions.field()? {
                        if let (1, Wire::Bytes(bytes, at)) = (number, wire) {
                            self.count(&dimensions)?;
                            shape.push(dimension(Message::new(bytes, at))?);
                        }
                    }
                    info.shape = Some(shape);
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn initializer(&mut self, mut message: Message<'_>) -> Result<Initializer, Fault> {
        self.count(&message)?;
        let mut tensor = Initializer::default();
        let mut shape = Vec::new();
        let (mut raw, mut words, mut numbers) = (None, Vec::new(), Vec::new());
        let mut external = Vec::new();
        let mut is_external = false;
        while let Some((number, wire)) = message.field()? {
            match (number, wire) {
                (1, wire) => varints(wire, &mut shape)?,
                (2, Wire::Varint(kind)) => tensor.element_type = ElementType(kind as i32),
                (4 | 10, wire) => fixed(wire, &mut words),
                (5 | 7 | 11, wire) => varints(wire, &mut numbers)?,
                (8, wire) => tensor.name = text(wire, "an initializer's name")?,
                (9, Wire::Bytes(bytes, at)) => raw = Some(at..at + bytes.len() as u64),
                (13, Wire::Bytes(bytes, at)) => external.push(self.property(Message::new(bytes, at))?),
                (14, Wire::Varint(location)) => is_external = location == 1,
                _ => {}
            }
        }
        if shape.len() > MAX_DIMENSIONS {
            let problem = format!("{} dimensions, more than {MAX_DIMENSIONS}", shape.len());
            return Err(Fault::Shape { tensor: tensor.name, shape: Vec::new(), problem });
        }
        tensor.shape = shape;
        tensor.data = if is_external {
            external_data(&tensor.name, &external)?
        } else if let Some(range) = raw {
            InitializerData::InFile(range)
        } else if numbers.is_empty() {
            InitializerData::Inline(words)
        } else {
            InitializerData::Inline(narrow(&numbers, tensor.element_type))
        };
        check_len(&tensor)?;
        Ok(tensor)
    }
}

fn dimension(mut message: Message<'_>) -> Result<Dimension, Fault> {
    let mut dimension = Dimension::Named(String::new());
    while let Some((number, wire)) = message.field()? {
        match (number, wire) {
            (1, Wire::Varint(size)) => dimension = Dimension::Fixed(size as i64),
            (2, wire) => dimension = Dimension::Named(text(wire, "a dimension's name")?),
            _ => {}
        }
    }
    Ok(dimension)
}

fn external_data(tensor: &str, entries: &[(String, String)]) -> Result<InitializerData, Fault> {
    let get = |key: &str| entries.iter().find(|(candidate, _)| candidate == key).map(|(_, value)| value);
    let number = |key: &str| {
        get(key).map(|value| value.parse::<u64>()).transpose().map_err(|_| Fault::Metadata {
            key: key.to_owned(),
            problem: format!("of the external data of `{tensor}` is no number"),
        })
    };
    let location = get("location").cloned().unwrap_or_default();
    check_external_path(&location)?;
    Ok(InitializerData::External {
        location,
        offset: number("offset")?.unwrap_or(0),
        length: number("length")?,
    })
}

/// Typed lists store narrow numbers as varints: back to the bytes the type has.
fn narrow(numbers: &[u64], element_type: ElementType) -> Vec<u8> {
    let width = element_type.byte_len(&[1]).unwrap_or(8) as usize;
    numbers.iter().flat_map(|number| number.to_le_bytes().into_iter().take(width)).collect()
}

/// Data inside the file are as long as type and shape say; external data are checked when they are opened.
fn check_len(tensor: &Initializer) -> Result<(), Fault> {
    let len = match &tensor.data {
        InitializerData::Inline(bytes) => bytes.len() as u64,
        InitializerData::InFile(range) => range.end - range.start,
        InitializerData::External { .. } => return Ok(()),
    };
    // Types without a fixed width (strings) and those of future versions are not judged, nor lists of less than a
    // byte per number, which exporters pack in two ways.
    let Some(name) = tensor.element_type.name().filter(|_| tensor.element_type.dtype().is_some()) else {
        return Ok(());
    };
    match tensor.element_type.byte_len(&tensor.shape) {
        Some(expected) if expected == len => Ok(()),
        expected => {
            let expected =
                expected.map_or_else(|| "more than 64 bits can count".to_owned(), |e| e.to_string());
            let problem = format!("{name} of this shape takes {expected} bytes, the file gives {len}");
            Err(Fault::Shape { tensor: tensor.name.clone(), shape: tensor.shape.clone(), problem })
        }
    }
}
