//! The form of fixed shapes, as compilers for accelerators want it: so many tokens at a time after so many places of cache.
//!
//! What depends on positions comes from outside: cosines and sines of each rotation, and what is added to scores so that only what may
//! be seen counts. Keys and values of the past come in as `past.{layer}.key` and `.value`, `[1, heads, past, width]`; those of the
//! step's own tokens go out as `present.{layer}.…`, and whoever runs the graph puts them where they belong. Values are `[1, tokens,
//! width]`; matrices lie as `[outputs, inputs]` like in the open form. An encoder has no past: its tokens see each other, and all are of
//! the first type.

use std::collections::{BTreeSet, HashMap};

use drophammer_formats::DType;
use drophammer_formats::onnx::{Attribute, Node};
use serde::{Deserialize, Serialize};

use super::emit::{Emitter, FLOAT, INT32, Value, info};
use super::qdq::{Encoding, Hints, Range};
use super::scheme::Storage;
use super::weights::Part;
use crate::error::Result;
use crate::graph::{AttentionSpec, Index, RopeSpec, Table};
use crate::rope::RopeLayout;
use crate::weight::{Role, WeightId};

/// Weights read at a time while a table's range is looked for.
const SCANNED: u64 = 1 << 20;

/// How a fixed graph's matrices are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weights {
    /// As float32; an accelerator makes of it what it computes in.
    Floats,
    /// As whole numbers with a scale for each row.
    Whole {
        /// Bits of a weight: 4 or 8.
        bits: u8,
        /// Bits of an activation: 8 or 16; tables are stored like activations.
        activations: u8,
    },
}

impl Weights {
    /// Whether a matrix is rounded, so that its later columns make up for what earlier ones lose.
    pub(super) fn rounds(self, role: Role) -> bool {
        matches!(self.storage(role, false), Storage::Channels { .. })
    }

    /// Four bits are too few for what every later number hangs on: the head, values, the way back into the residual stream, and which
    /// experts are chosen.
    pub(super) fn storage(self, role: Role, table: bool) -> Storage {
        match self {
            Weights::Floats => Storage::Float(DType::F32),
            Weights::Whole { activations, .. } if table => Storage::Even { bits: activations },
            Weights::Whole { bits, .. } => {
                let decisive = matches!(
                    role,
                    Role::Head
                        | Role::TokenEmbedding
                        | Role::Value
                        | Role::Down
                        | Role::ExpertDown
                        | Role::Router
                        | Role::SharedScore
                );
                Storage::Channels { bits: if decisive { 8 } else { bits } }
            }
        }
    }
}

/// What a fixed graph takes besides tokens and caches, so that whoever runs it can make it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Interface {
    /// One pair of inputs for each way heads are rotated.
    pub rotations: Vec<Rotation>,
    /// One input for each width of view.
    pub masks: Vec<Mask>,
    /// The caches, in order.
    pub caches: Vec<Cache>,
    /// What is added to positions that `positions` gives; `None` where the graph takes none.
    pub positions: Option<u32>,
    /// Whether tokens see each other on both sides, and nothing is kept.
    pub encoder: bool,
    /// Whether there is an output [`COMMON`], `[tokens, 1]`: to be added to all logits of its token.
    #[serde(default)]
    pub common: bool,
}

/// The output with what all logits of a token have in common.
pub const COMMON: &str = "common";

/// Names of values that stay floats where activations have 16 bits: numbers so far below the largest that half precision is the finer
/// one.
pub type Halves = BTreeSet<String>;

/// Inputs `cosines.{n}` and `sines.{n}`, `[1, tokens, 1, width]`: 1 and 0 where nothing turns.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Rotation {
    /// Which of the model's.
    pub rope: usize,
    /// Width of a head.
    pub width: u32,
    /// Where in it the rotated numbers begin.
    pub start: u32,
    /// Whether partners lie side by side instead of half a head apart.
    pub pairs: bool,
    /// Radians per position for each pair.
    pub frequencies: Vec<f32>,
    /// Multiplies cosines and sines.
    pub magnitude: f32,
}

