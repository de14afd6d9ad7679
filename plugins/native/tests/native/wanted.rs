//! Rows that nobody wants are not computed, and nothing else changes by it.

use drophammer_sdk::Session;
use drophammer_sdk::calibration::{self, Calibrate};

use crate::fixture::{
    architectures, fixture, forward, forward_wanted, largest_difference, load, mixture, quantized, reference,
};

/// Largest difference between a few rows, then what follows one that nobody wanted, and the same when all are wanted.
fn difference(session: &mut dyn Session, rows: &[Vec<u32>]) -> f32 {
    let width = session.limits().output_width as usize;
    let all = forward(session, rows);
    let tokens = all.len() / width;
    // One in the middle of each sequence and its last, in ascending order; neighbours in the first.
    let mut wanted: Vec<u32> = vec![1, 2];
    let mut begin = 0;
    for row in rows {
        wanted.extend([begin + row.len() / 2, begin + row.len() - 1].map(|at| at as u32));
        begin += row.len();
    }
    wanted.sort_unstable();
    wanted.dedup();
    let mut most = 0f32;
    for wanted in [wanted, vec![tokens as u32 - 1], vec![]] {
        for sequence in 0..rows.len() as u32 {
            session.remove(sequence, 0, u32::MAX).unwrap();
        }
        let few = forward_wanted(session, rows, &wanted);
        let due: Vec<f32> =
            wanted.iter().flat_map(|&at| &all[at as usize * width..][..width]).copied().collect();
        most = most.max(largest_difference(&few, &due));
    }
    most
}

#[test]
fn a_few_rows_of_every_architecture_are_those_of_all() {
    let mut checked = 0;
    for directory in architectures() {
        let (rows, _) = reference(&directory);
        let mut session = load(&directory, true, rows.len() as u32);
        // Few rows are multiplied by stored weights, many by weights laid in strips: sums in another order.
        let difference = difference(session.as_mut(), &rows);
        assert!(difference <= 1e-4, "{}: {difference}", directory.display());
        checked += 1;
    }
    assert!(checked > 40);
}

#[test]
fn in_fast_mode_they_are_the_same_bits() {
    let (rows, _) = reference(&fixture("shakespeare-llama"));
    let rows: Vec<Vec<u32>> = rows.iter().map(|row| row[..60].to_vec()).collect();
    for scheme in ["q4_0", "q4_k_m", "f16"] {
        for model in [quantized(scheme), mixture(2, scheme)] {
            let mut session = load(model, false, rows.len() as u32);
            assert!(difference(session.as_mut(), &rows) == 0.0, "{}", model.display());
        }
    }
}

#[test]
fn while_inputs_are_counted_every_token_counts() {
    let mut session = load(&fixture("shakespeare-llama"), true, 1);
    let bench = calibration::of(session.as_ref()).unwrap();
    let rows = [(0..40).map(|i| i * 37 % 2000).collect::<Vec<u32>>()];
    let all = forward(session.as_mut(), &rows);
    session.remove(0, 0, u32::MAX).unwrap();
    bench.observe(true).unwrap();
    let wanted = forward_wanted(session.as_mut(), &rows, &[7, 39]);
    let width = session.limits().output_width as usize;
    for (row, at) in wanted.chunks(width).zip([7, 39]) {
        assert!(largest_difference(row, &all[at * width..][..width]) <= 1e-4);
    }
    for usage in bench.usage().unwrap() {
        let due = if usage.name == "output.weight" { 2.0 } else { 40.0 };
        assert_eq!(usage.counts, [due], "{}", usage.name);
    }
}
