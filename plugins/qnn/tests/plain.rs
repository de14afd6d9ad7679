//! Graphs that are no language models: compiled, run in emulation, and near their originals.
//!
//! What compiles needs the runtime, as in `qnn.rs`; what is refused is told without it.

#![allow(clippy::unwrap_used)] // a test stops at the first surprise

use std::path::{Path, PathBuf};

use drophammer_formats::onnx::{Dimension, Model};
use drophammer_qnn::Qnn;
use drophammer_sdk::{
    Backend, BackendError, ErrorCode, Estimate, ForgeReport, Goal, HostInfo, LoadRequest, ProbeRequest,
    Unwatched,
};
use network::samples::{lines, pieces};
use network::{branching, network, npy, numbers, refused, save};
use serde_json::Value as Json;

#[path = "../../onnxruntime/tests/network/mod.rs"]
mod network;

const JOB: Unwatched = Unwatched { threads: 2 };

fn backend() -> Qnn {
    Qnn::open(HostInfo::default()).unwrap()
}

/// Whether there is a runtime to compile and run anything with.
fn runs() -> bool {
    let report = backend().probe(&ProbeRequest::default()).unwrap();
    if !report.formats[0].run {
        eprintln!("not run: {:?}", report.problems);
    }
    report.formats[0].run
}

fn goal(scheme: &str, options: &[(&str, &str)]) -> Goal {
    network::goal("qnn", scheme, options)
}

fn forge(source: &Path, goal: Goal, staging: &Path) -> Result<ForgeReport, BackendError> {
    backend().quantize(&network::request(source, goal, staging), &JOB)
}

fn plan(source: &Path, goal: Goal) -> Estimate {
    let request = ProbeRequest { source: Some(source.to_owned()), goals: vec![goal] };
    backend().probe(&request).unwrap().estimates.remove(0)
}

fn document(path: PathBuf) -> Json {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

#[test]
fn every_scheme_comes_as_near_as_its_bits_allow_and_says_what_is_on_the_npu() {
    if !runs() {
        return;
    }
    let place = tempfile::tempdir().unwrap();
    let samples = place.path().join("samples.npy");
    npy(&samples, &[32, 3, 16, 16], &numbers(32 * 3 * 16 * 16, 9));
    for (opset, scheme, most) in
        [(17, "fp16", 2e-3), (11, "a16w8", 0.015), (21, "a16w8", 0.015), (13, "a8w8", 0.04)]
    {
        let source = save(&network(opset), place.path());
        let staging = tempfile::tempdir().unwrap();
        let options = [("calibration", samples.to_str().unwrap()), ("shapes", "x=1x3x16x16")];
        assert!(plan(&source, goal(scheme, &options)).supported);
        let report = forge(&source, goal(scheme, &options), staging.path()).unwrap();
        let accuracy = document(staging.path().join("accuracy.json"));
        let output = &accuracy["outputs"][0];
        println!("{opset} {scheme}: {} bytes, {output}, {:?}", report.bytes, report.notes);
        assert!(output["relative_error"].as_f64().unwrap() <= most && output["samples"] == 8, "{accuracy}");
        assert!(report.notes.iter().any(|note| note.contains("operations on the NPU")), "{:?}", report.notes);
        let folder = document(staging.path().join("qnn_graph.json"));
        assert_eq!(folder["inputs"][0]["shape"].as_array().unwrap().len(), 4);
        assert_eq!(folder["target"]["soc"], "sm8650");
        let placed = folder["graph"]["placement"].as_object().unwrap();
        assert!(placed.len() == 1 && placed["QNNExecutionProvider"]["Conv"] == 3, "{placed:?}");
        assert!(report.files.iter().all(|file| staging.path().join(file).is_file()));
        let request = LoadRequest { path: staging.path().to_owned(), ..LoadRequest::default() };
        let error = backend().load(&request, Box::new(JOB)).err().unwrap();
        assert!(error.code == ErrorCode::UnsupportedInput && error.help.contains("model.onnx"), "{error}");
    }
}

/// What spoils a graph, options beside it, and what of message and help is due.
type Refused<'a> = (fn(&mut Model), &'a [(&'a str, &'a str)], &'a str, &'a str);

/// The relative error of an artifact's first output, by its own account.
fn error_of(source: &Path, scheme: &str, options: &[(&str, &str)]) -> f64 {
    let staging = tempfile::tempdir().unwrap();
    let report = forge(source, goal(scheme, options), staging.path()).unwrap();
    let all = report.notes.iter().any(|note| note.starts_with("all ") && note.ends_with("on the NPU"));
    assert!(all, "{:?}", report.notes);
    let accuracy = document(staging.path().join("accuracy.json"));
    println!("{scheme} {options:?}: {} bytes, {}", report.bytes, accuracy["outputs"][0]);
    accuracy["outputs"][0]["relative_error"].as_f64().unwrap()
}