impl Rotation {
    /// Cosines and sines of one position, for a whole head.
    pub fn row(&self, position: u32, cosines: &mut [f32], sines: &mut [f32]) {
        cosines.fill(1.0);
        sines.fill(0.0);
        let half = self.frequencies.len();
        for (pair, frequency) in self.frequencies.iter().enumerate() {
            let (sin, cos) = (f64::from(position) * f64::from(*frequency)).sin_cos();
            for place in self.places(pair, half) {
                if let (Some(c), Some(s)) = (cosines.get_mut(place), sines.get_mut(place)) {
                    (*c, *s) = (cos as f32 * self.magnitude, sin as f32 * self.magnitude);
                }
            }
        }
    }

    /// Where a pair's two numbers lie in a head.
    fn places(&self, pair: usize, half: usize) -> [usize; 2] {
        let start = self.start as usize;
        if self.pairs {
            [start + 2 * pair, start + 2 * pair + 1]
        } else {
            [start + pair, start + pair + half]
        }
    }

    /// The matrix that brings every number's partner to its place, with its sign: `x · M`.
    fn partners(&self) -> Vec<f32> {
        let (width, half) = (self.width as usize, self.frequencies.len());
        let mut matrix = vec![0.0; width * width];
        for pair in 0..half {
            let [first, second] = self.places(pair, half);
            matrix[second * width + first] = -1.0;
            matrix[first * width + second] = 1.0;
        }
        matrix
    }
}

/// An input that is added to scores: 0 where a token sees another, a number far below all scores elsewhere. `[1, 1, tokens, past + tokens]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mask {
    /// The input's name.
    pub name: String,
    /// How many positions a token sees, itself included; `None` for all. In an encoder half of them lie before it, half behind.
    pub window: Option<u32>,
}

/// A layer's cache.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cache {
    /// Which layer's.
    pub layer: u32,
    /// Heads of keys and values.
    pub heads: u32,
    /// Width of a key.
    pub key_width: u32,
    /// Width of a value.
    pub value_width: u32,
}

/// The form and what was emitted of it so far.
#[derive(Debug)]
pub(super) struct Fixed<'a> {
    pub(super) tokens: u32,
    pub(super) past: u32,
    pub(super) weights: Weights,
    /// The range of every table, where nobody shall look at them.
    pub(super) assumed: Option<Range>,
    pub(super) halves: &'a Halves,
    pub(super) interface: Interface,
    /// What becomes of values when activations are whole numbers.
    pub(super) hints: Hints,
    /// What matrices are multiplied with.
    pub(super) reads: HashMap<(WeightId, Part), String>,
}

impl<'a> Fixed<'a> {
    pub(super) fn new(tokens: u32, past: u32, weights: Weights, halves: &'a Halves) -> Self {
        let (interface, mut hints, reads): (_, Hints, _) = Default::default();
        hints.floats.extend(halves.iter().cloned());
        Self { tokens, past, weights, assumed: None, halves, interface, hints, reads }
    }
}

fn int(value: impl Into<i64>) -> Attribute {
    Attribute::Int(value.into())
}

impl<'a> Emitter<'a> {
    /// Turns a fresh emitter into one of the fixed form.
    pub(super) fn fix(mut self, mut fixed: Fixed<'a>) -> Self {
        fixed.interface.encoder = self.encoder;
        self.graph.inputs = vec![info("input_ids", INT32, &["1", &fixed.tokens.to_string()])];
        self.shares_buffers = false;
        self.fixed = Some(fixed);
        self
    }

    fn sizes(&self) -> [i64; 2] {
        self.fixed.as_ref().map_or([0; 2], |fixed| [fixed.tokens.into(), fixed.past.into()])
    }

    fn input(&mut self, name: &str, shape: [i64; 4]) {
        let shape = shape.map(|size| size.to_string());
        let shape: Vec<&str> = shape.iter().map(String::as_str).collect();
        self.graph.inputs.push(info(name, FLOAT, &shape));
    }

