//! The trait's operations in ONNX's.

use drophammer_formats::onnx::Attribute;

use super::emit::{Emitter, FLOAT, MICROSOFT, RopeRows, Value, info};
use crate::error::{Error, Result};
use crate::graph::{
    Activation, AttentionSpec, ExpertSpec, Gating, Graph, Index, Linear, Norm, NormKind, Pooling, RopeSpec,
    Scope, Table,
};
use crate::rope::{Rope, RopeLayout, RopeScaling};

fn int(value: impl Into<i64>) -> Attribute {
    Attribute::Int(value.into())
}

impl Emitter<'_> {
    /// Each token's position, `[batch, time]`.
    fn positions(&mut self) -> String {
        if !self.encoder {
            return "position_ids".into();
        }
        self.once("positions", |e| {
            let shape = e.op("Shape", &["input_ids"], Vec::new());
            let (zero, one) = (e.int(0), e.int(1));
            let length = e.op("Gather", &[&shape, &one], Vec::new());
            let row = e.op("Range", &[&zero, &length, &one], Vec::new());
            e.op("Expand", &[&row, &shape], Vec::new())
        })
    }

    /// The number of each token in the step: rows of the rotations' tables.
    fn token_numbers(&mut self) -> String {
        let positions = self.positions();
        self.once("token numbers", |e| {
            let shape = e.op("Shape", &[&positions], Vec::new());
            let count = e.op("Size", &[&positions], Vec::new());
            let (zero, one) = (e.int(0), e.int(1));
            let row = e.op("Range", &[&zero, &count, &one], Vec::new());
            e.op("Reshape", &[&row, &shape], Vec::new())
        })
    }

    /// The longest sequence so far, as a number.
    fn length(&mut self) -> String {
        let positions = self.positions();
        self.once("length", |e| {
            let last = e.op("ReduceMax", &[&positions], vec![("keepdims", int(0))]);
            let one = e.int(1);
            let length = e.op("Add", &[&last, &one], Vec::new());
            e.cast(&length, FLOAT)
        })
    }

    /// Cosines and sines of this step's tokens, `[tokens, width / 2]`.
    fn rope_rows(&mut self, index: usize, rope: &Rope) -> RopeRows {
        if let Some(rows) = self.ropes.get(&index) {
            return rows.clone();
        }
        let positions = self.positions();
        let pairs = u64::from(rope.width / 2);
        let short = rope.table(1);
        let frequencies = self.numbers(&format!("rope {index}"), &[1, pairs], &short.frequencies);
        let frequencies = match &rope.scaling {
            RopeScaling::Long { original, .. } => {
                let long = rope.table(original.saturating_add(1)).frequencies;
                let long = self.numbers(&format!("rope {index} long"), &[1, pairs], &long);
                let (length, original) = (self.length(), self.number(*original as f32));
                self.once(&format!("rope {index} chosen"), |e| {
                    let beyond = e.op("Greater", &[&length, &original], Vec::new());
                    e.op("Where", &[&beyond, &long, &frequencies], Vec::new())
                })
            }
            RopeScaling::Dynamic { factor, original } => {
                self.grown(index, &frequencies, rope, *factor, *original)
            }
            _ => frequencies,
        };
        let magnitude = (short.magnitude != 1.0).then(|| self.number(short.magnitude));
        let angles = self.once(&format!("rope {index} angles"), |e| {
            let positions = e.cast(&positions, FLOAT);
            let column = e.reshape(&positions, &[-1, 1]);
            e.op("Mul", &[&column, &frequencies], Vec::new())
        });
        let mut turned = |function: &str| {
            self.once(&format!("rope {index} {function}"), |e| {
                let values = e.op(function, &[&angles], Vec::new());
                match &magnitude {
                    Some(magnitude) => e.op("Mul", &[&values, magnitude], Vec::new()),
                    None => values,
                }
            })
        };
        let rows = RopeRows { cos: turned("Cos"), sin: turned("Sin") };
        self.ropes.insert(index, rows.clone());
        rows
    }

    /// Frequencies of a base that grows with the length: `f · growth^(-2i / (width - 2))`.
    fn grown(&mut self, index: usize, frequencies: &str, rope: &Rope, factor: f64, original: u32) -> String {
        let width = f64::from(rope.width);
        let powers = (0..rope.width / 2).map(|i| (-f64::from(2 * i) / (width - 2.0).max(1.0)) as f32);
        let powers: Vec<f32> = powers.collect();
        let powers = self.numbers(&format!("rope {index} powers"), &[1, powers.len() as u64], &powers);
        let (length, original) = (self.length(), self.number(original as f32));
        let (factor, less) = (self.number(factor as f32), self.number((factor - 1.0) as f32));
        let frequencies = frequencies.to_owned();
        self.once(&format!("rope {index} grown"), |e| {
            let length = e.op("Max", &[&length, &original], Vec::new());
            let stretch = e.op("Div", &[&length, &original], Vec::new());
            let stretch = e.op("Mul", &[&stretch, &factor], Vec::new());
            let growth = e.op("Sub", &[&stretch, &less], Vec::new());
            let factors = e.op("Pow", &[&growth, &powers], Vec::new());
            e.op("Mul", &[&frequencies, &factors], Vec::new())
        })
    }

    /// What is added to scores: nothing where a token sees another, a large negative number where not. `[batch, 1, time, total]`.
    fn mask(&mut self, causal: bool, window: Option<u32>) -> String {
        let (zero, one) = (self.int(0), self.int(1));
        let (seen, unseen) = (self.number(0.0), self.number(-1e30));
        let distance = self.once("distances", |e| {
            let shape = e.op("Shape", &["input_ids"], Vec::new());
            let time = e.op("Gather", &[&shape, &one], Vec::new());
            let shape = e.op("Shape", &["attention_mask"], Vec::new());
            let total = e.op("Gather", &[&shape, &one], Vec::new());
            let past = e.op("Sub", &[&total, &time], Vec::new());
            let keys = e.op("Range", &[&zero, &total, &one], Vec::new());
            let queries = e.op("Range", &[&past, &total, &one], Vec::new());
            let queries = e.reshape(&queries, &[-1, 1]);
            e.op("Sub", &[&queries, &keys], Vec::new())
        });
        let kept = self.once("kept", |e| {
            let flags = e.cast("attention_mask", drophammer_formats::onnx::ElementType(9));
            let axes = e.ints(&[1, 2]);
            e.op("Unsqueeze", &[&flags, &axes], Vec::new())
        });
        // One side of a window, or the whole distance.
        let span = window.map(|window| self.int(i64::from(if causal { window } else { window / 2 + 1 })));
        self.once(&format!("mask {causal} {window:?}"), |e| {
            let mut near = if causal {
                e.op("GreaterOrEqual", &[&distance, &zero], Vec::new())
            } else {
                e.op("Equal", &[&distance, &distance], Vec::new())
            };
            if let Some(span) = span {
                let far = e.op("Abs", &[&distance], Vec::new());
                let inside = e.op("Less", &[&far, &span], Vec::new());
                near = e.op("And", &[&near, &inside], Vec::new());
            }
            let allowed = e.op("And", &[&near, &kept], Vec::new());
            e.op("Where", &[&allowed, &seen, &unseen], Vec::new())
        })
    }

    /// Declares a layer's cache and gives the names of its past and present.
    fn cache(&mut self, spec: &AttentionSpec) -> [String; 4] {
        let layer = spec.layer;
        let mut names = Vec::new();
        for (what, width) in [("key", spec.key_width), ("value", spec.value_width)] {
            let (heads, width) = (spec.kv_heads.to_string(), width.to_string());
            let (past, present) =
                (format!("past_key_values.{layer}.{what}"), format!("present.{layer}.{what}"));
            let shape = ["batch_size", &heads, "past_sequence_length", &width];
            self.graph.inputs.push(info(&past, FLOAT, &shape));
            let shape = ["batch_size", &heads, "total_sequence_length", &width];
            self.graph.outputs.push(info(&present, FLOAT, &shape));
            names.extend([past, present]);
        }
        let [past_key, key, past_value, value] = names.try_into().unwrap_or_default();
        [past_key, past_value, key, value]
    }

    fn attention_op(&mut self, [q, k, v]: [&str; 3], spec: &AttentionSpec) -> Result<String> {
        if spec.sinks.is_some() {
            return Err(self.unsupported("attention sinks beside keys and values of different widths"));
        }
        let mask = self.mask(spec.causal, spec.window);
        let mut attributes = vec![
            ("q_num_heads", int(spec.heads)),
            ("kv_num_heads", int(spec.kv_heads)),
            ("scale", Attribute::Float(spec.scale)),
        ];
        if let Some(cap) = spec.softcap {
            attributes.push(("softcap", Attribute::Float(cap)));
        }
        if self.encoder {
            return Ok(self.op("Attention", &[q, k, v, &mask], attributes));
        }
        self.shares_buffers = false;
        let [past_key, past_value, key, value] = self.cache(spec);
        let output = format!("/layers.{}/attention/mixed", spec.layer);
        self.node(
            "Attention",
            "",
            &[q, k, v, &mask, &past_key, &past_value],
            &[&output, &key, &value],
            attributes,
        );
        Ok(output)
    }

    fn grouped_query_attention(&mut self, [q, k, v]: [&str; 3], spec: &AttentionSpec) -> Result<String> {
        let one = self.int(1);
        let lengths = self.once("lengths", |e| {
            let axes = e.ints(&[1]);
            let sum = e.op("ReduceSum", &["attention_mask", &axes], vec![("keepdims", int(0))]);
            let last = e.op("Sub", &[&sum, &one], Vec::new());
            e.cast_int32(&last)
        });
        let total = self.once("total", |e| {
            let shape = e.op("Shape", &["attention_mask"], Vec::new());
            let total = e.op("Gather", &[&shape, &one], Vec::new());
            e.cast_int32(&total)
        });
        let sinks = spec.sinks.map(|sinks| self.vector(sinks, None)).transpose()?;
        let mut attributes = vec![
            ("num_heads", int(spec.heads)),
            ("kv_num_heads", int(spec.kv_heads)),
            ("scale", Attribute::Float(spec.scale)),
            ("do_rotary", int(0)),
        ];
        if let Some(cap) = spec.softcap {
            attributes.push(("softcap", Attribute::Float(cap)));
        }
        if let Some(window) = spec.window {
            attributes.push(("local_window_size", int(window)));
        }
        let [past_key, past_value, key, value] = self.cache(spec);
        let output = format!("/layers.{}/attention/mixed", spec.layer);
        let mut inputs = vec![q, k, v, &past_key, &past_value, &lengths, &total];
        if let Some(sinks) = &sinks {
            inputs.extend(["", "", "", "", sinks]);
        }
        self.node("GroupQueryAttention", MICROSOFT, &inputs, &[&output, &key, &value], attributes);
        Ok(output)
    }

    fn normalized(&mut self, x: &str, norm: &Norm) -> Result<String> {
        let plain = norm.per_group || norm.weight.is_none();
        let gain = if let Some(weight) = norm.weight.filter(|_| !plain) {
            self.vector(weight, None)?
        } else {
            let ones = vec![1.0; norm.width as usize];
            self.numbers(&format!("ones {}", norm.width), &[norm.width.into()], &ones)
        };
        let mut attributes = vec![("axis", int(-1)), ("epsilon", Attribute::Float(norm.epsilon))];
        let bias = norm.bias.filter(|_| !norm.per_group).map(|bias| self.vector(bias, None)).transpose()?;
        let mut y = match (norm.kind, &bias) {
            (NormKind::Layer, Some(bias)) => {
                return Ok(self.op("LayerNormalization", &[x, &gain, bias], attributes));
            }
            (NormKind::Layer, None) => self.op("LayerNormalization", &[x, &gain], attributes),
            (NormKind::Rms, _) => {
                attributes.push(("stash_type", int(1)));
                self.op("RMSNormalization", &[x, &gain], attributes)
            }
        };
        if norm.per_group {
            let shape = [norm.groups.into(), norm.width.into()];
            for (id, op) in [(norm.weight, "Mul"), (norm.bias, "Add")] {
                let Some(id) = id else { continue };
                let values = self.checkpoint.weight(id)?.to_vec()?;
                let values = self.numbers(&format!("{id}"), &shape, &values);
                y = self.op(op, &[&y, &values], Vec::new());
            }
        } else if let Some(bias) = bias {
            y = self.op("Add", &[&y, &bias], Vec::new());
        }
        Ok(y)
    }
}

