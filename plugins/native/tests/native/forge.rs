//! Artifacts made by the plugin: their bytes are the planned ones, and the model in them is the source's.

use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use drophammer_quant::importance::{Columns, Importance};
use drophammer_sdk::calibration::{self, Calibrate};
use drophammer_sdk::{
    Backend, Budgets, ErrorCode, ForgeReport, ForgeRequest, Goal, JobContext, LogLevel, ProbeRequest,
};

use crate::fixture::{
    JOB, fast_tolerance, fixture, forward, largest_difference, load, mixture, native, reference,
};

fn goal(scheme: &str) -> Goal {
    Goal { format: "gguf".into(), scheme: scheme.into(), ..Goal::default() }
}

fn request(scheme: &str, staging: &Path) -> ForgeRequest {
    ForgeRequest {
        source: fixture("shakespeare-llama"),
        goal: goal(scheme),
        staging: staging.to_owned(),
        name: "shakespeare".into(),
        ..ForgeRequest::default()
    }
}

fn forge(scheme: &str, staging: &Path) -> ForgeReport {
    native().quantize(&request(scheme, staging), &JOB).unwrap()
}

/// Root of the mean square of differences, over that of `due` about its mean.
fn relative_error(got: &[f32], due: &[f32]) -> f64 {
    let mean = due.iter().map(|x| f64::from(*x)).sum::<f64>() / due.len() as f64;
    let error: f64 = got.iter().zip(due).map(|(a, b)| f64::from(a - b).powi(2)).sum();
    let size: f64 = due.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum();
    (error / size).sqrt()
}

#[test]
fn plain_artifacts_give_the_reference_logits() {
    let (rows, due) = reference(&fixture("shakespeare-llama"));
    for (scheme, tolerance) in [("bf16", 1e-3), ("f32", 1e-3), ("f16", 1e-2)] {
        let staging = tempfile::tempdir().unwrap();
        let report = native().convert(&request(scheme, staging.path()), &JOB).unwrap();
        let mut session = load(&staging.path().join(&report.files[0]), true, 1);
        let difference = largest_difference(&forward(session.as_mut(), &rows), &due);
        assert!(difference <= tolerance, "{scheme}: largest difference {difference}");
    }
}

#[test]
fn quantized_artifacts_stay_near_the_source_and_fast_mode_near_reference_mode() {
    let (rows, due) = reference(&fixture("shakespeare-llama"));
    // The widths of this model are multiples of 256: K-quants need no fallback.
    for (scheme, to_source) in [
        ("q8_0", 0.01),
        ("q6_k", 0.03),
        ("q4_k_m", 0.12),
        ("q4_0", 0.2),
        ("q2_k", 0.6),
        ("iq3_s", 0.2),
        ("iq3_xxs", 0.2),
        ("iq2_s", 0.4),
        ("iq2_xs", 0.4),
        ("iq2_xxs", 0.5),
        ("iq1_m", 0.6),
        ("iq1_s", 0.7),
        ("tq2_0", 0.7),
        ("tq1_0", 0.7),
        ("q1_0", 1.0),
    ] {
        let staging = tempfile::tempdir().unwrap();
        let report = forge(scheme, staging.path());
        assert_eq!(report.notes, Vec::<String>::new());
        let path = staging.path().join(&report.files[0]);
        assert_eq!(std::fs::metadata(&path).unwrap().len(), report.bytes);
        let exact = forward(load(&path, true, 1).as_mut(), &rows);
        let error = relative_error(&exact, &due);
        assert!(error < to_source, "{scheme}: {error} from the source");
        let quick = forward(load(&path, false, 1).as_mut(), &rows);
        let error = relative_error(&quick, &exact);
        assert!(error < fast_tolerance(), "{scheme}: fast mode {error} from reference mode");
    }
}

#[test]
fn in_fast_mode_mixtures_stay_near_reference_mode() {
    let rows: Vec<Vec<u32>> =
        (0..3).map(|r| (0..20 + 30 * r).map(|i| (i * 37 + r * 11) % 2048).collect()).collect();
    for scheme in ["q8_0", "q6_k", "q4_k_m", "q4_0", "mxfp4_moe", "iq2_xs", "f16", "bf16", "f32"] {
        // All six: of two that are nearly as good, another would be chosen.
        let model = mixture(6, scheme);
        let [exact, quick] =
            [true, false].map(|reference| forward(load(model, reference, 3).as_mut(), &rows));
        let error = relative_error(&quick, &exact);
        // Of random weights' products none stands out, and rounding shows more than in a trained model.
        assert!(error < 3.0 * fast_tolerance(), "{scheme}: {error}");
    }
}