    /// The range of all numbers of a table.
    pub(super) fn range_of(&self, id: WeightId) -> Result<Range> {
        let weight = self.checkpoint.weight(id)?;
        let (rows, columns) = (weight.rows(), weight.columns());
        let at_once = (SCANNED / columns.max(1)).max(1);
        let mut range = Range { low: 0.0, high: 0.0 };
        let mut first = 0;
        while first < rows {
            let last = (first + at_once).min(rows);
            let mut values = vec![0.0; ((last - first) * columns) as usize];
            weight.read(first..last, &mut values)?;
            range = range.with(Range::of(&values));
            weight.release_rows(first..last);
            first = last;
        }
        Ok(range)
    }

    /// Scale and zero point of an encoding; gives their names.
    pub(super) fn declare_encoding(&mut self, name: &str, encoding: Encoding) -> (String, String) {
        let [scale, zero] = encoding.parameters(name);
        let names = (scale.name.clone(), zero.name.clone());
        self.graph.initializers.extend([scale, zero]);
        names
    }

    /// A node that makes floats of stored codes.
    pub(super) fn decode(&mut self, inputs: &[&str; 3], output: &str, attributes: Vec<(&str, Attribute)>) {
        self.decoders.push(Node {
            name: output.to_owned(),
            op_type: "DequantizeLinear".into(),
            domain: String::new(),
            inputs: inputs.iter().map(|&name| name.to_owned()).collect(),
            outputs: vec![output.to_owned()],
            attributes: attributes.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
        });
    }

    pub(super) fn fixed_embedding(&mut self, table: &Table, index: Index) -> Result<Value> {
        let [tokens, _] = self.sizes();
        let ids = match index {
            Index::Tokens => "input_ids",
            Index::Positions { offset } => {
                let fresh =
                    self.fixed.as_mut().is_some_and(|f| f.interface.positions.replace(offset).is_none());
                if fresh {
                    self.graph.inputs.push(info("positions", INT32, &["1", &tokens.to_string()]));
                }
                "positions"
            }
            Index::TokenTypes => return self.first_row(table),
        };
        Ok(Value(self.rows(table, ids)?))
    }

    /// The first row of a table: every token's, where all are of one type.
    fn first_row(&mut self, table: &Table) -> Result<Value> {
        let mut row = vec![0.0; table.width as usize];
        self.checkpoint.weight(table.weight)?.read(0..1, &mut row)?;
        Ok(Value(self.numbers(&format!("first row of {}", table.weight), &[table.width.into()], &row)))
    }

    /// The inputs of a rotation, declared when it is first met; and what it is.
    fn rotation(&mut self, spec: &RopeSpec<'_>) -> (usize, Rotation) {
        let rotations = self.fixed.as_ref().map(|fixed| &fixed.interface.rotations);
        let same = |other: &Rotation| {
            (other.rope, other.width, other.start) == (spec.index, spec.head_width, spec.start)
        };
        if let Some((number, known)) =
            rotations.and_then(|all| all.iter().enumerate().find(|(_, other)| same(other)))
        {
            return (number, known.clone());
        }
        // Sequences are no longer than the graph holds: a longer one's table is never asked for.
        let [tokens, past] = self.sizes();
        let table = spec.rope.table((tokens + past) as u32);
        let rotation = Rotation {
            rope: spec.index,
            width: spec.head_width,
            start: spec.start,
            pairs: spec.rope.layout == RopeLayout::Pairs,
            frequencies: table.frequencies,
            magnitude: table.magnitude,
        };
        let number = rotations.map_or(0, Vec::len);
        for name in [format!("cosines.{number}"), format!("sines.{number}")] {
            self.input(&name, [1, tokens, 1, spec.head_width.into()]);
        }
        if let Some(fixed) = &mut self.fixed {
            fixed.interface.rotations.push(rotation.clone());
        }
        (number, rotation)
    }

