//! An ONNX model in memory. Initializer data stay where they are: in the file or beside it.

use std::ops::Range;

use serde::Serialize;

use crate::DType;

/// A model: a graph and the operator sets it is written in.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Model {
    /// Version of the intermediate representation.
    pub ir_version: i64,
    /// The tool that wrote it.
    pub producer_name: String,
    /// That tool's version.
    pub producer_version: String,
    /// Operator domain (empty for ONNX's own) and version.
    pub opsets: Vec<(String, i64)>,
    /// Free-form properties.
    pub metadata: Vec<(String, String)>,
    /// The graph.
    pub graph: Graph,
    /// How many functions the file defines; their bodies are not kept.
    pub functions: usize,
}

/// A graph, or the body of a control-flow node.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Graph {
    /// Its name.
    pub name: String,
    /// Operations, in topological order.
    pub nodes: Vec<Node>,
    /// Constant tensors.
    pub initializers: Vec<Initializer>,
    /// What comes in.
    pub inputs: Vec<ValueInfo>,
    /// What goes out.
    pub outputs: Vec<ValueInfo>,
    /// Types of values in between, where they are told.
    pub value_infos: Vec<ValueInfo>,
    /// How many sparse constants the file holds; they are not kept.
    pub sparse: usize,
}

impl Graph {
    /// Takes what lies in the file that was parsed into memory, that of attributes and of graphs inside them too: what is written names
    /// no place in the old file.
    pub fn hold(&mut self, file: &[u8]) {
        self.initializers.iter_mut().for_each(|tensor| tensor.hold(file));
        for (_, value) in self.nodes.iter_mut().flat_map(|node| &mut node.attributes) {
            match value {
                Attribute::Tensor(tensor) => tensor.hold(file),
                Attribute::Graph(inner) => inner.hold(file),
                _ => {}
            }
        }
    }

    /// Every constant tensor: initializers and what `Constant` nodes hold, those of inner graphs left out.
    pub fn constants(&self) -> impl Iterator<Item = &Initializer> {
        let nodes = self.nodes.iter().filter(|node| node.op_type == "Constant" && node.domain.is_empty());
        let held = nodes.flat_map(|node| &node.attributes).filter_map(|(_, value)| match value {
            Attribute::Tensor(tensor) => Some(tensor.as_ref()),
            _ => None,
        });
        self.initializers.iter().chain(held)
    }
}

/// One operation.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Node {
    /// Its name; may be empty.
    pub name: String,
    /// The operator.
    pub op_type: String,
    /// The operator's domain; empty for ONNX's own.
    pub domain: String,
    /// Names of the values it reads; empty for an optional input left out.
    pub inputs: Vec<String>,
    /// Names of the values it makes.
    pub outputs: Vec<String>,
    /// Attributes, in file order.
    pub attributes: Vec<(String, Attribute)>,
}

/// An attribute's value.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[allow(missing_docs)] // the variants are named after the format's own types
pub enum Attribute {
    Float(f32),
    Int(i64),
    String(Vec<u8>),
    Tensor(Box<Initializer>),
    Graph(Box<Graph>),
    Floats(Vec<f32>),
    Ints(Vec<i64>),
    Strings(Vec<Vec<u8>>),
    /// A type that is not kept (sparse tensors, type protos), by its number.
    Other(u64),
}

/// A named value and its type.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct ValueInfo {
    /// Its name.
    pub name: String,
    /// The elements' type; `None` for sequences, maps and untyped values.
    pub element_type: Option<ElementType>,
    /// The shape, outermost first; `None` where not even the rank is known.
    pub shape: Option<Vec<Dimension>>,
}

/// One dimension of a shape.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Dimension {
    /// A fixed size.
    Fixed(i64),
    /// A symbol; empty where the size is simply unknown.
    Named(String),
}

/// A constant tensor.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Initializer {
    /// Its name.
    pub name: String,
    /// The elements' type.
    pub element_type: ElementType,
    /// Dimensions, outermost first.
    pub shape: Vec<u64>,
    /// Where its data are.
    pub data: InitializerData,
}

