//! What a session tells about its matrices, and what it says when one is exchanged.

use drophammer_models::Checkpoint;
use drophammer_models::weight::Role;
use drophammer_sdk::ErrorCode;
use drophammer_sdk::calibration::{self, Calibrate};

use crate::fixture::{fixture, forward, largest_difference, load};

fn tokens() -> Vec<Vec<u32>> {
    vec![(0..40).map(|i| i * 37 % 2000).collect()]
}

#[test]
fn inputs_are_counted_for_every_matrix_and_those_that_share_one_agree() {
    let mut session = load(&fixture("shakespeare-llama"), true, 1);
    let bench = calibration::of(session.as_ref()).unwrap();
    bench.observe(true).unwrap();
    forward(session.as_mut(), &tokens());
    let usage = bench.usage().unwrap();
    let of = |name: &str| usage.iter().find(|usage| usage.name == name).unwrap();
    assert_eq!(usage.len(), 4 * 7 + 1, "seven matrices in four layers, and the output");
    assert!(usage.iter().all(|usage| usage.counts == [40.0] && usage.sums.iter().all(|sum| *sum > 0.0)));
    assert_eq!(of("blk.1.attn_q.weight").sums, of("blk.1.attn_v.weight").sums);
    assert_ne!(of("blk.1.attn_q.weight").sums, of("blk.2.attn_q.weight").sums);
    assert_eq!((of("blk.3.ffn_down.weight").sums.len(), of("output.weight").sums.len()), (768, 256));
    bench.observe(false).unwrap();
    forward(session.as_mut(), &[vec![5]]);
    assert!(bench.usage().unwrap().is_empty());
}

#[test]
fn products_have_the_squares_on_their_diagonal_and_are_summed_for_those_asked() {
    let mut session = load(&fixture("shakespeare-llama"), true, 1);
    let bench = calibration::of(session.as_ref()).unwrap();
    let (down, query) = ("blk.1.ffn_down.weight".to_owned(), "blk.1.attn_q.weight".to_owned());
    bench.observe_products(std::slice::from_ref(&down)).unwrap();
    forward(session.as_mut(), &tokens());
    let usage = bench.usage().unwrap();
    let squares = &usage.iter().find(|usage| usage.name == down).unwrap().sums;
    let products = bench.products(&down).unwrap();
    assert_eq!((squares.len(), products.len()), (768, 3 * 256 * 256));
    for (column, square) in squares.iter().enumerate() {
        let (window, within) = (column / 256, column % 256);
        let found = products[window * 256 * 256 + within * 257];
        assert!((found - square).abs() <= 1e-4 * square, "{column}: {found} {square}");
    }
    assert!(products[1] != 0.0, "columns are not independent");
    let value = "blk.1.attn_v.weight".to_owned();
    bench.observe_products(std::slice::from_ref(&value)).unwrap();
    session.remove(0, 0, u32::MAX).unwrap();
    forward(session.as_mut(), &tokens());
    let shared = bench.products(&value).unwrap();
    assert!(
        shared.len() == 256 * 256 && bench.products(&query).unwrap() == shared,
        "they read the same rows"
    );
    bench.observe_products(std::slice::from_ref(&down)).unwrap();
    assert!(bench.products(&query).unwrap().is_empty(), "nobody asked");
    assert_eq!(bench.products("blk.9.ffn_down.weight").unwrap_err().code, ErrorCode::InvalidRequest);
}

#[test]
fn a_normalized_input_has_the_squares_that_its_norm_gives() {
    // The first layer's queries read RMS-normalized embeddings times the norm's gain: known without running the model.
    let checkpoint = Checkpoint::open(fixture("shakespeare-llama")).unwrap();
    let gain = checkpoint.weight(Role::AttentionNorm.of(0)).unwrap().to_vec().unwrap();
    let table = checkpoint.weight(Role::TokenEmbedding.global()).unwrap();
    let mut due = vec![0.0f64; 256];
    for &token in &tokens()[0] {
        let mut row = vec![0.0; 256];
        table.read(u64::from(token)..u64::from(token) + 1, &mut row).unwrap();
        let mean = row.iter().map(|x| f64::from(x * x)).sum::<f64>() / 256.0 + 1e-5;
        for (due, (x, gain)) in due.iter_mut().zip(row.iter().zip(&gain)) {
            *due += f64::from(x * gain).powi(2) / mean;
        }
    }
    let mut session = load(&fixture("shakespeare-llama"), true, 1);
    let bench = calibration::of(session.as_ref()).unwrap();
    bench.observe(true).unwrap();
    forward(session.as_mut(), &tokens());
    let usage = bench.usage().unwrap();
    let told = usage.iter().find(|usage| usage.name == "blk.0.attn_q.weight").unwrap();
    for (due, told) in due.iter().zip(&told.sums) {
        assert!((due - f64::from(*told)).abs() < 1e-3 * due, "{due} {told}");
    }
}

#[test]
fn experts_are_counted_by_the_tokens_that_use_them() {
    let mut session = load(&fixture("arch/mixtral"), true, 1);
    let bench = calibration::of(session.as_ref()).unwrap();
    bench.observe(true).unwrap();
    let count = 24u32;
    forward(session.as_mut(), &[(0..count).collect()]);
    let usage = bench.usage().unwrap();
    let stacked: Vec<_> = usage.iter().filter(|usage| usage.name.contains("_exps")).collect();
    assert!(!stacked.is_empty());
    for usage in stacked {
        // Each token uses two.
        assert_eq!(usage.counts.iter().sum::<f32>(), 2.0 * count as f32, "{}", usage.name);
        assert!(usage.sums.len().is_multiple_of(usage.counts.len()));
        let width = usage.sums.len() / usage.counts.len();
        for (count, sums) in usage.counts.iter().zip(usage.sums.chunks(width)) {
            assert_eq!(*count > 0.0, sums.iter().any(|sum| *sum > 0.0));
        }
    }
}

#[test]
fn an_exchanged_matrix_changes_the_answer_until_it_is_restored() {
    let mut session = load(&fixture("shakespeare-llama"), true, 1);
    let bench = calibration::of(session.as_ref()).unwrap();
    let before = forward(session.as_mut(), &tokens());
    let mut run = |matrix: &str, dtype: &str| {
        session.remove(0, 0, u32::MAX).unwrap();
        bench.replace(matrix, dtype, &[]).unwrap();
        let after = forward(session.as_mut(), &tokens());
        bench.restore().unwrap();
        largest_difference(&before, &after)
    };
    let (coarse, fine) = (run("blk.2.ffn_down.weight", "q2_k"), run("blk.2.ffn_down.weight", "q8_0"));
    assert!(fine > 0.0 && coarse > 10.0 * fine, "{coarse} {fine}");
    assert!(run("token_embd.weight", "q4_0") > 0.0);
    session.remove(0, 0, u32::MAX).unwrap();
    assert_eq!(forward(session.as_mut(), &tokens()), before);
    for (matrix, dtype) in
        [("blk.9.ffn_down.weight", "q2_k"), ("output.weight", "q9"), ("output.weight", "i32")]
    {
        assert_eq!(bench.replace(matrix, dtype, &[]).unwrap_err().code, ErrorCode::InvalidRequest);
    }
    assert_eq!(
        bench.replace("output.weight", "q4_k", &[1.0; 100]).unwrap_err().code,
        ErrorCode::InvalidRequest,
        "importance of another width"
    );
}