    pub(super) fn fixed_rope(&mut self, x: &Value, spec: &RopeSpec<'_>) -> Value {
        let (number, rotation) = self.rotation(spec);
        let [tokens, _] = self.sizes();
        let (heads, width) = (i64::from(spec.heads), i64::from(spec.head_width));
        let cut = self.reshape(&x.0, &[1, tokens, heads, width]);
        let whole = rotation.start == 0 && rotation.frequencies.len() as i64 * 2 == width;
        let partners = if whole && !rotation.pairs {
            let (zero, half, end, axis) =
                (self.ints(&[0]), self.ints(&[width / 2]), self.ints(&[width]), self.ints(&[3]));
            let low = self.op("Slice", &[&cut, &zero, &half, &axis], Vec::new());
            let high = self.op("Slice", &[&cut, &half, &end, &axis], Vec::new());
            let high = self.op("Neg", &[&high], Vec::new());
            self.op("Concat", &[&high, &low], vec![("axis", int(3))])
        } else {
            let size = spec.head_width.into();
            let matrix = self.numbers(&format!("partners {number}"), &[size, size], &rotation.partners());
            let flat = self.reshape(&cut, &[1, tokens * heads, width]);
            let brought = self.op("MatMul", &[&flat, &matrix], Vec::new());
            self.reshape(&brought, &[1, tokens, heads, width])
        };
        let kept = self.op("Mul", &[&cut, &format!("cosines.{number}")], Vec::new());
        let turned = self.op("Mul", &[&partners, &format!("sines.{number}")], Vec::new());
        let sum = self.op("Add", &[&kept, &turned], Vec::new());
        Value(self.reshape(&sum, &[1, tokens, heads * width]))
    }

    /// What was taken from all logits of these hidden states, `[tokens, inputs]`, is another output.
    pub(super) fn fixed_common(&mut self, x: &str) {
        let checkpoint = self.checkpoint;
        let (Some(common), Some(head)) = (checkpoint.common(), checkpoint.description().head) else { return };
        let row: Vec<f32> = common.iter().map(|x| x * head.scale).collect();
        let row = self.numbers(COMMON, &[1, row.len() as u64], &row);
        self.node("Gemm", "", &[x, &row], &[COMMON], vec![("transB", int(1))]);
        let [tokens, _] = self.sizes();
        self.graph.outputs.push(info(COMMON, FLOAT, &[&tokens.to_string(), "1"]));
        if let Some(fixed) = &mut self.fixed {
            fixed.interface.common = true;
        }
    }

    fn fixed_mask(&mut self, window: Option<u32>) -> String {
        let name = window.map_or_else(|| "mask".to_owned(), |window| format!("mask.{window}"));
        let mask = Mask { name: name.clone(), window };
        let known = self.fixed.as_ref().is_some_and(|fixed| fixed.interface.masks.contains(&mask));
        if !known {
            let [tokens, past] = self.sizes();
            self.input(&name, [1, 1, tokens, past + tokens]);
            if let Some(fixed) = &mut self.fixed {
                fixed.interface.masks.push(mask);
            }
        }
        name
    }

    /// `[1, heads, tokens, width]` under this name, from heads side by side.
    fn heads(&mut self, x: &str, heads: u32, width: u32, name: Option<String>) -> String {
        let [tokens, _] = self.sizes();
        let cut = self.reshape(x, &[1, tokens, heads.into(), width.into()]);
        let order = vec![("perm", Attribute::Ints(vec![0, 2, 1, 3]))];
        match name {
            None => self.op("Transpose", &[&cut], order),
            Some(name) => {
                self.node("Transpose", "", &[&cut], &[&name], order);
                let [heads, tokens, width] = [heads.to_string(), tokens.to_string(), width.to_string()];
                self.graph.outputs.push(info(&name, FLOAT, &["1", &heads, &tokens, &width]));
                name
            }
        }
    }

    /// Keys or values of past and present, one after the other; an encoder's are those of the present.
    fn remembered(&mut self, x: &str, spec: &AttentionSpec, what: &str, width: u32) -> String {
        if self.encoder {
            return self.heads(x, spec.kv_heads, width, None);
        }
        let (past, present) =
            (format!("past.{}.{what}", spec.layer), format!("present.{}.{what}", spec.layer));
        let [_, places] = self.sizes();
        self.input(&past, [1, spec.kv_heads.into(), places, width.into()]);
        self.heads(x, spec.kv_heads, width, Some(present.clone()));
        let all = self.op("Concat", &[&past, &present], vec![("axis", int(2))]);
        if let Some(fixed) = &mut self.fixed {
            fixed.hints.ties.insert(past, present.clone());
            fixed.hints.ties.insert(all.clone(), present);
        }
        all
    }

