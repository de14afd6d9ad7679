//! ONNX graphs: a bounded protobuf reader and a deterministic writer, without generated code.
//!
//! Specification: <https://github.com/onnx/onnx/blob/main/onnx/onnx.proto3>. What graphs that come out of exporters use
//! is kept: nodes, attributes, initializers (inside the file or in external data), inputs and outputs with their
//! types. Training information, sparse initializers and quantization annotations are skipped when reading.

mod model;
mod reader;
mod wire;
mod writer;

pub use model::{
    Attribute, Dimension, ElementType, Graph, Initializer, InitializerData, Model, Node, ValueInfo,
};
pub use reader::{check_external_path, parse};
pub use writer::plan;
