use super::*;
use crate::testing::HashSession;

const VOCABULARY: u32 = 50;

fn tokens(count: u32) -> Vec<u32> {
    (0..count).map(|i| i.wrapping_mul(2_654_435_761) % VOCABULARY).collect()
}

fn session() -> HashSession {
    HashSession::new(VOCABULARY, 64, 2, 7)
}

fn protocol(chunk: usize) -> Protocol {
    Protocol { chunk, ..Protocol::default() }
}

/// The definitions, written down naively.
fn naive(tokens: &[u32], chunk: usize, noise: f32) -> (f64, f64, f64, f64) {
    let log_softmax = |row: &[f32]| -> Vec<f64> {
        let sum: f64 = row.iter().map(|&x| f64::from(x).exp()).sum();
        row.iter().map(|&x| f64::from(x) - sum.ln()).collect()
    };
    let best =
        |row: &[f64]| (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b]).then(b.cmp(&a))).unwrap();
    let (mut nll, mut reference_nll, mut kl, mut same, mut count) = (0.0, 0.0, 0.0, 0.0, 0.0);
    for chunk in tokens.chunks_exact(chunk) {
        for position in 1..chunk.len() {
            let row = |noise| log_softmax(&HashSession::row(&chunk[..position], VOCABULARY, noise));
            let (p, q) = (row(0.0), row(noise));
            reference_nll -= p[chunk[position] as usize];
            nll -= q[chunk[position] as usize];
            kl += p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum::<f64>();
            same += f64::from(u8::from(best(&p) == best(&q)));
            count += 1.0;
        }
    }
    ((nll / count).exp(), (reference_nll / count).exp(), kl / count, same / count)
}

#[test]
fn figures_are_those_of_their_definitions() {
    let text = tokens(100);
    let (mut model, mut reference) = (HashSession { noise: 1.0, ..session() }, session());
    let mut model = SessionSource::new(&mut model).unwrap();
    let mut reference = SessionSource::new(&mut reference).unwrap();
    let mut seen = 0;
    let found = measure(&mut model, Some(&mut reference), &text, &protocol(16), &mut |scored| {
        assert_eq!(scored.token, text[scored.chunk * 16 + scored.position]);
        seen += 1;
        true
    })
    .unwrap();
    let (perplexity, reference_perplexity, kl, top1) = naive(&text, 16, 1.0);
    let near = |found: Option<f64>, expected: f64| {
        let found = found.unwrap();
        assert!((found / expected - 1.0).abs() < 1e-6, "{found}, expected {expected}");
    };
    near(Some(found.perplexity), perplexity);
    near(found.reference_perplexity, reference_perplexity);
    near(found.kl_mean, kl);
    near(found.top1, top1);
    assert_eq!((found.tokens, seen), (6 * 15, 6 * 15));
    let mean = found.by_position.iter().map(|p| p.kl.unwrap()).sum::<f64>() / 15.0;
    near(Some(mean), kl);
    assert!(found.kl_median <= found.kl_p99 && found.kl_p99 <= found.kl_max);
    assert!(top1 > 0.5 && top1 < 1.0 && found.top5.unwrap() > 0.5, "{found:?}");
}

#[test]
fn a_model_has_no_distance_from_itself_and_is_measured_alone_without_one() {
    let text = tokens(70);
    let (mut a, mut b) = (session(), session());
    let mut a = SessionSource::new(&mut a).unwrap();
    let mut b = SessionSource::new(&mut b).unwrap();
    let both = measure(&mut a, Some(&mut b), &text, &protocol(32), &mut |_| true).unwrap();
    assert_eq!(
        (both.kl_mean, both.kl_max, both.top1, both.top5),
        (Some(0.0), Some(0.0), Some(1.0), Some(1.0))
    );
    let alone = measure(&mut a, None, &text, &protocol(32), &mut |_| true).unwrap();
    assert_eq!(alone.perplexity, both.perplexity);
    assert_eq!((alone.kl_mean, alone.reference_perplexity), (None, None));
    let json = serde_json::to_value(&alone).unwrap();
    assert!(json.get("kl_mean").is_none() && json["tokens"] == 62);
}

