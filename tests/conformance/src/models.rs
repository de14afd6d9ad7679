//! The fixtures, and what is due for them.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use drophammer_formats::Source;

use crate::subject::root;

/// The trained model: three sentences' worth of real weights.
pub(crate) fn trained() -> PathBuf {
    root().join("tests/fixtures/shakespeare-llama")
}

/// Tiny random models, one per architecture, by `arch/<name>`.
pub(crate) fn architectures() -> Result<Vec<(String, PathBuf)>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(root().join("tests/fixtures/arch"))? {
        let path = entry?.path();
        if path.join("reference.safetensors").exists() {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            found.push((format!("arch/{name}"), path));
        }
    }
    found.sort();
    Ok(found)
}

/// Token rows and the float32 outputs due for each token, row after row.
pub(crate) struct Reference {
    pub(crate) rows: Vec<Vec<u32>>,
    pub(crate) due: Vec<Vec<f32>>,
}

impl Reference {
    pub(crate) fn read(directory: &Path) -> Result<Self> {
        let file = Source::open(directory.join("reference.safetensors"))?;
        let tokens = file.tensor("tokens").context("no tokens")?;
        let ids: Vec<u32> =
            file.bytes(tokens).as_chunks().0.iter().map(|id| i64::from_le_bytes(*id) as u32).collect();
        let rows = ids.chunks(tokens.row_elements() as usize).map(<[u32]>::to_vec).collect();
        let due = file.tensor("logits").or_else(|| file.tensor("hidden")).context("no outputs")?;
        let values: Vec<f32> =
            file.bytes(due).as_chunks().0.iter().map(|value| f32::from_le_bytes(*value)).collect();
        let due = values.chunks(due.row_elements() as usize).map(<[f32]>::to_vec).collect();
        Ok(Self { rows, due })
    }

    /// All rows as one batch, each its own sequence.
    pub(crate) fn batch(&self) -> Vec<(u32, u32, u32)> {
        let rows = self.rows.iter().zip(0..);
        rows.flat_map(|(row, sequence)| row.iter().zip(0..).map(move |(&id, at)| (id, at, sequence)))
            .collect()
    }
}

/// Numbers that look random and are the same everywhere.
pub(crate) fn tokens(seed: u64, count: usize, vocabulary: u32) -> Vec<u32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 33) as u32 % vocabulary
    };
    (0..count).map(|_| next()).collect()
}

/// Largest difference; NaN counts as infinite.
pub(crate) fn difference(a: &[Vec<f32>], b: &[Vec<f32>]) -> f32 {
    if a.len() != b.len() {
        return f32::INFINITY;
    }
    let pairs = a.iter().flatten().zip(b.iter().flatten());
    pairs
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, |most, d| if d.is_nan() { f32::INFINITY } else { most.max(d) })
}
