//! Graphs that are no language models: made in whole numbers, run, and near their originals.
//!
//! Real ones come inside Python packages: `cargo xtask test` provides them and the library. Without, tests that need them say so.

#![allow(clippy::unwrap_used)] // a test stops at the first surprise

use std::path::{Path, PathBuf};

use drophammer_formats::onnx::{self, Dimension, Model};
use drophammer_onnxruntime::OnnxRuntime;
use drophammer_sdk::{
    Backend, BackendError, ErrorCode, ForgeReport, Goal, HostInfo, ProbeRequest, Unwatched,
};
use network::samples::{lines, pieces};
use network::{branching, network, npy, numbers, refused, save};
use serde_json::Value as Json;

mod network;

const JOB: Unwatched = Unwatched { threads: 2 };

fn backend() -> OnnxRuntime {
    OnnxRuntime::open(HostInfo::default()).unwrap()
}

/// Whether there is a library to run anything with.
fn runs() -> bool {
    let report = backend().probe(&ProbeRequest::default()).unwrap();
    let runs = report.formats[0].run;
    assert!(runs || std::env::var_os("DROPHAMMER_RUNTIMES").is_none(), "{:?}", report.problems);
    if !runs {
        eprintln!("not run: {:?}", report.problems);
    }
    runs
}

/// A directory that a variable names, for models that are fetched.
fn fetched(variable: &str) -> Option<PathBuf> {
    let found = std::env::var_os(variable).map(PathBuf::from);
    if found.is_none() {
        eprintln!("not run: {variable} is not set (`cargo xtask test` sets it)");
    }
    found
}

fn goal(scheme: &str, options: &[(&str, &str)]) -> Goal {
    network::goal("onnx", scheme, options)
}

fn forge(source: &Path, goal: Goal, staging: &Path) -> Result<ForgeReport, BackendError> {
    backend().quantize(&network::request(source, goal, staging), &JOB)
}

/// The artifact's own words about its first output: cosine, relative error, share of the same largest.
fn accuracy(staging: &Path) -> (Json, f64, f64, f64) {
    let text = std::fs::read_to_string(staging.join("accuracy.json")).unwrap();
    let document: Json = serde_json::from_str(&text).unwrap();
    let number = |name: &str| document["outputs"][0][name].as_f64().unwrap_or(f64::NAN);
    let numbers = (number("cosine"), number("relative_error"), number("top1"));
    (document, numbers.0, numbers.1, numbers.2)
}

fn kinds(path: &Path) -> Vec<String> {
    let model = onnx::parse(&std::fs::read(path).unwrap()).unwrap();
    model.graph.nodes.iter().map(|node| node.op_type.clone()).collect()
}

#[test]
fn every_scheme_comes_as_near_as_its_bits_allow_in_old_operator_sets_and_new() {
    if !runs() {
        return;
    }
    let place = tempfile::tempdir().unwrap();
    for opset in [11, 17, 21] {
        let source = save(&network(opset), place.path());
        let samples = place.path().join("samples.npy");
        npy(&samples, &[64, 3, 16, 16], &numbers(64 * 3 * 16 * 16, 9));
        for (scheme, cosine) in [
            ("fp32", 1.0),
            ("fp16", 0.999_99),
            ("dynamic_int8", 0.999),
            ("qdq_int8", 0.999),
            ("qdq_int16", 0.999_7),
        ] {
            let staging = tempfile::tempdir().unwrap();
            let options = [("calibration", samples.to_str().unwrap())];
            let report = forge(&source, goal(scheme, &options), staging.path()).unwrap();
            assert_eq!(report.files, [PathBuf::from("model.onnx"), "accuracy.json".into()]);
            let (document, found, relative, top1) = accuracy(staging.path());
            println!("{opset} {scheme}: cosine {found}, relative error {relative}, top-1 {top1}");
            assert!(found >= cosine && document["held_out"] == true, "{opset} {scheme}: {document}");
            assert_eq!(document["outputs"][0]["samples"], 16);
            assert!(report.notes.iter().any(|note| note.contains("cosine")), "{:?}", report.notes);
        }
    }
}

