//! What a session promises whatever the batch: the same logits one by one, in chunks and together, and sequences that can
//! be copied and cut.

use std::sync::{Arc, Mutex};

use drophammer_mlx::Mlx;
use drophammer_sdk::{
    Backend, Batch, Budgets, ErrorCode, HostInfo, JobContext, LoadRequest, LogLevel, Session,
};
use serde_json::json;

use crate::fixture::{can_run, fixture, load, mlx, order, relative_error};

fn session(bits: Option<u32>) -> Box<dyn Session> {
    let mut request = order(&fixture("shakespeare-llama"), true, 3);
    request.context = Some(1024);
    request.options.extend(bits.map(|bits| ("kv_bits".to_owned(), json!(bits))));
    load(&request)
}

/// Tokens that look random, the same each time.
fn tokens(seed: u64, count: usize) -> Vec<u32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as u32 % 2048
    };
    (0..count).map(|_| next()).collect()
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

fn assert_close(a: &[Vec<f32>], b: &[Vec<f32>]) {
    assert_eq!(a.len(), b.len());
    let worst = a.iter().flatten().zip(b.iter().flatten()).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(worst <= 1e-4, "largest difference {worst}");
}

#[test]
fn any_chunking_of_a_prompt_gives_the_same_logits() {
    if !can_run() {
        return;
    }
    let mut session = session(None);
    // Longer than one step, and than the cache's first arrays.
    let tokens = tokens(1, 530);
    let whole = feed(session.as_mut(), 0, 0, &tokens);
    let mut rows = Vec::new();
    for cut in [0, 1, 30, 256, 520, 530].windows(2) {
        rows.extend(feed(session.as_mut(), 1, cut[0] as u32, &tokens[cut[0]..cut[1]]));
    }
    assert_close(&whole, &rows);
}

#[test]
fn the_last_row_alone_is_the_last_of_all() {
    if !can_run() {
        return;
    }
    let mut session = session(None);
    let tokens = tokens(9, 70);
    let all = feed(session.as_mut(), 0, 0, &tokens);
    let positions: Vec<u32> = (0..70).collect();
    let mut last = vec![f32::NAN; session.limits().output_width as usize];
    let batch = Batch { tokens: &tokens, positions: &positions, sequences: &[1; 70], outputs: &[69] };
    session.forward(batch, &mut last).unwrap();
    assert_close(&[last], &all[69..]);
    // And nothing was left out of the cache.
    let more = feed(session.as_mut(), 1, 70, &tokens[..3]);
    assert_close(&more, &feed(session.as_mut(), 0, 70, &tokens[..3]));
}

#[test]
fn several_sequences_in_one_batch_give_what_each_gives_alone() {
    if !can_run() {
        return;
    }
    let mut session = session(None);
    let (a, b) = (tokens(2, 20), tokens(3, 31));
    let alone = [feed(session.as_mut(), 0, 0, &a), feed(session.as_mut(), 1, 0, &b)].concat();
    session.remove(0, 0, u32::MAX).unwrap();
    session.remove(1, 0, u32::MAX).unwrap();
    // Interleaved as far as both go; of `b` only every other row is wanted.
    let mut order: Vec<(usize, u32, usize)> = (0..a.len()).map(|i| (i, 2, i)).collect();
    order.extend((0..b.len()).map(|i| (i, 1, a.len() + i)));
    order.sort_unstable();
    let ids: Vec<u32> = order.iter().map(|&(i, s, _)| if s == 2 { a[i] } else { b[i] }).collect();
    let positions: Vec<u32> = order.iter().map(|&(i, ..)| i as u32).collect();
    let sequences: Vec<u32> = order.iter().map(|&(_, s, _)| s).collect();
    let outputs: Vec<u32> = (0..order.len() as u32).filter(|i| i % 3 != 1).collect();
    let width = session.limits().output_width as usize;
    let mut out = vec![f32::NAN; outputs.len() * width];
    let batch = Batch { tokens: &ids, positions: &positions, sequences: &sequences, outputs: &outputs };
    session.forward(batch, &mut out).unwrap();
    for (row, output) in out.chunks(width).zip(&outputs) {
        assert_close(&[row.to_vec()], &[alone[order[*output as usize].2].clone()]);
    }
}

#[test]
fn a_copied_sequence_goes_on_as_its_source_would_and_a_removed_tail_is_forgotten() {
    if !can_run() {
        return;
    }
    let mut session = session(None);
    let (prompt, more) = (tokens(4, 270), tokens(5, 4));
    for keep in [1usize, 260] {
        (0..3).for_each(|sequence| session.remove(sequence, 0, u32::MAX).unwrap());
        let direct = [&prompt[..keep], &more].concat();
        let due = feed(session.as_mut(), 2, 0, &direct)[keep..].to_vec();
        feed(session.as_mut(), 0, 0, &prompt);
        session.copy(0, 1, 0, keep as u32).unwrap();
        assert_close(&feed(session.as_mut(), 1, keep as u32, &more), &due);
        session.remove(0, keep as u32, u32::MAX).unwrap();
        assert_close(&feed(session.as_mut(), 0, keep as u32, &more), &due);
        // The copy was not disturbed by what its source went on with.
        session.remove(1, keep as u32, u32::MAX).unwrap();
        assert_close(&feed(session.as_mut(), 1, keep as u32, &more), &due);
    }
}

