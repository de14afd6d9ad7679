//! Every implementation against the portable one, bit for bit.

use proptest::prelude::*;

use super::{LANES, Lanes};
use crate::simd::{self, Kernel, Level};

/// Applies every operation and returns the bits of all results.
struct AllOperations([f32; LANES], [f32; LANES]);

impl Kernel for AllOperations {
    type Output = Vec<u32>;

    #[inline(always)]
    fn run<L: Lanes>(self) -> Vec<u32> {
        let (a, b) = (L::load(&self.0), L::load(&self.1));
        let results = [
            a + b,
            a - b,
            a * b,
            a / b,
            a.min(b),
            a.max(b),
            a.abs(),
            a.abs().sqrt(),
            L::select(a.lt(b), a, b),
            a.round_to_f16(),
            a.clamp(-4e6, 4e6).round(),
            a.recip_or_zero(),
        ];
        let mut bits: Vec<u32> = results.iter().flat_map(|v| v.to_array().map(canonical)).collect();
        bits.extend([a.sum(), a.abs().largest(), (b - a).largest()].map(canonical));
        bits.extend(a.clamp(0.0, 255.0).round().to_bytes().map(u32::from));
        bits
    }
}

/// NaN payloads are not part of the promise.
fn canonical(x: f32) -> u32 {
    if x.is_nan() { f32::NAN.to_bits() } else { x.to_bits() }
}

proptest! {
    #[test]
    fn every_level_gives_the_portable_bits(
        a in prop::array::uniform16(any::<f32>()),
        b in prop::array::uniform16(any::<f32>()),
        small in prop::array::uniform16(-300.0f32..300.0),
    ) {
        for level in Level::supported() {
            for (x, y) in [(a, b), (small, b), (small, a)] {
                let expected = simd::run(Level::Portable, AllOperations(x, y));
                prop_assert_eq!(simd::run(level, AllOperations(x, y)), expected, "{}", level.name());
            }
        }
    }
}
