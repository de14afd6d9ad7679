//! What this backend promises beyond the conformance suite: its own options, two quantizers, and llama.cpp's agreement
//! with the files of this project.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use drophammer_formats::gguf::{self, Metadata};
use drophammer_formats::{DType, TensorDecl, safetensors};
use drophammer_llama_cpp::LlamaCpp;
use drophammer_sdk::host::Plugin;
use drophammer_sdk::{
    Backend, Batch, Budgets, ErrorCode, ForgeReport, ForgeRequest, Goal, HostInfo, JobContext, LoadRequest,
    LogLevel, OutputKind, Session, most_likely,
};
use serde_json::json;

/// A job that ends when it is told to, or as soon as it hears that work has begun.
#[derive(Default, Clone)]
struct Job {
    ended: Arc<AtomicBool>,
    leaves: bool,
}

impl JobContext for Job {
    fn progress(&self, _stage: &str, _tensor: &str, done: u64, _total: u64) {
        self.ended.fetch_or(self.leaves && done > 0, Ordering::Relaxed);
    }
    fn log(&self, _level: LogLevel, _message: &str) {}
    fn cancelled(&self) -> bool {
        self.ended.load(Ordering::Relaxed)
    }
    fn budgets(&self) -> Budgets {
        Budgets { threads: 2, memory_bytes: 0, disk_bytes: 0 }
    }
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures").join(name)
}

fn llama() -> LlamaCpp {
    LlamaCpp::open(HostInfo::default()).unwrap()
}

fn request(source: &Path, scheme: &str, options: serde_json::Value, staging: &Path) -> ForgeRequest {
    ForgeRequest {
        source: source.to_owned(),
        goal: Goal {
            format: "gguf".into(),
            scheme: scheme.into(),
            options: options.as_object().cloned().unwrap_or_default(),
        },
        staging: staging.to_owned(),
        name: "model".into(),
        ..ForgeRequest::default()
    }
}

/// A GGUF file of the trained model, and the directory it lives in.
fn made(scheme: &str) -> (tempfile::TempDir, PathBuf) {
    let staging = tempfile::tempdir().unwrap();
    let request = request(&fixture("shakespeare-llama"), scheme, json!({}), staging.path());
    let report = llama().quantize(&request, &Job::default()).unwrap();
    let path = staging.path().join(&report.files[0]);
    (staging, path)
}

fn order(path: &Path, options: serde_json::Value) -> LoadRequest {
    LoadRequest {
        path: path.to_owned(),
        context: Some(512),
        options: options.as_object().cloned().unwrap_or_default(),
        ..LoadRequest::default()
    }
}

fn load(path: &Path, options: serde_json::Value) -> Box<dyn Session> {
    llama().load(&order(path, options), Box::new(Job::default())).unwrap()
}

/// The last token's row.
fn last(session: &mut dyn Session, tokens: &[u32], from: u32) -> Vec<f32> {
    let positions: Vec<u32> = (from..).take(tokens.len()).collect();
    let sequences = vec![0; tokens.len()];
    let mut row = vec![f32::NAN; session.limits().output_width as usize];
    let outputs = [tokens.len() as u32 - 1];
    let batch = Batch { tokens, positions: &positions, sequences: &sequences, outputs: &outputs };
    session.forward(batch, &mut row).unwrap();
    row
}

fn best(row: &[f32]) -> u32 {
    most_likely(row).unwrap() as u32
}

/// The most probable continuation.
fn greedy(session: &mut dyn Session, prompt: &[u32], count: usize) -> Vec<u32> {
    let mut next = best(&last(session, prompt, 0));
    let mut found = vec![next];
    while found.len() < count {
        next = best(&last(session, &[next], (prompt.len() + found.len() - 1) as u32));
        found.push(next);
    }
    found
}

const PROMPT: [u32; 12] = [40, 812, 5, 77, 300, 1200, 9, 64, 33, 701, 18, 255];

/// Our own engine, from its dylib: two plugins cannot be linked into one program.
fn native() -> Plugin {
    Plugin::open(&drophammer_e2e::built().join("plugins/native"), &HostInfo::default()).unwrap()
}

