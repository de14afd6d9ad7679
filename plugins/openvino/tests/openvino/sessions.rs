//! Sequences: what a session remembers, forgets and copies.

use drophammer_sdk::{Backend, Batch, HostInfo, LoadRequest, ProbeRequest, Session};

use crate::fixture::{JOB, backend, fixture, forge, largest_difference, load, reference, run};

/// A session of the trained model, its tokens and width.
fn session(sequences: u32) -> (Box<dyn Session>, Vec<u32>, tempfile::TempDir) {
    let directory = fixture("shakespeare-llama");
    let made = tempfile::tempdir().unwrap();
    forge(&directory, "fp32", false, made.path());
    let (rows, _) = reference(&directory);
    (load(made.path(), sequences), rows[0].clone(), made)
}

/// How far two ways to the same logits may differ.
const SAME: f32 = 2e-3;

#[test]
#[ignore = "needs the OpenVINO runtime: `cargo xtask test` provides it"]
fn tokens_one_by_one_give_what_a_whole_prompt_gives() {
    let (mut session, tokens, _made) = session(2);
    let whole = run(session.as_mut(), 0, 0, &tokens[..24]);
    let mut steps = run(session.as_mut(), 1, 0, &tokens[..8]);
    for (position, token) in tokens[..24].iter().enumerate().skip(8) {
        steps.extend(run(session.as_mut(), 1, position as u32, &[*token]));
    }
    assert!(largest_difference(&whole, &steps) < SAME);
}

#[test]
#[ignore = "needs the OpenVINO runtime: `cargo xtask test` provides it"]
fn only_wanted_rows_are_written_and_sequences_do_not_mix() {
    let (mut session, tokens, _made) = session(2);
    let width = session.limits().output_width as usize;
    let alone = run(session.as_mut(), 0, 0, &tokens[..6]);
    session.remove(0, 0, u32::MAX).unwrap();
    // Two sequences, interleaved; one row of each.
    let ids: Vec<u32> = (0..6).flat_map(|i| [tokens[i], tokens[20 + i]]).collect();
    let positions: Vec<u32> = (0..6).flat_map(|i| [i, i]).collect();
    let sequences = [0, 1].repeat(6);
    let mut out = vec![f32::NAN; 2 * width];
    let batch = Batch { tokens: &ids, positions: &positions, sequences: &sequences, outputs: &[10, 11] };
    session.forward(batch, &mut out).unwrap();
    assert!(largest_difference(&out[..width], &alone[5 * width..]) < SAME);
    let other = run(session.as_mut(), 1, 6, &tokens[26..27]);
    session.remove(0, 0, u32::MAX).unwrap();
    let whole = run(session.as_mut(), 0, 0, &tokens[20..27]);
    assert!(largest_difference(&other, &whole[6 * width..]) < SAME);
}

/// One token of each sequence together: `(sequence, position, token)`.
fn step(session: &mut dyn Session, next: &[(u32, u32, u32)]) -> Vec<f32> {
    let tokens: Vec<u32> = next.iter().map(|(_, _, token)| *token).collect();
    let positions: Vec<u32> = next.iter().map(|(_, position, _)| *position).collect();
    let sequences: Vec<u32> = next.iter().map(|(sequence, _, _)| *sequence).collect();
    let outputs: Vec<u32> = (0..next.len() as u32).collect();
    let mut out = vec![f32::NAN; next.len() * session.limits().output_width as usize];
    let batch = Batch { tokens: &tokens, positions: &positions, sequences: &sequences, outputs: &outputs };
    session.forward(batch, &mut out).unwrap();
    out
}

#[test]
#[ignore = "needs the OpenVINO runtime: `cargo xtask test` provides it"]
fn sequences_that_go_on_together_give_what_each_gives_alone() {
    let (mut session, tokens, _made) = session(5);
    let session = session.as_mut();
    let width = session.limits().output_width as usize;
    // What each text gives, row by row, in a sequence of its own.
    let texts = [&tokens[..30], &tokens[40..70], &tokens[70..100], &tokens[90..120]];
    let due: Vec<Vec<f32>> = texts
        .iter()
        .map(|text| {
            let rows = run(session, 4, 0, text);
            session.remove(4, 0, u32::MAX).unwrap();
            rows
        })
        .collect();
    let mut lengths = [12, 3, 7, 0];
    for sequence in 0..3 {
        run(session, sequence, 0, &texts[sequence as usize][..lengths[sequence as usize]]);
    }
    let go = |session: &mut dyn Session, lengths: &mut [usize; 4], steps: &[&[u32]]| {
        for who in steps {
            let next: Vec<_> = who
                .iter()
                .map(|&s| (s, lengths[s as usize] as u32, texts[s as usize][lengths[s as usize]]))
                .collect();
            let rows = step(session, &next);
            for (&s, row) in who.iter().zip(rows.chunks(width)) {
                let place = lengths[s as usize];
                let difference = largest_difference(row, &due[s as usize][place * width..][..width]);
                assert!(difference < SAME, "sequence {s} at {place} of {who:?}: {difference}");
                lengths[s as usize] += 1;
            }
        }
    };
    // Two, then a third joins; one waits; a new one joins at its first token; few of many go on.
    go(
        session,
        &mut lengths,
        &[&[0, 1], &[1, 0], &[0, 1, 2], &[2, 0], &[3, 1], &[0, 1, 2, 3], &[3], &[1, 3], &[0, 2]],
    );
    // One goes on with several tokens, and joins again.
    let more = run(session, 1, lengths[1] as u32, &texts[1][lengths[1]..lengths[1] + 4]);
    assert!(largest_difference(&more, &due[1][lengths[1] * width..][..4 * width]) < SAME);
    lengths[1] += 4;
    go(session, &mut lengths, &[&[1, 2], &[0, 1, 2, 3]]);
    // A tail is removed, and a whole sequence.
    session.remove(0, 10, u32::MAX).unwrap();
    lengths[0] = 10;
    session.remove(2, 0, u32::MAX).unwrap();
    lengths[2] = 0;
    go(session, &mut lengths, &[&[0, 1], &[0, 1, 2, 3], &[2, 3]]);
    session.copy(1, 4, 0, u32::MAX).unwrap();
    let copied = run(session, 4, lengths[1] as u32, &texts[1][lengths[1]..=lengths[1]]);
    assert!(largest_difference(&copied, &due[1][lengths[1] * width..][..width]) < SAME);
}

