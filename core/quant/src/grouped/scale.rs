//! How scales are stored.

use serde::{Deserialize, Serialize};

use crate::half_float::Half;
use crate::lanes::Lanes;
use crate::plain::{f8_e4m3_to_f32, f8_e8m0_to_f32, f32_to_f8_e4m3};

/// The type of a scale, and of a float offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ScaleType {
    /// IEEE binary32.
    F32,
    /// IEEE binary16.
    F16,
    /// bfloat16.
    BF16,
    /// A power of two in one byte.
    E8M0,
    /// An 8-bit float, positive here.
    E4M3,
}

impl ScaleType {
    /// The nearest number that can be stored; for [`ScaleType::E8M0`] the smallest that is not smaller.
    #[inline(always)]
    pub fn round(self, x: f32) -> f32 {
        match self {
            ScaleType::F32 => x,
            ScaleType::F16 => Half::from_f32(x).to_f32(),
            ScaleType::BF16 => {
                let bits = x.to_bits();
                f32::from_bits(bits.wrapping_add(0x7fff + (bits >> 16 & 1)) & 0xffff_0000)
            }
            ScaleType::E8M0 => f8_e8m0_to_f32(self.to_byte(x)),
            ScaleType::E4M3 => f8_e4m3_to_f32(self.to_byte(x)),
        }
    }

    /// [`ScaleType::round`] for every lane.
    #[inline(always)]
    pub(crate) fn round_lanes<L: Lanes>(self, v: L) -> L {
        match self {
            ScaleType::F32 => v,
            ScaleType::F16 => v.saturating_f16(),
            _ => L::load(&v.to_array().map(|x| self.round(x))),
        }
    }

    /// The byte that stores a scale; 0 for types of more bytes.
    pub fn to_byte(self, x: f32) -> u8 {
        match self {
            ScaleType::E8M0 => {
                // The smallest power of two that is not smaller, as libmlx and NNCF have it.
                let bits = x.abs().to_bits();
                let exponent = (bits >> 23) + u32::from(bits & 0x7f_ffff > 0);
                exponent.min(254) as u8
            }
            ScaleType::E4M3 => f32_to_f8_e4m3(x),
            _ => 0,
        }
    }
}
