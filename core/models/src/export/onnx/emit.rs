//! The ONNX `Graph`: writes down nodes and initializers.
//!
//! Values are `[batch, time, width]` in float32. Linear layers read matrices as they lie, `[outputs, inputs]`, so that they can be
//! streamed: `FusedMatMul` with its second operand transposed, `MatMulNBits` for blocks.

use std::collections::HashMap;

use drophammer_formats::onnx::{
    Attribute, Dimension, ElementType, Graph as OnnxGraph, Initializer, InitializerData, Model, Node,
    ValueInfo,
};

use super::fixed::{Fixed, Interface};
use super::matrices::{Key, Stored};
use super::qdq::Hints;
use super::scheme::Scheme;
use super::weights::{Alias, Matrix, Part};
use crate::checkpoint::Checkpoint;
use crate::description::{Description, ModelKind};
use crate::error::{Error, Result};
use crate::graph::Scope;
use crate::weight::{Role, WeightId};

/// Operators of ONNX Runtime's own.
pub(super) const MICROSOFT: &str = "com.microsoft";
pub(super) const FLOAT: ElementType = ElementType(1);
pub(super) const UINT8: ElementType = ElementType(2);
pub(super) const INT8: ElementType = ElementType(3);
pub(super) const INT32: ElementType = ElementType(6);
pub(super) const INT64: ElementType = ElementType(7);

/// The name of a value in the graph.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Value(pub(super) String);

/// Cosines and sines of one rotation.
#[derive(Debug, Clone)]
pub(super) struct RopeRows {
    pub(super) cos: String,
    pub(super) sin: String,
}

pub(super) struct Emitter<'a> {
    pub(super) checkpoint: &'a Checkpoint,
    /// The checkpoint's, or a part of it.
    pub(super) description: &'a Description,
    pub(super) scheme: Scheme,
    pub(super) graph: OnnxGraph,
    pub(super) external: Vec<usize>,
    pub(super) matrices: Vec<Matrix>,
    pub(super) aliases: Vec<Alias>,
    pub(super) stored: HashMap<Key, Stored>,
    pub(super) scope: String,
    /// Nodes that make floats of stored codes. They come first and are not counted in names, so that a value is called alike however
    /// weights are stored.
    pub(super) decoders: Vec<Node>,
    /// What the fixed-shape form adds; `None` in the open one.
    pub(super) fixed: Option<Fixed<'a>>,
    pub(super) encoder: bool,
    /// Values made once: shapes, masks, tables of rotations.
    pub(super) once: HashMap<String, String>,
    pub(super) ropes: HashMap<usize, RopeRows>,
    pub(super) shares_buffers: bool,
    pub(super) widths: Vec<u64>,
    /// What the user should know of mixtures of experts.
    pub(super) about_experts: Option<&'static str>,
}

#[derive(Debug)]
pub(super) struct Emitted {
    pub(super) model: Model,
    pub(super) external: Vec<usize>,
    pub(super) matrices: Vec<Matrix>,
    pub(super) aliases: Vec<Alias>,
    pub(super) notes: Vec<String>,
    pub(super) shares_buffers: bool,
    pub(super) interface: Interface,
    pub(super) hints: Hints,
    pub(super) reads: HashMap<(WeightId, Part), String>,
}

impl Emitted {
    /// What a matrix is multiplied with; a tied one is the head's.
    pub(super) fn read_by(&self, matrix: &Matrix) -> Option<&String> {
        let head = (Role::Head.global(), Part::Whole);
        let tied = || self.reads.get(&head).filter(|_| matrix.id == Role::TokenEmbedding.global());
        self.reads.get(&(matrix.id, matrix.part)).or_else(tied)
    }
}

