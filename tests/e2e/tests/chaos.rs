//! Mixed load on several models while their workers are killed and a dashboard watches: nothing is lost, nothing grows.
//!
//! `DROPHAMMER_CHAOS_SECONDS` says for how long; without it, long enough for some deaths.

// Whatever goes wrong in a test's own steps is its failure.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use drophammer_e2e::daemon::{Daemon, exchange, signal, write_model};
use drophammer_e2e::terminal::Terminal;
use drophammer_e2e::{Home, fixture};
use serde_json::{Value, json};

/// How long it goes on unless the environment says otherwise.
const USUAL: u64 = 12;
/// What a process may grow by from its first quarter to its last.
const SLACK: u64 = 24 << 20;

/// An encoder of two layers that knows letters.
fn write_encoder(directory: &Path) {
    std::fs::create_dir_all(directory).unwrap();
    let from = fixture("arch/bert");
    for name in ["config.json", "model.safetensors"] {
        std::fs::copy(from.join(name), directory.join(name)).unwrap();
    }
    let special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"].map(str::to_owned);
    let letters = ('a'..='z').map(String::from).chain(('a'..='z').map(|letter| format!("##{letter}")));
    let vocabulary: serde_json::Map<String, Value> =
        special.into_iter().chain(letters).zip(0..).map(|(word, id): (_, u32)| (word, json!(id))).collect();
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": {"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
                       "strip_accents": null, "lowercase": true},
        "pre_tokenizer": {"type": "BertPreTokenizer"}, "post_processor": null,
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true},
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                  "max_input_chars_per_word": 100, "vocab": vocabulary},
    });
    std::fs::write(directory.join("tokenizer.json"), tokenizer.to_string()).unwrap();
}

/// A kind of request, and how an answer to it ends.
#[derive(Clone, Copy)]
struct Kind {
    path: &'static str,
    body: fn(u64) -> Value,
    /// Whether a body of status 200 is a whole answer; an error says what else it is.
    whole: fn(&str) -> Result<bool, String>,
}

const KINDS: [Kind; 4] = [
    Kind { path: "/v1/chat/completions", body: chat, whole: streamed },
    Kind { path: "/v1/chat/completions", body: chat_of_the_source, whole: streamed },
    Kind { path: "/v1/completions", body: completion, whole: plain },
    Kind { path: "/v1/embeddings", body: embedding, whole: plain },
];

fn chat_with(model: &str, number: u64) -> Value {
    let said = format!("Speak of the number {number}.");
    json!({"model": model, "messages": [{"role": "user", "content": said}], "stream": true, "max_tokens": 40,
           "seed": number})
}

fn chat(number: u64) -> Value {
    chat_with("play", number)
}

fn chat_of_the_source(number: u64) -> Value {
    chat_with("play:source", number)
}

fn completion(number: u64) -> Value {
    json!({"model": "play", "prompt": "KING", "max_tokens": 10 + number % 20, "n": 1 + number % 2, "seed": number})
}

fn embedding(number: u64) -> Value {
    let texts: Vec<&str> = ["to be", "or not", "to be"].into_iter().take(1 + number as usize % 3).collect();
    json!({"model": "letters", "input": texts})
}

/// A stream is whole when its end was said; it ends otherwise only with an error that says why.
fn streamed(body: &str) -> Result<bool, String> {
    let last = body.lines().filter_map(|line| line.strip_prefix("data: ")).next_back();
    match last {
        Some("[DONE]") => Ok(true),
        Some(data) if is_error(data) => Ok(false),
        other => Err(format!("a stream ends with {other:?}")),
    }
}

fn plain(body: &str) -> Result<bool, String> {
    let answer: Value = serde_json::from_str(body).map_err(|error| format!("{error}: {body}"))?;
    let listed =
        ["choices", "data"].iter().any(|key| answer[key].as_array().is_some_and(|list| !list.is_empty()));
    if listed { Ok(true) } else { Err(body.to_owned()) }
}

fn is_error(text: &str) -> bool {
    serde_json::from_str::<Value>(text).is_ok_and(|error| error["error"]["message"].is_string())
}

#[derive(Default, Debug)]
struct Score {
    whole: u64,
    refused: u64,
    lost: Vec<String>,
}

/// Asks once and judges the answer.
fn ask(address: &str, kind: Kind, number: u64, score: &Mutex<Score>) {
    let verdict = match exchange(address, "POST", kind.path, Some(&(kind.body)(number)), &[]) {
        Err(error) => Err(format!("{error:#}")),
        Ok((head, body)) if head.starts_with("HTTP/1.1 200") => (kind.whole)(&body),
        Ok((_, body)) if is_error(&body) => Ok(false),
        Ok((head, body)) => Err(format!("{head}\n{body}")),
    };
    let mut score = score.lock().unwrap();
    match verdict {
        Ok(true) => score.whole += 1,
        Ok(false) => score.refused += 1,
        Err(lost) => score.lost.push(format!("{}: {lost}", kind.path)),
    }
}

