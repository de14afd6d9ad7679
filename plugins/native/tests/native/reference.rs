//! Logits and hidden states against independent float32 implementations.

use crate::fixture::{architectures, fixture, forward, largest_difference, load, reference};

#[test]
fn the_trained_model_gives_the_reference_logits() {
    let directory = fixture("shakespeare-llama");
    let (rows, due) = reference(&directory);
    let mut session = load(&directory, true, rows.len() as u32);
    let difference = largest_difference(&forward(session.as_mut(), &rows), &due);
    assert!(difference <= 1e-3, "largest difference {difference}");
}

#[test]
fn every_architecture_gives_its_reference_output() {
    let mut checked = 0;
    let mut failures = Vec::new();
    for directory in architectures() {
        let (rows, due) = reference(&directory);
        let mut session = load(&directory, true, rows.len() as u32);
        let difference = largest_difference(&forward(session.as_mut(), &rows), &due);
        if difference.is_nan() || difference > 2e-3 {
            failures.push(format!("{}: largest difference {difference}", directory.display()));
        }
        let mut session = load(&directory, false, rows.len() as u32);
        println!(
            "fast {}: {}",
            directory.display(),
            largest_difference(&forward(session.as_mut(), &rows), &due)
        );
        checked += 1;
    }
    assert!(failures.is_empty(), "{failures:#?}");
    assert!(checked > 0, "no fixtures in tests/fixtures/arch");
}
