//! Matrices of the graph: which initializers hold one, and the nodes that read them.

use drophammer_formats::DType;
use drophammer_formats::onnx::{Attribute, ElementType, Initializer, InitializerData};

use super::emit::{Emitter, FLOAT, INT8, MICROSOFT, UINT8};
use super::fixed::Weights;
use super::scheme::Storage;
use super::weights::{Alias, Matrix, Part, element_type};
use crate::error::Result;
use crate::graph::{Linear, Table};
use crate::weight::{Role, WeightId};

/// What a matrix is stored by: it, which one of a stack, and how (a table and a head may share weights but not their storage).
pub(super) type Key = (WeightId, u32, Storage);

/// A matrix's initializers.
#[derive(Debug, Clone)]
pub(super) struct Stored {
    key: Key,
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

impl Emitter<'_> {
    pub(super) fn external(&mut self, name: String, kind: ElementType, shape: Vec<u64>) -> usize {
        self.external.push(self.graph.initializers.len());
        self.graph.initializers.push(Initializer {
            name,
            element_type: kind,
            shape,
            data: InitializerData::default(),
        });
        self.external.len() - 1
    }

    /// How a matrix is stored.
    fn storage_of(&mut self, id: WeightId, columns: u64, table: bool) -> Storage {
        if let Some(fixed) = &self.fixed {
            let half = fixed.reads.get(&(id, Part::Whole)).is_some_and(|x| fixed.halves.contains(x));
            return if half { Storage::Float(DType::F32) } else { fixed.weights.storage(id.role, table) };
        }
        match id.role {
            // Few rows, looked up or decisive.
            Role::PositionEmbedding | Role::TokenTypeEmbedding | Role::Router | Role::SharedScore => {
                Storage::Float(match self.scheme.storage {
                    Storage::Float(dtype) => dtype,
                    _ => DType::F32,
                })
            }
            _ => {
                let storage = self.scheme.for_columns(columns);
                if storage != self.scheme.storage {
                    self.widths.push(columns);
                }
                let tied = self.description.head.is_some_and(|head| head.tied);
                match storage {
                    // Of a table a token reads one row, and every later number hangs on it. What is a head too is read whole.
                    Storage::Blocks { block, .. } if table && !tied => {
                        Storage::Blocks { bits: 8, block, symmetric: true }
                    }
                    other => other,
                }
            }
        }
    }

    /// A matrix's initializers, declared when it is first met.
    fn matrix(
        &mut self,
        asked: WeightId,
        expert: Option<(u32, u32)>,
        [rows, columns]: [u64; 2],
        table: bool,
    ) -> Result<Stored> {
        let tied = self.description.head.is_some_and(|head| head.tied);
        let id = if tied && asked == Role::Head.global() { Role::TokenEmbedding.global() } else { asked };
        // The open form stores a tied matrix once, as what it is; the fixed one as each use of it needs.
        let role_of = if self.fixed.is_some() { asked } else { id };
        let storage = self.storage_of(role_of, columns, table);
        let key = (id, expert.map_or(0, |(number, _)| number), storage);
        if let Some(stored) = self.stored.get(&key) {
            return Ok(stored.clone());
        }
        let mut name = match expert {
            Some((number, _)) => format!("{}.expert{number}", name_of(id)),
            None => name_of(id),
        };
        let mut outputs = Vec::new();
        let mut range = None;
        let mut stored = Stored {
            key,
            data: String::new(),
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
                outputs.push(self.external(name.clone(), element_type(dtype), vec![rows, columns]));
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
            Storage::Channels { bits } => {
                name = format!("{name}.channels");
                let kind = if bits == 4 { ElementType::INT4 } else { INT8 };
                stored.scales = format!("{name}.scales");
                outputs.push(self.external(name.clone(), kind, vec![rows, columns]));
                outputs.push(self.external(stored.scales.clone(), FLOAT, vec![rows]));
                let zeros = vec![0; (rows * u64::from(bits)).div_ceil(8) as usize];
                stored.points = self.constant(format!("{bits}-bit zeros {rows}"), kind, &[rows], zeros);
            }
            Storage::Even { bits } => {
                name = format!("{name}.rows");
                let assumed = self.fixed.as_ref().and_then(|fixed| fixed.assumed);
                let range_of = assumed.map_or_else(|| self.range_of(id), Ok)?;
                let encoding = range_of.encoding(bits);
                range = Some(encoding);
                outputs.push(self.external(name.clone(), super::qdq::code_type(bits), vec![rows, columns]));
                (stored.scales, stored.points) = self.declare_encoding(&name, encoding);
            }
        }
        stored.data = name;
        stored.place = outputs[0];
        self.matrices.push(Matrix {
            id,
            part: part_of(expert),
            rows,
            columns,
            storage,
            outputs,
            encoding: range,
        });
        self.stored.insert(key, stored.clone());
        Ok(stored)
    }

