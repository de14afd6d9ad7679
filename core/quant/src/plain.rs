//! Types without blocks: floats of 8 to 64 bits, one value at a time.
//!
//! Narrowing rounds to the nearest value, ties to even. Values beyond the range of a type that has infinities or is too
//! narrow become its largest finite value with the same sign: a weight of infinity would spoil every sum it enters.

use drophammer_formats::DType;
use half::slice::HalfFloatSliceExt;

use crate::codec::Codec;
use crate::simd::Level;

/// FP8 with 4 exponent and 3 mantissa bits (OCP E4M3: largest 448, NaN, no infinity).
pub fn f8_e4m3_to_f32(byte: u8) -> f32 {
    if byte & 0x7f == 0x7f {
        return f32::NAN;
    }
    small_float_to_f32(byte, 3, 7)
}

/// FP8 with 5 exponent and 2 mantissa bits (OCP E5M2: the upper half of a binary16).
pub fn f8_e5m2_to_f32(byte: u8) -> f32 {
    half::f16::from_bits(u16::from(byte) << 8).to_f32()
}

/// Power of two with 8 exponent bits (OCP E8M0); 255 is NaN.
pub fn f8_e8m0_to_f32(byte: u8) -> f32 {
    match byte {
        0 => f32::from_bits(0x0040_0000),
        255 => f32::NAN,
        exponent => f32::from_bits(u32::from(exponent) << 23),
    }
}

fn small_float_to_f32(byte: u8, mantissa_bits: u32, bias: i32) -> f32 {
    let sign = if byte & 0x80 == 0 { 1.0 } else { -1.0 };
    let exponent = i32::from((byte & 0x7f) >> mantissa_bits);
    let mantissa = f32::from(byte & ((1 << mantissa_bits) - 1)) / (1u32 << mantissa_bits) as f32;
    let magnitude = if exponent == 0 {
        mantissa * (1.0 - bias as f32).exp2()
    } else {
        (1.0 + mantissa) * ((exponent - bias) as f32).exp2()
    };
    sign * magnitude
}

/// The nearest finite E4M3, ties to even.
pub fn f32_to_f8_e4m3(x: f32) -> u8 {
    narrow(x, 3, -6, 448.0, 0x7e)
}

/// The nearest finite E5M2, ties to even.
pub fn f32_to_f8_e5m2(x: f32) -> u8 {
    narrow(x, 2, -14, 57344.0, 0x7b)
}

/// Rounds to `mantissa_bits` after the leading one, with exponents from `least` up, saturating at `largest`.
fn narrow(x: f32, mantissa_bits: u32, least: i32, largest: f32, largest_bits: u8) -> u8 {
    let sign = ((x.to_bits() >> 31) as u8) << 7;
    if x.is_nan() {
        return sign | 0x7f;
    }
    let magnitude = x.abs();
    if magnitude >= largest {
        return sign | largest_bits;
    }
    let exponent = ((magnitude.to_bits() >> 23) as i32 - 127).max(least);
    // In units of the last mantissa place, a whole number; a carry into the next exponent comes out right by itself.
    let units = (magnitude / ((exponent - mantissa_bits as i32) as f32).exp2()).round_ties_even() as u32;
    let biased = (exponent - least) as u32;
    sign | (units + (biased << mantissa_bits)) as u8
}

macro_rules! plain {
    ($($name:ident $encode:expr, $decode:expr;)*) => {$(
        pub(crate) struct $name;

        impl Codec for $name {
            fn dtype(&self) -> DType {
                DType::$name
            }

            fn encode(&self, rows: &[f32], _: Option<&[f32]>, out: &mut [u8]) {
                assert_eq!(DType::$name.bytes_for(rows.len() as u64), Some(out.len() as u64), "values and bytes");
                let encode: fn(&[f32], &mut [u8]) = $encode;
                encode(rows, out);
            }

            fn decode(&self, blocks: &[u8], out: &mut [f32]) {
                assert_eq!(DType::$name.bytes_for(out.len() as u64), Some(blocks.len() as u64), "values and bytes");
                let decode: fn(&[u8], &mut [f32]) = $decode;
                decode(blocks, out);
            }

            fn encode_at(&self, _: Level, rows: &[f32], importance: Option<&[f32]>, out: &mut [u8]) {
                self.encode(rows, importance, out);
            }

            fn decode_at(&self, _: Level, blocks: &[u8], out: &mut [f32]) {
                self.decode(blocks, out);
            }
        }
    )*};
}

/// Converts in stretches that stay in the nearest cache, through an aligned buffer of halves.
const STRETCH: usize = 1024;

