//! What is known of the activations that weights meet.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use drophammer_forge::equalize::Scaling;
use drophammer_models::names::gguf::NAMES;
use drophammer_models::{WeightId, WeightShape};
use drophammer_quant::pass::Importance;
use drophammer_sdk::{BackendError, ErrorCode, Result};

/// Statistics of a calibration text, by GGUF's names; or none.
#[derive(Default)]
pub(crate) struct Statistics {
    importance: BTreeMap<String, Importance>,
}

impl Statistics {
    /// Reads an importance matrix, where there is one.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub(crate) fn read(path: Option<&Path>) -> Result<Self> {
        let Some(path) = path else { return Ok(Self::default()) };
        Ok(Self { importance: drophammer_forge::gguf::read_importance(path)? })
    }

    /// Those of the model once its columns are scaled.
    pub(crate) fn scaled(&self, scaling: &Scaling) -> Self {
        Self { importance: scaling.importance(&self.importance) }
    }

    /// By GGUF's names.
    pub(crate) fn by_name(&self) -> &BTreeMap<String, Importance> {
        &self.importance
    }

    /// Whether anything is known.
    pub(crate) fn is_empty(&self) -> bool {
        self.importance.is_empty()
    }

    /// Checks that the statistics are of a model with these weights.
    ///
    /// # Errors
    /// When they fit none, or one of another width.
    pub(crate) fn check(&self, weights: &[WeightShape]) -> Result<()> {
        let refused = |what: String| {
            BackendError::new(ErrorCode::InvalidRequest, what)
                .with_help("Collect one from this model with `drophammer imatrix`, or go without.")
        };
        let mut known = self.importance.is_empty();
        for weight in weights.iter().filter(|weight| weight.shape.len() > 1) {
            let Some(columns) = self.of(weight.id) else { continue };
            known = true;
            let width = weight.shape.last().copied().unwrap_or(1) as usize;
            if !columns.len().is_multiple_of(width) {
                let (id, given) = (weight.id, columns.len());
                return Err(refused(format!(
                    "importance of {id} has {given} columns where the model has {width}"
                )));
            }
        }
        if known { Ok(()) } else { Err(refused("the importance matrix is of another model".into())) }
    }

    /// Weights of a matrix's columns, one matrix of a stack after another.
    pub(crate) fn of(&self, id: WeightId) -> Option<Arc<[f32]>> {
        names_of(id).find_map(|name| self.importance.get(&name)).map(|found| Arc::clone(&found.0))
    }
}

/// What GGUF calls a weight: first the tensor of its own, then those that hold it together with others.
pub(crate) fn names_of(id: WeightId) -> impl Iterator<Item = String> {
    let places = NAMES.iter().filter(move |(role, _)| *role == id.role);
    places.map(move |(_, place)| format!("{}{}", place.module(id.layer, 0), place.suffix(id.part)))
}
