//! Half-precision numbers inside blocks.

use bytemuck::{Pod, Zeroable};

/// A little-endian IEEE binary16 of alignment 1, as blocks store their scales.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Pod, Zeroable)]
#[repr(transparent)]
pub struct Half([u8; 2]);

impl Half {
    /// The largest finite half.
    pub const MAX: f32 = 65504.0;

    /// The half with these bits.
    pub const fn from_bits(bits: u16) -> Self {
        Self(bits.to_le_bytes())
    }

    /// The bits.
    pub const fn to_bits(self) -> u16 {
        u16::from_le_bytes(self.0)
    }

    /// The nearest half, ties to even; magnitudes above [`Half::MAX`] become the largest finite half, since a scale
    /// of infinity would turn a whole block into NaN.
    #[inline(always)]
    pub fn from_f32(x: f32) -> Self {
        let x = x.clamp(-Self::MAX, Self::MAX);
        Self::from_bits(half::f16::from_f32_const(x).to_bits())
    }

    /// The value, exactly.
    #[inline(always)]
    pub fn to_f32(self) -> f32 {
        // Moving exponent and mantissa into place leaves the exponent 112 too small; multiplying by 2^112 repairs
        // it, subnormals included, without a branch.
        let bits = u32::from(self.to_bits());
        let magnitude = (bits & 0x7fff) << 13;
        let scaled = f32::from_bits(magnitude) * f32::from_bits(0x7780_0000);
        let special = if magnitude >= 0x0f80_0000 { 0x7f80_0000 } else { 0 };
        f32::from_bits(scaled.to_bits() | special | ((bits & 0x8000) << 16))
    }
}

#[cfg(test)]
mod tests {
    use super::Half;

    #[test]
    fn every_half_has_the_value_the_half_crate_gives_it() {
        for bits in 0..=u16::MAX {
            let (ours, theirs) = (Half::from_bits(bits).to_f32(), half::f16::from_bits(bits).to_f32());
            assert!(ours.to_bits() == theirs.to_bits() || (ours.is_nan() && theirs.is_nan()), "{bits:04x}");
        }
    }

    #[test]
    fn too_large_scales_saturate_instead_of_becoming_infinite() {
        assert_eq!(Half::from_f32(1e30).to_f32(), 65504.0);
        assert_eq!(Half::from_f32(-1e30).to_f32(), -65504.0);
    }
}
