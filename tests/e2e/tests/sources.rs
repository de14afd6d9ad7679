//! Sources that answer as they are, because what could be forged from them would be no smaller.

// Whatever goes wrong in a test's own steps is its failure.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use drophammer_client::routes;
use drophammer_e2e::daemon::Daemon;
use drophammer_e2e::{Home, fixture};
use serde_json::{Value, json};

fn targets(model: &Value) -> Vec<&str> {
    model["artifacts"].as_array().unwrap().iter().map(|it| it["target"].as_str().unwrap()).collect()
}

/// The model `small`, once it is ready, stored like this, and made of this.
fn made(daemon: &Daemon, scheme: &str, of: &[&str]) -> Value {
    let ready = |models: &Value| {
        let model = models["models"].as_array()?.iter().find(|model| model["name"] == "small")?;
        let stored = model["source"]["scheme"] == scheme;
        (model["state"] == "ready" && stored && targets(model) == of).then(|| model.clone())
    };
    daemon.wait(&["models"], ready).unwrap()
}

#[test]
fn a_source_that_nothing_is_gained_over_is_measured_as_it_is() {
    let home =
        Home::new(&[], "[serve]\nport = 0\n[targets]\ndefault = [\"gguf-q8_0\", \"gguf-q4_0\"]\n").unwrap();
    let outside = tempfile::tempdir().unwrap();
    let file = |scheme: &str| {
        let path = outside.path().join(scheme).with_extension("gguf");
        let source = fixture("shakespeare-llama").display().to_string();
        let place = path.display().to_string();
        let made = home.run(&["convert", &source, "--to", "gguf", "--scheme", scheme, "-o", &place]).unwrap();
        assert_eq!(made.code, 0, "{made:?}");
        path
    };
    let (eight, five) = (file("q8_0"), file("q5_0"));
    let mut daemon = Daemon::start(home).unwrap();

    daemon.drop_in(&eight, "small.gguf").unwrap();
    let model = made(&daemon, "q8_0", &["source", "gguf-q4_0"]);
    let source = &model["artifacts"][0];
    assert_eq!(source["api_name"], "small:source");
    assert_eq!(source["path"], model["source"]["path"], "nothing was made of it");
    assert_eq!(daemon.library().unwrap().len(), 1, "nor published");
    let measured = &source["measurements"];
    for known in ["perplexity", "prefill_tps", "decode_tps", "peak_memory_bytes"] {
        assert!(measured[known].as_f64().unwrap() > 0.0, "{known}: {source:#}");
    }
    assert_eq!((&measured["kl_mean"], &measured["top1"]), (&json!(0.0), &json!(1.0)));
    let best = model["artifacts"].as_array().unwrap().iter().filter(|it| it["best"] == true).count();
    assert_eq!(best, 1, "one of both answers for the model's name: {model:#}");
    let plan = daemon.home.json(&["plan", &eight.display().to_string(), "--target", "gguf-q8_0"]).unwrap();
    let planned = &plan["targets"][0];
    assert!(planned["supported"] == true && planned["reason"].as_str().unwrap().contains("q8_0"), "{plan:#}");

    // It is asked and held like an artifact, and stays the user's.
    let id = source["id"].as_str().unwrap();
    let order = |method: &str, route: &str| daemon.control(method, &route.replace("{id}", id), None).unwrap();
    assert_eq!(order("POST", routes::PIN_ARTIFACT).0, 200);
    let question = json!({"model": "small:source", "prompt": "KING", "max_tokens": 4});
    let (status, answer) = daemon.ask_json("POST", "/v1/completions", Some(&question)).unwrap();
    assert_eq!(status, 200, "{answer:#}");
    let (status, refused) = order("DELETE", routes::ARTIFACT);
    assert!(status == 409 && refused.contains("is_a_source"), "{status} {refused}");
    assert!(daemon.models().join("small.gguf").exists());

    // Remembered; measured anew where its files are others; made in spite of all where somebody asks for it by name.
    daemon.kill_and_restart().unwrap();
    assert_eq!(made(&daemon, "q8_0", &["source", "gguf-q4_0"]), model);
    std::fs::copy(&five, daemon.models().join("small.gguf")).unwrap();
    let other = made(&daemon, "q5_0", &["source", "gguf-q4_0"]);
    assert!(other["artifacts"][0]["id"] != source["id"], "{other:#}");
    assert_eq!(other["artifacts"][0]["scheme"], "q5_0");
    let ordered = daemon.home.run(&["forge", "small", "--target", "gguf-q8_0"]).unwrap();
    assert_eq!(ordered.code, 0, "{ordered:?}");
    made(&daemon, "q5_0", &["gguf-q8_0", "source", "gguf-q4_0"]);

    std::fs::remove_file(daemon.models().join("small.gguf")).unwrap();
    let missing = daemon.wait_for_model("small", "missing").unwrap();
    assert_eq!(targets(&missing), ["gguf-q8_0", "gguf-q4_0"]);
}
