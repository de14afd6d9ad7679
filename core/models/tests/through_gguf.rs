//! A model written as GGUF and read again computes the same.

#![allow(clippy::unwrap_used)] // a test stops at the first surprise

mod fixture;
mod reference;

use std::path::{Path, PathBuf};

use drophammer_formats::digest::Digest;
use drophammer_formats::gguf::{self, Metadata};
use drophammer_formats::{DType, Source, TensorDecl};
use drophammer_models::export::gguf::GgufExport;
use drophammer_models::rope::RopeLayout;
use drophammer_models::{Checkpoint, Error, LowRank};
use drophammer_quant::{pass, presets};
use fixture::{TOLERANCE, fixtures, packed};

/// Writes a model as GGUF into `directory`.
fn write(source: &Path, scheme: &str, tokenizer: bool, directory: &Path) -> Result<PathBuf, Error> {
    let export = GgufExport::new(Checkpoint::open(source)?)?;
    let preset = presets::preset(scheme).unwrap();
    let tensors = export.declare(preset, false, &[]);
    let metadata = export.metadata(preset, tokenizer)?;
    let layout = drophammer_formats::gguf::plan("model", &metadata, &tensors, None).unwrap();
    let items = export.items(&tensors, |_| None).unwrap();
    pass::forge(directory, layout, &items, Digest::of(b"test"), &pass::Options::default(), &()).unwrap();
    Ok(directory.join("model.gguf"))
}

#[test]
fn every_fixture_gives_the_same_numbers_through_gguf() {
    let mut failures = Vec::new();
    for scheme in ["f32", "bf16"] {
        for fixture in fixtures() {
            let directory = tempfile::tempdir().unwrap();
            let written = write(&fixture.path, scheme, false, directory.path());
            let Ok(file) = written.inspect_err(|error| failures.push(format!("{}: {error}", fixture.name)))
            else {
                continue;
            };
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

#[test]
fn an_adapter_of_the_published_model_fits_its_gguf_file() {
    let fixture = packed().into_iter().find(|fixture| fixture.name == "lora").unwrap();
    let directory = tempfile::tempdir().unwrap();
    let file = write(&fixture.path, "f32", false, directory.path()).unwrap();
    let base = || Checkpoint::open(&file).unwrap();
    let adapted = |checkpoint: Checkpoint| {
        checkpoint.with_adapter(Source::open(fixture.path.join("adapter")).unwrap()).unwrap()
    };
    // Rows of queries lie in another order in the file, and may be read in either.
    for (how, checkpoint) in [
        ("as it is", adapted(base())),
        ("in another order", adapted(base()).with_layout(RopeLayout::Halves)),
        ("to another order", adapted(base().with_layout(RopeLayout::Halves))),
    ] {
        let difference = fixture.difference(&checkpoint);
        assert!(difference <= TOLERANCE, "{how}: differs by {difference}");
    }
    assert!(fixture.difference(&base()) > 0.01, "the adapter changes what the model says");
}

#[test]
fn a_gguf_adapter_is_the_same_as_the_published_one() {
    let fixture = packed().into_iter().find(|fixture| fixture.name == "lora").unwrap();
    let directory = tempfile::tempdir().unwrap();
    let file = write(&fixture.path, "f32", false, directory.path()).unwrap();
    let adapted = |adapter: &Path| {
        Checkpoint::open(&file).unwrap().with_adapter(Source::open(adapter).unwrap()).unwrap()
    };
    let due = adapted(&fixture.path.join("adapter"));
    let mut tensors = Vec::new();
    let mut changed = Vec::new();
    for weight in due.weights().iter().filter(|weight| !weight.id.is_vector()) {
        let weight = due.weight(weight.id).unwrap();
        for LowRank { rank, down, up } in weight.low_ranks().unwrap().unwrap() {
            let name = due.gguf_name(weight.id()).unwrap();
            for (half, numbers, shape) in
                [("a", down, [rank as u64, weight.columns()]), ("b", up, [weight.rows(), rank as u64])]
            {
                let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
                tensors.push((TensorDecl::new(format!("{name}.lora_{half}"), DType::F32, shape), bytes));
            }
            changed.push(weight.id());
        }
    }
    assert_eq!(changed.len(), 6, "queries, values and down of two layers");
    let place = directory.path().join("adapter.gguf");
    let mut metadata = Metadata::new();
    metadata.set("general.type", "adapter".to_owned());
    metadata.set("general.architecture", "llama".to_owned());
    metadata.set("adapter.type", "lora".to_owned());
    let slices: Vec<_> = tensors.iter().map(|(decl, bytes)| (decl.clone(), bytes.as_slice())).collect();
    gguf::write(&place, &metadata, &slices).unwrap();
    let found = adapted(&place);
    for id in changed {
        let [found, due] = [&found, &due].map(|checkpoint| checkpoint.weight(id).unwrap().to_vec().unwrap());
        let most = found.iter().zip(&due).fold(0f32, |most, (a, b)| most.max((a - b).abs()));
        assert!(most < 1e-6, "{id}: {most}");
    }
    // A model is no adapter.
    let refused = Checkpoint::open(&file).unwrap().with_adapter(Source::open(&file).unwrap());
    assert!(matches!(refused, Err(Error::Unsupported { .. })));
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

#[test]
fn what_gguf_cannot_tell_is_refused_by_name() {
    for (name, old, new, told) in [
        (
            "gpt2",
            "\"scale_attn_by_inverse_layer_idx\": false",
            "\"scale_attn_by_inverse_layer_idx\": true",
            "scale",
        ),
        ("bert", "\"hidden_act\": \"gelu\"", "\"hidden_act\": \"relu\"", "activation"),
        (
            "smollm3",
            "\"no_rope_layer_interval\": 4",
            "\"no_rope_layer_interval\": 4, \"no_rope_layers\": [0, 1, 1, 1]",
            "rope",
        ),
    ] {
        let fixture = fixtures().into_iter().find(|fixture| fixture.name == name).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let weights = "model.safetensors";
        std::fs::copy(fixture.path.join(weights), directory.path().join(weights)).unwrap();
        let config = std::fs::read_to_string(fixture.path.join("config.json")).unwrap();
        let mut config: serde_json::Value = serde_json::from_str(&config).unwrap();
        let mut changed: serde_json::Value = serde_json::from_str(&format!("{{{new}}}")).unwrap();
        assert!(config.to_string().contains(&old.replace("\": ", "\":")), "{name} has no {old}");
        config.as_object_mut().unwrap().append(changed.as_object_mut().unwrap());
        std::fs::write(directory.path().join("config.json"), config.to_string()).unwrap();
        let error = GgufExport::new(Checkpoint::open(directory.path()).unwrap()).unwrap_err();
        assert!(matches!(error, Error::Unsupported { .. }) && error.to_string().contains(told), "{error}");
    }
}
