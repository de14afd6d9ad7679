//! Every family computes what Hugging Face's own implementation computes.
//!
//! `tests/fixtures/arch/<name>` holds a tiny random model and `reference.safetensors`: `tokens` [B, T] and the `logits`
//! (encoders: `hidden`) [B, T, width] that `make.py` got from it in float32.

#![allow(clippy::unwrap_used)] // a test stops at the first surprise

mod reference;

use std::path::{Path, PathBuf};

use drophammer_formats::Source;
use drophammer_models::description::ModelKind;
use drophammer_models::families::supported;
use drophammer_models::{Checkpoint, build_decoder, build_encoder};
use reference::Reference;

/// Both sides add in float32, in different orders; outputs are a few units large.
const TOLERANCE: f32 = 3e-5;

fn fixtures() -> Vec<PathBuf> {
    let mut roots = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/arch")];
    roots.extend(std::env::var_os("DROPHAMMER_ARCH_FIXTURES").map(PathBuf::from));
    let directories = roots.iter().flat_map(|root| std::fs::read_dir(root).into_iter().flatten());
    let mut found: Vec<PathBuf> = directories.map(|entry| entry.unwrap().path()).collect();
    found.retain(|path| path.join("reference.safetensors").exists());
    found.sort();
    found
}

fn floats(source: &Source, name: &str) -> Vec<f32> {
    let bytes = source.bytes(source.tensor(name).unwrap());
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

/// The largest difference between our outputs and the expected ones.
fn difference(checkpoint: &Checkpoint, reference: &Source) -> f32 {
    let tokens = reference.tensor("tokens").unwrap();
    let ids = reference.bytes(tokens).chunks_exact(8);
    let ids: Vec<u32> = ids.map(|b| i64::from_le_bytes(b.try_into().unwrap()) as u32).collect();
    let description = checkpoint.description();
    let name = if description.kind == ModelKind::Decoder { "logits" } else { "hidden" };
    let expected = floats(reference, name);
    let mut actual = Vec::new();
    for sequence in ids.chunks_exact(tokens.row_elements() as usize) {
        let mut graph = Reference { checkpoint, tokens: sequence };
        let output = match description.kind {
            ModelKind::Decoder => build_decoder(&mut graph, description),
            ModelKind::Encoder => build_encoder(&mut graph, description),
        };
        actual.extend(output.unwrap().data);
    }
    assert_eq!(actual.len(), expected.len());
    actual.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn every_fixture_gives_hugging_faces_numbers() {
    let mut failures = Vec::new();
    let mut unseen = supported();
    for path in fixtures() {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let reference = Source::open(path.join("reference.safetensors")).unwrap();
        match Checkpoint::open(&path) {
            Ok(checkpoint) => {
                unseen.retain(|family| *family != checkpoint.description().family);
                let difference = difference(&checkpoint, &reference);
                println!("{name}: {difference:.2e}");
                if difference.is_nan() || difference > TOLERANCE {
                    failures.push(format!("{name}: differs by {difference}"));
                }
            }
            Err(error) => failures.push(format!("{name}: {error}")),
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    assert!(unseen.is_empty(), "families without a fixture: {unseen:?}");
}
