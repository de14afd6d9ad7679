//! Directories: what lies in them, and what is planned before.

use std::path::Path;

use drophammer_sdk::{Backend, ErrorCode, ForgeRequest, Goal, ProbeRequest};

use crate::fixture::{Job, backend, fixture, forge};

fn goal(scheme: &str) -> Goal {
    Goal { format: "openvino".into(), scheme: scheme.into(), ..Goal::default() }
}

fn contents(directory: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<_> = std::fs::read_dir(directory)
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            (entry.file_name().to_string_lossy().into_owned(), std::fs::read(entry.path()).unwrap())
        })
        .collect();
    files.sort();
    files
}

#[test]
fn the_directory_is_complete_and_the_same_every_time() {
    let source = fixture("shakespeare-llama");
    let made = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let reports = made.each_ref().map(|place| forge(&source, "int4_asym_g64", false, place.path()));
    let [first, second] = made.each_ref().map(|place| contents(place.path()));
    assert!(first == second, "two forges of the same source differ");
    let names: Vec<&str> = first.iter().map(|(name, _)| name.as_str()).collect();
    for name in [
        "openvino_model.xml",
        "openvino_model.bin",
        "openvino_tokenizer.xml",
        "openvino_tokenizer.bin",
        "openvino_detokenizer.xml",
        "openvino_detokenizer.bin",
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "graph.pbtxt",
    ] {
        assert!(names.contains(&name), "{name} is not among {names:?}");
    }
    assert_eq!(first.iter().map(|(_, bytes)| bytes.len() as u64).sum::<u64>(), reports[0].bytes);
    assert!(reports[0].bits_per_weight < 6.5, "{:?}", reports[0]);
    assert!(reports[0].types["u4"] > 0 && reports[0].types["u8"] > 0, "{:?}", reports[0].types);
}

#[test]
fn plans_say_what_would_be_made_and_why_not() {
    let request = ProbeRequest {
        source: Some(fixture("shakespeare-llama")),
        goals: vec![
            goal("int8_sym"),
            goal("int4_asym"),
            goal("int5"),
            Goal { format: "gguf".into(), ..goal("q8_0") },
        ],
    };
    let estimates = backend().probe(&request).unwrap().estimates;
    assert!(estimates[0].supported && estimates[0].bytes > 4 << 20, "{:?}", estimates[0]);
    assert!(estimates[1].supported && estimates[1].bytes < estimates[0].bytes);
    assert!(!estimates[2].supported && estimates[2].reason.as_ref().unwrap().contains("int5"));
    assert!(!estimates[3].supported);
    // Groups of 128 in rows of 32.
    let request = ProbeRequest {
        source: Some(fixture("arch/llama")),
        goals: vec![Goal {
            options: serde_json::from_str(r#"{"no_tokenizer": true}"#).unwrap(),
            ..goal("int4_sym")
        }],
    };
    let estimate = backend().probe(&request).unwrap().estimates.remove(0);
    assert!(estimate.supported);
    assert!(estimate.reason.unwrap().contains("128 does not divide"), "the fallback is told");
}

#[test]
fn a_source_without_a_tokenizer_is_refused_unless_that_is_allowed() {
    let place = tempfile::tempdir().unwrap();
    let request = ForgeRequest {
        source: fixture("arch/llama"),
        goal: goal("fp16"),
        staging: place.path().to_owned(),
        name: "model".into(),
        ..ForgeRequest::default()
    };
    let error = backend().convert(&request, &Job).unwrap_err();
    assert_eq!(error.code, ErrorCode::InvalidInput);
    assert!(error.message.contains("no tokenizer") && error.help.contains("--no-tokenizer"));
    let error =
        backend().convert(&ForgeRequest { goal: goal("int8_sym"), ..request.clone() }, &Job).unwrap_err();
    assert_eq!(error.code, ErrorCode::InvalidRequest, "{error}");
    let made = backend().convert(&ForgeRequest { no_tokenizer: true, ..request }, &Job).unwrap();
    assert_eq!(made.files[0], Path::new("openvino_model.xml"));
}
