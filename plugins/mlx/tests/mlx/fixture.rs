//! Models and jobs that the tests share.

use std::path::{Path, PathBuf};

use drophammer_formats::Source;
use drophammer_mlx::Mlx;
use drophammer_sdk::{
    Backend, Batch, ForgeReport, ForgeRequest, Goal, HostInfo, LoadRequest, ProbeRequest, Session, Unwatched,
};

/// What tests do: on two threads.
pub(crate) const JOB: Unwatched = Unwatched { threads: 2 };

/// A path below `tests/fixtures`.
pub(crate) fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures").join(name)
}

/// Directories below one of the fixtures'.
pub(crate) fn fixtures(name: &str) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> =
        std::fs::read_dir(fixture(name)).unwrap().map(|entry| entry.unwrap().path()).collect();
    found.retain(|path| path.join("reference.safetensors").is_file());
    found.sort();
    assert!(!found.is_empty(), "no fixtures in {name}");
    found
}

pub(crate) fn mlx() -> Mlx {
    Mlx::open(HostInfo::default()).unwrap()
}

/// Whether models can be run here. `cargo xtask test` sees to it; a quick run goes without.
pub(crate) fn can_run() -> bool {
    let report = mlx().probe(&ProbeRequest::default()).unwrap();
    let able = report.runtime_version.is_some();
    assert!(able || std::env::var_os("DROPHAMMER_RUNTIMES").is_none(), "{:?}", report.problems);
    if !able {
        eprintln!("not run, since DROPHAMMER_RUNTIMES names no libmlx: {:?}", report.problems);
    }
    able
}

pub(crate) fn request(source: &Path, scheme: &str, staging: &Path) -> ForgeRequest {
    ForgeRequest {
        source: source.to_owned(),
        goal: Goal { format: "mlx".into(), scheme: scheme.into(), ..Goal::default() },
        staging: staging.to_owned(),
        name: "model".into(),
        no_tokenizer: true,
        ..ForgeRequest::default()
    }
}

pub(crate) fn forge(source: &Path, scheme: &str, staging: &Path) -> ForgeReport {
    mlx().quantize(&request(source, scheme, staging), &JOB).unwrap()
}

pub(crate) fn order(path: &Path, reference: bool, sequences: u32) -> LoadRequest {
    LoadRequest {
        path: path.to_owned(),
        context: Some(256),
        max_sequences: sequences,
        reference,
        ..LoadRequest::default()
    }
}

pub(crate) fn load(request: &LoadRequest) -> Box<dyn Session> {
    mlx().load(request, Box::new(JOB)).unwrap()
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

/// Every token's outputs, all sequences in one batch.
pub(crate) fn forward(session: &mut dyn Session, rows: &[Vec<u32>]) -> Vec<f32> {
    let tokens: Vec<u32> = rows.concat();
    let positions: Vec<u32> = rows.iter().flat_map(|row| 0..row.len() as u32).collect();
    let sequences: Vec<u32> = rows.iter().zip(0..).flat_map(|(row, s)| vec![s; row.len()]).collect();
    let outputs: Vec<u32> = (0..tokens.len() as u32).collect();
    let mut out = vec![f32::NAN; tokens.len() * session.limits().output_width as usize];
    let batch = Batch { tokens: &tokens, positions: &positions, sequences: &sequences, outputs: &outputs };
    session.forward(batch, &mut out).unwrap();
    out
}

pub(crate) fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, |m, d| if d > m || d.is_nan() { d } else { m })
}

/// Root of the mean square of differences, over that of `due` about its mean.
pub(crate) fn relative_error(got: &[f32], due: &[f32]) -> f64 {
    let mean = due.iter().map(|x| f64::from(*x)).sum::<f64>() / due.len() as f64;
    let error: f64 = got.iter().zip(due).map(|(a, b)| f64::from(a - b).powi(2)).sum();
    let size: f64 = due.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum();
    (error / size).sqrt()
}
