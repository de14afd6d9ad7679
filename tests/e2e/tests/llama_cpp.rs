//! Two engines beside each other: what one makes the other runs, by path and through a daemon.

// Whatever goes wrong in a test's own steps is its failure.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use drophammer_client::routes;
use drophammer_e2e::daemon::Daemon;
use drophammer_e2e::{Home, fixture};
use drophammer_formats::Source;
use serde_json::Value;

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

#[test]
fn whoever_is_measured_to_be_faster_serves() {
    let settings =
        "[serve]\nport = 0\n[measure]\nall_backends = true\n[targets]\ndefault = [\"gguf-q8_0\"]\n";
    let daemon = Daemon::start(Home::new(&[], settings).unwrap()).unwrap();
    daemon.drop_in(&fixture("shakespeare-llama"), "model").unwrap();
    let job = daemon.wait_for_job(Some("gguf-q8_0"), &["succeeded", "failed"]).unwrap();
    let log = routes::JOB_LOG.replace("{id}", job["id"].as_str().unwrap());
    let log: Value = serde_json::from_str(&daemon.control("GET", &log, None).unwrap().1).unwrap();
    let decode = |backend: &str| -> f64 {
        let mut lines = log["lines"].as_array().unwrap().iter().filter_map(|line| line["message"].as_str());
        let told = lines.find_map(|line| line.strip_prefix(backend)?.strip_prefix(": prefill"));
        let speed = told.and_then(|told| told.split("decode ").nth(1)?.split(' ').next());
        speed.unwrap_or_else(|| panic!("{backend} was not measured: {log:#}")).parse().unwrap()
    };
    let speeds = ["native", "llama-cpp"].map(|backend| (backend, decode(backend)));
    let (faster, speed) = speeds.into_iter().max_by(|a, b| a.1.total_cmp(&b.1)).unwrap();
    let artifact = &daemon.wait_for_model("model", "ready").unwrap()["artifacts"][0];
    assert_eq!(artifact["backend"], faster, "{artifact:#}");
    assert!((artifact["measurements"]["decode_tps"].as_f64().unwrap() - speed).abs() < 0.1, "{artifact:#}");
    let said = daemon.home.run(&["run", "model", PROMPT, "--raw", "-n", "4"]).unwrap();
    assert_eq!(said.code, 0, "{said:?}");
    let served = daemon.control("GET", routes::SERVED, None).unwrap().1;
    assert!(served.contains(&format!("\"backend\":\"{faster}\"")), "{served}");
}

/// Numbers of one tensor of a safetensors file, each of four bytes.
fn floats(file: &std::path::Path, tensor: &str) -> Vec<f32> {
    let source = Source::open(file).unwrap();
    let bytes = source.bytes(source.tensor(tensor).unwrap());
    bytes.chunks_exact(4).map(|four| f32::from_le_bytes(four.try_into().unwrap())).collect()
}

#[test]
fn an_adapter_is_merged_into_what_is_made_and_attached_to_what_runs() {
    let home = Home::new(&[], "").unwrap();
    let at = |name: &str| home.path().join(name).display().to_string();
    let (base, adapter) = (fixture("packed/lora"), fixture("packed/lora/adapter").display().to_string());
    let (source, tokens) =
        (base.display().to_string(), base.join("reference.safetensors").display().to_string());
    let due = floats(&base.join("reference.safetensors"), "logits");
    let with = ["--adapter", adapter.as_str()];
    for (name, more) in [("merged.gguf", &with[..]), ("plain.gguf", &[])] {
        let file = at(name);
        let common = ["convert", &source, "--to", "gguf", "--scheme", "f32", "--no-tokenizer", "-o", &file];
        let made = home.run(&[&common[..], more].concat()).unwrap();
        assert_eq!(made.code, 0, "{made:?}");
    }
    for (name, backend, more) in [
        ("merged.gguf", "native", &[][..]),
        ("plain.gguf", "native", &with),
        ("plain.gguf", "llama-cpp", &with),
    ] {
        let (file, out) = (at(name), at("out.safetensors"));
        let common = ["logits", &file, "--tokens", &tokens, "--backend", backend, "-o", &out];
        let told = home.run(&[&common[..], more].concat()).unwrap();
        assert_eq!(told.code, 0, "{told:?}");
        let found = floats(out.as_ref(), "logits");
        assert_eq!(found.len(), due.len());
        let most = found.iter().zip(&due).fold(0.0_f32, |most, (a, b)| most.max((a - b).abs()));
        assert!(most < 1e-3, "{name} {backend} {more:?}: {most}");
    }
}

#[test]
fn a_dry_run_tells_and_writes_nothing() {
    let home = Home::new(&[], "").unwrap();
    let path = home.path().join("model.gguf").display().to_string();
    let source = fixture("shakespeare-llama").display().to_string();
    let upstream = ["--backend", "llama-cpp", "--option", "engine=upstream", "--option", "dry_run=true"];
    for (more, told) in [(&["--dry-run"][..], "in one pass"), (&upstream, "as q6_k")] {
        let common = ["quantize", &source, "--scheme", "q4_k_m", "-o", &path];
        let dry = home.run(&[&common[..], more].concat()).unwrap();
        assert_eq!(dry.code, 0, "{dry:?}");
        assert!(dry.stdout.contains(told), "{dry:?}");
        assert!(!home.path().join("model.gguf").exists());
    }
}
