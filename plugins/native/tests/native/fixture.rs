//! Models and jobs that the tests share.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{LazyLock, Mutex};

use drophammer_formats::Source;
use drophammer_native::Native;
use drophammer_sdk::{
    Backend, Batch, ForgeRequest, Goal, HostInfo, LoadRequest, Options, Result, Session, Unwatched,
};

/// What tests do: on two threads.
pub(crate) const JOB: Unwatched = Unwatched { threads: 2 };

/// A path below `tests/fixtures`.
pub(crate) fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures").join(name)
}

pub(crate) fn native() -> Native {
    Native::open(HostInfo::default()).unwrap()
}

pub(crate) fn load(path: &Path, reference: bool, sequences: u32) -> Box<dyn Session> {
    try_load(path, reference, sequences, Options::new()).unwrap()
}

pub(crate) fn try_load(
    path: &Path,
    reference: bool,
    sequences: u32,
    options: Options,
) -> Result<Box<dyn Session>> {
    let request = LoadRequest {
        path: path.to_owned(),
        context: Some(256),
        max_sequences: sequences,
        reference,
        options,
        ..LoadRequest::default()
    };
    native().load(&request, Box::new(JOB))
}

/// How far logits in fast mode may be from reference mode's, relative: further where activations have eight bits.
pub(crate) fn fast_tolerance() -> f64 {
    #[cfg(target_arch = "x86_64")]
    if std::is_x86_feature_detected!("avx2") {
        return 0.006;
    }
    #[cfg(target_arch = "aarch64")]
    if std::arch::is_aarch64_feature_detected!("dotprod") {
        return 0.006;
    }
    0.002
}

/// `tokens` as rows, and the values that are due for them.
pub(crate) fn reference(directory: &Path) -> (Vec<Vec<u32>>, Vec<f32>) {
    let file = Source::open(directory.join("reference.safetensors")).unwrap();
    let tokens = file.tensor("tokens").unwrap();
    let ids: Vec<u32> = file
        .bytes(tokens)
        .chunks_exact(8)
        .map(|bytes| i64::from_le_bytes(bytes.try_into().unwrap()) as u32)
        .collect();
    let rows = ids.chunks(tokens.row_elements() as usize).map(<[u32]>::to_vec).collect();
    let due = file.tensor("logits").or_else(|| file.tensor("hidden")).unwrap();
    let due =
        file.bytes(due).chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect();
    (rows, due)
}

/// The tiny models of every architecture that have reference outputs.
pub(crate) fn architectures() -> Vec<PathBuf> {
    let all = std::fs::read_dir(fixture("arch")).unwrap().map(|entry| entry.unwrap().path());
    all.filter(|directory| directory.join("reference.safetensors").exists()).collect()
}

/// Every token's outputs, all sequences in one batch.
pub(crate) fn forward(session: &mut dyn Session, rows: &[Vec<u32>]) -> Vec<f32> {
    let outputs: Vec<u32> = (0..rows.iter().map(Vec::len).sum::<usize>() as u32).collect();
    forward_wanted(session, rows, &outputs)
}

/// The outputs of some tokens, all sequences in one batch.
pub(crate) fn forward_wanted(session: &mut dyn Session, rows: &[Vec<u32>], outputs: &[u32]) -> Vec<f32> {
    let tokens: Vec<u32> = rows.concat();
    let positions: Vec<u32> = rows.iter().flat_map(|row| 0..row.len() as u32).collect();
    let sequences: Vec<u32> = rows.iter().zip(0..).flat_map(|(row, s)| vec![s; row.len()]).collect();
    let mut out = vec![f32::NAN; outputs.len() * session.limits().output_width as usize];
    let batch = Batch { tokens: &tokens, positions: &positions, sequences: &sequences, outputs };
    session.forward(batch, &mut out).unwrap();
    out
}

pub(crate) fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, |m, d| if d > m || d.is_nan() { d } else { m })
}

/// The trained model in a scheme, made once per process.
pub(crate) fn quantized(scheme: &str) -> &'static Path {
    static MADE: LazyLock<Mutex<HashMap<String, &'static Path>>> = LazyLock::new(Mutex::default);
    let mut made = MADE.lock().unwrap();
    made.entry(scheme.to_owned()).or_insert_with(|| {
        let staging = Box::leak(Box::new(tempfile::tempdir().unwrap()));
        let request = ForgeRequest {
            source: fixture("shakespeare-llama"),
            goal: Goal { format: "gguf".into(), scheme: scheme.into(), ..Goal::default() },
            staging: staging.path().to_owned(),
            name: "shakespeare".into(),
            ..ForgeRequest::default()
        };
        let plain = matches!(scheme, "f16" | "bf16" | "f32");
        let report =
            if plain { native().convert(&request, &JOB) } else { native().quantize(&request, &JOB) }.unwrap();
        Box::leak(staging.path().join(&report.files[0]).into_boxed_path())
    })
}
