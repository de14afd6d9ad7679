//! Weights stored in few bits, and weights with an adapter, are read as what their own libraries unpack.

#![allow(clippy::unwrap_used)] // a test stops at the first surprise

mod fixture;
mod reference;

use drophammer_formats::Source;
use drophammer_models::{Checkpoint, Error};
use fixture::{TOLERANCE, packed};

#[test]
fn every_packing_gives_the_numbers_of_its_unpacked_weights() {
    let mut failures = Vec::new();
    for fixture in packed() {
        let opened = Checkpoint::open(&fixture.path).and_then(|checkpoint| {
            let adapter = fixture.path.join("adapter");
            if adapter.exists() { checkpoint.with_adapter(Source::open(adapter)?) } else { Ok(checkpoint) }
        });
        match opened {
            Ok(checkpoint) => {
                let difference = fixture.difference(&checkpoint);
                println!("{}: {difference:.2e}", fixture.name);
                if difference.is_nan() || difference > TOLERANCE {
                    failures.push(format!("{}: differs by {difference}", fixture.name));
                }
            }
            Err(error) => failures.push(format!("{}: {error}", fixture.name)),
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn bitsandbytes_is_refused_with_its_reason() {
    let fixture = packed().into_iter().find(|fixture| fixture.name == "awq").unwrap();
    let directory = tempfile::tempdir().unwrap();
    std::fs::copy(fixture.path.join("model.safetensors"), directory.path().join("model.safetensors"))
        .unwrap();
    let config = std::fs::read_to_string(fixture.path.join("config.json")).unwrap();
    std::fs::write(directory.path().join("config.json"), config.replace("\"awq\"", "\"bitsandbytes\""))
        .unwrap();
    let error = Checkpoint::open(directory.path()).unwrap_err();
    assert!(matches!(error, Error::Unsupported { .. }), "{error}");
    assert!(error.to_string().contains("bitsandbytes"), "{error}");
}

#[test]
fn an_adapter_of_another_model_is_refused() {
    let models = packed();
    let find = |name: &str| models.iter().find(|fixture| fixture.name == name).unwrap();
    let other = Checkpoint::open(models[0].path.parent().unwrap().join("../arch/llama")).unwrap();
    let adapter = Source::open(find("lora").path.join("adapter")).unwrap();
    assert!(other.with_adapter(adapter).is_err());
}
