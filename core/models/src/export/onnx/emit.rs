//! The ONNX `Graph`: writes down nodes and initializers.
//!
//! Values are `[batch, time, width]` in float32. Linear layers read matrices as they lie, `[outputs, inputs]`, so that they can be
//! streamed: `FusedMatMul` with its second operand transposed, `MatMulNBits` for blocks.

use std::collections::HashMap;

use drophammer_formats::DType;
use drophammer_formats::onnx::{
    Attribute, Dimension, ElementType, Graph as OnnxGraph, Initializer, InitializerData, Model, Node,
    ValueInfo,
};

use super::scheme::{Scheme, Storage};
use super::weights::{Alias, Matrix, element_type};
use crate::checkpoint::Checkpoint;
use crate::description::ModelKind;
use crate::error::{Error, Result};
use crate::graph::{Linear, Scope, Table};
use crate::weight::{Role, WeightId};

/// Operators of ONNX Runtime's own.
pub(super) const MICROSOFT: &str = "com.microsoft";
pub(super) const FLOAT: ElementType = ElementType(1);
const UINT8: ElementType = ElementType(2);
const INT32: ElementType = ElementType(6);
pub(super) const INT64: ElementType = ElementType(7);

/// The name of a value in the graph.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Value(pub(super) String);

/// A matrix's initializers.
#[derive(Debug, Clone)]
struct Stored {
    storage: Storage,
    /// Numbers or codes, and its place.
    data: String,
    place: usize,
    scales: String,
    /// Empty without zero points.
    points: String,
    /// The numbers as float32, where a node makes them.
    floats: Option<String>,
    /// Codes under another shape.
    reshaped: Option<String>,
    rows: u64,
    columns: u64,
}

/// Cosines and sines of one rotation.
#[derive(Debug, Clone)]
pub(super) struct RopeRows {
    pub(super) cos: String,
    pub(super) sin: String,
}

pub(super) struct Emitter<'a> {
    pub(super) checkpoint: &'a Checkpoint,
    scheme: Scheme,
    pub(super) graph: OnnxGraph,
    external: Vec<usize>,
    matrices: Vec<Matrix>,
    aliases: Vec<Alias>,
    stored: HashMap<(WeightId, u32), Stored>,
    scope: String,
    pub(super) encoder: bool,
    /// Values made once: shapes, masks, tables of rotations.
    pub(super) once: HashMap<String, String>,
    pub(super) ropes: HashMap<usize, RopeRows>,
    pub(super) shares_buffers: bool,
    widths: Vec<u64>,
}

pub(super) struct Emitted {
    pub(super) model: Model,
    pub(super) external: Vec<usize>,
    pub(super) matrices: Vec<Matrix>,
    pub(super) aliases: Vec<Alias>,
    pub(super) notes: Vec<String>,
    pub(super) shares_buffers: bool,
}

impl<'a> Emitter<'a> {
    pub(super) fn new(checkpoint: &'a Checkpoint, scheme: Scheme) -> Self {
        let encoder = checkpoint.description().kind == ModelKind::Encoder;
        let mut graph =
            OnnxGraph { name: checkpoint.description().family.to_owned(), ..OnnxGraph::default() };
        graph.inputs.push(info("input_ids", INT64, &["batch_size", "sequence_length"]));
        let total = if encoder { "sequence_length" } else { "total_sequence_length" };
        graph.inputs.push(info("attention_mask", INT64, &["batch_size", total]));
        if !encoder {
            graph.inputs.push(info("position_ids", INT64, &["batch_size", "sequence_length"]));
        }
        Self {
            checkpoint,
            scheme,
            graph,
            external: Vec::new(),
            matrices: Vec::new(),
            aliases: Vec::new(),
            stored: HashMap::new(),
            scope: String::new(),
            encoder,
            once: HashMap::new(),
            ropes: HashMap::new(),
            shares_buffers: !encoder,
            widths: Vec::new(),
        }
    }

