//! What the runtime computes, against independent float32 implementations.

use crate::fixture::{fixture, forge, largest_difference, load, reference, run};

#[test]
#[ignore = "needs the OpenVINO runtime: `cargo xtask test` provides it"]
fn every_architecture_gives_its_reference_output() {
    let mut checked = 0;
    let mut failures = Vec::new();
    for entry in std::fs::read_dir(fixture("arch")).unwrap() {
        let directory = entry.unwrap().path();
        if !directory.join("reference.safetensors").exists() {
            continue;
        }
        let name = directory.file_name().unwrap().to_string_lossy().into_owned();
        let made = tempfile::tempdir().unwrap();
        let outcome = std::panic::catch_unwind(|| {
            forge(&directory, "fp32", true, made.path());
            let (rows, due) = reference(&directory);
            let mut session = load(made.path(), rows.len() as u32);
            let mut all = Vec::new();
            for (sequence, row) in (0..).zip(&rows) {
                all.extend(run(session.as_mut(), sequence, 0, row));
            }
            largest_difference(&all, &due)
        });
        match outcome {
            Ok(difference) if difference <= 2e-3 => println!("{name}: {difference:e}"),
            Ok(difference) => failures.push(format!("{name}: largest difference {difference}")),
            Err(_) => failures.push(format!("{name}: failed, see above")),
        }
        checked += 1;
    }
    assert!(failures.is_empty(), "{failures:#?}");
    assert!(checked > 30, "only {checked} fixtures in tests/fixtures/arch");
}

#[test]
#[ignore = "needs the OpenVINO runtime: `cargo xtask test` provides it"]
fn an_mlx_directory_is_a_source_like_any_other() {
    for name in ["packed/mlx-4bit", "packed/mlx-mxfp4"] {
        let directory = fixture(name);
        let made = tempfile::tempdir().unwrap();
        forge(&directory, "fp32", true, made.path());
        let (rows, due) = reference(&directory);
        let mut session = load(made.path(), rows.len() as u32);
        let all: Vec<f32> =
            (0..).zip(&rows).flat_map(|(sequence, row)| run(session.as_mut(), sequence, 0, row)).collect();
        let difference = largest_difference(&all, &due);
        assert!(difference <= 2e-3, "{name}: largest difference {difference}");
    }
}

/// Mean Kullback-Leibler divergence of two sets of logits, in nats.
fn divergence(logits: &[f32], reference: &[f32], width: usize) -> f64 {
    let distribution = |row: &[f32]| {
        let most = row.iter().copied().fold(f32::MIN, f32::max);
        let exponents: Vec<f64> = row.iter().map(|&x| f64::from(x - most).exp()).collect();
        let sum: f64 = exponents.iter().sum();
        exponents.iter().map(|e| (e / sum).max(1e-300)).collect::<Vec<_>>()
    };
    let rows = reference.chunks_exact(width).zip(logits.chunks_exact(width));
    let total: f64 = rows
        .map(|(p, q)| {
            let (p, q) = (distribution(p), distribution(q));
            p.iter().zip(&q).map(|(p, q)| p * (p / q).ln()).sum::<f64>()
        })
        .sum();
    total / (reference.len() / width) as f64
}

#[test]
#[ignore = "needs the OpenVINO runtime: `cargo xtask test` provides it"]
fn schemes_come_as_near_to_the_trained_model_as_their_bits_allow() {
    let directory = fixture("shakespeare-llama");
    let (rows, due) = reference(&directory);
    let width = due.len() / rows[0].len();
    // About twice what was measured; the source is stored in bf16, so the first two lose next to nothing.
    for (scheme, limit) in [
        ("fp16", 1e-5),
        ("bf16", 1e-5),
        ("int8_sym", 2.2e-4),
        ("int8_asym", 2e-4),
        ("fp8", 2.4e-3),
        ("int4_sym_g32", 0.017),
        ("int4_asym_g64", 0.02),
        ("int4_sym_channel", 0.027),
        ("nf4_g64", 0.015),
        ("mxfp4", 0.029),
    ] {
        let made = tempfile::tempdir().unwrap();
        forge(&directory, scheme, false, made.path());
        let mut session = load(made.path(), 1);
        let logits = run(session.as_mut(), 0, 0, &rows[0]);
        let divergence = divergence(&logits, &due, width);
        println!("{scheme}: {divergence:e}");
        assert!(divergence < limit, "{scheme}: {divergence} nats");
    }
}
