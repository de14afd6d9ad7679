//! A model written as GGUF and read again computes the same.

#![allow(clippy::unwrap_used)] // a test stops at the first surprise

mod fixture;
mod reference;

use std::path::{Path, PathBuf};

use drophammer_formats::digest::Digest;
use drophammer_models::Checkpoint;
use drophammer_models::export::gguf::GgufExport;
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
