//! Models and jobs that the tests share.

use std::path::{Path, PathBuf};

use drophammer_formats::Source;
use drophammer_openvino::OpenVino;
use drophammer_sdk::{
    Backend, Batch, ForgeReport, ForgeRequest, Goal, HostInfo, LoadRequest, Session, Unwatched,
};

/// What tests do: on two threads.
pub(crate) const JOB: Unwatched = Unwatched { threads: 2 };

/// A path below `tests/fixtures`.
pub(crate) fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures").join(name)
}

pub(crate) fn backend() -> OpenVino {
    OpenVino::open(HostInfo::default()).unwrap()
}

/// Forges a source into a directory.
pub(crate) fn forge(source: &Path, scheme: &str, no_tokenizer: bool, staging: &Path) -> ForgeReport {
    let request = ForgeRequest {
        source: source.to_owned(),
        goal: Goal { format: "openvino".into(), scheme: scheme.into(), ..Goal::default() },
        staging: staging.to_owned(),
        name: "model".into(),
        no_tokenizer,
        ..ForgeRequest::default()
    };
    backend().quantize(&request, &JOB).unwrap_or_else(|error| panic!("{}: {error}", source.display()))
}

pub(crate) fn load(path: &Path, sequences: u32) -> Box<dyn Session> {
    let request = LoadRequest {
        path: path.to_owned(),
        context: Some(256),
        max_sequences: sequences,
        reference: true,
        ..LoadRequest::default()
    };
    backend().load(&request, Box::new(JOB)).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
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

/// Outputs of all tokens of one sequence that begin at a position.
pub(crate) fn run(session: &mut dyn Session, sequence: u32, from: u32, tokens: &[u32]) -> Vec<f32> {
    let count = tokens.len() as u32;
    let positions: Vec<u32> = (from..from + count).collect();
    let outputs: Vec<u32> = (0..count).collect();
    let sequences = vec![sequence; tokens.len()];
    let mut out = vec![f32::NAN; tokens.len() * session.limits().output_width as usize];
    let batch = Batch { tokens, positions: &positions, sequences: &sequences, outputs: &outputs };
    session.forward(batch, &mut out).unwrap();
    out
}

pub(crate) fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, |m, d| if d > m || d.is_nan() { d } else { m })
}