impl Graph for Emitter<'_> {
    type Value = Value;
    type Error = Error;

    fn enter(&mut self, scope: Scope) {
        Emitter::enter(self, scope);
    }

    fn embedding(&mut self, table: &Table, index: Index) -> Result<Value> {
        if self.fixed.is_some() {
            return self.fixed_embedding(table, index);
        }
        let ids = match index {
            Index::Tokens => "input_ids".to_owned(),
            Index::Positions { offset: 0 } => self.positions(),
            Index::Positions { offset } => {
                let (positions, offset) = (self.positions(), self.int(offset.into()));
                self.op("Add", &[&positions, &offset], Vec::new())
            }
            Index::TokenTypes => {
                let zero = self.int(0);
                self.op("Mul", &["input_ids", &zero], Vec::new())
            }
        };
        Ok(Value(self.rows(table, &ids)?))
    }

    fn linear(&mut self, x: &Value, linear: &Linear) -> Result<Value> {
        Ok(Value(self.product(&x.0, linear, None)?))
    }

    fn norm(&mut self, x: &Value, norm: &Norm) -> Result<Value> {
        if norm.groups == 1 {
            return Ok(Value(self.normalized(&x.0, norm)?));
        }
        if let Some(fixed) = self.fixed.as_ref().filter(|_| !norm.per_group) {
            // Hexagon's norm goes wrong over values of four dimensions.
            let (tokens, groups, width) =
                (i64::from(fixed.tokens), i64::from(norm.groups), i64::from(norm.width));
            let cut = self.reshape(&x.0, &[1, tokens * groups, width]);
            let y = self.normalized(&cut, norm)?;
            return Ok(Value(self.reshape(&y, &[1, tokens, groups * width])));
        }
        let cut = self.reshape(&x.0, &[0, 0, norm.groups.into(), norm.width.into()]);
        let y = self.normalized(&cut, norm)?;
        Ok(Value(self.reshape(&y, &[0, 0, -1])))
    }

    fn rope(&mut self, x: &Value, spec: &RopeSpec<'_>) -> Result<Value> {
        if self.fixed.is_some() {
            return Ok(self.fixed_rope(x, spec));
        }
        let RopeRows { cos, sin } = self.rope_rows(spec.index, spec.rope);
        let numbers = self.token_numbers();
        let (heads, head, width) =
            (i64::from(spec.heads), i64::from(spec.head_width), i64::from(spec.rope.width));
        let start = i64::from(spec.start);
        let pairs = int(spec.rope.layout == RopeLayout::Pairs);
        let rotate = |e: &mut Self, x: &str, partial: bool| {
            let mut attributes = vec![("interleaved", pairs.clone())];
            if partial {
                attributes.extend([("num_heads", int(heads)), ("rotary_embedding_dim", int(width))]);
            }
            e.op_of(MICROSOFT, "RotaryEmbedding", &[x, &numbers, &cos, &sin], attributes)
        };
        if start == 0 {
            return Ok(Value(rotate(self, &x.0, width < head)));
        }
        // The rotated part lies behind a plain one (and perhaps before another).
        let cut = self.reshape(&x.0, &[0, 0, heads, head]);
        let sizes = [start, width, head - start - width];
        let parts: Vec<i64> = sizes.iter().copied().filter(|&size| size > 0).collect();
        let number = self.graph.nodes.len();
        let names: Vec<String> = (0..parts.len()).map(|part| format!("/split_{number}:{part}")).collect();
        let sizes = self.ints(&parts);
        let outputs: Vec<&str> = names.iter().map(String::as_str).collect();
        self.node("Split", "", &[&cut, &sizes], &outputs, vec![("axis", int(-1))]);
        let bare = self.reshape(&names[1], &[0, 0, -1]);
        let turned = rotate(self, &bare, false);
        let turned = self.reshape(&turned, &[0, 0, heads, width]);
        let mut joined: Vec<&str> = outputs;
        joined[1] = &turned;
        let whole = self.op("Concat", &joined, vec![("axis", int(-1))]);
        Ok(Value(self.reshape(&whole, &[0, 0, -1])))
    }

    fn attention(&mut self, q: &Value, k: &Value, v: &Value, spec: &AttentionSpec) -> Result<Value> {
        let operands = [q.0.as_str(), k.0.as_str(), v.0.as_str()];
        if self.fixed.is_some() {
            return self.fixed_attention(operands, spec);
        }
        // `GroupQueryAttention` wants heads of keys and values alike, multiples of eight numbers wide.
        let grouped = spec.key_width == spec.value_width && spec.key_width.is_multiple_of(8);
        Ok(Value(if self.encoder || !grouped {
            self.attention_op(operands, spec)?
        } else {
            self.grouped_query_attention(operands, spec)?
        }))
    }

    fn join_heads(&mut self, per_head: &Value, shared: &Value, heads: u32) -> Result<Value> {
        let cut = self.reshape(&per_head.0, &[0, 0, heads.into(), -1]);
        let axes = self.ints(&[2]);
        let once = self.op("Unsqueeze", &[&shared.0, &axes], Vec::new());
        let times = self.ints(&[1, 1, heads.into(), 1]);
        let each = self.op("Tile", &[&once, &times], Vec::new());
        let joined = self.op("Concat", &[&cut, &each], vec![("axis", int(-1))]);
        Ok(Value(self.reshape(&joined, &[0, 0, -1])))
    }

    fn activate(&mut self, x: &Value, activation: Activation) -> Result<Value> {
        let x = x.0.as_str();
        let text = |value: &str| Attribute::String(value.as_bytes().to_vec());
        Ok(Value(match activation {
            Activation::Silu => {
                let gate = self.op("Sigmoid", &[x], Vec::new());
                self.op("Mul", &[x, &gate], Vec::new())
            }
            Activation::Gelu => self.op("Gelu", &[x], vec![("approximate", text("none"))]),
            Activation::GeluTanh => self.op("Gelu", &[x], vec![("approximate", text("tanh"))]),
            Activation::Relu => self.op("Relu", &[x], Vec::new()),
            Activation::ReluSquared => {
                let y = self.op("Relu", &[x], Vec::new());
                self.op("Mul", &[&y, &y], Vec::new())
            }
            Activation::Sigmoid => self.op("Sigmoid", &[x], Vec::new()),
            Activation::Tanh => self.op("Tanh", &[x], Vec::new()),
        }))
    }

    fn gated(&mut self, gate: &Value, up: &Value, gating: Gating) -> Result<Value> {
        match gating {
            Gating::By(activation) => {
                let gate = self.activate(gate, activation)?;
                self.mul(&gate, up)
            }
            Gating::Clamped { alpha, limit } => {
                let (least, most) = (self.number(-limit), self.number(limit));
                let gate = self.op("Min", &[&gate.0, &most], Vec::new());
                let up = self.op("Clip", &[&up.0, &least, &most], Vec::new());
                let (alpha, one) = (self.number(alpha), self.number(1.0));
                let steep = self.op("Mul", &[&gate, &alpha], Vec::new());
                let open = self.op("Sigmoid", &[&steep], Vec::new());
                let gate = self.op("Mul", &[&gate, &open], Vec::new());
                let up = self.op("Add", &[&up, &one], Vec::new());
                Ok(Value(self.op("Mul", &[&gate, &up], Vec::new())))
            }
        }
    }

    fn experts(&mut self, x: &Value, spec: &ExpertSpec) -> Result<Value> {
        self.mixture(x, spec)
    }

    fn add(&mut self, a: &Value, b: &Value) -> Result<Value> {
        Ok(Value(self.op("Add", &[&a.0, &b.0], Vec::new())))
    }

    fn mul(&mut self, a: &Value, b: &Value) -> Result<Value> {
        Ok(Value(self.op("Mul", &[&a.0, &b.0], Vec::new())))
    }

    fn scale(&mut self, x: &Value, factor: f32) -> Result<Value> {
        let factor = self.number(factor);
        Ok(Value(self.op("Mul", &[&x.0, &factor], Vec::new())))
    }

    fn softcap(&mut self, x: &Value, cap: f32) -> Result<Value> {
        let cap = self.number(cap);
        let small = self.op("Div", &[&x.0, &cap], Vec::new());
        let bounded = self.op("Tanh", &[&small], Vec::new());
        Ok(Value(self.op("Mul", &[&bounded, &cap], Vec::new())))
    }

    fn pool(&mut self, _: &Value, _: Pooling) -> Result<Value> {
        Err(self.unsupported("pooling"))
    }
}
