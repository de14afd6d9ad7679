//! Columns that are scaled, with what writes them scaled the other way, leave every model as it is.

use std::path::Path;

use drophammer_formats::digest::Digest;
use drophammer_models::Checkpoint;
use drophammer_models::export::gguf::GgufExport;
use drophammer_models::fold::folds;
use drophammer_quant::{pass, presets};

use crate::fixture::{architectures, fixture, forward, largest_difference, load, reference};

/// Logits of a checkpoint that went through a GGUF file of 32-bit floats; `None` where GGUF has no place for it.
fn logits(checkpoint: Checkpoint, rows: &[Vec<u32>]) -> Option<Vec<f32>> {
    let export = GgufExport::new(checkpoint).ok()?;
    let preset = presets::preset("f32").unwrap();
    let tensors = export.declare(preset, false, &[]);
    let metadata = export.metadata(preset, false).unwrap();
    let layout = drophammer_formats::gguf::plan("model", &metadata, &tensors, None).unwrap();
    let items = export.items(&tensors, |_| None).unwrap();
    let staging = tempfile::tempdir().unwrap();
    let options = pass::Options { durable: false, ..pass::Options::default() };
    pass::forge(staging.path(), layout, &items, Digest::of(b"fold"), &options, &()).unwrap();
    Some(forward(load(&staging.path().join("model.gguf"), true, rows.len() as u32).as_mut(), rows))
}

/// The checkpoint with every fold's scales made by `scale` of a number that differs from column to column.
fn scaled(directory: &Path, scale: fn(usize) -> f32) -> (Checkpoint, usize) {
    let mut checkpoint = Checkpoint::open(directory).unwrap();
    let folds = folds(checkpoint.description());
    for (number, fold) in folds.iter().enumerate() {
        let scales: Vec<f32> = (0..fold.width).map(|i| scale((i * 7 + number * 3) % 11)).collect();
        checkpoint = checkpoint.scaled(fold, &scales).unwrap();
    }
    (checkpoint, folds.len())
}

#[test]
fn powers_of_two_change_no_bit_of_any_architectures_logits_and_other_scales_only_round() {
    let mut directories = architectures();
    directories.push(fixture("shakespeare-llama"));
    directories.sort();
    let (mut compared, mut places) = (0, 0);
    for directory in directories {
        let rows = &reference(&directory).0[..1];
        let Some(plain) = logits(Checkpoint::open(&directory).unwrap(), rows) else { continue };
        let (checkpoint, folds) = scaled(&directory, |i| (i as f32 - 5.0).exp2());
        let exact = logits(checkpoint, rows).unwrap();
        let name = directory.display();
        assert!(plain.iter().zip(&exact).all(|(a, b)| a.to_bits() == b.to_bits()), "{name} by powers of two");
        let near = logits(scaled(&directory, |i| 0.4 + 0.37 * i as f32).0, rows).unwrap();
        let size = plain.iter().fold(0.0f32, |most, x| most.max(x.abs()));
        let difference = largest_difference(&plain, &near) / size;
        assert!(difference < 1e-5, "{name}: {difference} of the largest logit");
        (compared, places) = (compared + 1, places + folds);
    }
    assert!(compared > 40 && places > 250, "{compared} models with {places} places");
}
