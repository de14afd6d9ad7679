//! Bad input: what is said of it, before anything is written.

use std::path::Path;

use drophammer_formats::TensorDecl;
use drophammer_formats::safetensors;
use drophammer_mlx::Mlx;
use drophammer_sdk::{Backend, BackendError, ErrorCode, HostInfo, LoadRequest, ProbeRequest};
use serde_json::{Value as Json, json};

use crate::fixture::{JOB, fixture, forge, mlx, order, request};

fn load_error(host: HostInfo, request: &LoadRequest) -> BackendError {
    Mlx::open(host).unwrap().load(request, Box::new(JOB)).err().unwrap()
}

#[test]
fn rows_that_are_no_whole_groups_stay_plain_and_the_report_says_which_and_why() {
    // Rows of 32 numbers, groups of 64.
    let staging = tempfile::tempdir().unwrap();
    let source = fixture("arch/llama");
    let report = forge(&source, "affine_4_g64", staging.path());
    let notes = &report.notes;
    assert_eq!(notes.len(), 2, "{notes:?}");
    assert!(
        notes[0].contains("12 matrices stay bf16, since groups of 64 do not divide rows of 32"),
        "{notes:?}"
    );
    assert!(
        notes[1].contains("rows of 48: model.layers.0.self_attn.o_proj, model.layers.0.mlp.down_proj"),
        "{notes:?}"
    );
    let mut goal = request(&source, "affine_4_g64", staging.path()).goal;
    goal.options.insert("no_tokenizer".into(), json!(true));
    let probe = ProbeRequest { source: Some(source), goals: vec![goal] };
    assert_eq!(mlx().probe(&probe).unwrap().estimates[0].reason, Some(notes.join("; ")));
}

#[test]
fn schemes_that_do_not_exist_are_refused_with_the_reason_and_the_known_ones() {
    let staging = tempfile::tempdir().unwrap();
    for (scheme, reason) in
        [("affine_7_g64", "not 7"), ("affine_4_g48", "32, 64 or 128"), ("q4_k_m", "q4_k_m")]
    {
        let order = request(&fixture("shakespeare-llama"), scheme, staging.path());
        let error = mlx().quantize(&order, &JOB).unwrap_err();
        assert_eq!(error.code, ErrorCode::UnsupportedInput);
        assert!(error.message.contains(reason) && error.help.contains("affine_4_g64"), "{error:?}");
    }
    let order = request(&fixture("shakespeare-llama"), "affine_4_g64", staging.path());
    assert_eq!(mlx().convert(&order, &JOB).unwrap_err().code, ErrorCode::InvalidRequest);
    assert_eq!(std::fs::read_dir(staging.path()).unwrap().count(), 0);
}

#[test]
fn a_directory_with_missing_shards_names_them() {
    let staging = tempfile::tempdir().unwrap();
    forge(&fixture("arch/llama"), "bf16", staging.path());
    let index = staging.path().join(safetensors::INDEX_NAME);
    let text = std::fs::read_to_string(&index).unwrap();
    let name = "model-00002-of-00002.safetensors";
    let whole = staging.path().join("model.safetensors");
    std::fs::rename(&whole, staging.path().join("model-00001-of-00002.safetensors")).unwrap();
    let mut document: Json = serde_json::from_str(&text).unwrap();
    for shard in document["weight_map"].as_object_mut().unwrap().values_mut() {
        *shard = json!("model-00001-of-00002.safetensors");
    }
    document["weight_map"]["model.norm.weight"] = json!(name);
    std::fs::write(&index, document.to_string()).unwrap();
    let error = load_error(HostInfo::default(), &order(staging.path(), true, 1));
    assert_eq!(error.code, ErrorCode::InvalidInput);
    assert!(error.message.contains(name), "{error}");
    let other = tempfile::tempdir().unwrap();
    let error = mlx().quantize(&request(staging.path(), "affine_4_g64", other.path()), &JOB).unwrap_err();
    assert!(error.message.contains(name), "{error}");
}

#[test]
fn a_mode_from_the_future_is_named_beside_the_known_ones() {
    let staging = tempfile::tempdir().unwrap();
    forge(&fixture("shakespeare-llama"), "mxfp4", staging.path());
    let path = staging.path().join("config.json");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replace("\"mxfp4\"", "\"mxfp3\"")).unwrap();
    let error = load_error(HostInfo::default(), &order(staging.path(), true, 1));
    assert_eq!(error.code, ErrorCode::InvalidInput);
    assert!(error.message.contains("mxfp3") && error.message.contains("nvfp4"), "{error}");
}

