//! Mixtures of types: which tensor of a model is stored how.
//!
//! A preset is data: a base type, the types of the embedding and the output, and an ordered list of [`Rule`]s for the rest, of
//! which the first that fits decides. [`plan`] applies a preset to a model's tensors, with the fallbacks for widths that
//! a block does not divide, and yields to the user's [`Override`]s. The presets of [`gguf`] choose exactly what
//! llama.cpp's quantizer chooses for the same model (checked against its b11434).

mod gguf;
mod plan;
mod role;

pub use gguf::{PRESETS, preset};
pub use plan::{Choice, ModelFacts, Override, OverrideError, Tensor, fallback, plan};
pub use role::{Role, stays_unquantized};

use drophammer_formats::DType;

/// A named mixture.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Preset {
    /// The scheme's name, lower case.
    pub name: &'static str,
    /// The number under `general.file_type` in a GGUF file.
    pub file_type: u32,
    /// The type of tensors that no rule mentions.
    pub base: DType,
    /// The type of the output matrix, or of an embedding that serves as one.
    pub output: DType,
    /// The type of the embedding where there is an output matrix besides.
    pub embedding: DType,
    /// What else differs from the base; the first fitting rule decides.
    pub rules: &'static [Rule],
    /// Whether results are poor without activation statistics.
    pub wants_importance: bool,
}

/// One line of a preset.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rule {
    /// The tensors it is about.
    pub role: Role,
    /// What must hold besides, all of it.
    pub when: &'static [When],
    /// Their type.
    pub then: DType,
}

/// A condition of a [`Rule`]. `i` is the tensor's place among `n` layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// Four or more query heads share a key head.
    WideGroups,
    /// The model has four or more experts.
    FourExperts,
    /// The model has exactly eight experts (the Mixtral shape).
    EightExperts,
    /// It has not.
    NotEightExperts,
    /// Falcon, whose attention is built differently.
    Falcon,
    /// Any other architecture.
    NotFalcon,
    /// No activation statistics are at hand.
    Blind,
    /// Activation statistics are at hand.
    Informed,
    /// The tensor is expert matrices stacked in one.
    Stacked,
    /// One of the first so many of its role.
    Among(u32),
    /// `i < n / 16`.
    FirstSixteenth,
    /// `i < n / 8`.
    FirstEighth,
    /// `n / 8 ≤ i < 7n / 8`.
    Middle,
    /// `i < n / 8`, or `i ≥ 7n / 8`, or every third layer between.
    Sensitive,
}
