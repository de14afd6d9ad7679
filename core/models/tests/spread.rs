//! A model whose residual stream has another basis computes the same.

#![allow(clippy::unwrap_used)] // a test stops at the first surprise

mod fixture;
mod reference;

use drophammer_models::Checkpoint;
use fixture::{TOLERANCE, fixtures};

#[test]
fn spread_models_give_the_numbers_of_those_they_were() {
    let (mut spread, mut failures) = (Vec::new(), Vec::new());
    for fixture in fixtures() {
        let plain = Checkpoint::open(&fixture.path).unwrap();
        let before = plain.description().clone();
        let checkpoint = plain.spread().unwrap();
        if *checkpoint.description() == before {
            continue;
        }
        let difference = fixture.difference(&checkpoint);
        println!("{}: {difference:.2e}", fixture.name);
        if difference.is_nan() || difference > 3.0 * TOLERANCE {
            failures.push(format!("{}: differs by {difference}", fixture.name));
        }
        spread.push(fixture.name);
    }
    assert!(failures.is_empty(), "{failures:?}");
    for name in ["llama", "qwen2", "qwen3", "mixtral", "deepseek_v3"] {
        assert!(spread.iter().any(|known| known == name), "{name} is not among {spread:?}");
    }
    for name in ["bert", "gpt2", "gemma2", "olmo2"] {
        assert!(spread.iter().all(|known| known != name), "{name} has no such form");
    }
}

#[test]
fn rows_of_a_spread_matrix_are_the_same_read_one_by_one_or_together() {
    let fixture = fixtures().into_iter().find(|fixture| fixture.name == "llama").unwrap();
    let checkpoint = Checkpoint::open(&fixture.path).unwrap().spread().unwrap();
    for shape in checkpoint.weights() {
        let weight = checkpoint.weight(shape.id).unwrap();
        let (whole, columns) = (weight.to_vec().unwrap(), weight.columns() as usize);
        for (row, due) in (0..).zip(whole.chunks_exact(columns)) {
            let mut found = vec![0.0; columns];
            weight.read(row..row + 1, &mut found).unwrap();
            assert_eq!(found, due, "row {row} of {}", shape.id);
        }
    }
}