plain! {
    F64 |rows, out| for (x, out) in rows.iter().zip(out.as_chunks_mut::<8>().0) {
        *out = f64::from(*x).to_le_bytes();
    }, |bytes, out| for (bytes, out) in bytes.as_chunks::<8>().0.iter().zip(out) {
        *out = f64::from_le_bytes(*bytes) as f32;
    };
    F32 |rows, out| for (x, out) in rows.iter().zip(out.as_chunks_mut::<4>().0) {
        *out = x.to_le_bytes();
    }, |bytes, out| for (bytes, out) in bytes.as_chunks::<4>().0.iter().zip(out) {
        *out = f32::from_le_bytes(*bytes);
    };
    F16 |rows, out| {
        let mut halves = [half::f16::ZERO; STRETCH];
        let mut finite = [0.0f32; STRETCH];
        for (rows, out) in rows.chunks(STRETCH).zip(out.chunks_mut(2 * STRETCH)) {
            for (finite, x) in finite.iter_mut().zip(rows) {
                *finite = x.clamp(-65504.0, 65504.0);
            }
            let halves = &mut halves[..rows.len()];
            halves.convert_from_f32_slice(&finite[..rows.len()]);
            for (half, out) in halves.iter().zip(out.as_chunks_mut::<2>().0) {
                *out = half.to_le_bytes();
            }
        }
    }, |bytes, out| {
        let mut halves = [half::f16::ZERO; STRETCH];
        for (bytes, out) in bytes.chunks(2 * STRETCH).zip(out.chunks_mut(STRETCH)) {
            let halves = &mut halves[..out.len()];
            for (half, bytes) in halves.iter_mut().zip(bytes.as_chunks::<2>().0) {
                *half = half::f16::from_le_bytes(*bytes);
            }
            halves.convert_to_f32_slice(out);
        }
    };
    BF16 |rows, out| for (x, out) in rows.iter().zip(out.as_chunks_mut::<2>().0) {
        // Adding just under half of the last place kept, plus that place's bit, rounds ties to even.
        let bits = x.clamp(-f32::from_bits(0x7f7f_0000), f32::from_bits(0x7f7f_0000)).to_bits();
        let rounded = bits + 0x7fff + ((bits >> 16) & 1);
        *out = ((if x.is_nan() { bits | 0x0040_0000 } else { rounded } >> 16) as u16).to_le_bytes();
    }, |bytes, out| for (bytes, out) in bytes.as_chunks::<2>().0.iter().zip(out) {
        *out = f32::from_bits(u32::from(u16::from_le_bytes(*bytes)) << 16);
    };
    F8E4M3 |rows, out| for (x, out) in rows.iter().zip(out) {
        *out = f32_to_f8_e4m3(*x);
    }, |bytes, out| for (byte, out) in bytes.iter().zip(out) {
        *out = f8_e4m3_to_f32(*byte);
    };
    F8E5M2 |rows, out| for (x, out) in rows.iter().zip(out) {
        *out = f32_to_f8_e5m2(*x);
    }, |bytes, out| for (byte, out) in bytes.iter().zip(out) {
        *out = f8_e5m2_to_f32(*byte);
    };
}

#[cfg(test)]
mod tests {
    use drophammer_formats::DType;

    use super::*;

    #[test]
    fn every_finite_fp8_survives_a_round_trip() {
        for byte in 0..=255u8 {
            let e4m3 = f8_e4m3_to_f32(byte);
            if e4m3.is_finite() {
                assert_eq!(f32_to_f8_e4m3(e4m3), byte, "e4m3 {byte:#x} = {e4m3}");
            }
            let e5m2 = f8_e5m2_to_f32(byte);
            if e5m2.is_finite() {
                assert_eq!(f32_to_f8_e5m2(e5m2), byte, "e5m2 {byte:#x} = {e5m2}");
            }
        }
    }

    #[test]
    fn narrowing_takes_the_nearest_value_and_breaks_ties_to_even() {
        let values: Vec<f32> = (0..0x7f).map(f8_e4m3_to_f32).collect();
        for (i, pair) in values.windows(2).enumerate() {
            let middle = f32::midpoint(pair[0], pair[1]);
            assert_eq!(f32_to_f8_e4m3(middle), (i + i % 2) as u8, "between {pair:?}");
            assert_eq!(f32_to_f8_e4m3(middle.next_down()), i as u8);
            assert_eq!(f32_to_f8_e4m3(-middle.next_up()), 0x80 | (i + 1) as u8);
        }
        assert_eq!(f8_e4m3_to_f32(f32_to_f8_e4m3(1e9)), 448.0);
        assert_eq!(f8_e5m2_to_f32(f32_to_f8_e5m2(-1e9)), -57344.0);
    }

    #[test]
    fn halves_agree_with_the_half_crate_and_saturate() {
        let values: Vec<f32> =
            (0..3000).map(|i| (i as f32 - 1500.0).powi(3) * 1.234e-7).chain([1e38, -1e38]).collect();
        for (dtype, largest) in [(DType::F16, 65504.0), (DType::BF16, f32::from_bits(0x7f7f_0000))] {
            let codec = crate::codec(dtype).unwrap();
            let mut bytes = vec![0; values.len() * 2];
            codec.encode(&values, None, &mut bytes);
            let mut back = vec![0.0; values.len()];
            codec.decode(&bytes, &mut back);
            for (x, y) in values.iter().zip(&back).take(3000) {
                let expected = match dtype {
                    DType::F16 => half::f16::from_f32(*x).to_f32(),
                    _ => half::bf16::from_f32(*x).to_f32(),
                };
                assert_eq!(y.to_bits(), expected.to_bits(), "{dtype} {x}");
            }
            assert_eq!(back[3001].abs(), largest.min(back[3001].abs()), "{dtype}");
            assert!(back[3000].is_finite() && back[3001].is_finite());
        }
    }
}
