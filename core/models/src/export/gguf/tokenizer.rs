//! A tokenizer as GGUF keys: vocabulary, merges or scores, special tokens, chat template.

use std::collections::HashMap;

use drophammer_formats::gguf::{Array, Metadata, Value};
use drophammer_formats::source::read_json;
use serde_json::Value as Json;

use super::pre_tokenizer;
use crate::checkpoint::Checkpoint;
use crate::config::Config;
use crate::error::{Error, Result};

/// `tokenizer.ggml.token_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Normal = 1,
    Unknown = 2,
    Control = 3,
    UserDefined = 4,
    Unused = 5,
    Byte = 6,
}

/// Adds all `tokenizer.*` keys.
pub(super) fn write(checkpoint: &Checkpoint, metadata: &mut Metadata) -> Result<()> {
    let source = checkpoint.source();
    if source.metadata().get("tokenizer.ggml.model").is_some() {
        for (key, value) in source.metadata().iter().filter(|(key, _)| key.starts_with("tokenizer.")) {
            metadata.set(key, value.clone());
        }
        return Ok(());
    }
    let files = source.tokenizer();
    let fault = |problem: String| Error::Tokenizer { path: source.root().display().to_string(), problem };
    let path = files.tokenizer_json.as_deref();
    let path = path.ok_or_else(|| fault("there is no tokenizer.json beside the weights".into()))?;
    let tokenizer = read_json(path)?;
    let config = files.tokenizer_config.as_deref().map(read_json).transpose()?.unwrap_or_default();
    let size = checkpoint.description().vocabulary as usize;
    let mut vocabulary = Vocabulary::read(&tokenizer, size).map_err(fault)?;
    match vocabulary.model(&tokenizer) {
        Ok(Model::Bytes { pre }) => {
            metadata.set("tokenizer.ggml.model", "gpt2");
            metadata.set("tokenizer.ggml.pre", pre);
            let pairs = merges(&tokenizer).map(|(left, right)| format!("{left} {right}"));
            metadata.set("tokenizer.ggml.merges", Value::Array(Array::String(pairs.collect())));
        }
        Ok(Model::Pieces { space_prefix }) => {
            metadata.set("tokenizer.ggml.model", "llama");
            metadata.set("tokenizer.ggml.pre", "default");
            metadata.set("tokenizer.ggml.scores", Value::Array(Array::F32(vocabulary.scores(&tokenizer))));
            metadata.set("tokenizer.ggml.add_space_prefix", space_prefix);
        }
        Ok(Model::Words) => {
            metadata.set("tokenizer.ggml.model", "bert");
            metadata.set("tokenizer.ggml.pre", "default");
            vocabulary.mark_word_beginnings();
        }
        Err(problem) => return Err(fault(problem)),
    }
    let kinds = vocabulary.kinds.iter().map(|&kind| kind as i32).collect();
    special_tokens(checkpoint, &tokenizer, &config, &vocabulary, metadata)?;
    metadata.set("tokenizer.ggml.tokens", Value::Array(Array::String(vocabulary.tokens)));
    metadata.set("tokenizer.ggml.token_type", Value::Array(Array::I32(kinds)));
    if let Some(template) = chat_template(checkpoint, &config)? {
        metadata.set("tokenizer.chat_template", template);
    }
    Ok(())
}

