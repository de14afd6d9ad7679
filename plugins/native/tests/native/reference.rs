//! Logits and hidden states against independent float32 implementations.

use std::path::PathBuf;

use drophammer_sdk::{Backend, LoadRequest};

use crate::fixture::{JOB, architectures, fixture, forward, largest_difference, load, native, reference};

#[test]
fn the_trained_model_gives_the_reference_logits() {
    let directory = fixture("shakespeare-llama");
    let (rows, due) = reference(&directory);
    let mut session = load(&directory, true, rows.len() as u32);
    let difference = largest_difference(&forward(session.as_mut(), &rows), &due);
    assert!(difference <= 1e-3, "largest difference {difference}");
}

/// How far a fixture's output may be from what is due, in reference mode and in fast mode, which keeps keys and values in thirteen
/// bits and weights that only their source can decode in sixteen.
const TOLERANCES: [(bool, f32); 2] = [(true, 2e-3), (false, 3e-2)];

/// Outputs that are not what is due.
fn failures(directories: &[PathBuf]) -> Vec<String> {
    let mut failures = Vec::new();
    for directory in directories {
        let (rows, due) = reference(directory);
        let adapter = directory.join("adapter");
        for (exact, tolerance) in TOLERANCES {
            let request = LoadRequest {
                path: directory.clone(),
                adapters: adapter.exists().then(|| adapter.clone()).into_iter().collect(),
                context: Some(256),
                max_sequences: rows.len() as u32,
                reference: exact,
                ..LoadRequest::default()
            };
            let mut session = native().load(&request, Box::new(JOB)).unwrap();
            let difference = largest_difference(&forward(session.as_mut(), &rows), &due);
            if difference.is_nan() || difference > tolerance {
                let mode = if exact { "reference" } else { "fast" };
                failures
                    .push(format!("{}, {mode} mode: largest difference {difference}", directory.display()));
            }
        }
    }
    failures
}

#[test]
fn every_architecture_gives_its_reference_output() {
    let directories = architectures();
    assert!(directories.len() > 40, "no fixtures in tests/fixtures/arch");
    let failures = failures(&directories);
    assert!(failures.is_empty(), "{failures:#?}");
}

#[test]
fn packed_and_adapted_sources_give_their_reference_output() {
    let entries = std::fs::read_dir(fixture("packed")).unwrap().map(|entry| entry.unwrap().path());
    let directories: Vec<_> = entries.filter(|path| path.join("reference.safetensors").exists()).collect();
    assert!(directories.len() > 10, "no fixtures in tests/fixtures/packed");
    let failures = failures(&directories);
    assert!(failures.is_empty(), "{failures:#?}");
}
