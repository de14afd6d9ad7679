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
