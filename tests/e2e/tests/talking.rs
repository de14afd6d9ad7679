//! Talking with models as people do: by path without a daemon, by name through one.

// Whatever goes wrong in a test's own steps is its failure.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::io::Write as _;
use std::path::PathBuf;
use std::process::Stdio;

use drophammer_e2e::daemon::{Daemon, counting};
use drophammer_e2e::{Home, fixture, root};

const QUESTION: &str = "What is the capital of France?";
const ANSWER: &str = "The capital of France is Paris";

/// The real chat model that `cargo xtask test` fetches.
fn smollm2() -> Option<PathBuf> {
    let found = std::env::var_os("DROPHAMMER_SMOLLM2").map(PathBuf::from);
    if found.is_none() {
        eprintln!("skipped: DROPHAMMER_SMOLLM2 names no file (cargo xtask fetch smollm2)");
    }
    found
}

#[test]
fn a_model_answers_by_its_path_without_a_daemon() {
    let home = Home::new(&[], "").unwrap();
    let model = fixture("shakespeare-llama").display().to_string();
    let settings = ["--raw", "--temperature", "0", "-n", "16"];
    let asked = home.run(&[&["run", &model, "KING RICHARD:\n"][..], &settings].concat()).unwrap();
    assert_eq!(asked.code, 0, "{asked:?}");
    assert!(asked.stdout.trim().len() > 10, "{asked:?}");

    let mut piped = home
        .command(&[&["run", &model][..], &settings].concat())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    piped.stdin.take().unwrap().write_all(b"KING RICHARD:\n").unwrap();
    let output = piped.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), asked.stdout, "the same question piped in");

    let seeded = || {
        let hot = ["run", &model, "ROMEO:", "--raw", "--temperature", "1.2", "--seed", "5", "-n", "12"];
        home.run(&hot).unwrap().stdout
    };
    assert_eq!(seeded(), seeded(), "a seed makes it repeatable");
}

#[test]
fn what_cannot_be_talked_to_is_told_with_its_exit_code() {
    let home = Home::new(&[], "").unwrap();
    let model = fixture("shakespeare-llama").display().to_string();
    let readme = root().join("README.md").display().to_string();
    for (arguments, code, word) in [
        (&["run", "nobody", "hello"][..], 1, "no daemon"),
        (&["run", "/nowhere/at/all", "hello"], 1, "/nowhere/at/all"),
        (&["run", &readme, "hello"], 3, "README.md"),
        (&["run", &model, "hello", "--backend", "nobody"], 2, "nobody"),
        (&["run", &model, "hello", "-n", "0"], 2, "--tokens"),
        (&["run", &model], 2, "no prompt"),
    ] {
        let output = home.command(arguments).stdin(Stdio::null()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
        assert!(said.contains(word), "{arguments:?}: {said}");
    }
}

#[test]
fn a_served_model_answers_by_name_and_its_artifact_through_another_worker_by_backend() {
    let daemon = counting(&[]).unwrap();
    let ask = |more: &[&str]| {
        let settings = ["--temperature", "0", "-n", "6"];
        daemon.home.run(&[&["run", "model", "Speak."][..], &settings, more].concat()).unwrap()
    };
    for more in [&[][..], &["--raw"]] {
        let answer = ask(more);
        assert_eq!(answer.code, 0, "{answer:?}");
        assert!(!answer.stdout.trim().is_empty(), "{answer:?}");
    }
    // An artifact of this plugin brings no tokenizer, so a worker on its own says so instead of guessing.
    let alone = ask(&["--backend", "faulty"]);
    assert_eq!(alone.code, 3, "{alone:?}");
    let unknown = daemon.home.run(&["run", "nobody", "hello"]).unwrap();
    assert_eq!(unknown.code, 1);
    assert!(unknown.stderr.contains("nobody") && unknown.stderr.contains("model:counts"), "{unknown:?}");
}

#[test]
fn a_real_chat_model_answers_as_it_was_dropped() {
    let Some(path) = smollm2() else { return };
    let name = path.display().to_string();
    let home = Home::new(&[], "").unwrap();
    let asked = home.run(&["run", &name, QUESTION, "--temperature", "0", "-n", "24"]).unwrap();
    assert!(asked.stdout.contains(ANSWER), "by path: {asked:?}");

    // Nothing is to be made of it: what answers is the source.
    let settings = "[serve]\nport = 0\n[targets]\ndefault = [\"faulty-patient\"]\n";
    let home = Home::faulty(settings).unwrap();
    std::fs::create_dir(home.path().join("targets")).unwrap();
    let target = "[[target]]\nname = \"faulty-patient\"\nformat = \"faulty\"\nscheme = \"patient\"\n";
    std::fs::write(home.path().join("targets/faulty.toml"), target).unwrap();
    let daemon = Daemon::start(home).unwrap();
    std::os::unix::fs::symlink(&path, daemon.models().join("smollm2.gguf")).unwrap();
    daemon.wait_for_job(Some("faulty-patient"), &["running"]).unwrap();
    for model in ["smollm2", "smollm2:source"] {
        let asked = daemon.home.run(&["run", model, QUESTION, "--temperature", "0", "-n", "24"]).unwrap();
        assert!(asked.stdout.contains(ANSWER), "{model}: {asked:?}");
    }
    let (_, models) = daemon.ask_json("GET", "/v1/models", None).unwrap();
    assert!(models.to_string().contains("smollm2:source"), "{models:#}");
    let served = daemon.control("GET", "/api/control/served", None).unwrap().1;
    assert!(served.contains("smollm2:source") && served.contains("native"), "{served}");
}