    /// A stored matrix's numbers as float32.
    fn floats(&mut self, stored: &Stored) -> String {
        if stored.key.2 == Storage::Float(DType::F32) {
            return stored.data.clone();
        }
        if let Some(floats) = &stored.floats {
            return floats.clone();
        }
        let scope = std::mem::replace(&mut self.scope, "/weights".into());
        let floats = match stored.key.2 {
            Storage::Channels { .. } | Storage::Even { .. } => {
                let name = format!("{}/floats", stored.data);
                let inputs = [&*stored.data, &stored.scales, &stored.points];
                let axis = matches!(stored.key.2, Storage::Channels { .. });
                let attributes = if axis { vec![("axis", Attribute::Int(0))] } else { Vec::new() };
                self.decode(&inputs, &name, attributes);
                name
            }
            _ => self.cast(&stored.data, FLOAT),
        };
        self.scope = scope;
        if let Some(kept) = self.stored.get_mut(&stored.key) {
            kept.floats = Some(floats.clone());
        }
        floats
    }

    /// `x · Wᵀ + b`, of one expert of a stack where one is named.
    pub(super) fn product(&mut self, x: &str, linear: &Linear, expert: Option<(u32, u32)>) -> Result<String> {
        let (rows, columns) = (u64::from(linear.outputs), u64::from(linear.inputs));
        if let Some(fixed) = &mut self.fixed {
            fixed.reads.insert((linear.weight, part_of(expert)), x.to_owned());
        }
        let stored = self.matrix(linear.weight, expert, [rows, columns], false)?;
        let bias = linear.bias.map(|bias| self.vector(bias, expert)).transpose()?;
        if let Storage::Blocks { bits, block, .. } = stored.key.2 {
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
            return Ok(self.op_of(MICROSOFT, "MatMulNBits", &inputs, attributes));
        }
        let weight = self.floats(&stored);
        let transposed = vec![("transB", Attribute::Int(1))];
        let y =
            if let Some(tokens) = self.fixed.as_ref().map(|fixed| i64::from(fixed.tokens)) {
                let x = self.reshape(x, &[tokens, linear.inputs.into()]);
                let y = self.op("Gemm", &[&x, &weight], transposed);
                if linear.weight == Role::Head.global() {
                    self.fixed_common(&x);
                }
                if let Some(fixed) = self.fixed.as_mut().filter(|fixed| {
                    fixed.weights != Weights::Floats && matches!(stored.key.2, Storage::Float(_))
                }) {
                    fixed.hints.floats.insert(y.clone());
                }
                self.reshape(&y, &[1, tokens, linear.outputs.into()])
            } else {
                self.op_of(MICROSOFT, "FusedMatMul", &[x, &weight], transposed)
            };
        Ok(match bias {
            Some(bias) => self.op("Add", &[&y, &bias], Vec::new()),
            None => y,
        })
    }

    /// Rows of a table.
    pub(super) fn rows(&mut self, table: &Table, ids: &str) -> Result<String> {
        let stored = self.matrix(table.weight, None, [table.rows.into(), table.width.into()], true)?;
        Ok(match stored.key.2 {
            Storage::Float(dtype) => {
                let rows = self.op("Gather", &[&stored.data, ids], vec![("axis", Attribute::Int(0))]);
                if dtype == DType::F32 { rows } else { self.cast(&rows, FLOAT) }
            }
            Storage::Channels { .. } | Storage::Even { .. } => {
                let floats = self.floats(&stored);
                self.op("Gather", &[&floats, ids], vec![("axis", Attribute::Int(0))])
            }
            Storage::Blocks { bits, block, .. } => {
                let data = self.flat_codes(&stored, bits);
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
        })
    }

    /// The codes as `[rows, bytes]`: the same bytes under another name, since the head reads them by blocks.
    fn flat_codes(&mut self, stored: &Stored, bits: u8) -> String {
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
        if let Some(kept) = self.stored.get_mut(&stored.key) {
            kept.reshaped = Some(name.clone());
        }
        name
    }
}

/// All of a weight, or one of a stack.
fn part_of(expert: Option<(u32, u32)>) -> Part {
    expert.map_or(Part::Whole, |(number, count)| Part::Expert(number, count))
}

/// An initializer's name.
pub(super) fn name_of(id: WeightId) -> String {
    match id.layer {
        Some(layer) => format!("layers.{layer}.{:?}", id.role),
        None => format!("{:?}", id.role),
    }
}
