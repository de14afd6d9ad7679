//! `DROPHAMMER_SIMD` forces a set of kernels: each gives the portable one's logits.
//!
//! The choice is made once per process, so each path runs in a process of its own: this test's own binary, told by the
//! environment which model to run and where to put the logits.

use std::path::Path;
use std::process::Command;

use crate::fixture::{fixture, forward, largest_difference, load, mixture, quantized, reference};

const MODEL: &str = "DROPHAMMER_TEST_MODEL";
const FAST: &str = "DROPHAMMER_TEST_FAST";
const LENGTH: &str = "DROPHAMMER_TEST_LENGTH";
const LOGITS: &str = "DROPHAMMER_TEST_LOGITS";

/// Tokens of a prompt.
const TOKENS: usize = 40;

fn logits(simd: &str, model: &Path, fast: bool) -> Vec<f32> {
    logits_of(TOKENS, simd, model, fast)
}

fn logits_of(tokens: usize, simd: &str, model: &Path, fast: bool) -> Vec<f32> {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("logits");
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "simd::one_process", "--include-ignored"])
        .env("DROPHAMMER_SIMD", simd)
        .env(MODEL, model)
        .env(FAST, if fast { "1" } else { "0" })
        .env(LOGITS, &file)
        .env(LENGTH, tokens.to_string())
        .stdout(std::process::Stdio::null())
        .status()
        .unwrap();
    assert!(status.success(), "{simd}");
    let bytes = std::fs::read(file).unwrap();
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

#[test]
#[ignore = "one process of the test below"]
fn one_process() {
    let (Some(model), Some(file)) = (std::env::var_os(MODEL), std::env::var_os(LOGITS)) else { return };
    let fast = std::env::var(FAST).is_ok_and(|fast| fast == "1");
    let (rows, _) = reference(&fixture("shakespeare-llama"));
    let tokens: usize = std::env::var(LENGTH).unwrap().parse().unwrap();
    let rows = [rows[0][..tokens].to_vec()];
    let out = forward(load(Path::new(&model), !fast, 1).as_mut(), &rows);
    std::fs::write(file, out.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>()).unwrap();
}

#[test]
fn every_path_gives_the_portable_logits_in_both_modes() {
    // Where products take bytes, on all paths but portable and plain NEON, most activations of quantized weights have eight bits.
    for (model, fast, tolerance, bytes) in [
        (quantized("q4_k_m"), true, 2e-3, 0.2),
        (quantized("q8_0"), true, 2e-3, 0.2),
        // Activations of thirteen bits: one that is rounded otherwise moves a logit by as much.
        (quantized("f16"), true, 1e-2, 1e-2),
        (quantized("q4_k_m"), false, 2e-4, 2e-4),
        // All six: of two that are nearly as good, another would be chosen.
        (mixture(6, "q4_k_m"), true, 2e-3, 0.2),
        (mixture(6, "f16"), true, 1e-2, 1e-2),
        (mixture(6, "q4_k_m"), false, 2e-4, 2e-4),
    ] {
        let portable = logits("portable", model, fast);
        // A path that this processor lacks falls back to the best it has.
        let paths: &[_] = if cfg!(target_arch = "aarch64") {
            &[("neon", tolerance), ("dotprod", bytes), ("i8mm", bytes)]
        } else {
            &[("avx2", bytes), ("avxvnni", bytes), ("avx512", bytes), ("amx", bytes)]
        };
        for &(simd, tolerance) in paths {
            let difference = largest_difference(&logits(simd, model, fast), &portable);
            assert!(
                difference <= tolerance,
                "{} {simd}, fast {fast}: largest difference {difference}",
                model.display()
            );
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[test]
fn what_many_tokens_are_multiplied_by_changes_no_bit_of_few_and_little_of_many() {
    let models = ["q4_0", "q4_k_m", "q8_0", "f16"].map(quantized);
    for model in models.into_iter().chain(["q4_k_m", "f16"].map(|scheme| mixture(6, scheme))) {
        // A path that this processor lacks falls back to the best it has, and both are the same.
        assert!(logits("amx", model, true) == logits("avx512", model, true), "{}", model.display());
        let many = |simd| logits_of(100, simd, model, true);
        for simd in ["amx", "avx512"] {
            let difference = largest_difference(&many(simd), &many("portable"));
            assert!(difference <= 0.2, "{} {simd}: largest difference {difference}", model.display());
        }
    }
}