/// Resident memory of a process.
fn memory(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

/// The middle of some readings.
fn middle(readings: &[u64]) -> u64 {
    let mut sorted = readings.to_vec();
    sorted.sort_unstable();
    sorted[sorted.len() / 2]
}

#[test]
fn requests_survive_the_deaths_of_workers_and_nothing_grows() {
    let seconds = std::env::var("DROPHAMMER_CHAOS_SECONDS").map_or(USUAL, |text| text.parse().unwrap());
    let pause = Duration::from_secs(if seconds < 60 { 1 } else { 5 });
    let settings = "[serve]\nport = 0\n[measure]\nenabled = false\n[targets]\ndefault = [\"gguf-q8_0\"]\n";
    let mut daemon = Daemon::start(Home::new(&[], settings).unwrap()).unwrap();
    write_model(&daemon.models().join("play")).unwrap();
    daemon.wait_for_model("play", "ready").unwrap();
    write_encoder(&daemon.models().join("letters"));
    daemon.wait_for_model("letters", "ready").unwrap();
    let address = daemon.address().unwrap();
    let scores: [Mutex<Score>; KINDS.len()] = Default::default();
    for (kind, score) in KINDS.iter().zip(&scores) {
        ask(&address, *kind, 0, score);
        assert_eq!(score.lock().unwrap().whole, 1, "{score:?}");
    }

    let mut dashboard = Terminal::start(daemon.home.command(&[]), 120, 34).unwrap();
    dashboard.wait_for("play").unwrap();
    let over = AtomicBool::new(false);
    let (mut deaths, mut readings) = (0u64, Vec::new());
    std::thread::scope(|scope| {
        for client in 0..2 * KINDS.len() {
            let (kind, score) = (KINDS[client % KINDS.len()], &scores[client % KINDS.len()]);
            let (over, address) = (&over, &address);
            scope.spawn(move || {
                for number in 1.. {
                    if over.load(Ordering::Relaxed) {
                        return;
                    }
                    ask(address, kind, number * 100 + client as u64, score);
                }
            });
        }
        let started = Instant::now();
        let mut next_death = pause;
        while started.elapsed() < Duration::from_secs(seconds) {
            std::thread::sleep(Duration::from_millis(100));
            dashboard.look();
            readings.push((memory(daemon.pid()), memory(dashboard.pid())));
            if started.elapsed() >= next_death {
                next_death += pause;
                let served = daemon.served().unwrap();
                if let Some((_, pid)) = served.get(deaths as usize % served.len().max(1)) {
                    // It may have ended by itself in the meantime.
                    deaths += u64::from(signal("KILL", *pid).is_ok());
                }
                let view = (b'1' + (deaths % 6) as u8) as char;
                dashboard.press(&view.to_string()).unwrap();
            }
        }
        over.store(true, Ordering::Relaxed);
    });

    let scores = scores.map(|score| score.into_inner().unwrap());
    for (kind, score) in KINDS.iter().zip(&scores) {
        assert!(score.lost.is_empty(), "{}: {:#?}", kind.path, score.lost);
        assert!(score.whole > 1, "{}: {score:?}", kind.path);
    }
    assert!(deaths > 1, "nobody died");
    assert!(daemon.is_alive());
    let log = std::fs::read_to_string(daemon.home.path().join("daemon.log")).unwrap();
    assert!(!log.contains("panicked"), "{log}");

    // Every request has been counted once, and none is left over.
    let (_, text) = daemon.control("GET", "/api/control/requests", None).unwrap();
    let counted: Value = serde_json::from_str(&text).unwrap();
    let count = |name: &str| counted[name].as_u64().unwrap();
    let (whole, refused) =
        scores.iter().fold((0, 0), |(whole, refused), score| (whole + score.whole, refused + score.refused));
    assert_eq!(
        (count("succeeded"), count("failed") + count("refused"), count("cancelled"), &counted["live"]),
        (whole, refused, 0, &json!([]))
    );
    // Everything is loaded again.
    for kind in KINDS {
        let score = Mutex::default();
        ask(&address, kind, 1, &score);
        assert_eq!(score.lock().unwrap().whole, 1, "{score:?}");
    }
    dashboard.press("6").unwrap();
    dashboard.wait_for("Requests").unwrap();
    dashboard.press("q").unwrap();
    assert!(dashboard.end().unwrap().success());

    let quarter = readings.len() / 4;
    let of = |pick: fn(&(u64, u64)) -> u64, from: usize| {
        let some: Vec<u64> = readings[from..from + quarter].iter().map(pick).collect();
        middle(&some)
    };
    for (name, pick) in
        [("daemon", (|both| both.0) as fn(&(u64, u64)) -> u64), ("dashboard", |both: &(u64, u64)| both.1)]
    {
        let (early, late) = (of(pick, quarter), of(pick, readings.len() - quarter));
        println!("{name}: {} kB in the second quarter, {} kB in the last", early >> 10, late >> 10);
        assert!(late < early + SLACK, "the {name} grew from {early} to {late} bytes");
    }
    println!(
        "{deaths} workers killed in {seconds} s; {whole} requests answered, {refused} cleanly refused, none lost"
    );
}
