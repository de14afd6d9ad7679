//! Directories: what lies in them, and what is planned before.

use std::collections::BTreeMap;
use std::path::Path;

use drophammer_quant::importance::{Columns, Importance};
use drophammer_sdk::{Backend, ErrorCode, ForgeRequest, Goal, ProbeRequest};

use crate::fixture::{JOB, backend, fixture, forge};

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

/// What the trained model is stored as with these options: the weights' file, and the report.
fn made(
    scheme: &str,
    options: &str,
    imatrix: Option<&Path>,
) -> Result<(Vec<u8>, drophammer_sdk::ForgeReport), String> {
    let place = tempfile::tempdir().unwrap();
    let request = ForgeRequest {
        source: fixture("shakespeare-llama"),
        goal: Goal { options: serde_json::from_str(options).unwrap(), ..goal(scheme) },
        staging: place.path().to_owned(),
        name: "model".into(),
        imatrix: imatrix.map(Into::into),
        ..ForgeRequest::default()
    };
    let report = backend().quantize(&request, &JOB).map_err(|error| error.message)?;
    Ok((std::fs::read(place.path().join("openvino_model.bin")).unwrap(), report))
}

/// How many of its tensors are stored as what, and the notes.
fn types(
    scheme: &str,
    options: &str,
    imatrix: Option<&Path>,
) -> Result<(BTreeMap<String, u64>, Vec<String>), String> {
    made(scheme, options, imatrix).map(|(_, report)| (report.types, report.notes))
}

