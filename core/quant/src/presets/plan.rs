//! A preset applied to a model.

use std::collections::HashMap;

use drophammer_formats::DType;
use regex::Regex;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{Preset, Role, Rule, When, stays_unquantized};

/// What presets need to know about a model besides its tensors.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ModelFacts {
    /// GGUF architecture name (`general.architecture`).
    pub architecture: String,
    /// Transformer layers.
    pub layers: u32,
    /// Query heads of the first layer.
    pub heads: u32,
    /// Key heads of the first layer; 0 if the layer has none.
    pub key_heads: u32,
    /// Experts per layer; 0 for a dense model.
    pub experts: u32,
    /// Whether activation statistics are at hand.
    pub informed: bool,
}

impl ModelFacts {
    /// Query heads that share a key head; 0 without key heads.
    fn group(&self) -> u32 {
        self.heads.checked_div(self.key_heads).unwrap_or(0)
    }

    /// The shapes that llama.cpp calls 70B, where value projections are so small that they get more bits.
    fn is_seventy_billion(&self) -> bool {
        match (self.architecture.as_str(), self.layers) {
            ("llama", 80) => self.heads != self.key_heads,
            ("deci" | "olmo" | "qwen2", 80) | ("jais2", 68) => true,
            _ => false,
        }
    }
}

/// A tensor to choose a type for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tensor<'a> {
    /// GGUF name.
    pub name: &'a str,
    /// Row-major shape, outermost dimension first.
    pub shape: &'a [u64],
}

impl Tensor<'_> {
    /// Elements in a row.
    fn width(&self) -> u64 {
        self.shape.last().copied().unwrap_or(1)
    }

    /// The layer a `blk.N.` name tells.
    fn layer(&self) -> Option<u32> {
        self.name.strip_prefix("blk.")?.split_once('.')?.0.parse().ok()
    }
}

/// What happens to a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Choice {
    /// Never quantized: stays in the source's precision (converters store these as F32).
    Keep,
    /// Stored as this type.
    As(DType),
    /// Stored as `used`, since the row's width is no multiple of the block of `wanted`.
    Fallback {
        /// What the preset or override said.
        wanted: DType,
        /// What fits.
        used: DType,
    },
}

impl Choice {
    /// The type stored, or `None` where the tensor is kept.
    pub const fn dtype(self) -> Option<DType> {
        match self {
            Choice::Keep => None,
            Choice::As(dtype) | Choice::Fallback { used: dtype, .. } => Some(dtype),
        }
    }
}

/// The user's word on some tensors.
#[derive(Debug, Clone)]
pub struct Override {
    pattern: Regex,
    dtype: DType,
}

/// Why an override cannot be used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum OverrideError {
    /// Not of the form `PATTERN=TYPE`.
    #[error("tensor override {0:?} is not of the form PATTERN=TYPE, such as attn_v=q8_0")]
    Form(String),
    /// The type is unknown.
    #[error("tensor override names the unknown type {0:?}; types are written like q4_k, iq4_xs, f16")]
    Type(String),
    /// The pattern is no regular expression.
    #[error("tensor override pattern is not a regular expression: {0}")]
    Pattern(#[from] regex::Error),
}

impl Override {
    /// Tensors whose name contains a match of the regular expression `pattern` are stored as `dtype`.
    ///
    /// # Errors
    /// If the pattern is no regular expression.
    pub fn new(pattern: &str, dtype: DType) -> Result<Self, OverrideError> {
        Ok(Self { pattern: Regex::new(pattern)?, dtype })
    }
}

impl std::str::FromStr for Override {
    type Err = OverrideError;

    /// Reads `PATTERN=TYPE`.
    fn from_str(text: &str) -> Result<Self, OverrideError> {
        let (pattern, name) = text.rsplit_once('=').ok_or_else(|| OverrideError::Form(text.to_owned()))?;
        let name = name.trim().to_ascii_lowercase();
        let dtype = DType::from_name(&name)
            .filter(|&dtype| crate::codec(dtype).is_some())
            .ok_or(OverrideError::Type(name))?;
        Self::new(pattern.trim(), dtype)
    }
}

/// The type that takes the place of `dtype` in rows of `width` elements: itself where its blocks fit, else a type of smaller
/// block and no fewer bits, else F16.
pub fn fallback(dtype: DType, width: u64) -> DType {
    let fits = |dtype: DType| width.is_multiple_of(dtype.block_elements() as u64);
    if fits(dtype) {
        return dtype;
    }
    let smaller = match dtype {
        DType::Iq1S
        | DType::Iq1M
        | DType::Iq2Xxs
        | DType::Iq2Xs
        | DType::Iq2S
        | DType::Iq3Xxs
        | DType::Iq3S
        | DType::Iq4Xs => DType::Iq4Nl,
        DType::Q2K | DType::Q3K | DType::Tq1_0 | DType::Tq2_0 => DType::Q4_0,
        DType::Q4K => DType::Q5_0,
        DType::Q5K => DType::Q5_1,
        DType::Q6K => DType::Q8_0,
        _ => DType::F16,
    };
    if fits(smaller) { smaller } else { DType::F16 }
}

