//! What the formats' owners made of the same values: figures in `tests/fixtures/codecs/owners.json`, written by
//! `tests/peers/codecs/fixtures.py` from ggml's and libmlx's own code, and in `float8.json` by `float8_fixtures.py`.

use std::collections::BTreeMap;
use std::fmt::Write;

use drophammer_formats::DType;
use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::{bell, decode, importance, loss, noise};
use crate::grouped::{self, Fit, Format, Levels, ScaleType};

#[derive(Deserialize)]
struct Owners {
    ggml: BTreeMap<String, Ggml>,
    mlx: BTreeMap<String, Vec<String>>,
}

#[derive(Deserialize)]
struct Ggml {
    decoded: String,
    error: f64,
    error_with_importance: f64,
}

fn owners() -> Owners {
    serde_json::from_str(include_str!("../../../../tests/fixtures/codecs/owners.json")).unwrap()
}

fn sha(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

fn floats(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|x| if x.is_nan() { 0x7fc0_0000u32 } else { x.to_bits() }.to_le_bytes()).collect()
}

#[test]
fn any_bytes_decode_to_the_bits_that_ggml_gives() {
    let owners = owners();
    for dtype in DType::ALL.iter().copied().filter(|dtype| dtype.is_block()) {
        let expected = &owners.ggml[dtype.name()].decoded;
        let back = decode(dtype, crate::simd::level(), &noise(dtype.block_bytes() * 64));
        assert_eq!(&sha(&floats(&back)), expected, "{dtype}");
    }
}

#[derive(Deserialize)]
struct Float8 {
    decoded: String,
    encoded: String,
}

#[test]
fn eight_bit_floats_are_those_of_onnx_and_pytorch() {
    let owners: BTreeMap<String, Float8> =
        serde_json::from_str(include_str!("../../../../tests/fixtures/codecs/float8.json")).unwrap();
    let halves: Vec<f32> =
        (0..=u16::MAX).map(|bits| half::f16::from_bits(bits).to_f32()).filter(|x| x.is_finite()).collect();
    for (name, owner) in owners {
        let dtype = DType::from_name(&name).unwrap();
        let codes: Vec<u8> = (0..=u8::MAX).collect();
        assert_eq!(sha(&floats(&decode(dtype, crate::simd::level(), &codes))), owner.decoded, "{name}");
        let mut encoded = vec![0; halves.len()];
        crate::quantize(dtype, &halves, None, &mut encoded).unwrap();
        assert_eq!(sha(&encoded), owner.encoded, "{name}");
    }
}

#[test]
fn no_type_loses_more_than_ggmls_encoder() {
    let (x, w) = (bell(7, 2048), importance(8, 256));
    for (name, owner) in owners().ggml {
        let dtype = DType::from_name(&name).unwrap();
        let plain = loss(dtype, &x, None).squared;
        assert!(plain <= owner.error * 1.000_001, "{name}: {plain} > {}", owner.error);
        let weighted = loss(dtype, &x, Some(&w)).weighted;
        assert!(
            weighted <= owner.error_with_importance,
            "{name}: {weighted} > {}",
            owner.error_with_importance
        );
    }
}

#[test]
fn libmlxs_affine_rule_is_followed_to_the_bit() {
    for (case, expected) in owners().mlx.into_iter().filter(|(case, _)| case.contains("affine")) {
        let words: Vec<&str> = case.split(' ').collect();
        let (source, scale) = match words[0] {
            "f32" => (DType::F32, ScaleType::F32),
            "f16" => (DType::F16, ScaleType::F16),
            _ => (DType::BF16, ScaleType::BF16),
        };
        let group: u32 = words[2][1..].parse().unwrap();
        let bits: u8 = words[3][1..].parse().unwrap();
        let levels = Levels::Affine { bits };
        let mut bytes = vec![0; source.bytes_for(256).unwrap() as usize];
        crate::quantize(source, &bell(7, 256), None, &mut bytes).unwrap();
        let x = decode(source, crate::simd::level(), &bytes);
        let format = Format { levels, group: Some(group), scale };
        let encoded = grouped::encode(format, &x, 128, None, Fit::Owner).unwrap();
        let packed: Vec<u8> =
            encoded.codes.chunks(128).flat_map(|row| grouped::pack(row, levels.bits())).collect();
        let got = vec![sha(&packed), sha(&floats(&encoded.scales)), sha(&floats(&encoded.offsets))];
        assert_eq!(got, expected, "{case}");
    }
}

#[test]
fn libmlxs_matrices_are_made_byte_for_byte_in_every_mode() {
    for (case, expected) in owners().mlx {
        let words: Vec<&str> = case.split(' ').collect();
        let (source, base) = match words[0] {
            "f32" => (DType::F32, ScaleType::F32),
            "f16" => (DType::F16, ScaleType::F16),
            _ => (DType::BF16, ScaleType::BF16),
        };
        let (levels, scale) = match words[1] {
            "mxfp4" => (Levels::E2m1, ScaleType::E8M0),
            "nvfp4" => (Levels::E2m1, ScaleType::E4M3),
            "mxfp8" => (Levels::E4m3, ScaleType::E8M0),
            _ => (Levels::Affine { bits: words[3][1..].parse().unwrap() }, base),
        };
        let matrix = grouped::mlx::Matrix { levels, group: words[2][1..].parse().unwrap(), scale, base };
        let mut bytes = vec![0; source.bytes_for(256).unwrap() as usize];
        crate::quantize(source, &bell(7, 256), None, &mut bytes).unwrap();
        let x = decode(source, crate::simd::level(), &bytes);
        let mut weight = vec![0; matrix.weight_bytes(256)];
        let mut scales = vec![0; matrix.scale_bytes(256)];
        let mut biases = vec![0; if levels.has_offset() { scales.len() } else { 0 }];
        matrix.encode(&x, &mut weight, &mut scales, &mut biases);
        // The fixture holds float scales widened to binary32.
        let wide = |bytes: &[u8]| match scale {
            ScaleType::E8M0 | ScaleType::E4M3 => bytes.to_vec(),
            _ => floats(&decode(source, crate::simd::level(), bytes)),
        };
        let mut got = vec![sha(&weight), sha(&wide(&scales))];
        got.extend(levels.has_offset().then(|| sha(&wide(&biases))));
        assert_eq!(got, expected, "{case}");
    }
}