/// How text becomes tokens.
enum Model {
    /// Byte-level BPE.
    Bytes { pre: &'static str },
    /// SentencePiece's BPE.
    Pieces { space_prefix: bool },
    /// WordPiece.
    Words,
}

struct Vocabulary {
    tokens: Vec<String>,
    kinds: Vec<Kind>,
    ids: HashMap<String, usize>,
}

impl Vocabulary {
    fn read(tokenizer: &Json, size: usize) -> Result<Self, String> {
        let vocab = tokenizer.pointer("/model/vocab").and_then(Json::as_object);
        let vocab = vocab.ok_or("tokenizer.json has a model without a vocabulary by name")?;
        let mut found: Vec<Option<String>> = vec![None; size];
        let mut kinds = vec![Kind::Unused; size];
        let mut place = |token: &str, id: Option<u64>, kind: Kind| -> Result<(), String> {
            let id = id.and_then(|id| usize::try_from(id).ok()).filter(|&id| id < size);
            let id =
                id.ok_or_else(|| format!("token `{token}` has no place in the embedding's {size} rows"))?;
            found[id] = Some(token.to_owned());
            kinds[id] = kind;
            Ok(())
        };
        let unknown = tokenizer.pointer("/model/unk_token").and_then(Json::as_str);
        for (token, id) in vocab {
            let kind = if is_byte(token) { Kind::Byte } else { Kind::Normal };
            place(token, id.as_u64(), kind)?;
        }
        for added in tokenizer.get("added_tokens").and_then(Json::as_array).into_iter().flatten() {
            let token =
                added.get("content").and_then(Json::as_str).ok_or("an added token without content")?;
            let special = added.get("special").and_then(Json::as_bool).unwrap_or(false);
            let kind = match (Some(token) == unknown, special) {
                (true, _) => Kind::Unknown,
                (false, true) => Kind::Control,
                (false, false) => Kind::UserDefined,
            };
            place(token, added.get("id").and_then(Json::as_u64), kind)?;
        }
        let name = |(id, token): (usize, Option<String>)| token.unwrap_or_else(|| format!("[PAD{id}]"));
        let tokens: Vec<String> = found.into_iter().enumerate().map(name).collect();
        let ids = tokens.iter().cloned().zip(0..).collect();
        Ok(Self { tokens, kinds, ids })
    }

