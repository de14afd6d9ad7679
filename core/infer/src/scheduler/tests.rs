use std::collections::HashMap;
use std::sync::{Arc, LazyLock, mpsc};

use drophammer_sdk::ErrorCode;
use proptest::prelude::*;

use super::*;
use crate::complete::complete;
use crate::constrain::{ConstraintFactory, Grammar};
use crate::sampler::SamplingParameters;
use crate::testing::{HashSession, Shared, tokenizer};
use crate::tokenizer::Tokenizer;

/// As wide as the tokenizer's vocabulary.
const VOCABULARY: u32 = 2048;

static TOKENIZER: LazyLock<Arc<Tokenizer>> = LazyLock::new(|| Arc::new(tokenizer()));

fn session(context: u32, sequences: u32, batch: u32) -> Shared {
    Shared::new(HashSession::new(VOCABULARY, context, sequences, batch))
}

/// The clock is the number of batches run.
fn scheduler(session: &Shared, config: Config) -> Scheduler {
    let clock = session.clone();
    let clock = Box::new(move || clock.with(|session| session.batches.len() as f64));
    Scheduler::new(Box::new(session.clone()), Arc::clone(&TOKENIZER), config, clock)
}

fn greedy(prompt: &[u32], count: u32) -> Request {
    Request {
        sampling: SamplingParameters::greedy(),
        max_tokens: Some(count),
        ignore_end: true,
        ..Request::new(prompt.to_vec())
    }
}

/// All events until the scheduler is idle.
fn run(scheduler: &mut Scheduler) -> Vec<Event> {
    let mut events = Vec::new();
    for _ in 0..10_000 {
        if scheduler.is_idle() {
            return events;
        }
        events.extend(scheduler.step());
    }
    panic!("no end after 10 000 steps");
}

fn tokens(events: &[Event], request: RequestId, choice: u32) -> Vec<u32> {
    let own = events.iter().filter(|event| event.request == request && event.choice == choice);
    own.filter_map(|event| match event.kind {
        EventKind::Token { token, .. } => Some(token),
        _ => None,
    })
    .collect()
}

fn last(events: &[Event], request: RequestId) -> &EventKind {
    let last: Vec<_> = events.iter().filter(|e| e.request == request && e.kind.is_last()).collect();
    assert_eq!(last.len(), 1, "one last event");
    &last[0].kind
}

