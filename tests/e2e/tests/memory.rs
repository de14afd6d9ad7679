//! Several models within one budget of memory: who comes, who goes, who stays, and who is refused.

// Whatever goes wrong in a test's own steps is its failure.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use drophammer_e2e::daemon::{Daemon, counting_with, signal};
use serde_json::{Value, json};

/// Enough for one model: its weights and what it takes beside them.
const FOR_ONE: &str = "memory_bytes = 400000000";

/// A second model that answers, as long as nobody wants more than a token of it.
const OTHER: &str = "segfault";

fn ask(daemon: &Daemon, model: &str, tokens: u32) -> (u16, Value) {
    let body = json!({"model": model, "prompt": [5, 6, 7], "max_tokens": tokens, "temperature": 0});
    daemon.ask_json("POST", "/v1/completions", Some(&body)).unwrap()
}

fn loaded(daemon: &Daemon) -> Vec<String> {
    daemon.served().unwrap().into_iter().map(|(name, _)| name).collect()
}

/// The id of the artifact with this name.
fn artifact(daemon: &Daemon, api_name: &str) -> String {
    let find = |models: &Value| {
        let artifacts = models.pointer("/models/0/artifacts")?.as_array()?;
        let found = artifacts.iter().find(|artifact| artifact["api_name"] == api_name)?;
        found["id"].as_str().map(str::to_owned)
    };
    daemon.wait(&["models"], find).unwrap()
}

#[test]
fn the_model_unused_longest_makes_room_for_another() {
    let daemon = counting_with(&[OTHER], FOR_ONE).unwrap();
    for model in ["model:counts", "model:segfault", "model:counts"] {
        let (status, answer) = ask(&daemon, model, 1);
        assert_eq!(status, 200, "{answer:#}");
        assert_eq!(loaded(&daemon), [model], "only one fits");
    }
    let status = daemon.home.json(&["status"]).unwrap();
    assert_eq!(status["workers"].as_array().unwrap().len(), 1, "{status:#}");
}

#[test]
fn an_answer_in_progress_is_never_cut_off_for_another_model() {
    let daemon = counting_with(&[OTHER], FOR_ONE).unwrap();
    assert_eq!(ask(&daemon, "model:counts", 1).0, 200);
    let (_, pid) = daemon.served().unwrap().remove(0);
    // It holds its answer back until it may go on.
    signal("STOP", pid).unwrap();
    std::thread::scope(|scope| {
        let long = scope.spawn(|| ask(&daemon, "model:counts", 60));
        let live = |count: usize| {
            move |requests: &Value| (requests["live"].as_array()?.len() == count).then_some(())
        };
        daemon.watch("/api/control/requests", live(1)).unwrap();
        let other = scope.spawn(|| ask(&daemon, "model:segfault", 1));
        let draining = |served: &Value| {
            let models = served["models"].as_array()?;
            models.iter().any(|model| model["state"] == "draining").then_some(())
        };
        daemon.watch("/api/control/served", draining).unwrap();
        daemon.watch("/api/control/requests", live(2)).unwrap();
        signal("CONT", pid).unwrap();
        let (status, answer) = long.join().unwrap();
        assert_eq!((status, &answer["usage"]["completion_tokens"]), (200, &json!(60)), "{answer:#}");
        let (status, answer) = other.join().unwrap();
        assert_eq!(status, 200, "{answer:#}");
    });
    assert_eq!(loaded(&daemon), ["model:segfault"]);
}

#[test]
fn a_model_that_can_never_fit_is_refused_with_the_figures() {
    let daemon = counting_with(&[], "memory_bytes = 200000000").unwrap();
    let (status, answer) = ask(&daemon, "model:counts", 1);
    assert_eq!((status, &answer["error"]["code"]), (422, &json!("model_too_large")), "{answer:#}");
    let message = answer["error"]["message"].as_str().unwrap();
    assert!(message.contains("268 MB") && message.contains("200 MB"), "{message}");
    let id = artifact(&daemon, "model:counts");
    let (status, answer) =
        daemon.control("POST", &format!("/api/control/artifacts/{id}/serve"), None).unwrap();
    assert!(status == 409 && answer.contains("268 MB"), "{status} {answer}");
    assert!(loaded(&daemon).is_empty());
}

#[test]
fn what_a_model_took_while_it_was_measured_is_what_it_needs() {
    let mut daemon = counting_with(&[], FOR_ONE).unwrap();
    assert_eq!(ask(&daemon, "model:counts", 1).0, 200);
    let manifest = daemon.library().unwrap().remove(0).join("manifest.json");
    let mut measured: Value = serde_json::from_slice(&std::fs::read(&manifest).unwrap()).unwrap();
    measured["measurements"]["peak_memory_bytes"] = json!(500_000_000);
    std::fs::write(&manifest, measured.to_string()).unwrap();
    daemon.kill_and_restart().unwrap();
    let (status, answer) = ask(&daemon, "model:counts", 1);
    assert_eq!((status, &answer["error"]["code"]), (422, &json!("model_too_large")), "{answer:#}");
    assert!(answer["error"]["message"].as_str().unwrap().contains("768 MB"), "{answer:#}");
}

#[test]
fn a_pinned_model_stays_over_restarts_too_until_its_pin_is_taken_back() {
    let mut daemon = counting_with(&[OTHER], FOR_ONE).unwrap();
    let id = artifact(&daemon, "model:counts");
    let pin = format!("/api/control/artifacts/{id}/pin");
    let (status, answer) = daemon.control("POST", &pin, None).unwrap();
    assert_eq!(status, 200, "{answer}");
    let pinned = |served: &Value| {
        let model = served.pointer("/models/0")?;
        (model["state"] == "ready" && model["pinned"] == true).then_some(())
    };
    daemon.watch("/api/control/served", pinned).unwrap();
    let (status, answer) = ask(&daemon, "model:segfault", 1);
    assert_eq!(status, 422, "{answer:#}");
    assert!(answer["error"]["message"].as_str().unwrap().contains("pinned"), "{answer:#}");

    daemon.kill_and_restart().unwrap();
    // Nobody asks for it.
    daemon.watch("/api/control/served", pinned).unwrap();
    assert_eq!(daemon.control("DELETE", &pin, None).unwrap().0, 204);
    let (status, answer) = ask(&daemon, "model:segfault", 1);
    assert_eq!(status, 200, "{answer:#}");
    assert_eq!(loaded(&daemon), ["model:segfault"]);
}

#[test]
fn what_the_configuration_pins_only_the_configuration_releases() {
    let settings = format!("{FOR_ONE}\npinned = [\"model:counts\"]");
    let mut daemon = counting_with(&[], &settings).unwrap();
    let id = artifact(&daemon, "model:counts");
    daemon.kill_and_restart().unwrap();
    let pinned = |served: &Value| (served.pointer("/models/0/pinned")? == true).then_some(());
    daemon.watch("/api/control/served", pinned).unwrap();
    let (status, answer) =
        daemon.control("DELETE", &format!("/api/control/artifacts/{id}/pin"), None).unwrap();
    assert!(status == 409 && answer.contains("serve.pinned"), "{status} {answer}");
}
