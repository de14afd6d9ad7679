//! A tokenizer as two graphs of string operations, which OpenVINO's own programs load: text → ids, ids → text.
//!
//! The operations are those of `openvino_tokenizers` 2026.4. Strings travel as three lists (begins, ends, bytes), rows of
//! strings with two more (where each row begins and ends).

mod model;
mod rules;

use std::collections::HashSet;

use drophammer_formats::openvino::{Element, Network, Port};
use drophammer_infer::Tokenizer;
use model::Kind;
use rules::{Rules, Step, quoted};
use serde_json::Value as Json;

/// The longest text in tokens; no limit.
const UNLIMITED: i32 = i32::MAX - 64;

/// A graph with its constants.
pub(crate) struct Written {
    pub(crate) xml: String,
    pub(crate) bytes: Vec<u8>,
}

/// Both directions.
pub(crate) struct Graphs {
    pub(crate) tokenizer: Written,
    pub(crate) detokenizer: Written,
}

/// Writes the graphs of a `tokenizer.json`.
///
/// # Errors
/// Which part of it has no form in a graph.
pub(crate) fn graphs(
    document: &[u8],
    tokenizer: &Tokenizer,
    chat_template: Option<String>,
    pad_left: bool,
) -> Result<Graphs, String> {
    let document: Json = serde_json::from_slice(document).map_err(|error| error.to_string())?;
    let rules = Rules::read(&document)?;
    let mut told = vec![("add_attention_mask", "True".to_owned()), ("add_special_tokens", "True".to_owned())];
    let special = tokenizer.special();
    for (key, token) in
        [("bos_token_id", special.bos), ("eos_token_id", special.eos), ("pad_token_id", special.padding)]
    {
        told.extend(token.map(|token| (key, token.to_string())));
    }
    told.extend(chat_template.map(|template| ("chat_template", template)));
    let padding = special.padding.or(special.eos).unwrap_or(0) as i32;
    Ok(Graphs { tokenizer: encoding(&rules, padding, pad_left, &told), detokenizer: decoding(&rules, &told) })
}

fn written(mut network: Network, told: &[(&str, String)]) -> Written {
    for (key, value) in told {
        network.tell(key, value);
    }
    Written { xml: network.to_xml(|_| (0, 0)), bytes: network.inline_bytes().to_vec() }
}

fn i32s(net: &mut Network, values: &[i32]) -> Port {
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    net.constant(Element::I32, &[values.len() as u64], &bytes)
}

fn i32_scalar(net: &mut Network, value: i32) -> Port {
    net.constant(Element::I32, &[], &value.to_le_bytes())
}

fn i64_scalar(net: &mut Network, value: i64) -> Port {
    net.constant(Element::I64, &[], &value.to_le_bytes())
}

/// One text as bytes.
fn bytes(net: &mut Network, text: &str) -> Port {
    net.constant(Element::U8, &[text.len() as u64], text.as_bytes())
}

/// A list of strings: begins, ends, bytes.
fn strings<'a>(net: &mut Network, strings: impl Iterator<Item = &'a [u8]>) -> [Port; 3] {
    let (mut begins, mut ends, mut all) = (Vec::new(), Vec::new(), Vec::new());
    for string in strings {
        begins.push(all.len() as i32);
        all.extend_from_slice(string);
        ends.push(all.len() as i32);
    }
    [i32s(net, &begins), i32s(net, &ends), net.constant(Element::U8, &[all.len() as u64], &all)]
}