/// The same 32 tokens from our engine and from libllama, for a file at F16; files of fewer bits run too.
fn agrees(source: &Path, prompt: &[u32]) {
    let native = native();
    for scheme in ["f16", "q8_0", "q4_k_m"] {
        let staging = tempfile::tempdir().unwrap();
        let request = request(source, scheme, json!({}), staging.path());
        let report = if scheme == "f16" {
            native.convert(&request, &Job::default()).unwrap()
        } else {
            native.quantize(&request, &Job::default()).unwrap()
        };
        let path = staging.path().join(&report.files[0]);
        let theirs = greedy(load(&path, json!({})).as_mut(), prompt, 32);
        let mut ours = native.load(&order(&path, json!({})), Box::new(Job::default())).unwrap();
        let ours = greedy(ours.as_mut(), prompt, 32);
        if scheme == "f16" {
            assert_eq!(ours, theirs, "{scheme}");
        }
        assert_eq!(ours[0], theirs[0], "{scheme}");
    }
}

#[test]
fn files_of_the_trained_model_go_on_in_llama_cpp_as_in_our_engine() {
    agrees(&fixture("shakespeare-llama"), &PROMPT);
}

#[test]
fn files_of_a_real_model_go_on_in_llama_cpp_as_in_our_engine() {
    let Some(source) = std::env::var_os("DROPHAMMER_SMOLLM2") else {
        eprintln!("skipped: DROPHAMMER_SMOLLM2 names no model (cargo xtask test sets it)");
        return;
    };
    agrees(Path::new(&source), &[504, 3575, 282, 4649, 314]);
}

fn by(engine: &str, scheme: &str, extra: serde_json::Value) -> (tempfile::TempDir, ForgeReport) {
    let staging = tempfile::tempdir().unwrap();
    let mut options = extra;
    options["engine"] = json!(engine);
    let request = request(&fixture("shakespeare-llama"), scheme, options, staging.path());
    let report = llama().quantize(&request, &Job::default()).unwrap();
    (staging, report)
}

#[test]
fn both_quantizers_make_files_of_the_same_types_that_run() {
    for scheme in ["q8_0", "q4_k_m", "q4_0", "q3_k_m"] {
        let (ours_at, ours) = by("drophammer", scheme, json!({}));
        let (theirs_at, theirs) = by("upstream", scheme, json!({}));
        assert_eq!(ours.types, theirs.types, "{scheme}");
        assert_eq!(ours.parameters, theirs.parameters, "{scheme}");
        assert!(!theirs_at.path().join("intermediate").exists());
        for (at, report) in [(&ours_at, &ours), (&theirs_at, &theirs)] {
            let row = last(load(&at.path().join(&report.files[0]), json!({})).as_mut(), &PROMPT, 0);
            assert!(row.iter().all(|value| value.is_finite()));
        }
    }
}

#[test]
fn overrides_reach_the_upstream_quantizer_and_a_dry_run_writes_nothing() {
    let (_at, plain) = by("upstream", "q4_0", json!({}));
    let (_at, more) = by("upstream", "q4_0", json!({"overrides": ["attn_v=q8_0"]}));
    assert_eq!(more.types["q8_0"], plain.types.get("q8_0").copied().unwrap_or(0) + 4, "{:?}", more.types);
    for engine in ["upstream", "drophammer"] {
        let (at, dry) = by(engine, "q4_0", json!({"dry_run": true}));
        assert_eq!(dry.types, plain.types, "{engine}");
        assert!(!at.path().join("model.gguf").exists(), "{engine} wrote a file");
    }
}