impl Initializer {
    /// Takes data that lie in the file that was parsed into memory.
    pub fn hold(&mut self, file: &[u8]) {
        if let InitializerData::InFile(range) = &self.data {
            let inside = file.get(range.start as usize..range.end as usize).unwrap_or_default();
            self.data = InitializerData::Inline(inside.to_vec());
        }
    }
}

/// Where an initializer's data are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum InitializerData {
    /// Little-endian bytes at hand; small tensors, and what files store as typed lists.
    Inline(Vec<u8>),
    /// Bytes of the file that was parsed.
    InFile(Range<u64>),
    /// Bytes of another file beside it.
    External {
        /// Its path, relative to the model's directory.
        location: String,
        /// Where the data begin in it.
        offset: u64,
        /// How many bytes there are; `None` for the rest of the file.
        length: Option<u64>,
    },
}

impl Default for InitializerData {
    fn default() -> Self {
        InitializerData::Inline(Vec::new())
    }
}

/// An ONNX element type, by its number in the format.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(transparent)]
pub struct ElementType(pub i32);

/// Number, name, bits of one element, and the storage type of the same meaning.
const ELEMENT_TYPES: &[(i32, &str, u64, Option<DType>)] = &[
    (1, "float32", 32, Some(DType::F32)),
    (2, "uint8", 8, Some(DType::U8)),
    (3, "int8", 8, Some(DType::I8)),
    (4, "uint16", 16, Some(DType::U16)),
    (5, "int16", 16, Some(DType::I16)),
    (6, "int32", 32, Some(DType::I32)),
    (7, "int64", 64, Some(DType::I64)),
    (9, "bool", 8, Some(DType::Bool)),
    (10, "float16", 16, Some(DType::F16)),
    (11, "float64", 64, Some(DType::F64)),
    (12, "uint32", 32, Some(DType::U32)),
    (13, "uint64", 64, Some(DType::U64)),
    (16, "bfloat16", 16, Some(DType::BF16)),
    (17, "float8e4m3fn", 8, Some(DType::F8E4M3)),
    (19, "float8e5m2", 8, Some(DType::F8E5M2)),
    (21, "uint4", 4, None),
    (22, "int4", 4, None),
    (23, "float4e2m1", 4, None),
    (24, "float8e8m0", 8, Some(DType::F8E8M0)),
    (25, "uint2", 2, None),
    (26, "int2", 2, None),
];

impl ElementType {
    /// Two 4-bit unsigned integers to a byte, the first in the low half.
    pub const UINT4: Self = Self(21);
    /// Two 4-bit signed integers to a byte, the first in the low half.
    pub const INT4: Self = Self(22);

    fn row(self) -> Option<&'static (i32, &'static str, u64, Option<DType>)> {
        ELEMENT_TYPES.iter().find(|(number, ..)| *number == self.0)
    }

    /// Its name; `None` for strings, complex numbers and types that are not known.
    pub fn name(self) -> Option<&'static str> {
        self.row().map(|&(_, name, ..)| name)
    }

    /// The storage type of the same meaning; `None` for types of less than eight bits.
    pub fn dtype(self) -> Option<DType> {
        self.row()?.3
    }

    /// The element type of a storage type.
    pub fn from_dtype(dtype: DType) -> Option<Self> {
        ELEMENT_TYPES
            .iter()
            .find(|(.., candidate)| *candidate == Some(dtype))
            .map(|&(number, ..)| Self(number))
    }

    /// Bytes of a tensor of this type and shape; `None` for unknown types and sizes beyond 64 bits.
    pub fn byte_len(self, shape: &[u64]) -> Option<u64> {
        let bits = self.row()?.2;
        let elements = shape.iter().try_fold(1u64, |product, &dimension| product.checked_mul(dimension))?;
        Some(elements.checked_mul(bits)?.div_ceil(8))
    }
}
