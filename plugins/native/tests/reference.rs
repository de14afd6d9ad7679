//! Logits and hidden states against independent float32 implementations.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::{Path, PathBuf};

use drophammer_formats::Source;
use drophammer_native::Native;
use drophammer_sdk::{Backend, Batch, Budgets, HostInfo, JobContext, LoadRequest, LogLevel, Session};

struct Job;

impl JobContext for Job {
    fn progress(&self, _stage: &str, _tensor: &str, _done: u64, _total: u64) {}
    fn log(&self, _level: LogLevel, _message: &str) {}
    fn cancelled(&self) -> bool {
        false
    }
    fn budgets(&self) -> Budgets {
        Budgets { threads: 2, memory_bytes: 0, disk_bytes: 0 }
    }
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures")
}

fn load(path: &Path, reference: bool, sequences: u32) -> Box<dyn Session> {
    let request = LoadRequest {
        path: path.to_owned(),
        context: Some(256),
        max_sequences: sequences,
        reference,
        ..LoadRequest::default()
    };
    Native::open(HostInfo::default()).unwrap().load(&request, Box::new(Job)).unwrap()
}

/// `tokens` as rows, and the values that are due for them.
fn reference(directory: &Path) -> (Vec<Vec<u32>>, Vec<f32>) {
    let file = Source::open(directory.join("reference.safetensors")).unwrap();
    let tokens = file.tensor("tokens").unwrap();
    let ids: Vec<u32> = file
        .bytes(tokens)
        .chunks_exact(8)
        .map(|bytes| i64::from_le_bytes(bytes.try_into().unwrap()) as u32)
        .collect();
    let rows = ids.chunks(tokens.row_elements() as usize).map(<[u32]>::to_vec).collect();
    let due = file.tensor("logits").or_else(|| file.tensor("hidden")).unwrap();
    let due =
        file.bytes(due).chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect();
    (rows, due)
}

/// Every token's outputs, all sequences in one batch.
fn forward(session: &mut dyn Session, rows: &[Vec<u32>]) -> Vec<f32> {
    let tokens: Vec<u32> = rows.concat();
    let positions: Vec<u32> = rows.iter().flat_map(|row| 0..row.len() as u32).collect();
    let sequences: Vec<u32> = rows.iter().zip(0..).flat_map(|(row, s)| vec![s; row.len()]).collect();
    let outputs: Vec<u32> = (0..tokens.len() as u32).collect();
    let mut out = vec![f32::NAN; tokens.len() * session.limits().output_width as usize];
    let batch = Batch { tokens: &tokens, positions: &positions, sequences: &sequences, outputs: &outputs };
    session.forward(batch, &mut out).unwrap();
    out
}

fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, |m, d| if d > m || d.is_nan() { d } else { m })
}

#[test]
fn the_trained_model_gives_the_reference_logits() {
    let directory = fixtures().join("shakespeare-llama");
    let (rows, due) = reference(&directory);
    let mut session = load(&directory, true, rows.len() as u32);
    let difference = largest_difference(&forward(session.as_mut(), &rows), &due);
    assert!(difference <= 1e-3, "largest difference {difference}");
}

#[test]
fn every_architecture_gives_its_reference_output() {
    let mut checked = 0;
    for entry in std::fs::read_dir(fixtures().join("arch")).into_iter().flatten() {
        let directory = entry.unwrap().path();
        if !directory.join("reference.safetensors").exists() {
            continue;
        }
        let (rows, due) = reference(&directory);
        let mut session = load(&directory, true, rows.len() as u32);
        let difference = largest_difference(&forward(session.as_mut(), &rows), &due);
        assert!(difference <= 2e-3, "{}: largest difference {difference}", directory.display());
        checked += 1;
    }
    assert!(checked > 0, "no fixtures in tests/fixtures/arch");
}