/// Text → `input_ids` and `attention_mask`.
fn encoding(rules: &Rules, padding: i32, pad_left: bool, told: &[(&str, String)]) -> Written {
    let mut net = Network::new("tokenizer");
    let text = net.parameter("string_input", Element::String, &[-1]);
    let text = net.add_many(
        "StringTensorUnpack",
        "opset15",
        &[],
        &[text],
        &[Element::I32, Element::I32, Element::U8],
    );
    let truncating = net.constant(Element::Boolean, &[], &[0]);
    let variable = [("variable_id", "truncation"), ("variable_type", "dynamic"), ("variable_shape", "...")];
    let truncating = net.add("ReadValue", "opset6", &variable, &[truncating], Element::Boolean);
    net.add("Assign", "opset6", &[("variable_id", "truncation")], &[truncating], Element::Boolean);

    // Each text is a row of one string.
    let count = net.add("ShapeOf", "opset3", &[("output_type", "i64")], &[text], Element::I64);
    let (zero, one) = (i64_scalar(&mut net, 0), i64_scalar(&mut net, 1));
    let count = net.add("Gather", "opset8", &[("batch_dims", "0")], &[count, zero, zero], Element::I64);
    let after = net.add("Add", "opset1", &[("auto_broadcast", "numpy")], &[count, one], Element::I64);
    let range = [("output_type", "i32")];
    let begins = net.add("Range", "opset4", &range, &[zero, count, one], Element::I32);
    let ends = net.add("Range", "opset4", &range, &[one, after, one], Element::I32);
    let mut pieces =
        Pieces { rows: [begins, ends], strings: [text, text.output(1), text.output(2)], skips: None };

    rules.before.iter().for_each(|step| pieces.step(&mut net, step));
    if !rules.added.is_empty() {
        pieces.split_special(&mut net, rules);
    }
    rules.steps.iter().for_each(|step| pieces.step(&mut net, step));
    let [begins, ends, ids] = tokens(&mut net, &pieces, rules);

    let (usual, unlimited) = (i32_scalar(&mut net, 256), i32_scalar(&mut net, UNLIMITED));
    let most = net.add(
        "Select",
        "opset1",
        &[("auto_broadcast", "numpy")],
        &[truncating, usual, unlimited],
        Element::I32,
    );
    let (side, mode) = (bytes(&mut net, "right"), bytes(&mut net, "longest_first"));
    let cut = [begins, ends, ids, most, side, mode];
    let cut = net.add_many("Truncate", "extension", &[("m_num_inputs", "1")], &cut, &[Element::I32; 3]);

    let mut segments = Vec::new();
    for part in &rules.template {
        match part {
            None => segments.extend([cut, cut.output(1), cut.output(2)]),
            Some(id) => {
                segments.extend([
                    i32_scalar(&mut net, 0),
                    i32_scalar(&mut net, 1),
                    i32s(&mut net, &[*id as i32]),
                ]);
            }
        }
    }
    segments.push(i32s(&mut net, &vec![0; rules.template.len()]));
    let whole = net.add_many("CombineSegments", "extension", &[], &segments, &[Element::I32; 6]);
    let (begins, ends, ids) = (whole, whole.output(1), whole.output(2));
    let lengths =
        net.add("Subtract", "opset1", &[("auto_broadcast", "numpy")], &[ends, begins], Element::I32);
    let axis = i32_scalar(&mut net, 0);
    let longest = net.add("ReduceMax", "opset1", &[("keep_dims", "false")], &[lengths, axis], Element::I32);
    let padding = i32_scalar(&mut net, padding);
    let attributes = [("pad_right", if pad_left { "false" } else { "true" }), ("m_pad_max_length", "false")];
    let inputs = [begins, ends, ids, longest, padding];
    let dense =
        net.add_many("RaggedToDense", "extension", &attributes, &inputs, &[Element::I32, Element::Boolean]);
    let convert = |net: &mut Network, x: Port, to: Element| {
        net.add("Convert", "opset1", &[("destination_type", to.name())], &[x], to)
    };
    let mask = convert(&mut net, dense.output(1), Element::I32);
    let mask = convert(&mut net, mask, Element::I64);
    let ids = convert(&mut net, dense, Element::I64);
    net.result("input_ids", ids);
    net.result("attention_mask", mask);
    written(net, told)
}

/// Rows of strings on their way to ids.
struct Pieces {
    rows: [Port; 2],
    strings: [Port; 3],
    /// Which strings are tokens already.
    skips: Option<Port>,
}

const PIECES: [Element; 6] =
    [Element::I32, Element::I32, Element::I32, Element::I32, Element::U8, Element::Boolean];

impl Pieces {
    fn inputs(&self) -> Vec<Port> {
        self.rows.iter().chain(&self.strings).chain(&self.skips).copied().collect()
    }

    fn take(&mut self, port: Port) {
        self.rows = [port, port.output(1)];
        self.strings = [port.output(2), port.output(3), port.output(4)];
        self.skips = Some(port.output(5));
    }

