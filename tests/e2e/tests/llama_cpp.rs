//! Two engines beside each other: what one makes the other runs, by path and through a daemon.

// Whatever goes wrong in a test's own steps is its failure.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use drophammer_e2e::daemon::Daemon;
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

#[test]
fn a_daemon_has_llama_cpp_quantize_and_serves_what_came_out() {
    let settings = "[serve]\nport = 0\n[measure]\nenabled = false\n[targets]\ndefault = [\"theirs\"]\n";
    let home = Home::new(&[], settings).unwrap();
    std::fs::create_dir(home.path().join("targets")).unwrap();
    let target = "[[target]]\nname = \"theirs\"\nformat = \"gguf\"\nscheme = \"q4_0\"\nbackend = \"llama-cpp\"\n\
                  options = { engine = \"upstream\" }\n";
    std::fs::write(home.path().join("targets/theirs.toml"), target).unwrap();
    let daemon = Daemon::start(home).unwrap();
    daemon.drop_in(&fixture("shakespeare-llama"), "model").unwrap();
    daemon.wait_for_job(Some("theirs"), &["succeeded"]).unwrap();
    let models = daemon.home.json(&["models"]).unwrap();
    let artifact = &models["models"][0]["artifacts"][0];
    assert_eq!(artifact["backend"], "llama-cpp", "{models:#}");
    let settings = ["--raw", "--temperature", "0", "-n", "8"];
    let said = daemon.home.run(&[&["run", "model", PROMPT][..], &settings].concat()).unwrap();
    assert!(said.code == 0 && said.stdout.trim().len() > 4, "{said:?}");
}