/// Chooses a type for every tensor, in the order given.
pub fn plan(
    preset: &Preset,
    facts: &ModelFacts,
    tensors: &[Tensor<'_>],
    overrides: &[Override],
) -> Vec<Choice> {
    let roles: Vec<Role> = tensors.iter().map(|tensor| Role::of(tensor.name)).collect();
    let tied = !roles.contains(&Role::Output);
    let values = roles.iter().filter(|&&role| role == Role::Value).count() as u32;
    // Places are counted in the order of layers, whatever the order of the file.
    let mut order: Vec<usize> = (0..tensors.len()).collect();
    order.sort_by_key(|&i| (tensors[i].layer().map_or(-1, i64::from), tensors[i].name));
    let mut seen: HashMap<Role, u32> = HashMap::new();
    let mut choices = vec![Choice::Keep; tensors.len()];
    for i in order {
        let (tensor, role) = (&tensors[i], roles[i]);
        if stays_unquantized(tensor.name, tensor.shape) {
            continue;
        }
        let wanted = match overrides.iter().find(|o| o.pattern.is_match(tensor.name)) {
            Some(forced) => forced.dtype,
            None if !preset.base.is_block() => preset.base,
            None if role == Role::Output || (tied && role == Role::Embedding) => {
                output_type(preset, facts, tensor.width())
            }
            None if role == Role::Embedding => preset.embedding,
            None => {
                let place = seen.entry(role).or_default();
                let at = Place { facts, tensor, role, before: *place, values };
                *place += 1;
                ruled_type(preset, &at)
            }
        };
        let used = fallback(wanted, tensor.width());
        choices[i] = if used == wanted { Choice::As(wanted) } else { Choice::Fallback { wanted, used } };
    }
    choices
}

fn output_type(preset: &Preset, facts: &ModelFacts, width: u64) -> DType {
    let awkward = !width.is_multiple_of(preset.base.block_elements() as u64);
    if facts.architecture == "falcon" || awkward { DType::Q8_0 } else { preset.output }
}

fn ruled_type(preset: &Preset, at: &Place<'_>) -> DType {
    let fits = |rule: &&Rule| rule.role == at.role && rule.when.iter().all(|when| at.holds(*when, preset));
    let chosen = preset.rules.iter().find(fits).map_or(preset.base, |rule| rule.then);
    let small_values = at.role == Role::Value && at.facts.is_seventy_billion() && !counts_tensors(preset);
    if small_values && matches!(chosen, DType::Q3K | DType::Q4K) { DType::Q5K } else { chosen }
}

/// Whether the preset is one of the smallest, which count down projections as they come and make no exception for 70B.
fn counts_tensors(preset: &Preset) -> bool {
    matches!(preset.base, DType::Iq1S | DType::Iq1M | DType::Iq2Xxs | DType::Iq2Xs | DType::Iq2S)
}

/// A tensor in its place in the model.
struct Place<'a> {
    facts: &'a ModelFacts,
    tensor: &'a Tensor<'a>,
    role: Role,
    /// How many of the role came before.
    before: u32,
    /// How many value projections there are.
    values: u32,
}

impl Place<'_> {
    /// The place `i` among `n`: among value projections by count, otherwise by layer.
    fn among(&self, preset: &Preset) -> (u32, u32) {
        if self.role == Role::Value {
            (self.before, self.values)
        } else if self.facts.experts > 1 && !counts_tensors(preset) {
            (self.tensor.layer().unwrap_or(self.before), self.facts.layers)
        } else {
            (self.before, self.facts.layers)
        }
    }

    fn holds(&self, when: When, preset: &Preset) -> bool {
        let (i, n) = self.among(preset);
        match when {
            When::WideGroups => self.facts.group() >= 4,
            When::FourExperts => self.facts.experts >= 4,
            When::EightExperts => self.facts.experts == 8,
            When::NotEightExperts => self.facts.experts != 8,
            When::Falcon => self.facts.architecture == "falcon",
            When::NotFalcon => self.facts.architecture != "falcon",
            When::Blind => !self.facts.informed,
            When::Informed => self.facts.informed,
            When::Stacked => {
                self.tensor.shape.len() > 2 && self.tensor.shape[self.tensor.shape.len() - 3] > 1
            }
            When::Among(count) => self.before < count,
            When::FirstSixteenth => i < n / 16,
            When::FirstEighth => i < n / 8,
            When::Middle => i >= n / 8 && i < 7 * n / 8,
            When::Sensitive => i < n / 8 || i >= 7 * n / 8 || (i - n / 8) % 3 == 2,
        }
    }
}

#[cfg(test)]
mod tests;
