//! The control API as its document describes it: every route is there and answers.

// Whatever goes wrong in a test's own steps is its failure.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use drophammer_client::routes;
use drophammer_e2e::daemon::{Daemon, write_model};
use serde_json::{Value, json};

#[test]
fn every_route_that_clients_know_answers() {
    let daemon = Daemon::misbehaving(&["obey", "refuse"], "").unwrap();
    write_model(&daemon.models().join("tiny")).unwrap();
    let model = daemon.wait_for_model("tiny", "ready").unwrap();
    let artifact = model["artifacts"][0]["id"].as_str().unwrap();
    let job = daemon.wait_for_job(Some("faulty-refuse"), &["failed"]).unwrap();
    let job = job["id"].as_str().unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    write_model(&elsewhere.path().join("other")).unwrap();
    let path = elsewhere.path().join("other").display().to_string();
    // The artifact is deleted and the daemon stopped when everything else has answered.
    let (last, first): (Vec<_>, Vec<_>) = routes::ALL
        .iter()
        .copied()
        .partition(|&(method, route)| method == "DELETE" || route == routes::SHUTDOWN);
    let mut last = last;
    last.sort_by_key(|&(_, route)| (route == routes::SHUTDOWN, route == routes::ARTIFACT));
    for (method, route) in first.into_iter().chain(last) {
        let id = match route {
            routes::JOB | routes::JOB_LOG | routes::CANCEL_JOB | routes::RETRY_JOB => job,
            routes::RELOAD_PLUGIN | routes::PLUGIN_LOG => "faulty",
            _ => artifact,
        };
        let body = match route {
            routes::ADD_MODEL => json!({"path": path, "name": "other"}),
            routes::PLAN => json!({"path": path, "targets": ["faulty-obey"]}),
            routes::FORGE_MODEL => json!({"targets": ["faulty-refuse"]}),
            _ => Value::Null,
        };
        let (status, answer) = daemon
            .control(method, &route.replace("{id}", id).replace("{name}", "tiny"), Some(&body))
            .unwrap_or_else(|error| panic!("{method} {route}: {error:#}"));
        // A job that has ended cannot be cancelled, which is an answer too.
        let answered = if route == routes::CANCEL_JOB { status == 409 } else { status < 300 };
        assert!(answered, "{method} {route}: {status} {answer}");
    }
}

#[test]
fn what_is_not_there_is_told_as_a_document_with_the_next_step() {
    let daemon = Daemon::misbehaving(&["obey"], "").unwrap();
    for (method, route) in [
        ("GET", routes::MODEL),
        ("GET", routes::MODEL_PLAN),
        ("POST", routes::FORGE_MODEL),
        ("GET", routes::JOB),
        ("GET", routes::JOB_LOG),
        ("POST", routes::CANCEL_JOB),
        ("DELETE", routes::ARTIFACT),
        ("POST", routes::SERVE_ARTIFACT),
        ("DELETE", routes::SERVE_ARTIFACT),
        ("POST", routes::PIN_ARTIFACT),
        ("DELETE", routes::PIN_ARTIFACT),
        ("POST", routes::RELOAD_PLUGIN),
        ("GET", routes::PLUGIN_LOG),
    ] {
        let path = route.replace("{id}", "999").replace("{name}", "999");
        let (status, answer) = daemon.control(method, &path, Some(&json!({"targets": []}))).unwrap();
        assert_eq!(status, 404, "{method} {route}: {answer}");
        let answer: Value = serde_json::from_str(&answer).unwrap();
        assert!(
            answer["error"]["code"].as_str().unwrap().starts_with("no_such"),
            "{method} {route}: {answer}"
        );
        assert!(answer["error"]["help"].is_string(), "{method} {route}: {answer}");
    }
}
