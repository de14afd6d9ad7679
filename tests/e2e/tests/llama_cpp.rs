//! Two engines beside each other: what one makes the other runs.

// Whatever goes wrong in a test's own steps is its failure.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use drophammer_e2e::{Home, fixture};

const PROMPT: &str = "KING RICHARD:\n";

#[test]
fn a_file_goes_on_the_same_by_either_engine_and_its_options_are_read() {
    let home = Home::new(&[], "[plugins.llama-cpp]\nkv_type = \"f32\"\n").unwrap();
    let path = home.path().join("model.gguf").display().to_string();
    let source = fixture("shakespeare-llama").display().to_string();
    let made = home.run(&["convert", &source, "--to", "gguf", "--scheme", "f16", "-o", &path]).unwrap();
    assert_eq!(made.code, 0, "{made:?}");
    let ask = |home: &Home, backend: &str| {
        let settings = ["--raw", "--temperature", "0", "-n", "24", "--backend", backend];
        home.run(&[&["run", &path, PROMPT][..], &settings].concat()).unwrap()
    };
    let (ours, theirs) = (ask(&home, "native"), ask(&home, "llama-cpp"));
    assert_eq!((ours.code, theirs.code), (0, 0), "{theirs:?}");
    assert_eq!(ours.stdout, theirs.stdout);
    let wrong = Home::new(&[], "[plugins.llama-cpp]\nkv_type = \"f17\"\n").unwrap();
    let refused = ask(&wrong, "llama-cpp");
    assert_ne!(refused.code, 0);
    assert!(refused.stderr.contains("kv_type") && refused.stderr.contains("q8_0"), "{refused:?}");
}
