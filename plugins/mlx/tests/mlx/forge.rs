//! Directories made by the plugin: their bytes are the planned ones, and the model in them is the source's.

use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use drophammer_formats::Source;
use drophammer_formats::safetensors::INDEX_NAME;
use drophammer_models::{Checkpoint, Role};
use drophammer_sdk::{Backend, Budgets, ErrorCode, ForgeRequest, Goal, JobContext, LogLevel, ProbeRequest};
use serde_json::json;

use crate::fixture::{JOB, fixture, fixtures, forge, mlx, relative_error, request};

/// All weights of two models are the same numbers.
fn assert_same_weights(made: &Path, source: &Path) {
    let (made_model, source_model) = (Checkpoint::open(made).unwrap(), Checkpoint::open(source).unwrap());
    assert_eq!(made_model.weights(), source_model.weights());
    for weight in source_model.weights() {
        let [a, b] =
            [&made_model, &source_model].map(|model| model.weight(weight.id).unwrap().to_vec().unwrap());
        assert!(a == b, "{}: {} differs", source.display(), weight.id);
    }
}

#[test]
fn every_architecture_reads_back_as_it_was() {
    for directory in fixtures("arch") {
        let staging = tempfile::tempdir().unwrap();
        let report = forge(&directory, "f32", staging.path());
        assert_eq!(report.files, [Path::new(".")]);
        assert_eq!(Source::open(staging.path()).unwrap().kind().name(), "mlx");
        assert_same_weights(staging.path(), &directory);
    }
}

#[test]
fn every_way_of_packing_reads_back_as_the_numbers_it_stands_for() {
    for directory in fixtures("packed") {
        let staging = tempfile::tempdir().unwrap();
        forge(&directory, "f32", staging.path());
        assert_same_weights(staging.path(), &directory);
    }
}

#[test]
fn a_gguf_file_gives_the_same_directory_as_what_it_was_made_of() {
    let source = fixture("shakespeare-llama");
    let [gguf, from_gguf, direct] = [(); 3].map(|()| tempfile::tempdir().unwrap());
    let goal = Goal { format: "gguf".into(), scheme: "bf16".into(), ..Goal::default() };
    let order = ForgeRequest { goal, no_tokenizer: false, ..request(&source, "", gguf.path()) };
    let made = drophammer_forge::gguf::convert(&order, &JOB).unwrap();
    let with_tokenizer = |source: &Path, staging: &Path| {
        let order = ForgeRequest { no_tokenizer: false, ..request(source, "affine_4_g64", staging) };
        mlx().quantize(&order, &JOB).unwrap()
    };
    with_tokenizer(&gguf.path().join(&made.files[0]), from_gguf.path());
    with_tokenizer(&source, direct.path());
    let bytes = |directory: &Path, name: &str| std::fs::read(directory.join(name)).unwrap();
    assert!(bytes(from_gguf.path(), "model.safetensors") == bytes(direct.path(), "model.safetensors"));
    let tokenize = |directory: &Path| {
        let tokenizer = drophammer_infer::Tokenizer::from_directory(directory).unwrap();
        tokenizer.encode("First Citizen:\nBefore we proceed  any further, hear me speak.", true).unwrap()
    };
    assert_eq!(tokenize(from_gguf.path()), tokenize(direct.path()));
    assert_eq!(tokenize(direct.path()), tokenize(&source));
    let config: serde_json::Value = serde_json::from_slice(&bytes(from_gguf.path(), "config.json")).unwrap();
    for (key, value) in [
        ("model_type", json!("llama")),
        ("num_hidden_layers", json!(4)),
        ("eos_token_id", json!(1)),
        ("torch_dtype", json!("bfloat16")),
        ("quantization", json!({ "group_size": 64, "bits": 4, "mode": "affine" })),
    ] {
        assert_eq!(config[key], value, "{key}");
    }
}

#[test]
fn the_estimate_tells_the_size_and_the_index_is_always_there() {
    let source = fixture("shakespeare-llama");
    for scheme in ["affine_4_g64", "mixed_2_6", "mxfp4", "bf16"] {
        let goals = vec![Goal { format: "mlx".into(), scheme: scheme.into(), ..Goal::default() }];
        let report = mlx().probe(&ProbeRequest { source: Some(source.clone()), goals }).unwrap();
        let staging = tempfile::tempdir().unwrap();
        let order = ForgeRequest { no_tokenizer: false, ..request(&source, scheme, staging.path()) };
        let made = mlx().quantize(&order, &JOB).unwrap();
        assert!(report.estimates[0].supported);
        assert_eq!(report.estimates[0].bytes, made.bytes, "{scheme}");
        let mut bytes = 0;
        let mut names: Vec<String> = Vec::new();
        for entry in std::fs::read_dir(staging.path()).unwrap() {
            let entry = entry.unwrap();
            bytes += entry.metadata().unwrap().len();
            names.push(entry.file_name().into_string().unwrap());
        }
        names.sort();
        assert_eq!(bytes, made.bytes, "{scheme}");
        assert_eq!(
            names,
            [
                "config.json",
                "generation_config.json",
                "model.safetensors",
                "model.safetensors.index.json",
                "tokenizer.json",
                "tokenizer_config.json",
            ]
        );
        for name in ["generation_config.json", "tokenizer.json", "tokenizer_config.json"] {
            let [copied, own] =
                [staging.path(), &source].map(|place| std::fs::read(place.join(name)).unwrap());
            assert!(copied == own, "{name} is not the source's");
        }
    }
}