#[test]
fn rows_over_a_channel_measure_the_same_as_rows_from_here() {
    let text = tokens(100);
    let mut near = session();
    let mut reference = session();
    let mut near_source = SessionSource::new(&mut near).unwrap();
    let mut reference_source = SessionSource::new(&mut reference).unwrap();
    let expected =
        measure(&mut near_source, Some(&mut reference_source), &text, &protocol(20), &mut |_| true).unwrap();
    let (sender, mut far) = rows_over_channel(VOCABULARY as usize, 2);
    let found = std::thread::scope(|scope| {
        let text = &text;
        scope.spawn(move || {
            let mut session = session();
            let mut source = SessionSource::new(&mut session).unwrap();
            // Messages of another size than the rows asked for.
            send_rows(&mut source, text, &protocol(20), &mut |rows| {
                rows.chunks(3 * VOCABULARY as usize).try_for_each(|part| sender.send(part.to_vec()))
            })
            .unwrap();
        });
        measure(&mut near_source, Some(&mut far), text, &protocol(20), &mut |_| true)
    });
    assert_eq!(found.unwrap(), expected);
}

#[test]
fn what_cannot_be_measured_is_refused_with_the_reason() {
    let text = tokens(100);
    let mut model = session();
    let mut source = SessionSource::new(&mut model).unwrap();
    let mut run =
        |text: &[u32], chunk| measure(&mut source, None, text, &protocol(chunk), &mut |_| true).unwrap_err();
    assert!(matches!(run(&text, 65), MeasureError::Chunk { chunk: 65, .. }));
    assert!(matches!(run(&text, 1), MeasureError::Chunk { chunk: 1, .. }));
    assert!(matches!(run(&text, 101), MeasureError::TooShort { tokens: 100, chunk: 101 }));
    assert!(matches!(run(&[0, 50], 2), MeasureError::TokenOutside { token: 50, width: 50 }));
    assert!(matches!(
        measure(&mut source, None, &text, &protocol(8), &mut |_| false),
        Err(MeasureError::Cancelled)
    ));
    let (sender, mut gone) = rows_over_channel(VOCABULARY as usize, 1);
    drop(sender);
    assert!(matches!(
        measure(&mut source, Some(&mut gone), &text, &protocol(8), &mut |_| true),
        Err(MeasureError::Disconnected)
    ));
    let mut broken = HashSession { noise: f32::NAN, ..session() };
    let mut broken = SessionSource::new(&mut broken).unwrap();
    let error = measure(&mut broken, None, &text, &protocol(8), &mut |_| true).unwrap_err();
    assert!(matches!(error, MeasureError::NotFinite { which: "measured", chunk: 0, position: 0 }), "{error}");
}

#[test]
fn a_bench_times_the_runs_that_count() {
    let mut session = session();
    let plan = BenchPlan { prompt: 20, generate: 5, repetitions: 3, warm_up: 1 };
    // Each reading of the clock is later by one second more than the last; the run that does not count is read once.
    let (mut time, mut step) = (0.0, 0.0);
    let mut clock = || {
        step += 1.0;
        time += step;
        time
    };
    let found = bench(&mut session, &plan, &mut clock, &mut || true).unwrap();
    assert_eq!(found.prefill.seconds, [3.0, 5.0, 7.0]);
    assert_eq!(
        (found.prefill.min_tps, found.prefill.median_tps, found.prefill.max_tps),
        (20.0 / 7.0, 4.0, 20.0 / 3.0)
    );
    assert_eq!(found.decode.tokens, 5);
    // 20 tokens in batches of 7, 7, 6; then 5 of 1; each four times.
    assert_eq!(session.batches[..3], [7, 7, 6]);
    assert_eq!(session.batches.len(), 4 * 3 + 4 * 5);
    assert!(session.sequences.iter().all(Vec::is_empty));
    let too_long = BenchPlan { prompt: 65, ..plan };
    assert!(matches!(
        bench(&mut session, &too_long, &mut || 0.0, &mut || true),
        Err(MeasureError::Chunk { chunk: 65, .. })
    ));
}

#[test]
fn the_shipped_text_is_the_fixtures_and_small() {
    assert!(EVALUATION_TEXT.len() <= 100_000 && EVALUATION_TEXT.contains("\n\n"));
}
