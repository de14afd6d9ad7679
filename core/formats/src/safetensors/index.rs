//! `model.safetensors.index.json`: which shard holds which tensor.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::error::Fault;

/// The index's file name in a Hugging Face directory.
pub const INDEX_NAME: &str = "model.safetensors.index.json";

/// A parsed index.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct ShardIndex {
    /// Tensor name → shard file name, checked to be a plain file name.
    pub weight_map: BTreeMap<String, String>,
}

impl ShardIndex {
    /// The shard files' names, sorted, each once.
    pub fn shards(&self) -> Vec<&str> {
        let mut shards: Vec<&str> = self.weight_map.values().map(String::as_str).collect();
        shards.sort_unstable();
        shards.dedup();
        shards
    }
}

/// Parses an index.
///
/// # Errors
/// [`Fault::Json`], and [`Fault::UnsafePath`] for a shard name that leaves the directory.
pub fn parse_index(json: &[u8]) -> Result<ShardIndex, Fault> {
    const WHAT: &str = "the shard index";
    let index: ShardIndex = serde_json::from_slice(json)
        .map_err(|error| Fault::Json { what: WHAT, message: error.to_string() })?;
    if index.weight_map.is_empty() {
        return Err(Fault::Json { what: WHAT, message: "`weight_map` names no tensors".into() });
    }
    for shard in index.weight_map.values() {
        check_file_name(WHAT, shard)?;
    }
    Ok(index)
}

/// Refuses a name from a file that is not a plain file name: no separators, no `..`, nothing hidden.
///
/// # Errors
/// [`Fault::UnsafePath`].
pub fn check_file_name(what: &'static str, name: &str) -> Result<(), Fault> {
    let plain = !name.is_empty() && !name.starts_with('.') && !name.contains(['/', '\\', '\0', ':']);
    if plain { Ok(()) } else { Err(Fault::UnsafePath { what, name: name.to_owned() }) }
}
