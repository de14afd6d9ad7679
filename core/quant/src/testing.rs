//! What every block codec must do, as one table of tests that each format's file includes.

use drophammer_formats::DType;

use crate::metrics::ErrorSums;
use crate::simd::Level;

mod owners;

/// Bell-shaped values with outliers, from a multiplicative congruential generator whose state starts at `seed`.
pub(crate) fn bell(seed: u64, count: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2) | 1;
    let mut uniform = move || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    };
    (0..count)
        .map(|i| {
            let bell = uniform() + uniform() + uniform() + uniform();
            if i % 97 == 13 { bell * 6.0 } else { bell }
        })
        .collect()
}

/// Positive importance that varies over three orders of magnitude.
pub(crate) fn importance(seed: u64, count: usize) -> Vec<f32> {
    bell(seed, count).iter().map(|x| x * x * 8.0 + 0.01).collect()
}

/// Pseudo-random bytes.
pub(crate) fn noise(count: usize) -> Vec<u8> {
    let mut state = 1u32;
    let mut byte = || {
        state = state.wrapping_mul(1664525).wrapping_add(1013904223);
        (state >> 24) as u8
    };
    (0..count).map(|_| byte()).collect()
}

/// Encodes at a level.
pub(crate) fn encode(dtype: DType, level: Level, rows: &[f32], importance: Option<&[f32]>) -> Vec<u8> {
    let mut out = vec![0xa5; dtype.bytes_for(rows.len() as u64).unwrap() as usize];
    crate::codec(dtype).unwrap().encode_at(level, rows, importance, &mut out);
    out
}

/// Decodes at a level.
pub(crate) fn decode(dtype: DType, level: Level, bytes: &[u8]) -> Vec<f32> {
    let mut out = vec![f32::NAN; bytes.len() / dtype.block_bytes() * dtype.block_elements()];
    crate::codec(dtype).unwrap().decode_at(level, bytes, &mut out);
    out
}

/// What is lost by going through `dtype`.
pub(crate) fn loss(dtype: DType, rows: &[f32], importance: Option<&[f32]>) -> ErrorSums {
    let level = crate::simd::level();
    let back = decode(dtype, level, &encode(dtype, level, rows, importance));
    ErrorSums::between(rows, &back, importance)
}

pub(crate) fn levels_agree(dtype: DType) {
    let block = dtype.block_elements();
    for blocks in [1, 2, 7, 16, 19] {
        let rows = bell(blocks as u64, blocks * block);
        let weights = importance(99, blocks * block);
        for weights in [None, Some(weights.as_slice())] {
            let expected = encode(dtype, Level::Portable, &rows, weights);
            for level in Level::supported() {
                assert!(
                    encode(dtype, level, &rows, weights) == expected,
                    "{dtype} {} × {blocks}",
                    level.name()
                );
            }
        }
    }
    let bytes = noise(dtype.block_bytes() * 300);
    let bits = |level| {
        decode(dtype, level, &bytes)
            .iter()
            .map(|x| if x.is_nan() { 1 } else { x.to_bits() })
            .collect::<Vec<_>>()
    };
    for level in Level::supported() {
        assert!(bits(level) == bits(Level::Portable), "{dtype} decoded by {}", level.name());
    }
}

pub(crate) fn rows_do_not_depend_on_their_neighbours(dtype: DType) {
    let width = dtype.block_elements() * 3;
    let rows = bell(5, width * 11);
    let weights = importance(6, width);
    for weights in [None, Some(weights.as_slice())] {
        let together = encode(dtype, crate::simd::level(), &rows, weights);
        let apart: Vec<u8> =
            rows.chunks(width).flat_map(|row| encode(dtype, crate::simd::level(), row, weights)).collect();
        assert!(together == apart, "{dtype}");
    }
}

pub(crate) fn strange_values_stay_finite(dtype: DType) {
    let block = dtype.block_elements();
    let ramp = |scale: f32| (0..block).map(|i| (i as f32 - block as f32 / 3.0) * scale).collect::<Vec<_>>();
    let spike = |at: usize, value: f32| {
        let mut row = bell(3, block);
        row[at] = value;
        row
    };
    let rows = [
        vec![0.0; block],
        vec![-0.0; block],
        vec![1.0; block],
        vec![-3.5; block],
        ramp(1e-40),
        ramp(1e-30),
        ramp(1e-12),
        ramp(1e30),
        vec![f32::MAX; block],
        vec![f32::MIN; block],
        spike(0, f32::MAX),
        spike(block - 1, -f32::MAX),
        spike(block / 2, 1e6),
        spike(1, f32::MIN_POSITIVE / 8.0),
    ];
    for (case, row) in rows.iter().enumerate() {
        for weights in [
            None,
            Some(vec![0.0; block]),
            Some(importance(1, block)),
            Some(ramp(1e-38).iter().map(|x| x.abs()).collect()),
        ] {
            let bytes = encode(dtype, crate::simd::level(), row, weights.as_deref());
            let back = decode(dtype, crate::simd::level(), &bytes);
            assert!(back.iter().all(|x| x.is_finite()), "{dtype} case {case}: {back:?}");
            if row.iter().all(|x| *x == 0.0) {
                assert!(back.iter().all(|x| *x == 0.0), "{dtype} case {case}: zeros became {back:?}");
            }
            for level in Level::supported() {
                assert!(
                    encode(dtype, level, row, weights.as_deref()) == bytes,
                    "{dtype} case {case} {}",
                    level.name()
                );
            }
        }
    }
}

pub(crate) fn importance_lowers_the_weighted_error(dtype: DType) {
    let width = dtype.block_elements() * 8;
    let rows = bell(21, width * 8);
    let weights = importance(22, width);
    let level = crate::simd::level();
    let blind = decode(dtype, level, &encode(dtype, level, &rows, None));
    let blind = ErrorSums::between(&rows, &blind, Some(&weights)).weighted;
    let aware = loss(dtype, &rows, Some(&weights)).weighted;
    assert!(aware <= blind, "{dtype}: {aware} > {blind}");
}

/// The tests of a block codec.
macro_rules! codec_tests {
    ($format:ty) => {
        const DTYPE: drophammer_formats::DType = <$format as crate::codec::BlockFormat>::DTYPE;

        #[test]
        fn a_block_has_the_size_of_its_type() {
            assert_eq!(size_of::<<$format as crate::codec::BlockFormat>::Block>(), DTYPE.block_bytes());
            assert_eq!(align_of::<<$format as crate::codec::BlockFormat>::Block>(), 1);
        }

        #[test]
        fn every_instruction_set_gives_the_same_bytes_and_floats() {
            crate::testing::levels_agree(DTYPE);
        }

        #[test]
        fn rows_do_not_depend_on_their_neighbours() {
            crate::testing::rows_do_not_depend_on_their_neighbours(DTYPE);
        }

        #[test]
        fn strange_values_stay_finite_and_zeros_stay_zero() {
            crate::testing::strange_values_stay_finite(DTYPE);
        }

        #[test]
        fn importance_lowers_the_weighted_error() {
            crate::testing::importance_lowers_the_weighted_error(DTYPE);
        }
    };
}
pub(crate) use codec_tests;
