//! What OpenVINO GenAI, the library that most programs load such directories with, makes of ours.

use std::path::{Path, PathBuf};
use std::process::Command;

use drophammer_sdk::{Session, most_likely};

use crate::fixture::{fixture, forge, load, run};

/// Tokens that are compared.
const COUNT: usize = 32;

/// Tokens of a prompt, and those that GenAI continues it with, in the precision of our reference mode.
fn theirs(packages: &Path, directory: &Path, prompt: &str) -> Option<(Vec<u32>, Vec<u32>)> {
    let script = fixture("../peers/openvino/genai.py");
    let output = Command::new("python3")
        .arg(script)
        .arg(directory)
        .args([prompt, &COUNT.to_string()])
        .env("PYTHONPATH", packages)
        .output()
        .unwrap();
    let (said, wrong) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if wrong.contains("No module named 'openvino_genai'") {
        eprintln!("skipped: there is no openvino_genai in {}", packages.display());
        return None;
    }
    assert!(output.status.success(), "{wrong}");
    let numbers = |what: &str| -> Vec<u32> {
        let line = said.lines().find_map(|line| line.strip_prefix(what)).unwrap();
        line.split(|c: char| !c.is_ascii_digit()).filter_map(|number| number.parse().ok()).collect()
    };
    Some((numbers("prompt "), numbers("tokens ")))
}

/// The most likely tokens, one after another.
fn greedy(session: &mut dyn Session, prompt: &[u32]) -> Vec<u32> {
    let width = session.limits().output_width as usize;
    let mut logits = run(session, 0, 0, prompt);
    let mut chosen = Vec::new();
    for position in prompt.len().. {
        let row = &logits[logits.len() - width..];
        let best = most_likely(row).unwrap() as u32;
        chosen.push(best);
        if chosen.len() == COUNT {
            break;
        }
        logits = run(session, 0, position as u32, &[best]);
    }
    chosen
}

#[test]
#[ignore = "needs the OpenVINO runtime: `cargo xtask test` provides it"]
fn openvino_genai_continues_with_the_same_tokens() {
    let Some(packages) = std::env::var_os("DROPHAMMER_CLIENTS").map(PathBuf::from) else {
        eprintln!("skipped: DROPHAMMER_CLIENTS names no directory with openvino_genai");
        return;
    };
    let shakespeare = (fixture("shakespeare-llama"), "KING RICHARD:\nMy lord, I");
    let smollm2 = std::env::var_os("DROPHAMMER_SMOLLM2");
    let smollm2 = smollm2.map(|path| (PathBuf::from(path), "The capital of France is"));
    for (source, prompt) in [Some(shakespeare), smollm2].into_iter().flatten() {
        for scheme in ["fp16", "int8_asym", "int8_sym"] {
            let made = tempfile::tempdir().unwrap();
            forge(&source, scheme, false, made.path());
            let Some((tokens, mut due)) = theirs(&packages, made.path(), prompt) else { return };
            let mut ours = greedy(load(made.path(), 1).as_mut(), &tokens);
            // GenAI stops at an end-of-text token, which it does not tell.
            ours.truncate(due.len());
            due.truncate(ours.len());
            assert!(due.len() > 8, "{due:?}");
            assert_eq!(ours, due, "{} at {scheme}", source.display());
        }
    }
}