#[test]
fn caches_of_fewer_bits_stay_near_and_impossible_ones_are_refused() {
    let (_at, path) = made("f16");
    let prompt: Vec<u32> = PROMPT.iter().cycle().take(60).copied().collect();
    let due = last(load(&path, json!({})).as_mut(), &prompt, 0);
    let spread = due.iter().fold(0.0_f32, |most, value| most.max(value.abs()));
    for (kind, share) in [("f32", 0.01), ("q8_0", 0.05), ("q4_0", 0.35)] {
        let row = last(load(&path, json!({"kv_type": kind})).as_mut(), &prompt, 0);
        let most = row.iter().zip(&due).fold(0.0_f32, |most, (a, b)| most.max((a - b).abs()));
        assert!(most <= share * spread, "{kind}: {most} of {spread}");
    }
    for options in [
        json!({"kv_type": "q8_0", "flash_attention": "off"}),
        json!({"kv_type": "q17"}),
        json!({"gpu_layers": "many"}),
        json!({"pooling": "sideways"}),
    ] {
        let error = llama().load(&order(&path, options.clone()), Box::new(Job::default())).err().unwrap();
        assert_eq!(error.code, ErrorCode::InvalidRequest, "{options}: {error}");
        assert!(!error.help.is_empty(), "{options}");
    }
}

#[test]
fn a_context_beyond_its_limit_is_refused_and_nothing_is_shifted() {
    let (_at, path) = made("f16");
    let mut session = load(&path, json!({}));
    let tokens = vec![7; 512];
    last(session.as_mut(), &tokens, 0);
    let mut row = vec![0.0; session.limits().output_width as usize];
    let batch = Batch { tokens: &[7], positions: &[512], sequences: &[0], outputs: &[0] };
    let error = session.forward(batch, &mut row).unwrap_err();
    assert_eq!(error.code, ErrorCode::InvalidRequest);
    assert!(error.message.contains("512"), "{error}");
    // A position that does not go on where the cache ends is refused too.
    session.remove(0, 100, u32::MAX).unwrap();
    let batch = Batch { tokens: &[7], positions: &[200], sequences: &[0], outputs: &[0] };
    assert_eq!(session.forward(batch, &mut row).unwrap_err().code, ErrorCode::InvalidRequest);
    last(session.as_mut(), &[7], 100);
}

#[test]
fn pooled_embeddings_are_those_of_the_tokens_hidden_states() {
    let staging = tempfile::tempdir().unwrap();
    let request = ForgeRequest {
        no_tokenizer: true,
        ..request(&fixture("arch/bert"), "f32", json!({}), staging.path())
    };
    let report = llama().convert(&request, &Job::default()).unwrap();
    let path = staging.path().join(&report.files[0]);
    let tokens = [5, 9, 33, 2, 71];
    let mut plain = load(&path, json!({}));
    assert_eq!(plain.limits().output_kind, OutputKind::Hidden);
    let width = plain.limits().output_width as usize;
    let mut rows = vec![0.0; tokens.len() * width];
    let (positions, sequences, outputs) = ([0, 1, 2, 3, 4], [0; 5], [0, 1, 2, 3, 4]);
    let batch = Batch { tokens: &tokens, positions: &positions, sequences: &sequences, outputs: &outputs };
    plain.forward(batch, &mut rows).unwrap();
    let mean: Vec<f32> =
        (0..width).map(|at| rows.iter().skip(at).step_by(width).sum::<f32>() / tokens.len() as f32).collect();
    for (pooling, due) in [("mean", mean.as_slice()), ("cls", &rows[..width]), ("last", &rows[4 * width..])] {
        let found = last(load(&path, json!({"pooling": pooling})).as_mut(), &tokens, 0);
        let most = found.iter().zip(due).fold(0.0_f32, |most, (a, b)| most.max((a - b).abs()));
        assert!(most < 1e-4, "{pooling}: {most}");
    }
}

#[test]
fn an_architecture_that_libllama_lacks_is_refused_before_loading() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("model.gguf");
    let mut metadata = Metadata::new();
    metadata.set("general.architecture", "perceptron".to_owned());
    gguf::write(&path, &metadata, &[]).unwrap();
    let error = llama().load(&order(&path, json!({})), Box::new(Job::default())).err().unwrap();
    assert_eq!(error.code, ErrorCode::UnsupportedInput);
    assert!(error.message.contains("no architecture \"perceptron\""), "{error}");
}

fn slices(tensors: &[(TensorDecl, Vec<u8>)]) -> Vec<(TensorDecl, &[u8])> {
    tensors.iter().map(|(decl, bytes)| (decl.clone(), bytes.as_slice())).collect()
}