#[test]
fn the_estimate_tells_the_artifacts_size_and_unknown_schemes_are_refused_with_the_known_ones() {
    let goals = vec![goal("q4_k_m"), goal("bf16"), goal("q17")];
    let report = native().probe(&ProbeRequest { source: Some(fixture("shakespeare-llama")), goals }).unwrap();
    let staging = tempfile::tempdir().unwrap();
    assert!(report.estimates[0].supported && report.estimates[1].supported);
    let name_difference = ("shakespeare".len() - "model".len()) as u64;
    assert!(forge("q4_k_m", staging.path()).bytes.abs_diff(report.estimates[0].bytes) <= name_difference);
    assert!(!report.estimates[2].supported);
    assert!(report.estimates[2].help.as_ref().unwrap().contains("q4_k_m"));
    let error = native().convert(&request("q8_0", staging.path()), &JOB).unwrap_err();
    assert_eq!(error.code, ErrorCode::InvalidRequest);
}

/// Is cancelled after so many questions.
struct Impatient(AtomicU32);

impl JobContext for Impatient {
    fn progress(&self, _stage: &str, _tensor: &str, _done: u64, _total: u64) {}
    fn log(&self, _level: LogLevel, _message: &str) {}
    fn cancelled(&self) -> bool {
        self.0.fetch_sub(1, Ordering::Relaxed) <= 1
    }
    fn budgets(&self) -> Budgets {
        Budgets { threads: 1, memory_bytes: 0, disk_bytes: 0 }
    }
}

#[test]
fn a_cancelled_job_goes_on_where_it_stopped_and_makes_the_same_bytes() {
    let (whole, resumed) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let report = forge("q4_0", whole.path());
    let job = Impatient(AtomicU32::new(12));
    let error = native().quantize(&request("q4_0", resumed.path()), &job).unwrap_err();
    assert_eq!(error.code, ErrorCode::Cancelled);
    forge("q4_0", resumed.path());
    let bytes = |directory: &Path| std::fs::read(directory.join(&report.files[0])).unwrap();
    assert!(bytes(whole.path()) == bytes(resumed.path()), "the resumed artifact differs");
}

/// Statistics in a file of their own: every named matrix with columns that matter more and more.
fn statistics(matrices: &[(&str, usize)]) -> tempfile::NamedTempFile {
    let columns = |count: usize| Columns { sums: (1..=count).map(|i| i as f32).collect(), counts: vec![1.0] };
    let matrices = matrices.iter().map(|&(name, count)| (name.to_owned(), columns(count))).collect();
    let file = tempfile::NamedTempFile::with_suffix(".gguf").unwrap();
    Importance { matrices, ..Importance::default() }.write(file.path()).unwrap();
    file
}

#[test]
fn statistics_are_used_and_those_of_another_model_are_refused_by_name_and_shape() {
    let staging = tempfile::tempdir().unwrap();
    let with = |file: &Path| {
        let request = ForgeRequest { imatrix: Some(file.into()), ..request("q4_k_m", staging.path()) };
        native().quantize(&request, &JOB)
    };
    let bytes = |report: &ForgeReport| std::fs::read(staging.path().join(&report.files[0])).unwrap();
    let plain = bytes(&forge("q4_k_m", staging.path()));
    let own = statistics(&[("blk.0.ffn_up.weight", 256), ("blk.1.ffn_down.weight", 768)]);
    let informed = bytes(&with(own.path()).unwrap());
    assert_eq!(informed.len(), plain.len());
    assert!(informed != plain);

    let other = statistics(&[("encoder.layer.0.weight", 256)]);
    let error = with(other.path()).unwrap_err();
    assert_eq!(error.code, ErrorCode::InvalidRequest);
    assert!(error.message.contains("another model") && error.message.contains("encoder.layer.0.weight"));
    let wider = statistics(&[("blk.0.ffn_up.weight", 512)]);
    let error = with(wider.path()).unwrap_err();
    for part in ["blk.0.ffn_up.weight", "512", "256", "another model"] {
        assert!(error.message.contains(part), "{part}: {}", error.message);
    }
    let error = with(&fixture("shakespeare-llama/model.safetensors")).unwrap_err();
    assert!(error.message.contains("no importance matrix"), "{}", error.message);
}

