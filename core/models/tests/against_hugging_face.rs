//! Every family computes what Hugging Face's own implementation computes.

#![allow(clippy::unwrap_used)] // a test stops at the first surprise

mod fixture;
mod reference;

use drophammer_models::Checkpoint;
use drophammer_models::families::supported;
use fixture::{TOLERANCE, fixtures};

#[test]
fn every_fixture_gives_hugging_faces_numbers() {
    let mut failures = Vec::new();
    let mut unseen = supported();
    for fixture in fixtures() {
        match Checkpoint::open(&fixture.path) {
            Ok(checkpoint) => {
                unseen.retain(|family| *family != checkpoint.description().family);
                let difference = fixture.difference(&checkpoint);
                println!("{}: {difference:.2e}", fixture.name);
                if difference.is_nan() || difference > TOLERANCE {
                    failures.push(format!("{}: differs by {difference}", fixture.name));
                }
            }
            Err(error) => failures.push(format!("{}: {error}", fixture.name)),
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    assert!(unseen.is_empty(), "families without a fixture: {unseen:?}");
}
