//! SentencePiece model files (`tokenizer.model`), for models without a `tokenizer.json`.
//!
//! Such a file is a protocol-buffer message:
//! <https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto>. It says what a GGUF vocabulary
//! says, so it is turned into one.

use std::collections::BTreeMap;

use drophammer_formats::gguf::Metadata;

use super::error::Problem;
use super::pieces::SPACE_MARK;

/// Fields of the messages that are read.
mod field {
    pub(super) const PIECES: u64 = 1;
    pub(super) const TRAINER: u64 = 2;
    pub(super) const NORMALIZER: u64 = 3;
    pub(super) const PIECE_TEXT: u64 = 1;
    pub(super) const PIECE_SCORE: u64 = 2;
    pub(super) const PIECE_KIND: u64 = 3;
    pub(super) const MODEL_KIND: u64 = 3;
    pub(super) const CHARACTER_MAP: u64 = 2;
    pub(super) const DUMMY_PREFIX: u64 = 3;
}

const UNIGRAM: u64 = 1;
const BPE: u64 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;

/// The file as GGUF metadata. `added` are tokens behind the file's own, by id.
pub(super) fn to_metadata(file: &[u8], added: &BTreeMap<u32, String>) -> Result<Metadata, Problem> {
    let (mut tokens, mut scores, mut kinds) = (Vec::new(), Vec::new(), Vec::new());
    let mut metadata = Metadata::new();
    let mut model_kind = UNIGRAM;
    let mut dummy_prefix = true;
    for entry in Fields(file) {
        match entry? {
            (field::PIECES, Value::Bytes(piece)) => {
                let (text, score, kind) = read_piece(piece)?;
                // Found in the text as it is, before spaces become marks.
                tokens.push(if kind == USER_DEFINED { text.replace(SPACE_MARK, " ") } else { text });
                scores.push(score);
                kinds.push(kind);
            }
            (field::TRAINER, Value::Bytes(trainer)) => {
                for entry in Fields(trainer) {
                    if let (field::MODEL_KIND, Value::Number(kind)) = entry? {
                        model_kind = kind;
                    }
                }
            }
            (field::NORMALIZER, Value::Bytes(normalizer)) => {
                for entry in Fields(normalizer) {
                    match entry? {
                        (field::DUMMY_PREFIX, Value::Number(flag)) => dummy_prefix = flag != 0,
                        (field::CHARACTER_MAP, Value::Bytes(map)) => {
                            metadata.set("tokenizer.ggml.precompiled_charsmap", map.to_vec());
                        }
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    for (&id, token) in added {
        // Ids inside the file's vocabulary rename a token; ids behind it follow without a gap.
        match (id as usize).cmp(&tokens.len()) {
            std::cmp::Ordering::Less => tokens[id as usize].clone_from(token),
            std::cmp::Ordering::Equal => {
                tokens.push(token.clone());
                scores.push(0.0);
                kinds.push(CONTROL);
            }
            std::cmp::Ordering::Greater => {
                return Err(Problem::broken(format!(
                    "added token {id} leaves a gap after {} tokens",
                    tokens.len()
                )));
            }
        }
    }
    let model = match model_kind {
        UNIGRAM => "t5",
        BPE => "llama",
        other => return Err(Problem::Unsupported(format!("its model type is {other}; known are 1 and 2"))),
    };
    metadata.set("tokenizer.ggml.model", model);
    metadata.set("tokenizer.ggml.add_space_prefix", dummy_prefix);
    for (role, name) in [("bos", "<s>"), ("eos", "</s>"), ("unknown", "<unk>"), ("padding", "<pad>")] {
        if let Some(id) = tokens.iter().position(|token| token == name) {
            metadata.set(format!("tokenizer.ggml.{role}_token_id"), id as u32);
        }
    }
    metadata.set("tokenizer.ggml.tokens", tokens);
    metadata.set("tokenizer.ggml.scores", scores);
    metadata.set("tokenizer.ggml.token_type", kinds);
    Ok(metadata)
}

/// Text, score, kind. The kinds' numbers are those of GGUF, which took them from here.
fn read_piece(piece: &[u8]) -> Result<(String, f32, i32), Problem> {
    let (mut text, mut score, mut kind) = (String::new(), 0.0, 1);
    for entry in Fields(piece) {
        match entry? {
            (field::PIECE_TEXT, Value::Bytes(bytes)) => {
                text =
                    String::from_utf8(bytes.to_vec()).map_err(|_| Problem::broken("a piece is not UTF-8"))?;
            }
            (field::PIECE_SCORE, Value::Fixed32(bits)) => score = f32::from_bits(bits),
            (field::PIECE_KIND, Value::Number(number)) => kind = i32::try_from(number).unwrap_or(1),
            _ => {}
        }
    }
    Ok((text, score, kind))
}

enum Value<'a> {
    Number(u64),
    Fixed32(u32),
    Bytes(&'a [u8]),
    Other,
}

/// The fields of a message, in order. Ends after the first error.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn varint(&mut self) -> Option<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let (&byte, rest) = self.0.split_first()?;
            self.0 = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Some(value);
            }
        }
        None
    }

    fn take(&mut self, count: u64) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(usize::try_from(count).ok()?)?;
        self.0 = rest;
        Some(taken)
    }

    fn field(&mut self) -> Option<(u64, Value<'a>)> {
        let tag = self.varint()?;
        let value = match tag & 7 {
            0 => Value::Number(self.varint()?),
            1 => self.take(8).map(|_| Value::Other)?,
            2 => {
                let length = self.varint()?;
                Value::Bytes(self.take(length)?)
            }
            5 => Value::Fixed32(u32::from_le_bytes(self.take(4)?.try_into().ok()?)),
            _ => return None,
        };
        Some((tag >> 3, value))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u64, Value<'a>), Problem>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        Some(self.field().ok_or_else(|| {
            self.0 = &[];
            Problem::broken("it is no SentencePiece model, or ends early")
        }))
    }
}
