//! Grouped formats against their owners' rules, and the searches against those.

use super::*;
use crate::metrics::ErrorSums;
use crate::testing::{bell, importance};

fn all_formats() -> Vec<Format> {
    let mut formats = Vec::new();
    for group in [Some(16), Some(32), Some(64), None] {
        for scale in [ScaleType::F16, ScaleType::BF16, ScaleType::F32] {
            for bits in [2, 3, 4, 5, 6, 8] {
                formats.push(Format { levels: Levels::Affine { bits }, group, scale });
                formats.push(Format { levels: Levels::ZeroPoint { bits }, group, scale });
                formats.push(Format { levels: Levels::Signed { bits }, group, scale });
            }
            formats.push(Format { levels: Levels::Nf4, group, scale });
        }
        for scale in [ScaleType::E8M0, ScaleType::E4M3] {
            formats.push(Format { levels: Levels::E2m1, group, scale });
            formats.push(Format { levels: Levels::E4m3, group, scale });
        }
    }
    formats
}

fn loss(format: Format, rows: &[f32], columns: usize, weights: Option<&[f32]>, fit: Fit) -> f64 {
    let encoded = encode(format, rows, columns, weights, fit).unwrap();
    let back = decode(format, &encoded, columns).unwrap();
    ErrorSums::between(rows, &back, weights).weighted
}

#[test]
fn the_search_never_loses_more_than_the_owners_rule() {
    let columns = 128;
    let rows = bell(4, columns * 33);
    let weights = importance(5, columns);
    for format in all_formats() {
        let owners = loss(format, &rows, columns, None, Fit::Owner);
        let ours = loss(format, &rows, columns, None, Fit::LeastError);
        assert!(ours <= owners * 1.000_001, "{format:?}: {ours} > {owners}");
        let back =
            decode(format, &encode(format, &rows, columns, None, Fit::Owner).unwrap(), columns).unwrap();
        let owners = ErrorSums::between(&rows, &back, Some(&weights)).weighted;
        let ours = loss(format, &rows, columns, Some(&weights), Fit::LeastError);
        assert!(ours <= owners * 1.000_001, "{format:?} with importance: {ours} > {owners}");
    }
}

#[test]
fn large_weights_are_nearer_where_they_count_more() {
    let columns = 128;
    let rows = bell(4, columns * 33);
    let large: Vec<f32> = rows.iter().map(|x| if x.abs() > 1.2 { 1.0 } else { 0.0 }).collect();
    for levels in [Levels::Signed { bits: 4 }, Levels::ZeroPoint { bits: 4 }, Levels::Nf4] {
        let format = Format { levels, group: Some(64), scale: ScaleType::F16 };
        let of_large = |fit| {
            let encoded = encode(format, &rows, columns, None, fit).unwrap();
            let back = decode(format, &encoded, columns).unwrap();
            ErrorSums::between(&rows, &back, Some(&large)).weighted
        };
        let (harm, error) = (of_large(Fit::LeastHarm), of_large(Fit::LeastError));
        assert!(harm < 0.9 * error, "{format:?}: {harm} of {error}");
        let weights = importance(5, columns);
        let told = |fit| encode(format, &rows, columns, Some(&weights), fit).unwrap();
        assert!(told(Fit::LeastHarm) == told(Fit::LeastError), "importance has the word");
    }
}

#[test]
fn every_instruction_set_gives_the_same_codes() {
    let columns = 64;
    let rows = bell(8, columns * 19);
    let weights = importance(9, columns);
    for format in all_formats() {
        let expected =
            encode_at(Level::Portable, format, &rows, columns, Some(&weights), Fit::LeastError).unwrap();
        for level in Level::supported() {
            let got = encode_at(level, format, &rows, columns, Some(&weights), Fit::LeastError).unwrap();
            assert!(got == expected, "{format:?} {}", level.name());
            let harm = |level| encode_at(level, format, &rows, columns, None, Fit::LeastHarm).unwrap();
            assert!(harm(level) == harm(Level::Portable), "{format:?} {}", level.name());
        }
    }
}

