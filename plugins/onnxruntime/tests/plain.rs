//! Graphs that are no language models: made in whole numbers, run, and near their originals.
//!
//! Real ones come inside Python packages: `cargo xtask test` provides them and the library. Without, tests that need them say so.

#![allow(clippy::unwrap_used)] // a test stops at the first surprise

use std::path::{Path, PathBuf};

use drophammer_formats::onnx::{self, Dimension, Model};
use drophammer_onnxruntime::OnnxRuntime;
use drophammer_sdk::{
    Backend, BackendError, ErrorCode, ForgeReport, ForgeRequest, Goal, HostInfo, ProbeRequest, Unwatched,
};
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
    let options = options.iter().map(|(name, value)| ((*name).to_owned(), (*value).into())).collect();
    Goal { format: "onnx".into(), scheme: scheme.into(), options }
}

fn forge(source: &Path, goal: Goal, staging: &Path) -> Result<ForgeReport, BackendError> {
    let request = ForgeRequest {
        source: source.to_owned(),
        goal,
        staging: staging.to_owned(),
        name: "model".into(),
        ..ForgeRequest::default()
    };
    backend().quantize(&request, &JOB)
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

/// Five letters of five by seven dots, a row to a number.
const LETTERS: [[u8; 7]; 5] = [
    [0x1e, 0x11, 0x11, 0x1e, 0x14, 0x12, 0x11],
    [0x1f, 0x10, 0x10, 0x1e, 0x10, 0x10, 0x1f],
    [0x11, 0x11, 0x0a, 0x04, 0x04, 0x04, 0x04],
    [0x1f, 0x10, 0x10, 0x1e, 0x10, 0x10, 0x10],
    [0x10, 0x10, 0x10, 0x10, 0x10, 0x10, 0x1f],
];

/// Lines of letters as that network takes them, 48 by 192, every other one upside down.
fn lines(count: u64) -> Vec<f32> {
    let mut all = Vec::new();
    for line in 0..count {
        let shades = numbers(64, line + 1);
        let (paper, ink) = (0.6 + 0.4 * shades[0].abs(), -0.5 - 0.5 * shades[1].abs());
        let (dot, left, top) = (4 + line % 2, (line * 3) % 12, 4 + (line * 5) % 8);
        let dark = |x: u64, y: u64| {
            let (Some(x), Some(y)) = (x.checked_sub(left), y.checked_sub(top)) else { return false };
            let (column, row) = (x / dot, y / dot);
            let letter = LETTERS[((column / 6 * 7 + line) % 5) as usize];
            row < 7 && column % 6 < 5 && column / 6 < 6 && letter[row as usize] >> (4 - column % 6) & 1 == 1
        };
        for channel in 0..3 {
            for y in 0..48 {
                for x in 0..192 {
                    let (x, y) = if line % 2 == 0 { (x, y) } else { (191 - x, 47 - y) };
                    let grain = shades[((x * 7 + y * 13 + channel) % 64) as usize] * 0.05;
                    all.push(if dark(x, y) { ink } else { paper } + grain);
                }
            }
        }
    }
    all
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
    // Voices: tones with their overtones, that come and go.
    let sound = |second: f32, voice: f32| {
        let swell = (second * 9.0).sin().max(0.0) * (second * 1.3).cos().max(0.0);
        (1..12).map(|k| (second * voice * k as f32 * std::f32::consts::TAU).sin() / k as f32).sum::<f32>()
            * swell
            * 0.2
    };
    let chunks: Vec<f32> = (0..240u32)
        .flat_map(|chunk| (0..576u32).map(move |at| (chunk * 512 + at, 100.0 + chunk as f32 / 2.0)))
        .map(|(at, voice)| sound(at as f32 / 16e3, voice))
        .collect();
    // The graph's first size is time: a file for each piece of sound.
    let samples = place.path().join("pieces");
    std::fs::create_dir(&samples).unwrap();
    for (number, piece) in chunks.chunks(30 * 576).enumerate() {
        archive(&samples.join(format!("{number}.npz")), piece);
    }
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
}

/// One piece of sound with a state at rest, as an archive.
fn archive(path: &Path, piece: &[f32]) {
    use std::io::Write as _;
    let place = tempfile::tempdir().unwrap();
    let mut archive = zip::ZipWriter::new(std::fs::File::create(path).unwrap());
    let rest = vec![0.0; 128];
    for (name, shape, values) in
        [("input", vec![30, 576], piece), ("h", vec![1, 1, 128], &rest), ("c", vec![1, 1, 128], &rest)]
    {
        let file = place.path().join("a.npy");
        npy(&file, &shape, values);
        archive.start_file(format!("{name}.npy"), zip::write::SimpleFileOptions::default()).unwrap();
        archive.write_all(&std::fs::read(&file).unwrap()).unwrap();
    }
    archive.finish().unwrap();
}
