//! Formats whose codes, scales and offsets lie in separate tensors: MLX's, OpenVINO's and ONNX's.
//!
//! A row is cut into groups (or is one group: a channel); every group has a scale and perhaps an offset or a zero point.
//! [`encode`] gives one code per weight beside them, [`pack`] packs codes into as many bits as they need, [`decode`] and [`unpack`]
//! go back. Codes are packed as one little-endian stream of bits per row, which is what all three formats do: MLX's
//! `uint32` words, ONNX's and OpenVINO's nibbles with the low one first.
//!
//! | format | [`Levels`] | scale | group |
//! |---|---|---|---|
//! | MLX affine 2–8 bits | `Affine` | the source's float type | 32, 64, 128 |
//! | MLX mxfp4, mxfp8 / nvfp4 | `E2m1`, `E4m3` | E8M0 / E4M3 | 32 / 16 |
//! | OpenVINO and ONNX int8, int4 sym | `Signed` | F16, F32 | any, or the channel |
//! | OpenVINO and ONNX int8, int4, u2 asym | `ZeroPoint` | F16, F32 | any, or the channel |
//! | OpenVINO nf4 | `Nf4` | F16 | any, or the channel |
//! | OpenVINO mxfp4 | `E2m1` | E8M0 | 32 |

mod bits;
mod fit;
pub mod mlx;
mod owner;
mod scale;

pub use bits::{pack, packed_bytes, unpack};
pub use scale::ScaleType;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::codec::first_non_finite;
use crate::simd::{self, Level};
use crate::weights::{Weights, Worth};

/// What codes stand for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Levels {
    /// `scale · code + offset`, codes from 0 to `2^bits - 1`.
    Affine {
        /// Bits per code, 2 to 8.
        bits: u8,
    },
    /// `scale · (code - 2^(bits-1))`: two's complement with the sign bit flipped, see [`pack`]. Scales may be negative.
    Signed {
        /// Bits per code, 2 to 8.
        bits: u8,
    },
    /// `scale · (code - offset)`, the offset being a code itself.
    ZeroPoint {
        /// Bits per code, 2 to 8.
        bits: u8,
    },
    /// `scale · level`, sixteen levels between -1 and 1 that are quantiles of a normal distribution.
    Nf4,
    /// `scale · level`, the fifteen values of a 4-bit float.
    E2m1,
    /// `scale · level`, the values of an 8-bit float with 4 exponent bits.
    E4m3,
}

impl Levels {
    /// Bits per code.
    pub const fn bits(self) -> u32 {
        match self {
            Levels::Affine { bits } | Levels::Signed { bits } | Levels::ZeroPoint { bits } => bits as u32,
            Levels::Nf4 | Levels::E2m1 => 4,
            Levels::E4m3 => 8,
        }
    }

    /// The largest code where neighbouring codes are a step of one size apart; 0 for other levels.
    pub const fn top_code(self) -> u8 {
        match self {
            Levels::Affine { bits } | Levels::Signed { bits } | Levels::ZeroPoint { bits } => {
                ((1u16 << bits) - 1) as u8
            }
            Levels::Nf4 | Levels::E2m1 | Levels::E4m3 => 0,
        }
    }

    /// Whether groups have an offset besides their scale.
    pub const fn has_offset(self) -> bool {
        matches!(self, Levels::Affine { .. } | Levels::ZeroPoint { .. })
    }
}

/// A grouped format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Format {
    /// What codes stand for.
    pub levels: Levels,
    /// Weights per group; `None` for whole rows.
    pub group: Option<u32>,
    /// How scales (and float offsets) are stored.
    pub scale: ScaleType,
}

/// How scales are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fit {
    /// By search: never a larger error than the owner's rule, usually a much smaller one.
    #[default]
    LeastError,
    /// The same; where no importance is given, each weight counts by `1 + x²/σ²`, σ being its group's root mean square, or by the root
    /// of that in formats without offsets. The squared error is larger, and what a model with strong activations says nearer to what
    /// it said.
    LeastHarm,
    /// By the rule of the format's owner: libmlx's for `Affine` (bit for bit) and for `E2m1` and `E4m3` (the same scales; codes of
    /// values midway between two levels may differ), NNCF's for the others.
    Owner,
}

/// Encoded rows.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Encoded {
    /// One code per weight.
    pub codes: Vec<u8>,
    /// One scale per group, already rounded to how it is stored.
    pub scales: Vec<f32>,
    /// One offset per group, or none.
    pub offsets: Vec<f32>,
}