/// A directory that a variable names, for models that are fetched.
fn fetched(variable: &str) -> Option<PathBuf> {
    let found = std::env::var_os(variable).map(PathBuf::from);
    if found.is_none() {
        eprintln!("not run: {variable} is not set (`cargo xtask test` sets it)");
    }
    found
}

#[test]
fn a_real_network_for_images_finds_the_same_on_the_npu() {
    let Some(models) = fetched("DROPHAMMER_RAPIDOCR").filter(|_| runs()) else { return };
    let source = models.join("ch_ppocr_mobile_v2.0_cls_infer.onnx");
    let place = tempfile::tempdir().unwrap();
    let samples = place.path().join("lines.npy");
    npy(&samples, &[24, 3, 48, 192], &lines(24));
    let options = [("calibration", samples.to_str().unwrap()), ("shapes", "x=1x3x48x192")];
    for (scheme, most) in [("fp16", 5e-3), ("a16w8", 0.01), ("a8w8", 0.05)] {
        let error = error_of(&source, scheme, &options);
        assert!(error <= most, "{scheme}: {error}");
    }
}

#[test]
fn a_real_network_for_sound_hears_the_same_on_the_npu() {
    let Some(models) = fetched("DROPHAMMER_SILERO").filter(|_| runs()) else { return };
    let place = tempfile::tempdir().unwrap();
    let samples = place.path().join("pieces");
    // As in a quiet room: squares of silence are too small for half precision.
    pieces(&samples, 0.01);
    let source = models.join("silero_vad_16k_sequence.onnx");
    // The spectrum is squares and roots of sums, and eight bits of its input leave little of soft sounds.
    for (scheme, exclude, most) in [("fp16", "", 0.05), ("a8w8", "/stft/*", 0.15)] {
        let mut options = vec![("calibration", samples.to_str().unwrap()), ("shapes", "input=30x576")];
        options.extend((!exclude.is_empty()).then_some(("exclude", exclude)));
        let error = error_of(&source, scheme, &options);
        assert!(error <= most, "{scheme}: {error}");
    }
}

#[test]
fn graphs_that_cannot_be_compiled_are_refused_before_anything_is_made() {
    let place = tempfile::tempdir().unwrap();
    let told = [("shapes", "x=1x3x16x16")];
    let cases: [Refused<'_>; 4] = [
        // Open sizes are asked for, by name and with an example.
        (|_| (), &[], "`x` (float32 [?, 3, 16, 16])", "--option shapes=x=1x3x16x16"),
        (|_| (), &[("shapes", "x=1x4x16x16")], "does not fit the input `x` (float32 [?, 3, 16, 16])", ""),
        (|_| (), &[("shapes", "z=1x3x16x16")], "`z=1x3x16x16` is no input", ""),
        (|model| *model = branching(), &told, "it decides while it runs (If)", "control flow"),
    ];
    for (spoil, options, message, help) in cases {
        let mut model = network(13);
        spoil(&mut model);
        let source = save(&model, place.path());
        let error = forge(&source, goal("fp16", options), place.path()).unwrap_err();
        assert!(error.message.contains(message) && error.help.contains(help), "{error:?}");
        let estimate = plan(&source, goal("fp16", options));
        assert!(!estimate.supported && estimate.reason.as_ref().unwrap().contains(message), "{estimate:?}");
    }
    let source = save(&network(13), place.path());
    let error = forge(&source, goal("a16w4", &told), place.path()).unwrap_err();
    assert!(error.code == ErrorCode::UnsupportedInput && error.help.contains("a16w8"), "{error}");
    for (source, message) in refused(place.path()) {
        let error = forge(&source, goal("fp16", &told), place.path()).unwrap_err();
        assert!(error.message.contains(message) && !error.help.is_empty(), "{error:?}");
        let estimate = plan(&source, goal("fp16", &told));
        assert!(!estimate.supported && estimate.reason.as_ref().unwrap().contains(message), "{estimate:?}");
    }
}

#[test]
fn samples_of_other_sizes_than_the_graph_is_compiled_for_are_refused() {
    let place = tempfile::tempdir().unwrap();
    let mut model = network(13);
    model.graph.inputs[0].shape.as_mut().unwrap()[3] = Dimension::Named("width".into());
    let source = save(&model, place.path());
    let samples = place.path().join("samples.npy");
    npy(&samples, &[2, 3, 16, 12], &numbers(2 * 3 * 16 * 12, 1));
    let options = [("calibration", samples.to_str().unwrap()), ("shapes", "x=1x3x16x16")];
    let error = forge(&source, goal("a8w8", &options), place.path()).unwrap_err();
    assert!(error.code == ErrorCode::InvalidRequest, "{error}");
    assert!(error.message.contains("[2, 3, 16, 12]") && error.message.contains("[1, 3, 16, 16]"), "{error}");
}