impl<'a> Emitter<'a> {
    pub(super) fn new(checkpoint: &'a Checkpoint, description: &'a Description, scheme: Scheme) -> Self {
        let encoder = description.kind == ModelKind::Encoder;
        let mut graph = OnnxGraph { name: description.family.to_owned(), ..OnnxGraph::default() };
        graph.inputs.push(info("input_ids", INT64, &["batch_size", "sequence_length"]));
        let total = if encoder { "sequence_length" } else { "total_sequence_length" };
        graph.inputs.push(info("attention_mask", INT64, &["batch_size", total]));
        if !encoder {
            graph.inputs.push(info("position_ids", INT64, &["batch_size", "sequence_length"]));
        }
        Self {
            checkpoint,
            description,
            scheme,
            graph,
            external: Vec::new(),
            matrices: Vec::new(),
            aliases: Vec::new(),
            stored: HashMap::new(),
            scope: String::new(),
            decoders: Vec::new(),
            fixed: None,
            encoder,
            once: HashMap::new(),
            ropes: HashMap::new(),
            shares_buffers: !encoder,
            widths: Vec::new(),
            about_experts: None,
        }
    }

    pub(super) fn finish(mut self, output: Value) -> Emitted {
        let description = self.description;
        let (name, width) = match description.head {
            Some(_) => ("logits", description.vocabulary),
            None => ("last_hidden_state", description.hidden),
        };
        let width = width.to_string();
        if let Some(fixed) = &self.fixed {
            // Compilers take the fewest operations: the last one gives the output itself.
            let tokens = fixed.tokens.to_string();
            let made = self.graph.nodes.iter_mut().flat_map(|node| &mut node.outputs);
            made.filter(|made| **made == output.0).for_each(|made| name.clone_into(made));
            self.graph.outputs.insert(0, info(name, FLOAT, &["1", &tokens, &width]));
        } else {
            self.node("Identity", "", &[&output.0], &[name], Vec::new());
            self.graph.outputs.insert(0, info(name, FLOAT, &["batch_size", "sequence_length", &width]));
        }
        self.graph.nodes.splice(0..0, std::mem::take(&mut self.decoders));
        let fixed = self.fixed.take();
        let (interface, hints, reads) =
            fixed.map(|fixed| (fixed.interface, fixed.hints, fixed.reads)).unwrap_or_default();
        let mut notes = Vec::new();
        if !self.widths.is_empty() {
            self.widths.sort_unstable();
            self.widths.dedup();
            notes.push(format!(
                "matrices with rows of {:?} weights are stored in shorter blocks or as float16: blocks must divide a row",
                self.widths
            ));
        }
        notes.extend(self.about_experts.map(str::to_owned));
        let mut metadata = vec![
            ("drophammer.context".to_owned(), description.context.to_string()),
            ("drophammer.vocabulary".to_owned(), description.vocabulary.to_string()),
        ];
        if description.embedding.positions.is_some() {
            // A table of positions ends; computed ones do not.
            metadata.push(("drophammer.most_context".to_owned(), description.context.to_string()));
        }
        let model = Model {
            ir_version: 10,
            producer_name: "drophammer".into(),
            producer_version: env!("CARGO_PKG_VERSION").into(),
            opsets: vec![(String::new(), 23), (MICROSOFT.into(), 1)],
            metadata,
            graph: self.graph,
            functions: 0,
        };
        Emitted {
            model,
            external: self.external,
            matrices: self.matrices,
            aliases: self.aliases,
            notes,
            shares_buffers: self.shares_buffers,
            interface,
            hints,
            reads,
        }
    }

    pub(super) fn enter(&mut self, scope: Scope) {
        self.scope = match scope {
            Scope::Embedding => "/embedding".into(),
            Scope::Attention(layer) => format!("/layers.{layer}/attention"),
            Scope::FeedForward(layer) => format!("/layers.{layer}/feed_forward"),
            Scope::Head => "/head".into(),
        };
    }

    pub(super) fn unsupported(&self, what: &str) -> Error {
        Error::Unsupported {
            family: self.checkpoint.family().name.to_owned(),
            what: format!("{what} in ONNX"),
        }
    }

    /// A node with named outputs.
    pub(super) fn node(
        &mut self,
        op_type: &str,
        domain: &str,
        inputs: &[&str],
        outputs: &[&str],
        attributes: Vec<(&str, Attribute)>,
    ) {
        let name = format!("{}/{op_type}_{}", self.scope, self.graph.nodes.len());
        let owned = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        self.graph.nodes.push(Node {
            name,
            op_type: op_type.to_owned(),
            domain: domain.to_owned(),
            inputs: owned(inputs),
            outputs: owned(outputs),
            attributes: attributes.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
        });
    }

