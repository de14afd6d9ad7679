//! Tokenizers against independent implementations: `data/*.json` say which one made them.

use std::path::{Path, PathBuf};

use drophammer_formats::Source;
use drophammer_formats::gguf::Metadata;
use proptest::prelude::*;
use serde_json::Value as Json;

use super::{Detokenizer, Tokenizer, TokenizerError};

fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/shakespeare-llama")
}

fn data(name: &str) -> Json {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name);
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn shakespeare() -> Tokenizer {
    Tokenizer::from_source(&Source::open(fixture()).unwrap()).unwrap()
}

fn strings(json: &Json) -> Vec<String> {
    json.as_array().unwrap().iter().map(|s| s.as_str().unwrap().to_owned()).collect()
}

fn ids(json: &Json) -> Vec<u32> {
    json.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

fn gguf(entries: Vec<(&str, drophammer_formats::gguf::Value)>) -> Result<Tokenizer, TokenizerError> {
    let mut metadata = Metadata::new();
    for (key, value) in entries {
        metadata.set(format!("tokenizer.ggml.{key}"), value);
    }
    Tokenizer::from_gguf(&metadata, Path::new("model.gguf"))
}

/// The fixture's `tokenizer.json` rewritten as the metadata of a GGUF file.
fn shakespeare_as_gguf() -> Tokenizer {
    let json: Json =
        serde_json::from_slice(&std::fs::read(fixture().join("tokenizer.json")).unwrap()).unwrap();
    let mut tokens: Vec<(u32, String)> = json["model"]["vocab"]
        .as_object()
        .unwrap()
        .iter()
        .map(|(token, id)| (id.as_u64().unwrap() as u32, token.clone()))
        .collect();
    tokens.sort();
    let special: Vec<u32> =
        json["added_tokens"].as_array().unwrap().iter().map(|t| t["id"].as_u64().unwrap() as u32).collect();
    let kinds: Vec<i32> = tokens.iter().map(|(id, _)| if special.contains(id) { 3 } else { 1 }).collect();
    let merges: Vec<String> = json["model"]["merges"]
        .as_array()
        .unwrap()
        .iter()
        .map(|merge| merge.as_str().map_or_else(|| strings(merge).join(" "), str::to_owned))
        .collect();
    gguf(vec![
        ("model", "gpt2".into()),
        ("pre", "gpt-2".into()),
        ("tokens", tokens.into_iter().map(|(_, token)| token).collect::<Vec<_>>().into()),
        ("token_type", kinds.into()),
        ("merges", merges.into()),
        ("bos_token_id", 0u32.into()),
        ("eos_token_id", 1u32.into()),
    ])
    .unwrap()
}

#[test]
fn the_fixture_text_has_as_many_tokens_as_its_reference_says() {
    let reference: Json =
        serde_json::from_slice(&std::fs::read(fixture().join("reference.json")).unwrap()).unwrap();
    let tokenizer = shakespeare();
    let text = std::fs::read_to_string(fixture().join("val.txt")).unwrap();
    let tokens = tokenizer.encode(&text, true).unwrap();
    assert_eq!(tokens.len() as u64, reference["tokens_in_val"].as_u64().unwrap());
    assert_eq!(tokenizer.decode(&tokens), text);

    let greedy = ids(&reference["greedy_tokens"]);
    assert_eq!(tokenizer.decode(&greedy), reference["greedy_text"].as_str().unwrap());
    let prompt = tokenizer.encode(reference["greedy_prompt"].as_str().unwrap(), true).unwrap();
    assert!(greedy.starts_with(&prompt));
    assert_eq!(tokenizer.special().bos, Some(0));
    assert_eq!(tokenizer.special().end_of_generation, [1]);
}

#[test]
fn a_vocabulary_gives_the_same_ids_from_gguf_as_from_tokenizer_json() {
    let (json, gguf) = (shakespeare(), shakespeare_as_gguf());
    let text = std::fs::read_to_string(fixture().join("val.txt")).unwrap();
    assert_eq!(gguf.encode(&text, true).unwrap(), json.encode(&text, true).unwrap());
    for case in data("smollm2.json")["cases"].as_array().unwrap() {
        let text = case["text"].as_str().unwrap();
        let ids = json.encode(text, false).unwrap();
        assert_eq!(gguf.encode(text, false).unwrap(), ids, "{text:?}");
        assert_eq!(gguf.decode(&ids), json.decode(&ids), "{text:?}");
        assert_eq!(json.decode(&ids), text);
    }
    assert_eq!(gguf.special(), json.special());
}

#[test]
fn special_tokens_in_a_text_are_found_and_are_no_text() {
    let tokenizer = shakespeare();
    let ids = tokenizer.encode("<|begin_of_text|>My lord<|end_of_text|>", false).unwrap();
    assert_eq!((ids[0], *ids.last().unwrap()), (0, 1));
    assert_eq!(tokenizer.decode(&ids), "My lord");
    assert_eq!(tokenizer.token_bytes(1), b"<|end_of_text|>");
    assert!(tokenizer.is_special(1) && tokenizer.ends_generation(1) && !tokenizer.ends_generation(0));
}

fn sentencepiece(file: &str, model: &str) -> (Tokenizer, Json) {
    let data = data(file);
    let scores: Vec<f32> =
        data["scores"].as_array().unwrap().iter().map(|s| s.as_f64().unwrap() as f32).collect();
    let kinds: Vec<i32> =
        data["types"].as_array().unwrap().iter().map(|k| k.as_i64().unwrap() as i32).collect();
    let tokenizer = gguf(vec![
        ("model", model.into()),
        ("tokens", strings(&data["tokens"]).into()),
        ("scores", scores.into()),
        ("token_type", kinds.into()),
        ("add_bos_token", false.into()),
        ("add_eos_token", false.into()),
        ("bos_token_id", 1u32.into()),
        ("eos_token_id", 2u32.into()),
    ]);
    (tokenizer.unwrap(), data)
}

#[test]
fn sentencepiece_vocabularies_give_sentencepieces_own_ids() {
    for (file, model) in [("sentencepiece_bpe.json", "llama"), ("sentencepiece_unigram.json", "t5")] {
        let (tokenizer, data) = sentencepiece(file, model);
        for case in data["cases"].as_array().unwrap() {
            let (text, expected) = (case["text"].as_str().unwrap(), ids(&case["ids"]));
            assert_eq!(tokenizer.encode(text, false).unwrap(), expected, "{model} {text:?}");
            assert_eq!(tokenizer.decode(&expected), case["decoded"].as_str().unwrap(), "{model} {text:?}");
        }
    }
}

#[test]
fn a_sentencepiece_file_gives_the_same_tokenizer_as_its_vocabulary_in_gguf() {
    let directory = tempfile::tempdir().unwrap();
    let file =
        std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/sentencepiece_bpe.model"))
            .unwrap();
    std::fs::write(directory.path().join("tokenizer.model"), &file).unwrap();
    std::fs::write(directory.path().join("added_tokens.json"), r#"{"<|more|>": 700}"#).unwrap();
    let tokenizer = Tokenizer::from_directory(directory.path()).unwrap();
    let (_, data) = sentencepiece("sentencepiece_bpe.json", "llama");
    for case in data["cases"].as_array().unwrap() {
        let (text, expected) = (case["text"].as_str().unwrap(), ids(&case["ids"]));
        assert_eq!(tokenizer.encode(text, false).unwrap(), expected, "{text:?}");
    }
    assert_eq!(tokenizer.encode("<|more|>", true).unwrap(), [1, 700]);
    assert_eq!((tokenizer.special().eos, tokenizer.len()), (Some(2), 701));
    for cut in (0..file.len()).step_by(97) {
        std::fs::write(directory.path().join("tokenizer.model"), &file[..cut]).unwrap();
        let error = Tokenizer::from_directory(directory.path()).err();
        let named = error.is_none_or(|error| error.to_string().contains("tokenizer."));
        assert!(named, "cut at {cut}");
    }
}

#[test]
fn generated_text_keeps_its_space_after_text_and_loses_it_after_a_special_token() {
    let (tokenizer, _) = sentencepiece("sentencepiece_bpe.json", "llama");
    let answer = tokenizer.encode("lord", false).unwrap();
    for (prompt, expected) in [(vec![3, 14], " lord"), (vec![1], "lord"), (vec![], "lord")] {
        let mut stream = Detokenizer::after(&tokenizer, &prompt);
        let text: String = answer.iter().map(|&id| stream.push(&tokenizer, id)).collect();
        assert_eq!(text, expected, "{prompt:?}");
    }
}

#[test]
fn wordpiece_vocabularies_give_the_ids_they_had_before_gguf() {
    let data = data("wordpiece.json");
    let original = strings(&data["tokens"]);
    let kinds: Vec<i32> = original.iter().map(|t| if t.starts_with('[') { 3 } else { 1 }).collect();
    let in_file = |token: &String| match token.strip_prefix("##") {
        Some(rest) => rest.to_owned(),
        None if token.starts_with('[') => token.clone(),
        None => format!("▁{token}"),
    };
    let tokenizer = gguf(vec![
        ("model", "bert".into()),
        ("tokens", original.iter().map(in_file).collect::<Vec<_>>().into()),
        ("token_type", kinds.into()),
        ("cls_token_id", 2u32.into()),
        ("seperator_token_id", 3u32.into()),
    ])
    .unwrap();
    for case in data["cases"].as_array().unwrap() {
        let text = case["text"].as_str().unwrap();
        assert_eq!(tokenizer.encode(text, true).unwrap(), ids(&case["ids"]), "{text:?}");
    }
    assert_eq!(tokenizer.decode(&tokenizer.encode("unaffable kings", true).unwrap()), "unaffable kings");
}

/// The real model is 98 MB and not part of the repository: `cargo xtask fetch smollm2` prints its path.
#[test]
#[ignore = "needs DROPHAMMER_SMOLLM2, the path of SmolLM2's GGUF file"]
fn smollm2_gives_the_ids_of_its_hugging_face_rules() {
    let path = std::env::var("DROPHAMMER_SMOLLM2").unwrap();
    let tokenizer = Tokenizer::from_source(&Source::open(path).unwrap()).unwrap();
    for case in data("smollm2.json")["cases"].as_array().unwrap() {
        let text = case["text"].as_str().unwrap();
        assert_eq!(tokenizer.encode(text, true).unwrap(), ids(&case["ids"]), "{text:?}");
    }
    assert_eq!(tokenizer.special().end_of_generation, [0, 2]);
}

#[test]
fn what_cannot_be_a_tokenizer_is_refused_with_the_reason_and_the_file() {
    let empty = tempfile::tempdir().unwrap();
    let error = Tokenizer::from_directory(empty.path()).unwrap_err();
    assert!(matches!(error, TokenizerError::Missing { .. }), "{error}");

    std::fs::write(empty.path().join("vocab.txt"), "[UNK]\n").unwrap();
    let error = Tokenizer::from_directory(empty.path()).unwrap_err();
    assert!(error.to_string().contains("vocab.txt"), "{error}");

    for text in ["", "{}", "[1]", r#"{"model":{"type":"BPE","vocab":{"a":4000000000},"merges":[]}}"#] {
        std::fs::write(empty.path().join("tokenizer.json"), text).unwrap();
        let error = Tokenizer::from_directory(empty.path()).unwrap_err();
        assert!(error.to_string().contains("tokenizer.json"), "{error}");
    }
    let tokens = || drophammer_formats::gguf::Value::from(vec!["a".to_owned(), "b".to_owned()]);
    for (entries, word) in [
        (vec![("model", "gpt2".into())], "tokens"),
        (vec![("model", "rwkv".into()), ("tokens", tokens())], "rwkv"),
        (vec![("model", "gpt2".into()), ("tokens", tokens())], "merges"),
        (
            vec![("model", "gpt2".into()), ("pre", "own".into()), ("tokens", tokens()), ("merges", tokens())],
            "`own`",
        ),
        (vec![("model", "llama".into()), ("tokens", tokens())], "scores"),
        (vec![("model", "llama".into()), ("tokens", tokens()), ("scores", vec![0f32].into())], "1 numbers"),
        (
            vec![("model", "llama".into()), ("tokens", tokens()), ("scores", vec![0., f32::NAN].into())],
            "token 1",
        ),
        (vec![("model", "bert".into()), ("tokens", tokens())], "[UNK]"),
        (vec![("model", "gpt2".into()), ("tokens", Vec::<String>::new().into())], "0 tokens"),
    ] {
        let error = gguf(entries).unwrap_err().to_string();
        assert!(error.contains(word) && error.contains("model.gguf"), "{error}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_text_survives_byte_level_tokens(text in any::<String>()) {
        let tokenizer = shakespeare_cached();
        let ids = tokenizer.encode(&text, false).unwrap();
        prop_assert_eq!(tokenizer.decode(&ids), text);
    }

    #[test]
    fn a_damaged_tokenizer_json_never_panics(at in 0usize..100_000, byte in any::<u8>(), cut in any::<bool>()) {
        let mut bytes = std::fs::read(fixture().join("tokenizer.json")).unwrap();
        let at = at % bytes.len();
        bytes[at] = byte;
        if cut {
            bytes.truncate(at);
        }
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("tokenizer.json"), &bytes).unwrap();
        if let Ok(tokenizer) = Tokenizer::from_directory(directory.path()) {
            let ids = tokenizer.encode("My lord, 'tis done", true).unwrap_or_default();
            tokenizer.decode(&ids);
        }
    }
}

fn shakespeare_cached() -> &'static Tokenizer {
    static TOKENIZER: std::sync::OnceLock<Tokenizer> = std::sync::OnceLock::new();
    TOKENIZER.get_or_init(shakespeare)
}
