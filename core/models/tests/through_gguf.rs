//! A model written as GGUF and read again computes the same.

#![allow(clippy::unwrap_used)] // a test stops at the first surprise

mod fixture;
mod reference;

use std::path::{Path, PathBuf};

use drophammer_formats::digest::Digest;
use drophammer_models::export::gguf::GgufExport;
use drophammer_models::{Checkpoint, Error};
use drophammer_quant::{pass, presets};
use fixture::{TOLERANCE, fixtures};

/// Writes a model as GGUF into `directory`.
fn write(source: &Path, scheme: &str, tokenizer: bool, directory: &Path) -> PathBuf {
    let export = GgufExport::new(Checkpoint::open(source).unwrap()).unwrap();
    let preset = presets::preset(scheme).unwrap();
    let tensors = export.declare(preset, false, &[]);
    let metadata = export.metadata(preset, tokenizer).unwrap();
    let layout = drophammer_formats::gguf::plan("model", &metadata, &tensors, None).unwrap();
    let items = export.items(&tensors, |_| None).unwrap();
    pass::forge(directory, layout, &items, Digest::of(b"test"), &pass::Options::default(), &()).unwrap();
    directory.join("model.gguf")
}

#[test]
fn every_fixture_gives_the_same_numbers_through_gguf() {
    let mut failures = Vec::new();
    for scheme in ["f32", "bf16"] {
        for fixture in fixtures() {
            let directory = tempfile::tempdir().unwrap();
            let file = write(&fixture.path, scheme, false, directory.path());
            if let Some(keep) = std::env::var_os("DROPHAMMER_KEEP_GGUF") {
                std::fs::copy(&file, Path::new(&keep).join(format!("{}-{scheme}.gguf", fixture.name)))
                    .unwrap();
            }
            match Checkpoint::open(&file) {
                Ok(checkpoint) => {
                    let difference = fixture.difference(&checkpoint);
                    println!("{} {scheme}: {difference:.2e}", fixture.name);
                    // Some norms are one number more in the file: bf16 keeps vectors in float32.
                    if difference.is_nan() || difference > TOLERANCE {
                        failures.push(format!("{} {scheme}: differs by {difference}", fixture.name));
                    }
                }
                Err(error) => failures.push(format!("{} {scheme}: {error}", fixture.name)),
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

fn export(source: &Path) -> GgufExport {
    GgufExport::new(Checkpoint::open(source).unwrap()).unwrap()
}

#[test]
fn a_byte_level_tokenizer_becomes_keys() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/shakespeare-llama");
    let metadata = export(&source).metadata(presets::preset("f16").unwrap(), true).unwrap();
    let len = |key: &str| metadata.array(key).unwrap().len();
    assert_eq!(metadata.str("tokenizer.ggml.model"), Some("gpt2"));
    assert_eq!(metadata.str("tokenizer.ggml.pre"), Some("gpt-2"));
    assert_eq!((len("tokenizer.ggml.tokens"), len("tokenizer.ggml.token_type")), (2048, 2048));
    assert_eq!(metadata.array("tokenizer.ggml.token_type").unwrap().to_i64s().unwrap()[..3], [3, 3, 1]);
    assert_eq!(metadata.array("tokenizer.ggml.merges").unwrap().as_strings().unwrap()[0], "Ġ t");
    assert_eq!(metadata.u64("tokenizer.ggml.bos_token_id"), Some(0));
    assert_eq!(metadata.u64("tokenizer.ggml.eos_token_id"), Some(1));
    assert_eq!(metadata.bool("tokenizer.ggml.add_bos_token"), Some(false));
}

#[test]
fn a_tokenizer_that_gguf_cannot_hold_is_refused() {
    let fixture = fixtures().into_iter().find(|fixture| fixture.name == "gemma").unwrap();
    let directory = tempfile::tempdir().unwrap();
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(fixture.path.join(file), directory.path().join(file)).unwrap();
    }
    let refusal = |tokenizer: &str| {
        std::fs::write(directory.path().join("tokenizer.json"), tokenizer).unwrap();
        let error = export(directory.path()).metadata(presets::preset("f16").unwrap(), true).unwrap_err();
        assert!(matches!(error, Error::Tokenizer { .. }), "{error}");
        error.to_string()
    };
    // The fixture's embedding has 96 rows.
    let beyond = refusal(r#"{"model": {"type": "BPE", "vocab": {"a": 0, "too far": 96}, "merges": []}}"#);
    assert!(beyond.contains("`too far`"), "{beyond}");
    let unigram = refusal(r#"{"model": {"type": "Unigram", "vocab": {}}}"#);
    assert!(unigram.contains("Unigram"), "{unigram}");
    let rules = r#"{"model": {"type": "BPE", "vocab": {"a": 0}}, "pre_tokenizer": {"type": "Whitespace"}}"#;
    assert!(refusal(rules).contains("Whitespace"));
}