    fn model(&self, tokenizer: &Json) -> Result<Model, String> {
        let text = |pointer: &str| tokenizer.pointer(pointer).and_then(Json::as_str);
        match text("/model/type") {
            Some("WordPiece") => Ok(Model::Words),
            Some("BPE") | None => {
                let bytes = self.kinds.iter().filter(|&&kind| kind == Kind::Byte).count() == 256;
                if !bytes {
                    return Ok(Model::Bytes { pre: pre_tokenizer::name(tokenizer)? });
                }
                // Llama's tokenizers prepend the space in the normalizer or in Metaspace; Gemma's do not.
                let rules = tokenizer.get("normalizer").map(Json::to_string).unwrap_or_default()
                    + &tokenizer.get("pre_tokenizer").map(Json::to_string).unwrap_or_default();
                let never = rules.contains(r#""prepend_scheme":"never""#);
                let prepends = rules.contains(r#""Prepend""#) || rules.contains(r#""prepend_scheme":"#);
                Ok(Model::Pieces { space_prefix: prepends && !never })
            }
            Some(other) => Err(format!("tokenizers of type `{other}` are not written as GGUF yet")),
        }
    }

    /// SentencePiece's scores: the earlier a token is merged, the higher. What no merge makes comes last.
    fn scores(&self, tokenizer: &Json) -> Vec<f32> {
        let last = merges(tokenizer).count() as f32;
        let mut scores: Vec<f32> = self
            .kinds
            .iter()
            .zip(&self.tokens)
            .map(|(kind, token)| match kind {
                Kind::Normal if token.chars().count() > 1 => -2.0 * last - 1.0,
                Kind::Normal => -last - 1.0,
                _ => 0.0,
            })
            .collect();
        // The first merge that makes a token is its best.
        for (rank, (left, right)) in merges(tokenizer).enumerate().collect::<Vec<_>>().into_iter().rev() {
            if let Some(&id) = self.ids.get(&format!("{left}{right}")) {
                scores[id] = -(rank as f32);
            }
        }
        scores
    }

    /// WordPiece marks continuations by `##`; llama.cpp marks beginnings.
    fn mark_word_beginnings(&mut self) {
        for (token, kind) in self.tokens.iter_mut().zip(&self.kinds) {
            let bracketed = token.starts_with('[') && token.ends_with(']');
            if let Some(rest) = token.strip_prefix("##") {
                *token = rest.to_owned();
            } else if *kind == Kind::Normal && !bracketed {
                *token = format!("\u{2581}{token}");
            }
        }
    }
}

fn is_byte(token: &str) -> bool {
    token.len() == 6
        && token.starts_with("<0x")
        && token.ends_with('>')
        && token.as_bytes()[3..5].iter().all(u8::is_ascii_hexdigit)
}

/// Merges in either spelling: `"a b"` or `["a", "b"]`.
fn merges(tokenizer: &Json) -> impl Iterator<Item = (&str, &str)> {
    let list = tokenizer.pointer("/model/merges").and_then(Json::as_array);
    list.into_iter().flatten().filter_map(|merge| match merge {
        Json::String(pair) => pair.split_once(' '),
        Json::Array(pair) => Some((pair.first()?.as_str()?, pair.get(1)?.as_str()?)),
        _ => None,
    })
}

fn special_tokens(
    checkpoint: &Checkpoint,
    tokenizer: &Json,
    config: &Json,
    vocabulary: &Vocabulary,
    metadata: &mut Metadata,
) -> Result<()> {
    let map = checkpoint.source().tokenizer().special_tokens_map.as_deref();
    let map = map.map(read_json).transpose()?.unwrap_or_default();
    let named = |role: &str| {
        let entry =
            [config, &map].into_iter().find_map(|file| file.get(role).filter(|entry| !entry.is_null()))?;
        let text = entry.as_str().or_else(|| entry.get("content").and_then(Json::as_str))?;
        vocabulary.ids.get(text).copied()
    };
    let model = checkpoint.source().config().map(Config::new);
    let numbered = |key: &str| {
        let value = model?.get(key)?;
        let id = value.as_u64().or_else(|| value.as_array()?.first()?.as_u64())?;
        usize::try_from(id).ok().filter(|&id| id < vocabulary.tokens.len())
    };
    let ids: HashMap<&str, Option<usize>> = [
        ("bos", named("bos_token").or_else(|| named("cls_token")).or_else(|| numbered("bos_token_id"))),
        ("eos", named("eos_token").or_else(|| numbered("eos_token_id"))),
        ("unknown", named("unk_token")),
        ("seperator", named("sep_token")), // so spelled in the format
        ("padding", named("pad_token").or_else(|| numbered("pad_token_id"))),
        ("cls", named("cls_token")),
        ("mask", named("mask_token")),
    ]
    .into();
    for role in ["bos", "eos", "unknown", "seperator", "padding", "cls", "mask"] {
        if let Some(Some(id)) = ids.get(role) {
            metadata.set(format!("tokenizer.ggml.{role}_token_id"), *id as u32);
        }
    }
    let get = |role: &str| ids.get(role).copied().flatten();
    let (first, last) = template_ends(tokenizer, vocabulary);
    let told = |key: &str| config.get(key).and_then(Json::as_bool);
    // The post-processor is what runs; the flags are only there for those who have none.
    let (begins, ends) = match tokenizer.get("post_processor").filter(|post| !post.is_null()) {
        Some(_) => (
            first.is_some() && first == get("bos"),
            last.is_some() && (last == get("eos") || last == get("seperator")),
        ),
        None => (told("add_bos_token").unwrap_or(false), told("add_eos_token").unwrap_or(false)),
    };
    metadata.set("tokenizer.ggml.add_bos_token", begins);
    metadata.set("tokenizer.ggml.add_eos_token", ends && last.is_none_or(|last| Some(last) == get("eos")));
    if ends && last == get("seperator") && last != get("eos") {
        metadata.set("tokenizer.ggml.add_sep_token", true);
    }
    Ok(())
}

/// The special tokens that the post-processor puts before and after a text.
fn template_ends(tokenizer: &Json, vocabulary: &Vocabulary) -> (Option<usize>, Option<usize>) {
    let Some(post) = tokenizer.get("post_processor") else { return (None, None) };
    let parts = match post.get("type").and_then(Json::as_str) {
        Some("Sequence") => {
            post.get("processors").and_then(Json::as_array).map(Vec::as_slice).unwrap_or_default()
        }
        _ => std::slice::from_ref(post),
    };
    let pair =
        |part: &Json, key: &str| part.get(key)?.get(1)?.as_u64().and_then(|id| usize::try_from(id).ok());
    for part in parts {
        match part.get("type").and_then(Json::as_str) {
            Some("TemplateProcessing") => {
                let single =
                    part.get("single").and_then(Json::as_array).map(Vec::as_slice).unwrap_or_default();
                let special = |item: Option<&Json>| {
                    let id = item?.pointer("/SpecialToken/id")?.as_str()?;
                    vocabulary.ids.get(id).copied()
                };
                return (special(single.first()), special(single.last()));
            }
            Some("BertProcessing" | "RobertaProcessing") => return (pair(part, "cls"), pair(part, "sep")),
            _ => {}
        }
    }
    (None, None)
}

/// From its own file, or from `tokenizer_config.json`, where it may be one of several.
fn chat_template(checkpoint: &Checkpoint, config: &Json) -> Result<Option<String>> {
    if let Some(path) = checkpoint.source().tokenizer().chat_template_jinja.as_deref() {
        let text = std::fs::read_to_string(path).map_err(drophammer_formats::Error::io(path, "read"))?;
        return Ok(Some(text));
    }
    let template = config.get("chat_template");
    Ok(match template {
        Some(Json::String(text)) => Some(text.clone()),
        Some(Json::Array(list)) => {
            let default =
                list.iter().find(|entry| entry.get("name").and_then(Json::as_str) == Some("default"));
            default.and_then(|entry| Some(entry.get("template")?.as_str()?.to_owned()))
        }
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn sentence_piece_tokens_score_by_the_merge_that_makes_them() {
        let mut vocab: serde_json::Map<String, Json> =
            (0..256).map(|byte| (format!("<0x{byte:02X}>"), json!(byte + 10))).collect();
        for (id, token) in ["<unk>", "<s>", "a", "b", "c", "ab", "abc", "unmade"].iter().enumerate() {
            vocab.insert((*token).into(), json!(id));
        }
        let tokenizer = json!({
            "added_tokens": [{"id": 0, "content": "<unk>", "special": true}, {"id": 1, "content": "<s>", "special": true},
                {"id": 8, "content": "<tool>", "special": false}],
            "normalizer": {"type": "Prepend", "prepend": "\u{2581}"},
            "model": {"type": "BPE", "unk_token": "<unk>", "byte_fallback": true, "vocab": vocab,
                "merges": [["a", "b"], "ab c", ["a", "bc"]]},
        });
        let vocabulary = Vocabulary::read(&tokenizer, 268).unwrap();
        assert!(matches!(vocabulary.model(&tokenizer), Ok(Model::Pieces { space_prefix: true })));
        let scores = vocabulary.scores(&tokenizer);
        assert_eq!(scores[..9], [0.0, 0.0, -4.0, -4.0, -4.0, 0.0, -1.0, -7.0, 0.0]);
        let kinds = [Kind::Unknown, Kind::Control, Kind::Normal].map(|kind| kind as i32);
        assert_eq!(vocabulary.kinds.iter().take(3).map(|&kind| kind as i32).collect::<Vec<_>>(), kinds);
        assert_eq!((vocabulary.kinds[8], vocabulary.kinds[9]), (Kind::UserDefined, Kind::Unused));
        assert_eq!((vocabulary.kinds[10], vocabulary.kinds[267]), (Kind::Byte, Kind::Unused));
        assert_eq!(vocabulary.tokens[9], "[PAD9]");
    }

    #[test]
    fn word_pieces_are_marked_at_the_beginning_instead_of_the_end() {
        let tokenizer = json!({"model": {"type": "WordPiece", "vocab": {"[CLS]": 0, "run": 1, "##ning": 2, "[unused1]": 3}},
            "added_tokens": [{"id": 0, "content": "[CLS]", "special": true}]});
        let mut vocabulary = Vocabulary::read(&tokenizer, 4).unwrap();
        assert!(matches!(vocabulary.model(&tokenizer), Ok(Model::Words)));
        vocabulary.mark_word_beginnings();
        assert_eq!(vocabulary.tokens, ["[CLS]", "\u{2581}run", "ning", "[unused1]"]);
    }
}