#[test]
fn what_was_cut_out_of_the_middle_is_not_seen() {
    if !can_run() {
        return;
    }
    let mut session = session(None);
    let (prompt, more) = (tokens(6, 50), tokens(7, 5));
    feed(session.as_mut(), 0, 0, &prompt);
    session.copy(0, 1, 0, u32::MAX).unwrap();
    session.remove(0, 10, 30).unwrap();
    session.keep(1, 30, 50).unwrap();
    let cut = feed(session.as_mut(), 0, 50, &more);
    let tail = feed(session.as_mut(), 1, 50, &more);
    session.keep(0, 30, u32::MAX).unwrap();
    session.remove(0, 50, u32::MAX).unwrap();
    assert_close(&feed(session.as_mut(), 0, 50, &more), &tail);
    let seen: f32 = cut.iter().flatten().zip(tail.iter().flatten()).map(|(a, b)| (a - b).abs()).sum();
    assert!(seen > 1.0, "the first ten positions made no difference");
}

#[test]
fn a_packed_cache_stays_near_the_plain_one() {
    if !can_run() {
        return;
    }
    let ids = tokens(8, 60);
    let plain = feed(session(None).as_mut(), 0, 0, &ids).concat();
    for (bits, most) in [(8, 0.01), (4, 0.15)] {
        let mut packed = session(Some(bits));
        let mut rows = feed(packed.as_mut(), 0, 0, &ids[..50]);
        packed.copy(0, 1, 0, 50).unwrap();
        packed.remove(0, 0, u32::MAX).unwrap();
        for (i, token) in ids.iter().enumerate().skip(50) {
            rows.extend(feed(packed.as_mut(), 1, i as u32, &[*token]));
        }
        let error = relative_error(&rows.concat(), &plain);
        assert!(error > 0.0 && error < most, "{bits} bits: {error}");
    }
}

#[test]
fn a_packed_cache_is_a_setting_of_the_plugin_too() {
    if !can_run() {
        return;
    }
    let path = fixture("shakespeare-llama");
    let ids = tokens(10, 24);
    let run = |config: Option<u32>, option: Option<u32>, reference: bool| {
        let mut host = HostInfo::default();
        host.config.extend(config.map(|bits| ("kv_bits".to_owned(), json!(bits))));
        let mut request = order(&path, reference, 1);
        request.options.extend(option.map(|bits| ("kv_bits".to_owned(), json!(bits))));
        let backend = Mlx::open(host).unwrap();
        feed(backend.load(&request, Box::new(crate::fixture::JOB)).unwrap().as_mut(), 0, 0, &ids)
    };
    let plain = run(None, None, false);
    let packed = run(None, Some(4), false);
    assert_ne!(packed, plain);
    assert_eq!(run(Some(4), None, false), packed);
    assert_eq!(run(Some(4), Some(16), false), plain);
    // Measuring is exact, whatever the setting.
    assert_eq!(run(Some(4), None, true), run(None, None, true));
}

#[test]
fn tokens_beyond_the_vocabulary_and_sequences_beyond_the_limits_are_refused() {
    if !can_run() {
        return;
    }
    let mut session = session(None);
    let mut out = vec![0.0; 2048];
    let batch = Batch { tokens: &[2048], positions: &[0], sequences: &[0], outputs: &[0] };
    assert_eq!(session.forward(batch, &mut out).unwrap_err().code, ErrorCode::InvalidRequest);
    assert_eq!(session.copy(0, 3, 0, 1).unwrap_err().code, ErrorCode::InvalidRequest);
    assert_eq!(session.remove(3, 0, 1).unwrap_err().code, ErrorCode::InvalidRequest);
    let request =
        LoadRequest { device: Some("abacus".into()), ..order(&fixture("shakespeare-llama"), true, 1) };
    let error = mlx().load(&request, Box::new(crate::fixture::JOB));
    assert!(error.err().unwrap().message.contains("abacus"));
}

/// A job that may use so much memory, and what was logged.
struct Modest(u64, Arc<Mutex<String>>);

impl JobContext for Modest {
    fn progress(&self, _stage: &str, _tensor: &str, _done: u64, _total: u64) {}
    fn log(&self, _level: LogLevel, message: &str) {
        self.1.lock().unwrap().push_str(message);
    }
    fn cancelled(&self) -> bool {
        false
    }
    fn budgets(&self) -> Budgets {
        Budgets { threads: 2, memory_bytes: self.0, disk_bytes: 0 }
    }
}

#[test]
fn libmlx_is_told_what_a_job_may_use_and_what_would_not_fit_is_not_loaded() {
    if !can_run() {
        return;
    }
    let path = fixture("shakespeare-llama");
    let log = Arc::new(Mutex::new(String::new()));
    let load = |request: &LoadRequest, most: u64| mlx().load(request, Box::new(Modest(most, log.clone())));
    let mut session = load(&order(&path, true, 1), 123_456_789).unwrap();
    feed(session.as_mut(), 0, 0, &tokens(1, 20));
    assert!(log.lock().unwrap().contains("may take 123456789"), "{}", log.lock().unwrap());
    let long = LoadRequest { context: Some(100_000), ..order(&path, true, 8) };
    let error = load(&long, 123_456_789).err().unwrap();
    assert!(error.code == ErrorCode::OutOfResources && error.message.contains("123456789"), "{error}");
    // A packed cache takes less: there the same fits.
    let mut packed = LoadRequest { context: Some(10_000), ..order(&path, true, 1) };
    assert!(load(&packed, 40 << 20).is_err());
    packed.options.insert("kv_bits".into(), json!(4));
    load(&packed, 40 << 20).unwrap();
}