#[test]
fn an_override_decides_for_the_modules_it_names() {
    let staging = tempfile::tempdir().unwrap();
    let mut order = request(&fixture("shakespeare-llama"), "affine_4_g64", staging.path());
    order.goal.options.insert("overrides".into(), json!(["lm_head=plain", "v_proj|o_proj=affine_8_g32"]));
    let report = mlx().quantize(&order, &JOB).unwrap();
    assert_eq!(report.types["affine_8_g32"], 8);
    let made = Source::open(staging.path()).unwrap();
    assert!(made.tensor("lm_head.scales").is_none());
    let own = &made.config().unwrap()["quantization"]["model.layers.2.self_attn.v_proj"];
    assert_eq!(*own, json!({ "group_size": 32, "bits": 8, "mode": "affine" }));
    // And the file's own reader agrees with what was asked for.
    let model = Checkpoint::open(staging.path()).unwrap();
    let packing = model.weight(Role::Value.of(2)).unwrap().mlx().unwrap().packing();
    assert_eq!((packing.bits, packing.group), (8, 32));
    for bad in ["v_proj", "v_proj=affine_9_g64", "(=affine_4_g64"] {
        order.goal.options.insert("overrides".into(), json!([bad]));
        let error = mlx().quantize(&order, &JOB).unwrap_err();
        assert_eq!(error.code, ErrorCode::InvalidRequest, "{bad}: {error}");
    }
}

#[test]
fn every_scheme_reads_back_near_the_source() {
    let source = fixture("shakespeare-llama");
    let due = Checkpoint::open(&source).unwrap().weight(Role::Up.of(1)).unwrap().to_vec().unwrap();
    for scheme in drophammer_models::export::mlx::schemes() {
        let staging = tempfile::tempdir().unwrap();
        forge(&source, &scheme, staging.path());
        let made = Checkpoint::open(staging.path()).unwrap();
        let got = made.weight(Role::Up.of(1)).unwrap().to_vec().unwrap();
        let error = relative_error(&got, &due);
        // A step of a group's range is at most about its whole width over so many codes.
        let most = match scheme.trim_start_matches("affine_").chars().next() {
            Some('2') => 0.5,
            Some('m') if scheme.starts_with("mixed_2") => 0.5,
            Some('3') => 0.25,
            Some('4') => 0.12,
            Some('5' | '6') => 0.06,
            Some('8') => 0.02,
            _ => 0.3,
        };
        assert!(error < most, "{scheme}: {error}");
    }
}

#[test]
fn recipes_give_more_bits_where_mlx_lm_does() {
    use drophammer_models::Role;
    let staging = tempfile::tempdir().unwrap();
    forge(&fixture("shakespeare-llama"), "mixed_3_6", staging.path());
    let model = Checkpoint::open(staging.path()).unwrap();
    let bits = |id| model.weight(id).unwrap().mlx().unwrap().packing().bits;
    assert_eq!([0, 1, 2, 3].map(|layer| bits(Role::Value.of(layer))), [3, 3, 6, 6]);
    assert_eq!([0, 1, 2, 3].map(|layer| bits(Role::Down.of(layer))), [3, 3, 6, 6]);
    assert_eq!(bits(Role::Query.of(3)), 3);
    assert_eq!((bits(Role::Head.global()), bits(Role::TokenEmbedding.global())), (6, 3));
}