    /// Cuts out added tokens, longest first where one begins with another.
    fn split_special(&mut self, net: &mut Network, rules: &Rules) {
        let mut added: Vec<_> = rules.added.iter().collect();
        added.sort_by_key(|token| std::cmp::Reverse(token.text.len()));
        let alternatives: Vec<String> = added
            .iter()
            .map(|token| {
                let space = |strips| if strips { "\\s*" } else { "" };
                format!("{}{}{}", space(token.strip_left), quoted(&token.text), space(token.strip_right))
            })
            .collect();
        let pattern = format!("({})", alternatives.join("|"));
        let pattern = bytes(net, &pattern);
        let inputs = [self.inputs(), vec![pattern]].concat();
        let port = net.add_many("SpecialTokensSplit", "extension", &[], &inputs, &PIECES);
        self.take(port);
    }

    fn step(&mut self, net: &mut Network, step: &Step) {
        match step {
            Step::Normalize(form) => {
                self.change(net, "NormalizeUnicode", &[("normalization_form", form)], &[]);
            }
            Step::Lowercase => {
                let attributes = [
                    ("normalization_form", "identity"),
                    ("case_fold", "true"),
                    ("remove_extra_whitespaces", "false"),
                ];
                self.change(net, "CharsMapNormalization", &attributes, &[]);
            }
            Step::Characters(map) => {
                let attributes = [("normalization_form", ""), ("remove_extra_whitespaces", "false")];
                let map = net.constant(Element::U8, &[map.len() as u64], map);
                self.change(net, "CharsMapNormalization", &attributes, &[map]);
            }
            Step::Replace { regex, with } => {
                let parts = [bytes(net, regex), bytes(net, with)];
                self.change(net, "RegexNormalization", &[("global_replace", "true")], &parts);
            }
            Step::Cut(pattern) => {
                let invert = if pattern.invert { "true" } else { "false" };
                let attributes = [("behaviour", pattern.behaviour), ("invert", invert), ("max_splits", "-1")];
                self.split(net, &attributes, &pattern.regex);
            }
        }
    }