/// A LoRA adapter of two matrices in llama.cpp's own form, and in Hugging Face's. Returns the file and the directory.
fn adapters(place: &Path) -> (PathBuf, PathBuf) {
    const RANK: usize = 4;
    const ALPHA: f32 = 8.0;
    let modules = [
        ("blk.1.attn_v", "model.layers.1.self_attn.v_proj", 128, 256),
        ("blk.2.ffn_down", "model.layers.2.mlp.down_proj", 256, 768),
    ];
    let (mut theirs, mut published) = (Vec::new(), Vec::new());
    for (file, name, rows, columns) in modules {
        for (half, shape) in [("a", [RANK, columns]), ("b", [rows, RANK])] {
            let number = |i: usize| ((i * 7 + rows + shape[0]) as f32 * 0.61).sin() * 0.05;
            let bytes: Vec<u8> = (0..shape[0] * shape[1]).flat_map(|i| number(i).to_le_bytes()).collect();
            let decl = |name: String| TensorDecl::new(name, DType::F32, shape.map(|dim| dim as u64).to_vec());
            theirs.push((decl(format!("{file}.weight.lora_{half}")), bytes.clone()));
            let half = half.to_uppercase();
            published.push((decl(format!("base_model.model.{name}.lora_{half}.weight")), bytes));
        }
    }
    let file = place.join("adapter.gguf");
    let mut metadata = Metadata::new();
    metadata.set("general.type", "adapter".to_owned());
    metadata.set("general.architecture", "llama".to_owned());
    metadata.set("adapter.type", "lora".to_owned());
    metadata.set("adapter.lora.alpha", ALPHA);
    gguf::write(&file, &metadata, &slices(&theirs)).unwrap();
    let directory = place.join("adapter");
    std::fs::create_dir(&directory).unwrap();
    let config = json!({"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA});
    std::fs::write(directory.join("adapter_config.json"), config.to_string()).unwrap();
    safetensors::write(&directory.join("adapter_model.safetensors"), &slices(&published), &[]).unwrap();
    (file, directory)
}

#[test]
fn adapters_attached_from_either_form_are_the_merged_model() {
    let place = tempfile::tempdir().unwrap();
    let (file, directory) = adapters(place.path());
    let (_at, base) = made("f32");
    let staging = tempfile::tempdir().unwrap();
    let merging = ForgeRequest {
        adapters: vec![directory.clone()],
        ..request(&fixture("shakespeare-llama"), "f32", json!({}), staging.path())
    };
    let report = llama().convert(&merging, &Job::default()).unwrap();
    let due = last(load(&staging.path().join(&report.files[0]), json!({})).as_mut(), &PROMPT, 0);
    let from_due = |adapters: Vec<PathBuf>| {
        let order = LoadRequest { adapters, ..order(&base, json!({})) };
        let mut session = llama().load(&order, Box::new(Job::default())).unwrap();
        let row = last(session.as_mut(), &PROMPT, 0);
        row.iter().zip(&due).fold(0.0_f32, |most, (a, b)| most.max((a - b).abs()))
    };
    let without = from_due(Vec::new());
    assert!(without > 1e-2, "the adapter changes nothing: {without}");
    for adapter in [file, directory] {
        let most = from_due(vec![adapter.clone()]);
        assert!(most < 1e-3, "{}: {most}", adapter.display());
    }
}

#[test]
fn a_load_ends_when_its_job_is_cancelled() {
    let (_at, path) = made("f16");
    let job = Job { leaves: true, ..Job::default() };
    let error = llama().load(&order(&path, json!({})), Box::new(job)).err().unwrap();
    assert_eq!(error.code, ErrorCode::Cancelled, "{error}");
}

#[test]
fn a_running_batch_ends_when_its_job_is_cancelled() {
    let (_at, path) = made("f16");
    let job = Job::default();
    let mut session = llama().load(&order(&path, json!({})), Box::new(job.clone())).unwrap();
    last(session.as_mut(), &PROMPT, 0);
    job.ended.store(true, Ordering::Relaxed);
    let mut row = vec![0.0; session.limits().output_width as usize];
    let batch = Batch { tokens: &[7], positions: &[12], sequences: &[0], outputs: &[0] };
    assert_eq!(session.forward(batch, &mut row).unwrap_err().code, ErrorCode::Cancelled);
}