#[test]
fn an_adapter_of_other_shapes_or_of_another_model_is_refused_by_tensor() {
    let adapter = tempfile::tempdir().unwrap();
    let config = json!({ "fine_tune_type": "lora", "lora_parameters": { "rank": 2, "scale": 1.0 } });
    std::fs::write(adapter.path().join("adapter_config.json"), config.to_string()).unwrap();
    let write = |module: &str, down: [u64; 2], up: [u64; 2]| {
        let decl = |half: &str, shape: [u64; 2]| {
            TensorDecl::new(format!("{module}.lora_{half}"), drophammer_formats::DType::F32, shape.to_vec())
        };
        let bytes = |shape: [u64; 2]| vec![0; (shape[0] * shape[1] * 4) as usize];
        let (a, b) = (bytes(down), bytes(up));
        let tensors = [(decl("a", down), a.as_slice()), (decl("b", up), b.as_slice())];
        safetensors::write(&adapter.path().join("adapters.safetensors"), &tensors, &[]).unwrap();
    };
    let base = fixture("shakespeare-llama");
    let mut order = order(&base, true, 1);
    order.adapters = vec![adapter.path().to_owned()];
    for (module, down, up, said) in [
        ("model.layers.0.self_attn.q_proj", [255, 2], [2, 256], "lora_b"),
        ("model.layers.0.self_attn.q_proj", [256, 3], [3, 256], "lora_b"),
        ("model.layers.9.self_attn.q_proj", [256, 2], [2, 256], "matches no weight"),
    ] {
        write(module, down, up);
        let error = load_error(HostInfo::default(), &order);
        assert_eq!(error.code, ErrorCode::InvalidInput);
        assert!(error.message.contains(said) && error.message.contains(module), "{error}");
    }
    let config = json!({ "fine_tune_type": "dora", "lora_parameters": { "rank": 2, "scale": 1.0 } });
    std::fs::write(adapter.path().join("adapter_config.json"), config.to_string()).unwrap();
    assert!(load_error(HostInfo::default(), &order).message.contains("dora"));
}

/// A host that keeps its runtimes nowhere and whose configuration names a library.
fn host(library: &Path) -> HostInfo {
    let mut host = HostInfo::default();
    host.config.insert("library".into(), json!(library));
    host
}

#[test]
fn without_libmlx_models_are_made_and_not_run_and_the_way_out_is_told() {
    let nowhere = host(Path::new("/nowhere/libmlx.so"));
    let report = Mlx::open(nowhere.clone()).unwrap().probe(&ProbeRequest::default()).unwrap();
    assert_eq!(report.runtime_version, None);
    assert!(report.problems[0].help.contains("drophammer runtime install mlx"), "{:?}", report.problems);
    assert!(report.formats.iter().any(|format| format.format == "mlx" && format.make && !format.run));
    let error = load_error(nowhere, &order(&fixture("shakespeare-llama"), true, 1));
    assert_eq!(error.code, ErrorCode::MissingRuntime);
    assert!(error.help.contains("drophammer runtime install mlx"), "{error:?}");
}

/// A library of another version, as far as anybody asks it: what `mlx::core::version()` gives.
#[cfg(target_os = "linux")]
#[test]
fn a_library_of_another_version_is_refused_by_both_versions() {
    let place = tempfile::tempdir().unwrap();
    let (source, library) = (place.path().join("other.cpp"), place.path().join("libmlx.so"));
    let text = "namespace mlx::core { const char* version() { return \"0.99.0\"; } }";
    std::fs::write(&source, text).unwrap();
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".into());
    let built = std::process::Command::new(compiler)
        .args(["-std=c++17", "-shared", "-fPIC", "-o"])
        .args([&library, &source])
        .status()
        .unwrap();
    assert!(built.success());
    let error = load_error(host(&library), &order(&fixture("shakespeare-llama"), true, 1));
    assert_eq!(error.code, ErrorCode::MissingRuntime);
    assert!(error.message.contains("0.99.0") && error.message.contains("0.32.4"), "{error}");
    // A file that is no library at all.
    let library = place.path().join("libbroken.so");
    std::fs::write(&library, "not a library").unwrap();
    let error = load_error(host(&library), &order(&fixture("shakespeare-llama"), true, 1));
    assert_eq!(error.code, ErrorCode::MissingRuntime);
}
