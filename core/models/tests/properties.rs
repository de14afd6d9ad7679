//! What holds for every model: hostile configurations are refused, and rows are the same however they are read.

#![allow(clippy::unwrap_used)] // a test stops at the first surprise

mod fixture;
mod reference;

use drophammer_formats::DType;
use drophammer_models::rope::RopeLayout;
use drophammer_models::{Checkpoint, describe, inventory};
use fixture::{fixtures, packed};
use proptest::prelude::*;
use serde_json::{Value as Json, json};

fn configurations() -> Vec<Json> {
    let read = |fixture: fixture::Fixture| {
        serde_json::from_slice(&std::fs::read(fixture.path.join("config.json")).unwrap()).unwrap()
    };
    fixtures().into_iter().map(read).collect()
}

fn hostile_value() -> impl Strategy<Value = Json> {
    prop_oneof![
        Just(json!(null)),
        Just(json!([])),
        Just(json!({})),
        Just(json!("silu")),
        any::<bool>().prop_map(Json::from),
        any::<i64>().prop_map(Json::from),
        (0u64..70).prop_map(Json::from),
        (1u64 << 28..1 << 31).prop_map(Json::from),
        any::<f64>().prop_map(Json::from),
    ]
}

proptest! {
    #[test]
    fn any_configuration_is_described_or_refused(
        model in 0usize..64,
        changes in prop::collection::vec((0usize..64, hostile_value()), 1..4),
    ) {
        let mut configurations = configurations();
        let model = model % configurations.len();
        let config = configurations[model].as_object_mut().unwrap();
        let keys: Vec<String> = config.keys().filter(|key| *key != "model_type").cloned().collect();
        for (key, value) in changes {
            config.insert(keys[key % keys.len()].clone(), value);
        }
        if let Ok(description) = describe(&configurations[model]) {
            let weights = inventory(&description);
            prop_assert!(weights.iter().all(|weight| weight.shape.iter().all(|&size| size > 0)));
            for rope in &description.ropes {
                prop_assert_eq!(rope.table(100_000).frequencies.len(), (rope.width / 2) as usize);
            }
        }
    }
}

#[test]
fn rows_are_the_same_in_every_range() {
    for fixture in fixtures().into_iter().chain(packed()) {
        let checkpoint = Checkpoint::open(&fixture.path).unwrap();
        let checkpoint = checkpoint.with_layout(RopeLayout::Pairs);
        for shape in checkpoint.weights() {
            let weight = checkpoint.weight(shape.id).unwrap();
            let (whole, columns) = (weight.to_vec().unwrap(), weight.columns() as usize);
            let rows = weight.rows();
            for (first, end) in [(0, 1), (rows / 3, rows), (rows - 1, rows), (rows / 2, rows / 2)] {
                let mut part = vec![0.0; (end - first) as usize * columns];
                weight.read(first..end, &mut part).unwrap();
                let expected = &whole[first as usize * columns..end as usize * columns];
                assert_eq!(part, expected, "{}: {} rows {first}..{end}", fixture.name, shape.id);
            }
            assert!(weight.read(rows..rows + 1, &mut vec![0.0; columns]).is_err());
            assert!(weight.read(0..1, &mut vec![0.0; columns + 1]).is_err());
        }
    }
}

#[test]
fn blocks_hold_what_rows_say() {
    for fixture in fixtures() {
        let checkpoint = Checkpoint::open(&fixture.path).unwrap().with_layout(RopeLayout::Pairs);
        for shape in checkpoint.weights() {
            let weight = checkpoint.weight(shape.id).unwrap();
            let Some(blocks) = weight.blocks() else { continue };
            assert_eq!(blocks.dtype(), DType::BF16);
            let whole = weight.to_vec().unwrap();
            let width = blocks.row_bytes() / 2;
            let mut seen = Vec::new();
            for (row, expected) in whole.chunks_exact(width).enumerate() {
                let bytes = blocks.row(row as u64).unwrap();
                let mut decoded = vec![0.0; width];
                drophammer_quant::dequantize(blocks.dtype(), bytes, &mut decoded).unwrap();
                assert_eq!(decoded, expected, "{}: {} row {row}", fixture.name, shape.id);
                seen.extend_from_slice(bytes);
            }
            assert!(blocks.row((whole.len() / width) as u64).is_none());
            if let Some(all) = blocks.contiguous() {
                assert_eq!(all, seen, "{}: {}", fixture.name, shape.id);
            }
        }
    }
}

#[test]
fn turning_rows_there_and_back_changes_nothing() {
    for fixture in fixtures() {
        let plain = Checkpoint::open(&fixture.path).unwrap();
        let layout = plain.description().ropes.first().map_or(RopeLayout::Halves, |rope| rope.layout);
        let other = if layout == RopeLayout::Halves { RopeLayout::Pairs } else { RopeLayout::Halves };
        let turned = Checkpoint::open(&fixture.path).unwrap().with_layout(other);
        assert!(fixture.difference(&turned) < fixture::TOLERANCE, "{} in the other layout", fixture.name);
        let back = turned.with_layout(layout);
        for shape in plain.weights() {
            let [before, after] = [&plain, &back].map(|it| it.weight(shape.id).unwrap().to_vec().unwrap());
            assert_eq!(before, after, "{}: {}", fixture.name, shape.id);
        }
    }
}