#[test]
#[ignore = "needs the OpenVINO runtime: `cargo xtask test` provides it"]
fn a_removed_tail_leaves_no_trace() {
    let (mut session, tokens, _made) = session(2);
    let width = session.limits().output_width as usize;
    run(session.as_mut(), 0, 0, &tokens[..16]);
    session.remove(0, 9, u32::MAX).unwrap();
    let again = run(session.as_mut(), 0, 9, &tokens[40..44]);
    let straight = [&tokens[..9], &tokens[40..44]].concat();
    let due = run(session.as_mut(), 1, 0, &straight);
    assert!(largest_difference(&again, &due[9 * width..]) < SAME);
}

#[test]
#[ignore = "needs the OpenVINO runtime: `cargo xtask test` provides it"]
fn a_copy_goes_on_where_its_source_was() {
    let (mut session, tokens, _made) = session(3);
    run(session.as_mut(), 0, 0, &tokens[..12]);
    run(session.as_mut(), 1, 0, &tokens[30..34]);
    session.copy(0, 1, 0, u32::MAX).unwrap();
    let copied = run(session.as_mut(), 1, 12, &tokens[12..15]);
    let source = run(session.as_mut(), 0, 12, &tokens[12..15]);
    assert!(largest_difference(&copied, &source) < SAME);
    // Part of it, and removing while it is only noted.
    session.copy(0, 2, 0, 10).unwrap();
    session.remove(2, 6, u32::MAX).unwrap();
    let part = run(session.as_mut(), 2, 6, &tokens[6..9]);
    session.remove(1, 6, u32::MAX).unwrap();
    let due = run(session.as_mut(), 1, 6, &tokens[6..9]);
    assert!(largest_difference(&part, &due) < SAME);
}

#[test]
#[ignore = "needs the OpenVINO runtime: `cargo xtask test` provides it"]
fn a_window_counts_positions_and_not_entries() {
    let directory = fixture("arch/mistral-window");
    let made = tempfile::tempdir().unwrap();
    forge(&directory, "fp32", true, made.path());
    let (rows, due) = reference(&directory);
    let mut session = load(made.path(), 1);
    let width = session.limits().output_width as usize;
    // A detour that is removed again leaves dead entries among the cached ones.
    run(session.as_mut(), 0, 0, &rows[0][..8]);
    run(session.as_mut(), 0, 8, &[1, 2, 3, 4, 5]);
    session.remove(0, 8, u32::MAX).unwrap();
    let rest = run(session.as_mut(), 0, 8, &rows[0][8..]);
    let row = &due[..rows[0].len() * width];
    assert!(largest_difference(&rest, &row[8 * width..]) < SAME);
}

#[test]
fn a_runtime_that_is_not_where_the_configuration_says_is_named() {
    let mut host = HostInfo::default();
    host.config.insert("library".into(), "/nowhere/libopenvino_c.so".into());
    let backend = drophammer_openvino::OpenVino::open(host).unwrap();
    let report = backend.probe(&ProbeRequest::default()).unwrap();
    assert!(report.problems[0].message.contains("/nowhere/libopenvino_c.so"), "{report:?}");
    assert!(report.problems[0].help.contains("runtime install openvino"));
    let format = &report.formats[0];
    assert!(format.make && !format.run, "making needs no runtime");
    let request = LoadRequest { path: fixture("arch/llama"), ..LoadRequest::default() };
    let error = backend.load(&request, Box::new(JOB)).err().unwrap();
    assert_eq!(error.code, drophammer_sdk::ErrorCode::MissingRuntime);
}