    /// Changes strings one by one; those that are tokens already stay.
    fn change(
        &mut self,
        net: &mut Network,
        kind: &'static str,
        attributes: &[(&'static str, &str)],
        with: &[Port],
    ) {
        let mut inputs = self.strings.to_vec();
        inputs.extend(self.skips);
        let outputs = [Element::I32, Element::I32, Element::U8, Element::Boolean];
        let outputs = &outputs[..inputs.len()];
        inputs.extend(with);
        let port = net.add_many(kind, "extension", attributes, &inputs, outputs);
        self.strings = [port, port.output(1), port.output(2)];
        self.skips = self.skips.map(|_| port.output(3));
    }

    fn split(&mut self, net: &mut Network, attributes: &[(&'static str, &str)], pattern: &str) {
        let pattern = bytes(net, pattern);
        let inputs = [self.inputs(), vec![pattern]].concat();
        let outputs = if self.skips.is_some() { &PIECES[..] } else { &PIECES[..5] };
        let port = net.add_many("RegexSplit", "extension", attributes, &inputs, outputs);
        let skips = self.skips.is_some();
        self.take(port);
        if !skips {
            self.skips = None;
        }
    }
}

/// Begins and ends of each row's ids, and the ids.
fn tokens(net: &mut Network, pieces: &Pieces, rules: &Rules) -> [Port; 3] {
    let model = &rules.model;
    let mut inputs: Vec<Port> = pieces.rows.iter().chain(&pieces.strings).copied().collect();
    inputs.extend(strings(net, model.vocabulary.iter().map(Vec::as_slice)));
    let flag = |flag| if flag { "true" } else { "false" };
    let unknown = model.unknown_id().map_or(-1, |id| id as i32);
    let (fuse, fallback) = (flag(model.fuse_unknown), flag(model.byte_fallback));
    let outputs = &[Element::I32; 3];
    let port = match &model.kind {
        Kind::Bpe { merges, end_of_word } => {
            inputs.extend(strings(net, merges.iter().map(|(left, _)| left.as_slice())));
            inputs.extend(strings(net, merges.iter().map(|(_, right)| right.as_slice())));
            if !rules.added.is_empty() {
                inputs.extend(strings(net, rules.added.iter().map(|token| token.text.as_bytes())));
                let ids: Vec<i32> = rules.added.iter().map(|token| token.id as i32).collect();
                inputs.push(i32s(net, &ids));
            }
            let attributes = [
                ("unk_token", model.unknown.as_deref().unwrap_or_default()),
                ("fuse_unk", fuse),
                ("suffix_indicator", ""),
                ("end_suffix", end_of_word.as_str()),
                ("byte_fallback", fallback),
                ("cache_capacity", "20000"),
            ];
            net.add_many("BPETokenizer", "extension", &attributes, &inputs, outputs)
        }
        Kind::WordPiece { prefix, most_characters } => {
            inputs.push(i32_scalar(net, unknown));
            let most = most_characters.to_string();
            let attributes = [("suffix_indicator", prefix.as_str()), ("max_bytes_per_word", &most)];
            net.add_many("WordpieceTokenizer", "extension", &attributes, &inputs, outputs)
        }
        Kind::Unigram { scores } => {
            // Added tokens lie behind the others, and are found before.
            let least = scores.iter().copied().fold(0.0, f32::min);
            let mut scores = scores.clone();
            scores.resize(model.vocabulary.len(), least);
            let bytes: Vec<u8> = scores.iter().flat_map(|score| score.to_le_bytes()).collect();
            inputs.push(net.constant(Element::F32, &[scores.len() as u64], &bytes));
            let unknown = unknown.to_string();
            let attributes =
                [("byte_fallback", fallback), ("unk_token_id", unknown.as_str()), ("fuse_unk", fuse)];
            net.add_many("UnigramTokenizer", "extension", &attributes, &inputs, outputs)
        }
    };
    [port, port.output(1), port.output(2)]
}

/// `input_ids` → text.
fn decoding(rules: &Rules, told: &[(&str, String)]) -> Written {
    let mut net = Network::new("detokenizer");
    let ids = net.parameter("input_ids", Element::I64, &[-1, -1]);
    let ids = net.add("Convert", "opset1", &[("destination_type", "i32")], &[ids], Element::I32);
    let mut inputs = vec![ids];
    let added: HashSet<usize> = rules.added.iter().map(|token| token.id as usize).collect();
    let texts = rules.model.texts(|id| added.contains(&id));
    inputs.extend(strings(&mut net, texts.iter().map(Vec::as_slice)));
    let skipped: Vec<i32> =
        rules.added.iter().filter(|token| token.special).map(|token| token.id as i32).collect();
    inputs.push(i32s(&mut net, &skipped));
    let row = [Element::I32, Element::I32, Element::I32, Element::I32, Element::U8];
    let words = net.add_many("VocabDecoder", "extension", &[("skip_tokens", "")], &inputs, &row);
    let parts: Vec<Port> = (0..4).map(|number| words.output(number)).collect();
    let joined = net.add_many("FuzeRagged", "extension", &[], &parts, &[Element::I32, Element::I32]);
    let mut strings = [joined, joined.output(1), words.output(4)];
    let decoding = &rules.model.decoding;
    let begins = decoding.stripped.iter().map(|(text, most)| format!("^({}){{0,{most}}}", quoted(text)));
    let ends = decoding.stripped_end.iter().map(|(text, most)| format!("({}){{0,{most}}}$", quoted(text)));
    for pattern in begins.chain(ends).collect::<Vec<_>>() {
        let inputs = [&strings[..], &[bytes(&mut net, &pattern), bytes(&mut net, "")]].concat();
        let outputs = [Element::I32, Element::I32, Element::U8];
        let port = net.add_many(
            "RegexNormalization",
            "extension",
            &[("global_replace", "false")],
            &inputs,
            &outputs,
        );
        strings = [port, port.output(1), port.output(2)];
    }
    let valid = net.add_many(
        "UTF8Validate",
        "extension",
        &[("replace_mode", "true")],
        &strings,
        &[Element::I32, Element::I32, Element::U8],
    );
    let strings = [valid, valid.output(1), valid.output(2)];
    let text = net.add("StringTensorPack", "opset15", &[], &strings, Element::String);
    net.result("string_output", text);
    written(net, told)
}