    /// Scores and shares, which the nodes from `first` on make, stay floats where activations have 16 bits: of products of two
    /// activations Hexagon takes but 8 bits of the second.
    fn keep_precise(&mut self, first: usize, mask: String) {
        let Some(fixed) = &mut self.fixed else { return };
        if matches!(fixed.weights, Weights::Whole { activations: 16, .. }) {
            let made = self.graph.nodes.iter().skip(first).flat_map(|node| node.outputs.iter().cloned());
            fixed.hints.floats.extend(made.chain([mask]));
        }
    }

    pub(super) fn fixed_attention(&mut self, [q, k, v]: [&str; 3], spec: &AttentionSpec) -> Result<Value> {
        let [tokens, past] = self.sizes();
        let (heads, groups) = (i64::from(spec.heads), i64::from(spec.kv_heads));
        let (together, all) = (heads / groups.max(1) * tokens, past + tokens);
        let mask = self.fixed_mask(spec.window);
        let mut q = self.heads(q, spec.heads, spec.key_width, None);
        if spec.scale != 1.0 {
            let scale = self.number(spec.scale);
            q = self.op("Mul", &[&q, &scale], Vec::new());
        }
        let keys = self.remembered(k, spec, "key", spec.key_width);
        let values = self.remembered(v, spec, "value", spec.value_width);
        if let Some(fixed) = self.fixed.as_mut().filter(|fixed| !fixed.interface.encoder) {
            fixed.interface.caches.push(Cache {
                layer: spec.layer,
                heads: spec.kv_heads,
                key_width: spec.key_width,
                value_width: spec.value_width,
            });
        }
        // Heads that read the same keys lie side by side: as one, they make an ordinary product.
        let shared = heads > groups;
        if shared {
            q = self.reshape(&q, &[1, groups, together, spec.key_width.into()]);
        }
        let keys = self.op("Transpose", &[&keys], vec![("perm", Attribute::Ints(vec![0, 1, 3, 2]))]);
        let first = self.graph.nodes.len();
        let mut scores = self.op("MatMul", &[&q, &keys], Vec::new());
        if shared {
            scores = self.reshape(&scores, &[1, heads, tokens, all]);
        }
        if let Some(cap) = spec.softcap {
            let (cap, less) = (self.number(cap), self.number(1.0 / cap));
            let small = self.op("Mul", &[&scores, &less], Vec::new());
            let bounded = self.op("Tanh", &[&small], Vec::new());
            scores = self.op("Mul", &[&bounded, &cap], Vec::new());
        }
        let mut seen = self.op("Add", &[&scores, &mask], Vec::new());
        if let Some(sinks) = spec.sinks {
            // One more place, which takes its share and has no value.
            let values = self.checkpoint.weight(sinks)?.to_vec()?;
            let rows = values.iter().flat_map(|sink| std::iter::repeat_n(*sink, tokens as usize));
            let shape = [1, spec.heads.into(), tokens as u64, 1];
            let sinks = self.numbers(&format!("{sinks} {tokens}"), &shape, &rows.collect::<Vec<_>>());
            seen = self.op("Concat", &[&seen, &sinks], vec![("axis", int(-1))]);
        }
        let mut shares = self.op("Softmax", &[&seen], vec![("axis", int(-1))]);
        if spec.sinks.is_some() {
            let [zero, end, axis] = [0, all, 3].map(|number| self.ints(&[number]));
            shares = self.op("Slice", &[&shares, &zero, &end, &axis], Vec::new());
        }
        if shared {
            shares = self.reshape(&shares, &[1, groups, together, all]);
        }
        self.keep_precise(first, mask);
        let mut mixed = self.op("MatMul", &[&shares, &values], Vec::new());
        if shared {
            mixed = self.reshape(&mixed, &[1, heads, tokens, spec.value_width.into()]);
        }
        let rows = self.op("Transpose", &[&mixed], vec![("perm", Attribute::Ints(vec![0, 2, 1, 3]))]);
        Ok(Value(self.reshape(&rows, &[1, tokens, heads * i64::from(spec.value_width)])))
    }
}