#[test]
fn strange_values_stay_finite() {
    let columns = 64;
    for (case, row) in [
        vec![0.0; 64],
        vec![1.0; 64],
        vec![-7.0; 64],
        bell(1, 64).iter().map(|x| x * 1e-38).collect(),
        bell(1, 64).iter().map(|x| x * 1e4).collect(),
    ]
    .iter()
    .enumerate()
    {
        for format in all_formats() {
            for fit in [Fit::Owner, Fit::LeastError] {
                let encoded = encode(format, row, columns, None, fit).unwrap();
                let back = decode(format, &encoded, columns).unwrap();
                assert!(back.iter().all(|x| x.is_finite()), "{format:?} {fit:?} case {case}");
            }
        }
    }
}

#[test]
fn wrong_shapes_are_refused() {
    let format = Format { levels: Levels::Affine { bits: 4 }, group: Some(64), scale: ScaleType::F16 };
    for (format, columns, elements, weights) in [
        (format, 96, 96, None),
        (format, 64, 100, None),
        (format, 64, 64, Some(vec![1.0; 32])),
        (Format { group: Some(0), ..format }, 64, 64, None),
        (Format { scale: ScaleType::E8M0, ..format }, 64, 64, None),
        (Format { levels: Levels::Signed { bits: 9 }, ..format }, 64, 64, None),
    ] {
        let error =
            encode(format, &vec![0.5; elements], columns, weights.as_deref(), Fit::LeastError).unwrap_err();
        insta::assert_snapshot!(error);
    }
    let mut row = [0.0; 64];
    row[3] = f32::NAN;
    let error = encode(format, &row, 64, None, Fit::LeastError).unwrap_err();
    assert!(matches!(error, GroupError::NonFinite { index: 3, .. }));
}

/// What NNCF loses on bell(7, 4096) in 16 rows: written by `tests/peers/codecs/nncf_fixtures.py`.
#[derive(serde::Deserialize)]
struct Nncf {
    error: f64,
    weighted: f64,
    /// With data, by scale estimation.
    estimated: Option<f64>,
}

fn nncf_format(name: &str) -> Format {
    let (mode, group) = name.rsplit_once('_').unwrap();
    let group = group.strip_prefix('g').map(|group| group.parse().unwrap());
    let (levels, scale) = match mode {
        "int8_sym" => (Levels::Signed { bits: 8 }, ScaleType::F16),
        "int8_asym" => (Levels::ZeroPoint { bits: 8 }, ScaleType::F16),
        "int4_sym" => (Levels::Signed { bits: 4 }, ScaleType::F16),
        "int4_asym" => (Levels::ZeroPoint { bits: 4 }, ScaleType::F16),
        "int3_sym" => (Levels::Signed { bits: 3 }, ScaleType::F16),
        "int2_sym" => (Levels::Signed { bits: 2 }, ScaleType::F16),
        "nf4" => (Levels::Nf4, ScaleType::F16),
        "fp4" => (Levels::E2m1, ScaleType::F16),
        "fp8_e4m3" => (Levels::E4m3, ScaleType::F16),
        "mxfp4" => (Levels::E2m1, ScaleType::E8M0),
        "mxfp8_e4m3" => (Levels::E4m3, ScaleType::E8M0),
        other => panic!("{other}"),
    };
    Format { levels, group, scale }
}

#[test]
fn nncfs_own_outputs_are_never_nearer_with_data_or_without() {
    let text = include_str!("../../../../tests/fixtures/codecs/nncf.json");
    let found: std::collections::BTreeMap<String, Nncf> = serde_json::from_str(text).unwrap();
    assert!(found.len() >= 20, "{}", found.len());
    let (rows, weights) = (bell(7, 16 * 256), importance(8, 256));
    let mut worse = Vec::new();
    for (name, nncf) in &found {
        let format = nncf_format(name);
        let plain = loss(format, &rows, 256, None, Fit::LeastError);
        let weighted = loss(format, &rows, 256, Some(&weights), Fit::LeastError);
        let estimated = nncf.estimated.unwrap_or(nncf.weighted);
        println!(
            "| {name} | {:.3} | {:.3} | {:.3} |",
            plain / nncf.error,
            weighted / nncf.weighted,
            weighted / estimated
        );
        if plain > nncf.error * 1.000_001 || weighted > estimated.min(nncf.weighted) * 1.000_001 {
            worse.push(format!("{name}: {plain} of {}, {weighted} of {estimated}", nncf.error));
        }
    }
    assert!(worse.is_empty(), "{worse:#?}");
}