#[test]
fn a_file_is_split_and_tensors_are_stored_as_the_user_says() {
    let staging = tempfile::tempdir().unwrap();
    let mut request = request("q8_0", staging.path());
    request.goal.options.insert("max_file_bytes".into(), 1_000_000.into());
    request.goal.options.insert("overrides".into(), vec!["ffn_up=q4_k".to_owned()].into());
    let report = native().quantize(&request, &JOB).unwrap();
    assert!(report.files.len() > 3, "{:?}", report.files);
    for file in &report.files {
        let content = std::fs::read(staging.path().join(file)).unwrap();
        let header = drophammer_formats::gguf::parse(&content, content.len() as u64).unwrap().data_begin;
        assert!(content.len() as u64 - header <= 1_000_000);
    }
    assert_eq!(report.types["q4_k"], 4);
    let (rows, due) = reference(&fixture("shakespeare-llama"));
    let mut session = load(&staging.path().join(&report.files[0]), true, 1);
    assert!(relative_error(&forward(session.as_mut(), &rows), &due) < 0.1);
    for (option, value) in
        [("max_file_bytes", serde_json::json!("large")), ("overrides", serde_json::json!(["x=q9"]))]
    {
        request.goal.options.insert(option.into(), value);
        assert_eq!(native().quantize(&request, &JOB).unwrap_err().code, ErrorCode::InvalidRequest);
        request.goal.options.remove(option);
    }
}

#[test]
fn rounding_that_makes_up_for_errors_comes_nearer_and_says_what_it_needs() {
    let (rows, due) = reference(&fixture("shakespeare-llama"));
    let staging = tempfile::tempdir().unwrap();
    let forge = |imatrix: Option<&Path>, compensate: bool| {
        let mut request =
            ForgeRequest { imatrix: imatrix.map(Into::into), ..request("q4_0", staging.path()) };
        request.goal.options.insert("compensate".into(), compensate.into());
        native().quantize(&request, &JOB)
    };
    let error = forge(None, true).unwrap_err();
    assert!(
        error.code == ErrorCode::InvalidRequest && error.help.contains("products of activations"),
        "{error:?}"
    );
    let plain = statistics(&[("blk.0.ffn_up.weight", 256)]);
    let error = forge(Some(plain.path()), true).unwrap_err();
    assert!(error.code == ErrorCode::InvalidRequest && error.message.contains("products"), "{error:?}");

    // Statistics of the text that answers are compared on.
    let mut session = load(&fixture("shakespeare-llama"), true, rows.len() as u32);
    let bench = calibration::of(session.as_ref()).unwrap();
    bench.observe(true).unwrap();
    forward(session.as_mut(), &rows);
    let usage = bench.usage().unwrap();
    let names: Vec<String> = usage.iter().map(|usage| usage.name.clone()).collect();
    bench.observe_products(&names).unwrap();
    rows.iter().enumerate().for_each(|(sequence, _)| session.remove(sequence as u32, 0, u32::MAX).unwrap());
    forward(session.as_mut(), &rows);
    let products: Vec<(String, Vec<u8>)> = names
        .into_iter()
        .map(|name| {
            let sums = bench.products(&name).unwrap();
            (name, sums.iter().flat_map(|sum| sum.to_le_bytes()).collect())
        })
        .collect();
    let matrices = usage.into_iter().map(|usage| {
        let columns = Columns { sums: usage.sums, counts: usage.counts };
        (usage.name, columns)
    });
    let importance = Importance { matrices: matrices.collect(), ..Importance::default() };
    let own = tempfile::NamedTempFile::with_suffix(".gguf").unwrap();
    let parts: Vec<(&str, &[u8])> =
        products.iter().map(|(name, bytes)| (name.as_str(), &bytes[..])).collect();
    importance.write_with(own.path(), &parts).unwrap();
    assert_eq!(Importance::read(own.path()).unwrap(), importance);

    let error = |compensate: bool| {
        let report = forge(Some(own.path()), compensate).unwrap();
        let mut session = load(&staging.path().join(&report.files[0]), true, rows.len() as u32);
        relative_error(&forward(session.as_mut(), &rows), &due)
    };
    let (plain, better) = (error(false), error(true));
    assert!(better < 0.9 * plain, "{better} of {plain}");
}
