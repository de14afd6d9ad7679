//! What a session promises whatever the batch: the same logits one by one, in chunks and together, and sequences that can be
//! copied and cut.

use std::path::Path;

use drophammer_sdk::{Backend, Batch, ErrorCode, LoadRequest, Options, Session, Unwatched};
use proptest::prelude::*;

use crate::fixture::{fixture, load, mixture, native, quantized, try_load};

/// The trained model, and one with mixtures of experts.
const MODELS: [fn(&str) -> &'static Path; 2] = [quantized, |scheme| mixture(2, scheme)];

fn session() -> Box<dyn Session> {
    load(&fixture("shakespeare-llama"), true, 3)
}

/// How keys and values are to be kept.
fn keeping(kind: &str) -> Options {
    Options::from_iter([("kv_type".to_owned(), kind.into())])
}

/// Feeds `tokens` to a sequence from `position` on; gives every row.
fn feed(session: &mut dyn Session, sequence: u32, position: u32, tokens: &[u32]) -> Vec<Vec<f32>> {
    let positions: Vec<u32> = (position..).take(tokens.len()).collect();
    let outputs: Vec<u32> = (0..tokens.len() as u32).collect();
    let width = session.limits().output_width as usize;
    let mut out = vec![f32::NAN; tokens.len() * width];
    let sequences = vec![sequence; tokens.len()];
    let batch = Batch { tokens, positions: &positions, sequences: &sequences, outputs: &outputs };
    session.forward(batch, &mut out).unwrap();
    out.chunks(width).map(<[f32]>::to_vec).collect()
}

fn close(a: &[Vec<f32>], b: &[Vec<f32>]) -> bool {
    a.len() == b.len() && a.iter().flatten().zip(b.iter().flatten()).all(|(a, b)| (a - b).abs() <= 1e-4)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    #[test]
    fn any_chunking_of_a_prompt_gives_the_same_logits(
        tokens in prop::collection::vec(0u32..2048, 2..150),
        cuts in prop::collection::vec(1usize..40, 1..8),
    ) {
        let mut session = session();
        let whole = feed(session.as_mut(), 0, 0, &tokens);
        let (mut rows, mut done, mut cuts) = (Vec::new(), 0, cuts.iter().cycle());
        while done < tokens.len() {
            let end = (done + cuts.next().unwrap()).min(tokens.len());
            rows.extend(feed(session.as_mut(), 1, done as u32, &tokens[done..end]));
            done = end;
        }
        prop_assert!(close(&whole, &rows));
    }

    /// What speculative decoding stands on: a draft is accepted exactly where the next token would have been the same. (Of more tokens
    /// at once tiles of AMX round otherwise.)
    #[test]
    fn in_fast_mode_any_chunking_gives_the_same_bits(
        tokens in prop::collection::vec(0u32..2048, 2..64),
        cuts in prop::collection::vec(1usize..15, 1..8),
        scheme in prop::sample::select(vec!["q4_0", "q4_k_m", "q8_0", "f16"]),
        model in prop::sample::select(MODELS.to_vec()),
        kept in prop::sample::select(vec!["f16", "q8_0"]),
    ) {
        let mut session = try_load(model(scheme), false, 3, keeping(kept)).unwrap();
        let whole = feed(session.as_mut(), 0, 0, &tokens);
        let (mut rows, mut done, mut cuts) = (Vec::new(), 0, cuts.iter().cycle());
        while done < tokens.len() {
            let end = (done + cuts.next().unwrap()).min(tokens.len());
            rows.extend(feed(session.as_mut(), 1, done as u32, &tokens[done..end]));
            done = end;
        }
        prop_assert!(whole == rows, "{scheme}, keys and values as {kept}");
    }

    #[test]
    fn several_sequences_in_one_batch_give_what_each_gives_alone(
        a in prop::collection::vec(0u32..2048, 1..90),
        b in prop::collection::vec(0u32..2048, 1..90),
    ) {
        let mut session = session();
        let alone = [feed(session.as_mut(), 0, 0, &a), feed(session.as_mut(), 1, 0, &b)].concat();
        session.remove(0, 0, u32::MAX).unwrap();
        session.remove(1, 0, u32::MAX).unwrap();
        // Interleaved as far as both go.
        let mut order: Vec<(usize, u32, usize)> = (0..a.len()).map(|i| (i, 2, i)).collect();
        order.extend((0..b.len()).map(|i| (i, 1, a.len() + i)));
        order.sort_unstable();
        let tokens: Vec<u32> = order.iter().map(|&(i, s, _)| if s == 2 { a[i] } else { b[i] }).collect();
        let positions: Vec<u32> = order.iter().map(|&(i, ..)| i as u32).collect();
        let sequences: Vec<u32> = order.iter().map(|&(_, s, _)| s).collect();
        let outputs: Vec<u32> = (0..order.len() as u32).collect();
        let width = session.limits().output_width as usize;
        let mut out = vec![f32::NAN; order.len() * width];
        let batch = Batch { tokens: &tokens, positions: &positions, sequences: &sequences, outputs: &outputs };
        session.forward(batch, &mut out).unwrap();
        for (row, &(_, _, index)) in out.chunks(width).zip(&order) {
            prop_assert!(close(&[row.to_vec()], &alone[index..=index]));
        }
    }

    #[test]
    fn in_fast_mode_a_row_is_the_same_bits_whatever_other_sequences_are_in_its_batch(
        lengths in prop::collection::vec(prop_oneof![1usize..6, 55usize..75], 2..4),
        scheme in prop::sample::select(vec!["q4_0", "q4_k_m", "q8_0", "f16"]),
        model in prop::sample::select(MODELS.to_vec()),
    ) {
        let mut session = load(model(scheme), false, 6);
        let prompts: Vec<Vec<u32>> =
            lengths.iter().zip(0u32..).map(|(&n, s)| (0..n as u32).map(|i| (i * 37 + s * 11) % 2048).collect()).collect();
        let alone: Vec<_> = (3..).zip(&prompts).flat_map(|(s, prompt)| feed(session.as_mut(), s, 0, prompt)).collect();
        let tokens = prompts.concat();
        let positions: Vec<u32> = lengths.iter().flat_map(|&n| 0..n as u32).collect();
        let sequences: Vec<u32> = lengths.iter().zip(0..).flat_map(|(&n, s)| vec![s; n]).collect();
        let outputs: Vec<u32> = (0..tokens.len() as u32).collect();
        let batch = Batch { tokens: &tokens, positions: &positions, sequences: &sequences, outputs: &outputs };
        let mut out = vec![f32::NAN; tokens.len() * session.limits().output_width as usize];
        session.forward(batch, &mut out).unwrap();
        prop_assert!(out == alone.concat(), "{scheme}");
    }

    #[test]
    fn a_copied_sequence_goes_on_as_its_source_would_and_a_removed_tail_is_forgotten(
        prompt in prop::collection::vec(0u32..2048, 2..120),
        keep in 0.0f64..1.0,
        more in prop::collection::vec(0u32..2048, 1..40),
    ) {
        let mut session = session();
        let keep = ((prompt.len() as f64 * keep) as u32).max(1);
        let direct = [&prompt[..keep as usize], &more].concat();
        let due = feed(session.as_mut(), 2, 0, &direct)[keep as usize..].to_vec();
        feed(session.as_mut(), 0, 0, &prompt);
        session.copy(0, 1, 0, keep).unwrap();
        prop_assert!(close(&feed(session.as_mut(), 1, keep, &more), &due));
        session.remove(0, keep, u32::MAX).unwrap();
        prop_assert!(close(&feed(session.as_mut(), 0, keep, &more), &due));
        // The copy was not disturbed by what its source went on with.
        session.remove(1, keep, u32::MAX).unwrap();
        prop_assert!(close(&feed(session.as_mut(), 1, keep, &more), &due));
    }
}

/// While a session runs, others may take its cores and give them back; a long prompt is shared by tokens where each thread gets
/// enough of them, otherwise by rows of weights.
#[test]
fn any_number_of_threads_gives_the_same_bits() {
    let tokens: Vec<u32> = (0..206).map(|i| i * 29 % 2048).collect();
    for (scheme, model) in ["q4_0", "q4_k_m", "q8_0", "f16"].into_iter().flat_map(|s| MODELS.map(|m| (s, m)))
    {
        let rows = |threads| {
            let request = LoadRequest { path: model(scheme).to_owned(), ..LoadRequest::default() };
            let mut session = native().load(&request, Box::new(Unwatched { threads })).unwrap();
            let mut rows = feed(session.as_mut(), 0, 0, &tokens[..200]);
            rows.extend((200..206).flat_map(|i| feed(session.as_mut(), 0, i as u32, &tokens[i..=i])));
            rows
        };
        let alone = rows(1);
        assert!((2..=4).all(|threads| rows(threads) == alone), "{scheme}");
    }
}

#[test]
fn keys_and_values_of_eight_bits_change_logits_little_and_other_types_are_refused() {
    let tokens: Vec<u32> = (0..200).map(|i| i * 37 % 2048).collect();
    let squares = |x: &mut dyn Iterator<Item = f32>| x.map(|x| f64::from(x * x)).sum::<f64>();
    // In fast mode sixteen bits are fixed-point numbers. (The model's weights are float32 in both.)
    for reference in [true, false] {
        let logits = |kind: &str| {
            let mut session = try_load(&fixture("shakespeare-llama"), reference, 1, keeping(kind)).unwrap();
            // A few at a time: more may be multiplied as bfloat16, which makes more of small differences.
            let parts = tokens.chunks(50).zip((0..).step_by(50));
            let rows = parts.flat_map(|(tokens, at)| feed(session.as_mut(), 0, at, tokens));
            rows.collect::<Vec<_>>().concat()
        };
        let exact = logits("f32");
        for (kind, allowed) in [("f16", 5e-4), ("q8_0", 5e-3)] {
            let error = squares(&mut logits(kind).iter().zip(&exact).map(|(a, b)| a - b));
            let relative = (error / squares(&mut exact.iter().copied())).sqrt();
            assert!(relative > 0.0 && relative <= allowed, "{kind}, reference {reference}: {relative}");
        }
    }
    let Err(refused) = try_load(&fixture("shakespeare-llama"), true, 1, keeping("q3_k")) else {
        panic!("a cache of q3_k")
    };
    assert_eq!(refused.code, ErrorCode::InvalidRequest);
}

#[test]
fn tokens_beyond_the_vocabulary_and_sequences_beyond_the_limits_are_refused() {
    let mut session = session();
    let mut out = vec![0.0; 2048];
    let batch = Batch { tokens: &[2048], positions: &[0], sequences: &[0], outputs: &[0] };
    assert_eq!(session.forward(batch, &mut out).unwrap_err().code, ErrorCode::InvalidRequest);
    assert_eq!(session.copy(0, 3, 0, 1).unwrap_err().code, ErrorCode::InvalidRequest);
    assert_eq!(session.remove(3, 0, 1).unwrap_err().code, ErrorCode::InvalidRequest);
}