#[test]
fn making_twice_gives_the_same_bytes_and_random_samples_are_told() {
    if !runs() {
        return;
    }
    let place = tempfile::tempdir().unwrap();
    let source = save(&network(13), place.path());
    let made: Vec<_> = (0..2)
        .map(|_| {
            let staging = tempfile::tempdir().unwrap();
            let report = forge(&source, goal("qdq_int8", &[]), staging.path()).unwrap();
            assert!(report.notes.iter().any(|note| note.contains("random samples")), "{:?}", report.notes);
            assert_eq!(accuracy(staging.path()).0["random"], true);
            let graph = std::fs::read(staging.path().join("model.onnx")).unwrap();
            (graph, std::fs::read(staging.path().join("accuracy.json")).unwrap())
        })
        .collect();
    assert_eq!(made[0], made[1]);
    let request = ProbeRequest { source: Some(source), goals: vec![goal("qdq_int8", &[])] };
    let estimate = backend().probe(&request).unwrap().estimates.remove(0);
    assert!(estimate.supported && estimate.reason.unwrap().contains("random samples"));
}

#[test]
fn operations_that_are_excluded_stay_in_floats() {
    if !runs() {
        return;
    }
    let place = tempfile::tempdir().unwrap();
    let source = save(&network(13), place.path());
    let count = |options: &[(&str, &str)], kind: &str| {
        let staging = tempfile::tempdir().unwrap();
        forge(&source, goal("dynamic_int8", options), staging.path()).unwrap();
        kinds(&staging.path().join("model.onnx")).iter().filter(|found| *found == kind).count()
    };
    assert_eq!(count(&[], "ConvInteger"), 2);
    assert_eq!(count(&[("exclude", "c3,Gemm")], "ConvInteger"), 1);
    assert_eq!(count(&[("exclude", "c3,Gemm")], "Gemm"), 1);
    let staging = tempfile::tempdir().unwrap();
    let error = forge(&source, goal("dynamic_int8", &[("exclude", "Softmax")]), staging.path()).unwrap_err();
    assert!(error.code == ErrorCode::InvalidRequest && error.message.contains("Softmax"), "{error}");
}

#[test]
fn what_cannot_be_made_is_told_before_and_while_making() {
    let place = tempfile::tempdir().unwrap();
    let source = save(&network(13), place.path());
    let staging = tempfile::tempdir().unwrap();
    let error = forge(&source, goal("int4", &[]), staging.path()).unwrap_err();
    assert!(error.code == ErrorCode::UnsupportedInput && error.help.contains("qdq_int8"), "{error}");
    let samples = place.path().join("samples.npy");
    npy(&samples, &[2, 4, 16, 16], &numbers(2 * 4 * 16 * 16, 1));
    if runs() {
        let options = [("calibration", samples.to_str().unwrap())];
        let error = forge(&source, goal("qdq_int8", &options), staging.path()).unwrap_err();
        assert!(error.code == ErrorCode::InvalidRequest, "{error}");
        assert!(
            error.message.contains("[2, 4, 16, 16]") && error.message.contains("[?, 3, 16, 16]"),
            "{error}"
        );
    }
    let mut open = network(13);
    open.graph.inputs[0].shape = Some(vec![Dimension::Named("n".into()), Dimension::Named("c".into())]);
    let plan = |model: &Model, scheme: &str| {
        let source = save(model, place.path());
        let request = ProbeRequest { source: Some(source), goals: vec![goal(scheme, &[])] };
        backend().probe(&request).unwrap().estimates.remove(0)
    };
    if runs() {
        let estimate = plan(&open, "qdq_int8");
        assert!(!estimate.supported && estimate.help.unwrap().contains("shapes=x="));
    }
    for (source, message) in refused(place.path()) {
        let error = forge(&source, goal("fp32", &[]), staging.path()).unwrap_err();
        assert!(error.message.contains(message) && !error.help.is_empty(), "{error:?}");
        let request = ProbeRequest { source: Some(source), goals: vec![goal("fp32", &[])] };
        let estimate = backend().probe(&request).unwrap().estimates.remove(0);
        assert!(!estimate.supported && estimate.reason.as_ref().unwrap().contains(message), "{estimate:?}");
    }
    let mut many = network(13);
    many.graph.nodes[1].op_type = "Reluu".into();
    if runs() {
        let error = forge(&save(&many, place.path()), goal("fp32", &[]), staging.path()).unwrap_err();
        assert!(error.code == ErrorCode::InvalidInput && error.message.contains("Reluu"), "{error}");
    }
}