fn reason(events: &[Event], request: RequestId) -> FinishReason {
    match last(events, request) {
        EventKind::Finished { reason, .. } => reason.clone(),
        other => panic!("{other:?}"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn what_else_is_in_the_batch_never_changes_a_text(
        requests in proptest::collection::vec(
            (proptest::collection::vec(0u32..3, 1..20), 1u32..12, 0usize..12, any::<bool>(), 1u32..4), 1..12),
        sequences in 1u32..5,
        batch in 1u32..20,
        prefill in 1u32..10,
        copies in any::<bool>(),
        draft in 0u32..8,
        memory in prop_oneof![Just(usize::MAX), 1usize..4],
    ) {
        let session = session(32, sequences, batch);
        session.with(|session| (session.copies, session.memory) = (copies, memory));
        let mut scheduler =
            scheduler(&session, Config { prefill_while_decoding: prefill, draft, ..Config::default() });
        let mut expected = HashMap::new();
        let mut cancelled = Vec::new();
        let mut events = Vec::new();
        for (prompt, count, steps, cancel, choices) in requests {
            let id = scheduler.submit(Request { choices, ..greedy(&prompt, count) }).unwrap();
            expected.insert(id, (session.with(|session| session.greedy(&prompt, count as usize)), choices));
            for _ in 0..steps {
                events.extend(scheduler.step());
            }
            if cancel {
                events.extend(scheduler.cancel(id));
                cancelled.push(id);
            }
        }
        events.extend(run(&mut scheduler));
        for (id, (expected, choices)) in expected {
            for choice in 0..choices {
                let found = tokens(&events, id, choice);
                let ends = events.iter().filter(|e| e.request == id && e.choice == choice && e.kind.is_last());
                prop_assert_eq!(ends.count(), 1);
                if cancelled.contains(&id) {
                    prop_assert!(expected.starts_with(&found));
                } else {
                    prop_assert_eq!(found, expected.clone());
                }
            }
        }
        let occupancy = scheduler.occupancy();
        prop_assert_eq!((occupancy.running, occupancy.queued), (0, 0));
        prop_assert!(session.with(|session| session.batches.iter().all(|&size| size <= batch as usize)));
    }
}

#[test]
fn a_prompt_is_read_once_however_many_ask_for_what_it_begins() {
    let session = session(256, 4, 64);
    let mut scheduler = scheduler(&session, Config::default());
    let read = || session.with(|session| session.batches.drain(..).sum::<usize>());
    let system: Vec<u32> = (100..150).collect();
    let with = |end: &[u32]| [&system[..], end].concat();

    scheduler.submit(greedy(&with(&[1, 2]), 3)).unwrap();
    run(&mut scheduler);
    assert_eq!(read(), 52 + 2);

    // The same conversation goes on; another one shares its beginning.
    let first = session.with(|s| s.greedy(&with(&[1, 2]), 3));
    let more = [with(&[1, 2]), first, vec![7, 8]].concat();
    let events = {
        scheduler.submit(greedy(&more, 1)).unwrap();
        run(&mut scheduler)
    };
    assert!(matches!(events[0].kind, EventKind::Started { reused_tokens: 54 }), "{:?}", events[0]);
    assert_eq!(read(), 3);
    scheduler.submit(greedy(&with(&[9]), 1)).unwrap();
    run(&mut scheduler);
    assert_eq!(read(), 1);

    // The longer conversation is still there.
    scheduler.submit(greedy(&more, 1)).unwrap();
    run(&mut scheduler);
    assert_eq!(read(), 1);

    // Four answers to one new prompt.
    let fresh: Vec<u32> = (200..230).collect();
    scheduler.submit(Request { choices: 4, ..greedy(&fresh, 2) }).unwrap();
    run(&mut scheduler);
    assert_eq!(read(), 30 + 1 + 3 * 2);
}

#[test]
fn choices_differ_by_their_seeds_and_the_same_seed_gives_the_same_answers() {
    let answers = |seed| {
        let session = session(64, 3, 16);
        let mut scheduler = scheduler(&session, Config::default());
        let request = Request {
            sampling: SamplingParameters { top_logprobs: Some(2), ..SamplingParameters::default() },
            seed,
            choices: 3,
            ..greedy(&[5, 6, 7], 8)
        };
        let id = scheduler.submit(request).unwrap();
        let events = run(&mut scheduler);
        let with_logprobs = events.iter().filter(|e| {
            matches!(&e.kind, EventKind::Token { logprobs: Some(l), .. } if l.top.len() == 2 && l.logprob <= 0.0)
        });
        assert_eq!(with_logprobs.count(), 24);
        (0..3).map(|choice| tokens(&events, id, choice)).collect::<Vec<_>>()
    };
    let first = answers(1);
    assert_eq!(first, answers(1));
    assert_ne!(first, answers(100));
    assert!(first[0] != first[1] && first[1] != first[2]);
}

#[test]
fn a_cancelled_request_frees_its_sequence_at_once() {
    let session = session(64, 1, 16);
    let mut scheduler = scheduler(&session, Config::default());
    let long = scheduler.submit(greedy(&[1], 60)).unwrap();
    let waiting = scheduler.submit(greedy(&[2], 60)).unwrap();
    let next = scheduler.submit(greedy(&[3], 1)).unwrap();
    scheduler.step();
    let mut events = scheduler.cancel(waiting);
    events.extend(scheduler.cancel(long));
    assert_eq!(reason(&events, long), FinishReason::Cancelled);
    assert_eq!(reason(&events, waiting), FinishReason::Cancelled);
    let events = scheduler.step();
    assert_eq!(reason(&events, next), FinishReason::Length);
    assert!(scheduler.is_idle() && scheduler.cancel(long).is_empty());
}

#[test]
fn flows_take_turns_so_that_nobody_waits_for_anothers_pile() {
    let session = session(64, 1, 16);
    let mut scheduler = scheduler(&session, Config::default());
    for _ in 0..50 {
        scheduler.submit(Request { flow: 1, ..greedy(&[1], 4) }).unwrap();
    }
    let other = scheduler.submit(Request { flow: 2, ..greedy(&[2], 4) }).unwrap();
    let mut finished = 0;
    loop {
        let events = scheduler.step();
        finished += events.iter().filter(|event| event.kind.is_last()).count();
        if events.iter().any(|event| event.request == other && event.kind.is_last()) {
            break;
        }
    }
    assert!(finished <= 3, "{finished} texts were finished before the other flow's");
}

#[test]
fn a_long_prompt_slows_texts_down_only_a_little() {
    let session = session(1000, 2, 512);
    let mut scheduler = scheduler(&session, Config { prefill_while_decoding: 16, ..Config::default() });
    let text = scheduler.submit(greedy(&[1], 20)).unwrap();
    scheduler.step();
    let long: Vec<u32> = (0..900).collect();
    scheduler.submit(greedy(&long, 1)).unwrap();
    let mut events = Vec::new();
    for _ in 0..19 {
        events.extend(scheduler.step());
    }
    assert_eq!(tokens(&events, text, 0).len(), 19);
    assert_eq!(session.with(|session| session.batches[1..].to_vec()), [17; 19]);
    run(&mut scheduler);
    // Alone, the prompt takes whole batches.
    assert_eq!(session.with(|session| session.batches[20..].to_vec()), [512, 900 - 19 * 16 - 512]);
}

#[test]
fn what_does_not_fit_the_queue_is_refused_with_a_time_to_come_back() {
    let session = session(64, 1, 16);
    let mut scheduler = scheduler(&session, Config { queue_limit: 3, ..Config::default() });
    for _ in 0..3 {
        scheduler.submit(greedy(&[1], 2)).unwrap();
    }
    match scheduler.submit(greedy(&[1], 2)) {
        Err(Refused::QueueFull { queued: 3, limit: 3, retry_after }) => {
            assert!((1..=60).contains(&retry_after.as_secs()));
        }
        other => panic!("{other:?}"),
    }
    run(&mut scheduler);
    scheduler.submit(Request { choices: 9, ..greedy(&[1], 2) }).unwrap();
    assert!(scheduler.submit(greedy(&[1], 2)).is_err());
    run(&mut scheduler);
    assert_eq!(scheduler.occupancy().queued, 0);
}

#[test]
fn requests_that_cannot_be_served_are_refused_by_name() {
    let session = session(8, 1, 16);
    let mut scheduler = scheduler(&session, Config::default());
    let hot = SamplingParameters { temperature: -1.0, ..SamplingParameters::default() };
    for (request, word) in [
        (greedy(&[], 1), "empty"),
        (greedy(&[1; 8], 1), "context takes 8"),
        (greedy(&[VOCABULARY], 1), "token 2048"),
        (Request { choices: 0, ..greedy(&[1], 1) }, "0 choices"),
        (Request { stop: vec![String::new()], ..greedy(&[1], 1) }, "stop text"),
        (Request { sampling: hot, ..greedy(&[1], 1) }, "temperature"),
    ] {
        let error = scheduler.submit(request).unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
    }
    assert!(scheduler.is_idle() && scheduler.occupancy().queued == 0);
}

#[test]
fn a_failing_batch_ends_its_texts_with_the_error_and_no_others() {
    let session = session(64, 2, 16);
    let mut scheduler = scheduler(&session, Config::default());
    let hit: Vec<_> = (0..2).map(|i| scheduler.submit(greedy(&[i + 1, 9], 5)).unwrap()).collect();
    let spared = scheduler.submit(greedy(&[1, 9], 5)).unwrap();
    scheduler.step();
    session.with(|session| session.fail = true);
    let events = run(&mut scheduler);
    for id in hit {
        assert!(matches!(last(&events, id), EventKind::Failed(e) if e.code == ErrorCode::OutOfResources));
    }
    assert_eq!(tokens(&events, spared, 0), session.with(|session| session.greedy(&[1, 9], 5)));
}

#[test]
fn answers_end_where_they_should() {
    let session = session(40, 2, 16);
    let mut scheduler = scheduler(&session, Config::default());
    let prompt = TOKENIZER.encode("My lord,", false).unwrap();
    let expected = session.with(|session| session.greedy(&prompt, 12));
    let whole: String = TOKENIZER.decode(&expected);
    let mut run_one = |request: Request| complete(&mut scheduler, request, &mut |_| true).unwrap();

    let all = run_one(greedy(&prompt, 12));
    assert_eq!((all.tokens, all.reason), (expected.clone(), FinishReason::Length));
    assert_eq!(all.text.trim_start(), whole.trim_start());
    assert_eq!((all.usage.prompt_tokens, all.usage.completion_tokens), (prompt.len() as u32, 12));
    assert_eq!((all.timings.first_token, all.timings.finished), (Some(1.0), 12.0));

    // A stop text that begins inside one token and ends inside another.
    let middle = whole.chars().count() / 2;
    let stop: String = whole.chars().skip(middle).take(5).collect();
    let stopped = run_one(Request { stop: vec![stop.clone()], ..greedy(&prompt, 12) });
    assert_eq!(stopped.text, whole.split(&stop).next().unwrap());
    assert_eq!(stopped.reason, FinishReason::StopText(stop));

    // The context ends before `max_tokens`.
    let long = run_one(Request { max_tokens: None, ..greedy(&prompt, 0) });
    assert_eq!((long.tokens.len(), long.reason), (40 - prompt.len(), FinishReason::Length));
    assert_eq!(run_one(greedy(&prompt, 0)).usage.completion_tokens, 0);

    // The end-of-text token, made certain.
    let sampling = SamplingParameters { logit_bias: vec![(1, 1000.0)], ..SamplingParameters::greedy() };
    let ended = run_one(Request { sampling, ignore_end: false, ..greedy(&prompt, 12) });
    assert_eq!(
        (ended.text.as_str(), ended.reason, ended.usage.completion_tokens),
        ("", FinishReason::EndOfText, 1)
    );

    let factory = ConstraintFactory::new(&TOKENIZER).unwrap();
    let constraint = Some(factory.compile(&Grammar::Regex("yes|no".into())).unwrap());
    let constrained = run_one(Request { constraint, ignore_end: false, ..greedy(&prompt, 12) });
    assert!(["yes", "no"].contains(&constrained.text.as_str()), "{}", constrained.text);

    let mut seen = 0;
    let request = greedy(&prompt, 30);
    let cancelled = complete(&mut scheduler, request, &mut |_| {
        seen += 1;
        seen < 3
    });
    assert_eq!(cancelled.unwrap().reason, FinishReason::Cancelled);
    assert!(scheduler.is_idle());
}

#[test]
fn a_runner_serves_many_threads_and_drops_requests_nobody_listens_to() {
    let session = session(200, 4, 32);
    let runner = Runner::start(scheduler(&session, Config::default())).unwrap();
    std::thread::scope(|scope| {
        for client in 0..8u32 {
            let (runner, session) = (&runner, &session);
            scope.spawn(move || {
                let (sender, receiver) = mpsc::channel();
                let request = greedy(&[client, 1, 2], 10);
                runner.submit(request, Box::new(move |event| sender.send(event).is_ok())).unwrap();
                let events: Vec<Event> = receiver.iter().collect();
                let found = tokens(&events, events[0].request, 0);
                assert_eq!(found, session.with(|session| session.greedy(&[client, 1, 2], 10)));
            });
        }
    });
    let (sender, receiver) = mpsc::channel();
    let long = greedy(&[1], 190);
    runner.submit(long.clone(), Box::new(move |event| sender.send(event).is_ok())).unwrap();
    receiver.recv().unwrap();
    drop(receiver);
    let (sender, receiver) = mpsc::channel();
    let id = runner.submit(long.clone(), Box::new(move |event| sender.send(event).is_ok())).unwrap();
    runner.cancel(id);
    let events: Vec<Event> = receiver.iter().collect();
    assert!(matches!(last(&events, id), EventKind::Finished { .. }));
    runner.drain();
    assert_eq!(runner.submit(long, Box::new(|_| true)), Err(Refused::Draining));
    drop(runner);
}

#[test]
fn a_draft_model_saves_steps_where_it_is_right_and_never_changes_what_is_said() {
    let run_with = |noise: Option<f32>| {
        let session = session(512, 2, 64);
        let mut scheduler = scheduler(&session, Config { draft: 7, ..Config::default() });
        if let Some(noise) = noise {
            let mut cheaper = HashSession::new(VOCABULARY, 512, 2, 16);
            cheaper.noise = noise;
            scheduler = scheduler.with_draft_model(Box::new(cheaper)).unwrap();
        }
        let ids =
            [[1, 2, 3], [4, 5, 6], [1, 2, 9]].map(|prompt| scheduler.submit(greedy(&prompt, 100)).unwrap());
        let events = run(&mut scheduler);
        (ids.map(|id| tokens(&events, id, 0)), session.with(|session| session.batches.len()))
    };
    let (plain, plain_steps) = run_with(None);
    for (noise, most) in [(0.0, plain_steps / 2), (0.5, plain_steps), (100.0, plain_steps)] {
        let (drafted, steps) = run_with(Some(noise));
        assert_eq!(plain, drafted, "noise {noise}");
        assert!(steps <= most, "noise {noise}: {steps} of {plain_steps} steps");
    }
}

#[test]
fn a_text_that_repeats_itself_takes_fewer_steps_with_drafts_and_says_the_same() {
    let run_with = |draft: u32| {
        let session = session(512, 1, 64);
        session.with(|session| session.memory = 1);
        let mut scheduler = scheduler(&session, Config { draft, ..Config::default() });
        let id = scheduler.submit(greedy(&[1, 2, 3], 400)).unwrap();
        let events = run(&mut scheduler);
        assert_eq!(reason(&events, id), FinishReason::Length);
        (tokens(&events, id, 0), session.with(|session| session.batches.len()))
    };
    let (plain, plain_steps) = run_with(0);
    let (drafted, steps) = run_with(7);
    assert_eq!(plain, drafted);
    assert_eq!(plain_steps, 400);
    assert!(steps < 250, "{steps} steps for 400 tokens");
}
