//! The number schemes: what weights and activations become.

use drophammer_models::export::onnx::Weights;
use drophammer_sdk::{BackendError, ErrorCode, Goal, Result};

/// A scheme.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Scheme {
    /// Its name: activations' bits, weights' bits.
    pub(crate) name: &'static str,
    /// How matrices and activations are stored.
    pub(crate) weights: Weights,
    /// What is added to the score of a token that may not be seen. Few steps between 0 and it leave more for the others.
    pub(crate) unseen: f32,
    /// Which numbers activations' codes reach.
    pub(crate) reach: Reach,
}

/// How far the codes of an activation reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reach {
    /// To the outermost number seen.
    Outermost,
    /// To the outermost of a usual chunk of text, the mean over chunks: where codes are few, finer steps are worth more than what
    /// is cut off from the rare numbers beyond.
    Usual,
}

impl Scheme {
    /// Whether activations become whole numbers, so that their ranges have to be known.
    pub(crate) fn calibrated(&self) -> bool {
        self.weights != Weights::Floats
    }

    /// Whether values are left in half precision where their codes would be the coarser ones.
    pub(crate) fn mixes(&self) -> bool {
        matches!(self.weights, Weights::Whole { activations: 16, .. })
    }
}

/// All schemes, largest first.
pub(crate) const SCHEMES: [Scheme; 4] = [
    Scheme { name: "fp16", weights: Weights::Floats, unseen: -1e4, reach: Reach::Outermost },
    Scheme {
        name: "a16w8",
        weights: Weights::Whole { bits: 8, activations: 16 },
        unseen: -100.0,
        reach: Reach::Outermost,
    },
    Scheme {
        name: "a16w4",
        weights: Weights::Whole { bits: 4, activations: 16 },
        unseen: -100.0,
        reach: Reach::Outermost,
    },
    Scheme {
        name: "a8w8",
        weights: Weights::Whole { bits: 8, activations: 8 },
        unseen: -20.0,
        reach: Reach::Usual,
    },
];

/// The scheme that a goal names.
///
/// # Errors
/// For a format other than qnn and for unknown schemes; the help lists the known ones.
pub(crate) fn of(goal: &Goal) -> Result<Scheme> {
    if goal.format != "qnn" {
        let message = format!("this backend makes qnn contexts, not {}", goal.format);
        return Err(BackendError::new(ErrorCode::UnsupportedInput, message)
            .with_help("Choose the format qnn, or a target of another backend."));
    }
    SCHEMES.into_iter().find(|scheme| scheme.name == goal.scheme).ok_or_else(|| {
        let names: Vec<&str> = SCHEMES.iter().map(|scheme| scheme.name).collect();
        BackendError::new(ErrorCode::UnsupportedInput, format!("there is no qnn scheme {:?}", goal.scheme))
            .with_help(format!("Choose one of: {}.", names.join(", ")))
    })
}