#[test]
fn a_ratio_leaves_weights_to_the_backup_and_overrides_have_the_last_word() {
    let (whole, _) = types("int4_asym_g64", "{}", None).unwrap();
    assert_eq!((whole["u4"], whole["u8"]), (28, 2));
    let (mixed, notes) = types("int4_asym_g64_r80", "{}", None).unwrap();
    assert!(mixed["u8"] > 2 && mixed["u4"] + mixed["u8"] == 30, "{mixed:?}");
    assert!(notes.iter().any(|note| note.contains("left to int8_asym")), "{notes:?}");
    assert_eq!(types("int4_asym_g64", r#"{"ratio": 0.8}"#, None).unwrap().0, mixed);
    let (none, _) = types("int4_asym_g64", r#"{"ratio": 0}"#, None).unwrap();
    assert_eq!((none.get("u4"), none["u8"]), (None, 30));
    let options = r#"{"backup": "none", "overrides": ["attn_[vk]=int8_sym", "blk.0.ffn_down=int4_sym_g32"]}"#;
    let (overridden, _) = types("int4_asym_g64", options, None).unwrap();
    assert_eq!((overridden["i8"], overridden["i4"], overridden["f16"]), (8, 1, 2), "{overridden:?}");
    for (options, named) in [
        (r#"{"ratio": 2}"#, "ratio"),
        (r#"{"backup": "int3"}"#, "int3"),
        (r#"{"overrides": ["attn_v"]}"#, "attn_v"),
        (r#"{"overrides": ["(=int8_sym"]}"#, "override"),
    ] {
        let error = types("int4_asym_g64", options, None).unwrap_err();
        assert!(error.contains(named), "{error}");
    }
}

#[test]
fn statistics_change_the_weights_and_those_of_another_model_are_refused() {
    let place = tempfile::tempdir().unwrap();
    let columns = |width: usize| Columns { sums: (1..=width).map(|i| i as f32).collect(), counts: vec![1.0] };
    let file = |name: &str, matrix: &str, width| {
        let matrices = BTreeMap::from([(matrix.to_owned(), columns(width))]);
        let path = place.path().join(name);
        Importance { matrices, ..Importance::default() }.write(&path).unwrap();
        path
    };
    let own = file("own.gguf", "blk.0.ffn_up.weight", 256);
    assert!(
        types("int4_sym_g64_r80", "{}", Some(&own))
            .unwrap()
            .1
            .iter()
            .any(|note| note.contains("calibration"))
    );
    let wide = file("wide.gguf", "blk.0.ffn_up.weight", 200);
    assert!(types("int4_sym_g64", "{}", Some(&wide)).unwrap_err().contains("200"));
    let other = file("other.gguf", "encoder.weight", 256);
    assert!(types("int4_sym_g64", "{}", Some(&other)).unwrap_err().contains("another model"));
}

#[test]
fn columns_are_scaled_and_errors_made_up_for_where_calibration_allows() {
    let place = tempfile::tempdir().unwrap();
    let width = 256;
    // A few columns meet strong activations, and each column's are half its left neighbour's.
    let strength = |column: usize| if column % 16 == 3 { 40.0 } else { 0.5f32 };
    let sums = (0..width).map(|column| strength(column).powi(2) * 64.0).collect();
    let products: Vec<u8> = (0..width * width)
        .map(|place| (place / width, place % width))
        .map(|(i, j)| strength(i) * strength(j) * 64.0 * 0.5f32.powi(i.abs_diff(j) as i32))
        .flat_map(f32::to_le_bytes)
        .collect();
    let name = "blk.0.ffn_up.weight";
    let matrices = BTreeMap::from([(name.to_owned(), Columns { sums, counts: vec![64.0] })]);
    let importance = Importance { matrices, ..Importance::default() };
    let [plain, whole, other] =
        ["plain.gguf", "whole.gguf", "other.gguf"].map(|name| place.path().join(name));
    importance.write(&plain).unwrap();
    importance.write_with(&whole, &[(name, &products)]).unwrap();
    importance.write_with(&other, &[("encoder.weight", &products)]).unwrap();

    let scheme = "int4_sym_g64";
    let (usual, report) = made(scheme, "{}", Some(&whole)).unwrap();
    let [(scaled, scaled_report), (compensated, _), (both, _)] =
        [r#"{"awq": true}"#, r#"{"compensate": true}"#, r#"{"awq": true, "compensate": true}"#]
            .map(|options| made(scheme, options, Some(&whole)).unwrap());
    assert!(
        scaled_report.notes.iter().any(|note| note.contains("columns are scaled in 1 of")),
        "{scaled_report:?}"
    );
    assert_eq!(report.bytes, scaled_report.bytes);
    let files = [&usual, &scaled, &compensated, &both];
    for (number, file) in files.iter().enumerate() {
        assert!(files[..number].iter().all(|other| other != file), "{number} is the same as another");
    }
    for (options, imatrix, named) in [
        (r#"{"awq": true}"#, None, "importance matrix"),
        (r#"{"compensate": true}"#, None, "no imatrix"),
        (r#"{"compensate": true}"#, Some(&plain), "no products"),
        (r#"{"compensate": true}"#, Some(&other), "another model"),
        (r#"{"awq": 1}"#, Some(&plain), "neither true nor false"),
    ] {
        let error = made(scheme, options, imatrix.map(AsRef::as_ref)).unwrap_err();
        assert!(error.contains(named), "{error}");
    }
}

#[test]
fn plain_graphs_are_only_made_in_their_own_schemes() {
    let place = tempfile::tempdir().unwrap();
    std::fs::write(place.path().join("eyes.onnx"), b"not read by a plan").unwrap();
    let request = ProbeRequest { source: Some(place.path().to_owned()), goals: vec![goal("int4_sym")] };
    let estimate = backend().probe(&request).unwrap().estimates.remove(0);
    assert!(!estimate.supported && estimate.reason.unwrap().contains("int4_sym"));
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
    let error = backend().convert(&request, &JOB).unwrap_err();
    assert_eq!(error.code, ErrorCode::InvalidInput);
    assert!(error.message.contains("no tokenizer") && error.help.contains("--no-tokenizer"));
    let error =
        backend().convert(&ForgeRequest { goal: goal("int8_sym"), ..request.clone() }, &JOB).unwrap_err();
    assert_eq!(error.code, ErrorCode::InvalidRequest, "{error}");
    let made = backend().convert(&ForgeRequest { no_tokenizer: true, ..request }, &JOB).unwrap();
    assert_eq!(made.files[0], Path::new("openvino_model.xml"));
}