#[test]
fn control_flow_is_run_and_what_lies_inside_stays_as_it_was() {
    if !runs() {
        return;
    }
    let place = tempfile::tempdir().unwrap();
    let source = save(&branching(), place.path());
    let staging = tempfile::tempdir().unwrap();
    let report = forge(&source, goal("qdq_int8", &[]), staging.path()).unwrap();
    assert!(report.notes.iter().any(|note| note == "what lies inside of If stays as it was"), "{report:?}");
    assert!(
        report.notes.iter().any(|note| note.contains("operations on CPUExecutionProvider")),
        "{report:?}"
    );
    let (document, cosine, ..) = accuracy(staging.path());
    assert!(cosine >= 0.99, "{document}");
}

#[test]
fn a_real_network_for_images_is_static_and_finds_the_same() {
    let Some(models) = fetched("DROPHAMMER_RAPIDOCR") else { return };
    if !runs() {
        return;
    }
    let source = models.join("ch_ppocr_mobile_v2.0_cls_infer.onnx");
    let place = tempfile::tempdir().unwrap();
    let samples = place.path().join("lines.npy");
    npy(&samples, &[48, 3, 48, 192], &lines(48));
    let options = [("calibration", samples.to_str().unwrap())];
    for (scheme, most) in [("qdq_int8", 0.02), ("qdq_int16", 0.005), ("dynamic_int8", 0.02)] {
        let staging = tempfile::tempdir().unwrap();
        let report = forge(&source, goal(scheme, &options), staging.path()).unwrap();
        let (document, cosine, relative, top1) = accuracy(staging.path());
        println!(
            "{scheme}: {} bytes, cosine {cosine}, relative error {relative}, top-1 {top1}",
            report.bytes
        );
        assert_eq!(document["outputs"][0]["samples"], 12);
        assert!(top1 == 1.0 && relative <= most, "{scheme}: {document}");
    }
}

#[test]
fn a_real_network_for_sound_is_static_and_hears_the_same() {
    let Some(models) = fetched("DROPHAMMER_SILERO") else { return };
    if !runs() {
        return;
    }
    let place = tempfile::tempdir().unwrap();
    let samples = place.path().join("pieces");
    pieces(&samples, 0.0);
    let source = models.join("silero_vad_16k_sequence.onnx");
    // The spectrum is squares and roots of sums, and eight bits of its input leave little of soft sounds.
    let error = |scheme: &str, exclude: &[(&str, &str)]| {
        let mut options = vec![("calibration", samples.to_str().unwrap())];
        options.extend(exclude);
        let staging = tempfile::tempdir().unwrap();
        let report = forge(&source, goal(scheme, &options), staging.path()).unwrap();
        let (document, cosine, relative, _) = accuracy(staging.path());
        println!("{scheme} {exclude:?}: {} bytes, cosine {cosine}, relative error {relative}", report.bytes);
        assert_eq!(document["outputs"][0]["output"], "speech_probs");
        relative
    };
    let spectrum = [("exclude", "/stft/*")];
    let whole = error("qdq_int8", &[]);
    let [eight, sixteen] = [error("qdq_int8", &spectrum), error("qdq_int16", &spectrum)];
    assert!(eight.max(sixteen) <= 0.35 && whole > eight.max(sixteen), "{whole} {eight} {sixteen}");
    // Convolutions between others in whole numbers: what is left in floats is not rounded by the runtime.
    let spared = error("qdq_int16", &[("exclude", "/stft/*,/encoder.0/*,/encoder.2/*")]);
    assert!(spared <= 0.15, "{spared}");
}