    /// A node of ONNX's own with one output.
    pub(super) fn op(
        &mut self,
        op_type: &str,
        inputs: &[&str],
        attributes: Vec<(&str, Attribute)>,
    ) -> String {
        self.op_of("", op_type, inputs, attributes)
    }

    /// A node of a domain with one output.
    pub(super) fn op_of(
        &mut self,
        domain: &str,
        op_type: &str,
        inputs: &[&str],
        attributes: Vec<(&str, Attribute)>,
    ) -> String {
        let output = format!("{}/{op_type}_{}:0", self.scope, self.graph.nodes.len());
        self.node(op_type, domain, inputs, &[&output], attributes);
        output
    }

    pub(super) fn constant(
        &mut self,
        key: String,
        kind: ElementType,
        shape: &[u64],
        bytes: Vec<u8>,
    ) -> String {
        if let Some(name) = self.once.get(&key) {
            return name.clone();
        }
        let name = format!("const_{}", self.graph.initializers.len());
        let data = InitializerData::Inline(bytes);
        self.graph.initializers.push(Initializer {
            name: name.clone(),
            element_type: kind,
            shape: shape.to_vec(),
            data,
        });
        self.once.insert(key, name.clone());
        name
    }

    /// Integers in a row.
    pub(super) fn ints(&mut self, values: &[i64]) -> String {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.constant(format!("i64{values:?}"), INT64, &[values.len() as u64], bytes)
    }

    /// One integer.
    pub(super) fn int(&mut self, value: i64) -> String {
        self.constant(format!("i64 {value}"), INT64, &[], value.to_le_bytes().to_vec())
    }

    /// One number.
    pub(super) fn number(&mut self, value: f32) -> String {
        self.constant(format!("f32 {}", value.to_bits()), FLOAT, &[], value.to_le_bytes().to_vec())
    }

    /// Numbers of a shape.
    pub(super) fn numbers(&mut self, key: &str, shape: &[u64], values: &[f32]) -> String {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.constant(format!("f32[] {key}"), FLOAT, shape, bytes)
    }

    /// A vector of the checkpoint, or an expert's part of it.
    pub(super) fn vector(&mut self, id: WeightId, expert: Option<(u32, u32)>) -> Result<String> {
        let key = format!("{id} {expert:?}");
        if let Some(name) = self.once.get(&format!("f32[] {key}")) {
            return Ok(name.clone());
        }
        let weight = self.checkpoint.weight(id)?;
        let values = weight.to_vec()?;
        let part = match expert {
            Some((number, count)) => {
                let length = values.len() / count.max(1) as usize;
                values.get(number as usize * length..(number as usize + 1) * length).unwrap_or_default()
            }
            None => &values[..],
        };
        Ok(self.numbers(&key, &[part.len() as u64], part))
    }

    pub(super) fn cast(&mut self, x: &str, kind: ElementType) -> String {
        self.op("Cast", &[x], vec![("to", Attribute::Int(kind.0.into()))])
    }

    pub(super) fn cast_int32(&mut self, x: &str) -> String {
        self.cast(x, INT32)
    }

    /// `x` with its last dimensions cut otherwise: zeros keep batch and time.
    pub(super) fn reshape(&mut self, x: &str, shape: &[i64]) -> String {
        let shape = self.ints(shape);
        self.op("Reshape", &[x, &shape], Vec::new())
    }

    /// A value made once for all layers; it belongs to none.
    pub(super) fn once(&mut self, key: &str, make: impl FnOnce(&mut Self) -> String) -> String {
        if let Some(name) = self.once.get(key) {
            return name.clone();
        }
        let scope = std::mem::replace(&mut self.scope, "/shared".into());
        let name = make(self);
        self.scope = scope;
        self.once.insert(key.to_owned(), name.clone());
        name
    }
}

/// A value's declaration: sizes that are numbers are fixed, all others symbols.
pub(super) fn info(name: &str, kind: ElementType, shape: &[&str]) -> ValueInfo {
    let dimension = |size: &&str| match size.parse() {
        Ok(fixed) => Dimension::Fixed(fixed),
        Err(_) => Dimension::Named((*size).to_owned()),
    };
    ValueInfo {
        name: name.to_owned(),
        element_type: Some(kind),
        shape: Some(shape.iter().map(dimension).collect()),
    }
}
