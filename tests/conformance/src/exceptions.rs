//! What a backend says it cannot do.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Deserialize;

/// `conformance.toml` of a plugin. Every entry has a reason in words.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Exceptions {
    /// Largest difference of an output from its float32 reference, in reference mode, that still counts as equal.
    pub tolerance: f32,
    /// Largest difference between two ways of computing the same rows (chunks, batches, copies), in reference mode.
    pub consistency: f32,
    /// Fixtures (`arch/<name>`) that the backend cannot make or run.
    pub models: BTreeMap<String, String>,
    /// Fixtures whose outputs differ by more than the tolerance, with their own tolerance.
    pub tolerances: BTreeMap<String, Tolerance>,
    /// Cases, by name, that do not apply.
    pub cases: BTreeMap<String, String>,
}

/// A wider tolerance for one fixture.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tolerance {
    /// Largest difference.
    pub largest: f32,
    /// Why.
    pub reason: String,
}

impl Default for Exceptions {
    fn default() -> Self {
        Self {
            tolerance: 2e-3,
            consistency: 1e-4,
            models: BTreeMap::new(),
            tolerances: BTreeMap::new(),
            cases: BTreeMap::new(),
        }
    }
}

impl Exceptions {
    /// Reads the file beside a plugin's manifest in its source folder; without one there are none.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join("conformance.toml");
        if !path.exists() {
            return Ok(Self::default());
        }
        let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        toml::from_str(&text).with_context(|| path.display().to_string())
    }

    /// The tolerance for a fixture.
    pub fn tolerance_of(&self, fixture: &str) -> f32 {
        self.tolerances.get(fixture).map_or(self.tolerance, |tolerance| tolerance.largest)
    }
}