#[test]
fn a_mixture_by_sensitivity_keeps_within_its_size_and_gives_bits_to_what_is_sensitive() {
    let staging = tempfile::tempdir().unwrap();
    let file = staging.path().join("sensitivity.json");
    let tensors: Vec<_> = (0..4)
        .flat_map(|layer| ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"].map(|part| {
            // One matrix is worth more than all others.
            let cost = if (layer, part) == (1, "ffn_down") { 1.0 } else { 1e-4 };
            json!({ "name": format!("blk.{layer}.{part}.weight"), "candidates": [
                { "dtype": "q2_k", "bytes": 1, "cost": cost }, { "dtype": "q8_0", "bytes": 4, "cost": cost * 1e-3 },
            ]})
        }))
        .collect();
    let sensitivity = json!({
        "source": "", "parameters": 1, "fixed_bytes": 0, "tokens": 1, "tensors": tensors, "checks": [],
    });
    std::fs::write(&file, json!({ "sensitivity": sensitivity }).to_string()).unwrap();
    let source = fixture("shakespeare-llama");
    let made = |budget: serde_json::Value, sensitivity: serde_json::Value| {
        let out = tempfile::tempdir().unwrap();
        let mut order = request(&source, "", out.path());
        order.goal.options.insert("sensitivity".into(), sensitivity);
        order.goal.options.insert("budget".into(), budget);
        mlx().quantize(&order, &JOB).map(|report| (report, out))
    };
    let bits = |out: &Path, id| {
        let model = Checkpoint::open(out).unwrap();
        model.weight(id).unwrap().mlx().unwrap().packing().bits
    };
    // By file and in place; by bits, bytes and loss.
    let (report, out) = made(json!({ "bits_per_weight": 4.0 }), json!(file)).unwrap();
    assert!(report.bits_per_weight <= 4.0 && report.bits_per_weight > 3.5, "{}", report.bits_per_weight);
    assert_eq!(bits(out.path(), Role::Down.of(1)), 8);
    assert!((0..4).filter(|layer| *layer != 1).all(|layer| bits(out.path(), Role::Down.of(layer)) < 8));
    let (report, _out) = made(json!({ "bytes": 2_300_000 }), sensitivity.clone()).unwrap();
    assert!(report.bytes <= 2_300_000 && report.bytes > 2_000_000, "{}", report.bytes);
    let (report, out) = made(json!({ "divergence": 0.01 }), sensitivity.clone()).unwrap();
    assert_eq!(bits(out.path(), Role::Down.of(1)), 8);
    assert!(report.bits_per_weight < 5.0, "{}", report.bits_per_weight);
    for impossible in
        [json!({ "bits_per_weight": 1.0 }), json!({ "bytes": 1000 }), json!({ "divergence": 1e-12 })]
    {
        let error = made(impossible, sensitivity.clone()).unwrap_err();
        assert!(
            error.code == ErrorCode::InvalidRequest && error.message.contains("least possible"),
            "{error}"
        );
    }
    let error = made(json!({ "bits": 4 }), sensitivity).unwrap_err();
    assert!(error.code == ErrorCode::InvalidRequest && error.message.contains("bits_per_weight"), "{error}");
}

#[test]
fn weights_are_cut_into_shards_and_the_index_tells_where_each_lies() {
    let most = 2_000_000;
    let staging = tempfile::tempdir().unwrap();
    let source = fixture("shakespeare-llama");
    let mut order = request(&source, "bf16", staging.path());
    order.goal.options.insert("max_file_bytes".into(), json!(most));
    let report = mlx().convert(&order, &JOB).unwrap();
    let read = |name: &str| std::fs::read(staging.path().join(name)).unwrap();
    let index: serde_json::Value = serde_json::from_slice(&read(INDEX_NAME)).unwrap();
    let mut shards: Vec<&str> =
        index["weight_map"].as_object().unwrap().values().filter_map(|v| v.as_str()).collect();
    shards.sort_unstable();
    shards.dedup();
    assert!(shards.len() >= 4, "{shards:?}");
    let mut data = 0;
    for shard in &shards {
        let bytes = read(shard);
        let header = u64::from_le_bytes(bytes[..8].try_into().unwrap());
        data += bytes.len() as u64 - 8 - header;
        assert!(bytes.len() as u64 - 8 - header <= most, "{shard}");
    }
    assert_eq!(index["metadata"]["total_size"], data);
    assert_eq!(index["metadata"]["total_parameters"], report.parameters);
    assert_same_weights(staging.path(), &source);
    order.goal.options.insert("max_file_bytes".into(), json!("much"));
    assert_eq!(mlx().convert(&order, &JOB).unwrap_err().code, ErrorCode::InvalidRequest);
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
    let source = fixture("shakespeare-llama");
    let (whole, resumed) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    forge(&source, "affine_4_g64", whole.path());
    let job = Impatient(AtomicU32::new(12));
    let error = mlx().quantize(&request(&source, "affine_4_g64", resumed.path()), &job).unwrap_err();
    assert_eq!(error.code, ErrorCode::Cancelled);
    forge(&source, "affine_4_g64", resumed.path());
    let bytes = |directory: &Path| std::fs::read(directory.join("model.safetensors")).unwrap();
    assert!(bytes(whole.path()) == bytes(resumed.path()), "the resumed directory differs");
}