    pub(super) fn finish(mut self, output: Value) -> Emitted {
        let description = self.checkpoint.description();
        let (name, width) = match description.head {
            Some(_) => ("logits", description.vocabulary),
            None => ("last_hidden_state", description.hidden),
        };
        self.node("Identity", "", &[&output.0], &[name], Vec::new());
        let width = width.to_string();
        self.graph.outputs.insert(0, info(name, FLOAT, &["batch_size", "sequence_length", &width]));
        let mut notes = Vec::new();
        if !self.widths.is_empty() {
            self.widths.sort_unstable();
            self.widths.dedup();
            notes.push(format!(
                "matrices with rows of {:?} weights are stored in shorter blocks or as float16: blocks must divide a row",
                self.widths
            ));
        }
        if description.experts().is_some() {
            notes.push(
                "every expert is computed for every token, and weighted by 0 where it is not chosen".into(),
            );
        }
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

    fn constant(&mut self, key: String, kind: ElementType, shape: &[u64], bytes: Vec<u8>) -> String {
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

    fn external(&mut self, name: String, kind: ElementType, shape: Vec<u64>) -> usize {
        self.external.push(self.graph.initializers.len());
        self.graph.initializers.push(Initializer {
            name,
            element_type: kind,
            shape,
            data: InitializerData::default(),
        });
        self.external.len() - 1
    }

    /// A matrix's initializers, declared when it is first met.
    fn matrix(&mut self, id: WeightId, expert: Option<(u32, u32)>, rows: u64, columns: u64) -> Stored {
        let tied = self.checkpoint.description().head.is_some_and(|head| head.tied);
        let id = if tied && id == Role::Head.global() { Role::TokenEmbedding.global() } else { id };
        let key = (id, expert.map_or(0, |(number, _)| number));
        if let Some(stored) = self.stored.get(&key) {
            return stored.clone();
        }
        let storage = match id.role {
            // Few rows, looked up or decisive.
            Role::PositionEmbedding | Role::TokenTypeEmbedding | Role::Router | Role::SharedScore => {
                Storage::Float(match self.scheme.storage {
                    Storage::Float(dtype) => dtype,
                    Storage::Blocks { .. } => DType::F32,
                })
            }
            _ => {
                let storage = self.scheme.for_columns(columns);
                if storage != self.scheme.storage {
                    self.widths.push(columns);
                }
                storage
            }
        };
        let name = match expert {
            Some((number, _)) => format!("{}.expert{number}", name_of(id)),
            None => name_of(id),
        };
        let mut outputs = Vec::new();
        let mut stored = Stored {
            storage,
            data: name.clone(),
            place: 0,
            scales: String::new(),
            points: String::new(),
            floats: None,
            reshaped: None,
            rows,
            columns,
        };
        match storage {
            Storage::Float(dtype) => {
                outputs.push(self.external(name, element_type(dtype), vec![rows, columns]));
            }
            Storage::Blocks { bits, block, symmetric } => {
                let groups = columns / u64::from(block);
                let bytes = u64::from(block) * u64::from(bits) / 8;
                stored.scales = format!("{name}.scales");
                outputs.push(self.external(name.clone(), UINT8, vec![rows, groups, bytes]));
                outputs.push(self.external(stored.scales.clone(), FLOAT, vec![rows, groups]));
                if !symmetric {
                    stored.points = format!("{name}.zero_points");
                    let bytes = (groups * u64::from(bits)).div_ceil(8);
                    outputs.push(self.external(stored.points.clone(), UINT8, vec![rows, bytes]));
                }
            }
        }
        stored.place = outputs[0];
        self.matrices.push(Matrix { id, expert, rows, columns, storage, outputs });
        self.stored.insert(key, stored.clone());
        stored
    }

    /// A stored matrix's numbers as float32.
    fn floats(&mut self, id: WeightId, expert: Option<(u32, u32)>, stored: &Stored) -> String {
        if stored.storage == Storage::Float(DType::F32) {
            return stored.data.clone();
        }
        if let Some(floats) = &stored.floats {
            return floats.clone();
        }
        let scope = std::mem::replace(&mut self.scope, "/weights".into());
        let floats = self.cast(&stored.data, FLOAT);
        self.scope = scope;
        if let Some(kept) = self.stored.get_mut(&(id, expert.map_or(0, |(number, _)| number))) {
            kept.floats = Some(floats.clone());
        }
        floats
    }

    /// `x · Wᵀ + b`, of one expert of a stack where one is named.
    pub(super) fn product(&mut self, x: &str, linear: &Linear, expert: Option<(u32, u32)>) -> Result<String> {
        let (rows, columns) = (u64::from(linear.outputs), u64::from(linear.inputs));
        let stored = self.matrix(linear.weight, expert, rows, columns);
        let bias = linear.bias.map(|bias| self.vector(bias, expert)).transpose()?;
        match stored.storage {
            Storage::Float(_) => {
                let weight = self.floats(linear.weight, expert, &stored);
                let attributes = vec![("transB", Attribute::Int(1))];
                let y = self.op_of(MICROSOFT, "FusedMatMul", &[x, &weight], attributes);
                Ok(match bias {
                    Some(bias) => self.op("Add", &[&y, &bias], Vec::new()),
                    None => y,
                })
            }
            Storage::Blocks { bits, block, .. } => {
                let int = |value: u64| Attribute::Int(value as i64);
                let attributes = vec![
                    ("K", int(columns)),
                    ("N", int(rows)),
                    ("bits", int(bits.into())),
                    ("block_size", int(block.into())),
                    ("accuracy_level", Attribute::Int(if bits == 2 { 0 } else { 4 })),
                ];
                let mut inputs = vec![x, &stored.data, &stored.scales, &stored.points];
                if let Some(bias) = &bias {
                    inputs.extend(["", bias]);
                } else if stored.points.is_empty() {
                    inputs.pop();
                }
                Ok(self.op_of(MICROSOFT, "MatMulNBits", &inputs, attributes))
            }
        }
    }

    /// Rows of a table.
    pub(super) fn rows(&mut self, table: &Table, ids: &str) -> String {
        let stored = self.matrix(table.weight, None, table.rows.into(), table.width.into());
        match stored.storage {
            Storage::Float(dtype) => {
                let rows = self.op("Gather", &[&stored.data, ids], vec![("axis", Attribute::Int(0))]);
                if dtype == DType::F32 { rows } else { self.cast(&rows, FLOAT) }
            }
            Storage::Blocks { bits, block, .. } => {
                let data = self.flat_codes(table.weight, &stored, bits);
                let mut inputs = vec![data.as_str(), ids, &stored.scales, &stored.points];
                if stored.points.is_empty() {
                    inputs.pop();
                }
                let int = |value: i64| Attribute::Int(value);
                let attributes = vec![
                    ("gather_axis", int(0)),
                    ("quantize_axis", int(1)),
                    ("block_size", int(block.into())),
                    ("bits", int(bits.into())),
                ];
                self.op_of(MICROSOFT, "GatherBlockQuantized", &inputs, attributes)
            }
        }
    }

    /// The codes as `[rows, bytes]`: the same bytes under another name, since the head reads them by blocks.
    fn flat_codes(&mut self, id: WeightId, stored: &Stored, bits: u8) -> String {
        if let Some(name) = &stored.reshaped {
            return name.clone();
        }
        let name = format!("{}.rows", stored.data);
        self.aliases.push(Alias { initializer: self.graph.initializers.len(), of: stored.place });
        self.graph.initializers.push(Initializer {
            name: name.clone(),
            element_type: UINT8,
            shape: vec![stored.rows, stored.columns * u64::from(bits) / 8],
            data: InitializerData::default(),
        });
        if let Some(kept) = self.stored.get_mut(&(id, 0)) {
            kept.reshaped = Some(name.clone());
        }
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

/// An initializer's name.
fn name_of(id: WeightId) -> String {
    match id.layer {
        Some(layer) => format!("layers.{layer}.{:?}", id.role),
        None => format!("{:?}", id.role),
    }
}