/// Why rows cannot be encoded or decoded.
#[derive(Debug, Error, PartialEq)]
#[non_exhaustive]
pub enum GroupError {
    /// The format makes no sense.
    #[error(
        "{0:?} is not a number format: codes have 2 to 8 bits, groups at least one weight, and E8M0 or E4M3 scales only floats"
    )]
    Format(Format),
    /// Rows are not whole groups.
    #[error(
        "rows of {columns} weights are not whole groups of {group}; choose a group that divides {columns}, or whole rows"
    )]
    Width {
        /// Weights in a row.
        columns: usize,
        /// Weights in a group.
        group: usize,
    },
    /// The values are not whole rows.
    #[error("{elements} values are not whole rows of {columns}")]
    Rows {
        /// Values given.
        elements: usize,
        /// Weights in a row.
        columns: usize,
    },
    /// A value is NaN or infinite.
    #[error(
        "value {index} is {value}: only finite weights can be quantized; the source is damaged or overflowed in training"
    )]
    NonFinite {
        /// Position in the values given.
        index: usize,
        /// The value.
        value: f32,
    },
    /// The importance is of another width.
    #[error("importance has {given} columns where rows have {columns}; it is of another model")]
    Importance {
        /// Columns of the importance.
        given: usize,
        /// Weights in a row.
        columns: usize,
    },
}

impl Format {
    /// The group's length in rows of `columns`.
    fn group_in(&self, columns: usize) -> Result<usize, GroupError> {
        let bits = self.levels.bits();
        let integers = !matches!(self.levels, Levels::Nf4 | Levels::E2m1 | Levels::E4m3);
        let coarse = matches!(self.scale, ScaleType::E8M0 | ScaleType::E4M3);
        if !(2..=8).contains(&bits) || self.group == Some(0) || (integers && coarse) {
            return Err(GroupError::Format(*self));
        }
        let group = self.group.map_or(columns, |group| group as usize);
        if group == 0 || columns == 0 || !columns.is_multiple_of(group) {
            return Err(GroupError::Width { columns, group });
        }
        Ok(group)
    }
}

/// Encodes whole rows of `columns` weights. `importance`, if given, is one non-negative weight per column; the owners' rules
/// ignore it.
///
/// # Errors
/// [`GroupError`] if lengths do not fit together or a value is not finite.
pub fn encode(
    format: Format,
    rows: &[f32],
    columns: usize,
    importance: Option<&[f32]>,
    fit: Fit,
) -> Result<Encoded, GroupError> {
    encode_at(simd::level(), format, rows, columns, importance, fit)
}

/// [`encode`] with the instructions of a given level; the result is the same at every level.
///
/// # Errors
/// As [`encode`].
pub fn encode_at(
    level: Level,
    format: Format,
    rows: &[f32],
    columns: usize,
    importance: Option<&[f32]>,
    fit: Fit,
) -> Result<Encoded, GroupError> {
    let group = format.group_in(columns)?;
    if !rows.len().is_multiple_of(columns) {
        return Err(GroupError::Rows { elements: rows.len(), columns });
    }
    if let Some(index) = first_non_finite(rows) {
        return Err(GroupError::NonFinite { index, value: rows[index] });
    }
    if let Some(given) = importance.map(<[f32]>::len).filter(|&given| given != columns) {
        return Err(GroupError::Importance { given, columns });
    }
    Ok(match fit {
        Fit::Owner => owner::encode(format, rows, group),
        Fit::LeastError => fit::encode(level, format, rows, group, Weights::new(importance)),
        Fit::LeastHarm => {
            let size = if format.levels.has_offset() { Worth::WHOLE } else { Worth::ROOT };
            fit::encode(level, format, rows, group, Weights::new(importance).or_by_size(size))
        }
    })
}

/// Decodes rows of `columns` weights.
///
/// # Errors
/// [`GroupError`] if lengths do not fit together.
pub fn decode(format: Format, encoded: &Encoded, columns: usize) -> Result<Vec<f32>, GroupError> {
    let group = format.group_in(columns)?;
    let elements = encoded.codes.len();
    let groups = elements / group;
    let offsets = if format.levels.has_offset() { groups } else { 0 };
    if !elements.is_multiple_of(columns) || encoded.scales.len() != groups || encoded.offsets.len() != offsets
    {
        return Err(GroupError::Rows { elements, columns });
    }
    let mut out = Vec::with_capacity(elements);
    for (i, codes) in encoded.codes.chunks_exact(group).enumerate() {
        let scale = encoded.scales[i];
        let offset = encoded.offsets.get(i).copied().unwrap_or(0.0);
        out.extend(codes.iter().map(|&code| value(format.levels, code, scale, offset)));
    }
    Ok(out)
}

/// What a code stands for.
fn value(levels: Levels, code: u8, scale: f32, offset: f32) -> f32 {
    match levels {
        Levels::Affine { .. } => f32::from(code) * scale + offset,
        Levels::Signed { bits } => (f32::from(code) - (1u32 << (bits - 1)) as f32) * scale,
        Levels::ZeroPoint { .. } => (f32::from(code) - offset) * scale,
        Levels::Nf4 => NF4_LEVELS[usize::from(code & 15)] * scale,
        Levels::E2m1 => f32::from(crate::gguf::E2M1_DOUBLED[usize::from(code & 15)]) * 0.5 * scale,
        Levels::E4m3 => crate::plain::f8_e4m3_to_f32(code) * scale,
    }
}

/// The levels of NF4 (Dettmers et al., "QLoRA", 2023, appendix E).
pub const NF4_LEVELS: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

#[cfg(test)]
mod tests;