#[test]
#[ignore = "needs the OpenVINO runtime: `cargo xtask test` provides it"]
fn devices_hints_and_streams_are_chosen_by_options_and_what_is_not_there_is_named() {
    let (mut usual, tokens, made) = session(1);
    let due = run(usual.as_mut(), 0, 0, &tokens[..12]);
    let with = |options: serde_json::Value| {
        let request = LoadRequest {
            path: made.path().to_owned(),
            context: Some(256),
            reference: true,
            options: options.as_object().unwrap().clone(),
            ..LoadRequest::default()
        };
        backend().load(&request, Box::new(JOB))
    };
    for options in [
        serde_json::json!({"device": "AUTO"}),
        serde_json::json!({"device": "AUTO:NPU,CPU"}),
        serde_json::json!({"device": "HETERO:CPU"}),
        serde_json::json!({"PERFORMANCE_HINT": "THROUGHPUT", "NUM_STREAMS": 2}),
    ] {
        let mut session = with(options.clone()).unwrap_or_else(|error| panic!("{options}: {error}"));
        let given = run(session.as_mut(), 0, 0, &tokens[..12]);
        assert!(largest_difference(&given, &due) < SAME, "{options}");
    }
    if !std::path::Path::new("/dev/accel").exists() {
        for device in ["NPU", "HETERO:NPU,CPU"] {
            let error = with(serde_json::json!({"device": device})).err().unwrap();
            assert_eq!(error.code, drophammer_sdk::ErrorCode::MissingRuntime);
            assert!(error.message.contains("no NPU") && error.help.contains("/dev/accel"), "{error}");
        }
    }
}

#[test]
#[ignore = "needs the OpenVINO runtime: `cargo xtask test` provides it"]
fn fixed_shapes_as_npus_want_them_give_the_same_logits() {
    // Keys and values are in half precision there.
    const SAME: f32 = 1e-2;
    let directory = fixture("shakespeare-llama");
    let made = tempfile::tempdir().unwrap();
    forge(&directory, "fp16", false, made.path());
    let tokens = reference(&directory).0.swap_remove(0);
    let mut usual = load(made.path(), 1);
    let due = run(usual.as_mut(), 0, 0, &tokens[..24]);
    let width = usual.limits().output_width as usize;
    let due = |row: usize| &due[row * width..][..width];
    let options = serde_json::json!({"device": "NPU", "NPUW_DEVICES": "CPU"});
    let request = LoadRequest {
        path: made.path().to_owned(),
        context: Some(128),
        max_sequences: 2,
        reference: true,
        options: options.as_object().unwrap().clone(),
        ..LoadRequest::default()
    };
    let mut session = backend().load(&request, Box::new(JOB)).unwrap();
    // The last row of some tokens.
    let last = |session: &mut dyn Session, sequence: u32, from: usize, to: usize| {
        let positions: Vec<u32> = (from as u32..to as u32).collect();
        let sequences = vec![sequence; to - from];
        let outputs = [(to - from - 1) as u32];
        let batch = Batch {
            tokens: &tokens[from..to],
            positions: &positions,
            sequences: &sequences,
            outputs: &outputs,
        };
        let mut out = vec![f32::NAN; width];
        session.forward(batch, &mut out).unwrap();
        let difference = largest_difference(&out, due(to - 1));
        assert!(difference < SAME, "{from}..{to}: {difference}");
    };
    let session = session.as_mut();
    last(session, 0, 0, 20);
    last(session, 0, 20, 21);
    // Another sequence beside it, which a longer prompt then goes on with.
    last(session, 1, 0, 3);
    last(session, 0, 21, 22);
    last(session, 1, 3, 24);
    // What is removed is forgotten, and a copy goes on by itself.
    session.remove(0, 6, u32::MAX).unwrap();
    last(session, 0, 6, 9);
    session.copy(0, 1, 0, 5).unwrap();
    last(session, 1, 5, 7);
    last(session, 0, 9, 10);
    // Several rows of one prompt.
    session.remove(0, 0, u32::MAX).unwrap();
    let rows = run(session, 0, 0, &tokens[..5]);
    for (number, row) in rows.chunks(width).enumerate() {
        assert!(largest_difference(row, due(number)) < SAME, "row {number}");
    }
}

#[test]
#[ignore = "needs the OpenVINO runtime: `cargo xtask test` provides it"]
fn what_is_no_graph_is_refused_with_words() {
    let place = tempfile::tempdir().unwrap();
    let graph = place.path().join("openvino_model.xml");
    for (content, bytes) in [
        ("", &b""[..]),
        ("<net name=\"x\"", b""),
        ("<net name=\"x\" version=\"11\"><layers></layers><edges></edges></net>", b"x"),
    ] {
        std::fs::write(&graph, content).unwrap();
        std::fs::write(graph.with_extension("bin"), bytes).unwrap();
        let request = LoadRequest { path: place.path().to_owned(), ..LoadRequest::default() };
        let error = backend().load(&request, Box::new(JOB)).err().unwrap();
        assert!(!error.message.is_empty());
    }
}
