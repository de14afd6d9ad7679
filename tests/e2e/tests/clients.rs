//! The server as its clients use it: the official ones' own calls, keys, encryption, figures.

// Whatever goes wrong in a test's own steps is its failure.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::PathBuf;
use std::process::Command;

use drophammer_e2e::daemon::{Daemon, counting};
use drophammer_e2e::{Home, fixture, root};

/// Where `cargo xtask test` keeps the clients.
fn packages() -> Option<PathBuf> {
    let found = std::env::var_os("DROPHAMMER_CLIENTS").map(PathBuf::from);
    if found.is_none() {
        eprintln!(
            "skipped: DROPHAMMER_CLIENTS names no directory with the clients (cargo xtask test makes it)"
        );
    }
    found
}

fn script(packages: &std::path::Path, name: &str, arguments: &[&str], environment: &[(&str, &str)]) {
    let output = Command::new("python3")
        .arg(root().join("tests/e2e/clients").join(name))
        .args(arguments)
        .env("PYTHONPATH", packages)
        .envs(environment.iter().copied())
        .output()
        .unwrap();
    assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A daemon with a model as it was dropped, and a real encoder where there is one; little is made of them.
fn served(model: &std::path::Path, settings: &str) -> (Daemon, Vec<&'static str>) {
    let home = Home::new(
        &[],
        &format!("[measure]\nenabled = false\n[targets]\ndefault = [\"gguf-q4_0\"]\n{settings}"),
    )
    .unwrap();
    let daemon = Daemon::start(home).unwrap();
    let mut models = vec!["chat"];
    let name = if model.is_dir() { "chat" } else { "chat.gguf" };
    std::os::unix::fs::symlink(model, daemon.models().join(name)).unwrap();
    daemon.wait_for_model("chat", "ready").unwrap();
    if let Some(encoder) = std::env::var_os("DROPHAMMER_MINILM") {
        std::os::unix::fs::symlink(encoder, daemon.models().join("minilm")).unwrap();
        daemon.wait_for_model("minilm", "ready").unwrap();
        models.push("minilm");
    }
    (daemon, models)
}

fn url(daemon: &Daemon) -> String {
    daemon.home.json(&["status"]).unwrap()["server"]["url"].as_str().unwrap().to_owned()
}

#[test]
fn the_official_openai_client_chats() {
    let Some(packages) = packages() else { return };
    let daemon = counting(&[]).unwrap();
    script(&packages, "openai_chat.py", &[&url(&daemon), "model"], &[]);
}

#[test]
fn the_official_openai_client_uses_tools_schemas_responses_and_embeddings() {
    let Some(packages) = packages() else { return };
    let Some(model) = std::env::var_os("DROPHAMMER_SMOLLM2") else {
        eprintln!("skipped: DROPHAMMER_SMOLLM2 names no file (cargo xtask fetch smollm2)");
        return;
    };
    let (daemon, models) = served(model.as_ref(), "[serve]\nport = 0\n");
    script(&packages, "openai_more.py", &[&[url(&daemon).as_str(), "none"], &models[..]].concat(), &[]);
}

#[test]
fn ollamas_own_client_is_answered() {
    let Some(packages) = packages() else { return };
    let (daemon, models) = served(&fixture("shakespeare-llama"), "[serve]\nport = 0\n");
    let url = url(&daemon);
    let base = url.strip_suffix("/v1").unwrap();
    script(&packages, "ollama_calls.py", &[&[base], &models[..]].concat(), &[]);
}

#[test]
fn from_the_first_key_on_every_request_over_tcp_needs_one() {
    let daemon = counting(&[]).unwrap();
    let status = |path: &str| daemon.ask("GET", path, None).unwrap().0;
    assert_eq!(status("/v1/models"), 200);
    let key = daemon.home.run(&["key", "add", "laptop"]).unwrap();
    assert_eq!(key.code, 0, "{key:?}");
    for (path, expected) in
        [("/v1/models", 401), ("/api/tags", 401), ("/metrics", 401), ("/health", 204), ("/ready", 204)]
    {
        assert_eq!(status(path), expected, "{path}");
    }
    let with = |key: &str| {
        daemon.ask_with("GET", "/v1/models", None, &[("Authorization", &format!("Bearer {key}"))])
    };
    assert_eq!(with(key.stdout.trim()).unwrap().0, 200);
    let (refused, why) = with("dh-wrong").unwrap();
    assert!(refused == 401 && why.contains("invalid_api_key"), "{why}");
    assert_eq!(daemon.home.json(&["key", "list"]).unwrap()[0]["name"], "laptop");
    assert_eq!(daemon.home.run(&["key", "remove", "nobody"]).unwrap().code, 1);
    assert_eq!(daemon.home.run(&["key", "remove", "laptop"]).unwrap().code, 0);
    assert_eq!(status("/v1/models"), 200);
}

#[test]
fn another_address_needs_a_certificate_and_a_key() {
    let open = Home::new(&[], "[serve]\naddress = \"0.0.0.0\"\nport = 0\n").unwrap();
    let refused = open.run(&["daemon"]).unwrap();
    assert!(refused.code == 1 && refused.stderr.contains("[serve.tls]"), "{refused:?}");
    let pair = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let tls =
        "[serve]\naddress = \"0.0.0.0\"\nport = 0\n[serve.tls]\ncertificate = \"c.pem\"\nkey = \"k.pem\"\n";
    let home = Home::new(&[], tls).unwrap();
    std::fs::write(home.path().join("c.pem"), pair.cert.pem()).unwrap();
    std::fs::write(home.path().join("k.pem"), pair.signing_key.serialize_pem()).unwrap();
    let refused = home.run(&["daemon"]).unwrap();
    assert!(refused.code == 1 && refused.stderr.contains("drophammer key add"), "{refused:?}");
    let key = home.run(&["key", "add", "far"]).unwrap().stdout;
    let certificate = home.path().join("c.pem").display().to_string();
    let daemon = Daemon::start(home).unwrap();
    let Some(packages) = packages() else { return };
    daemon.drop_in(&fixture("shakespeare-llama"), "shakespeare").unwrap();
    daemon.wait(&["models"], |found| found["models"][0]["name"].as_str().map(|_| ())).unwrap();
    let url = url(&daemon);
    let port = url.rsplit(':').next().unwrap().strip_suffix("/v1").unwrap().to_owned();
    assert!(url.starts_with("https://"), "{url}");
    let url = format!("https://localhost:{port}/v1");
    script(
        &packages,
        "openai_models.py",
        &[&url, key.trim(), "shakespeare"],
        &[("SSL_CERT_FILE", &certificate)],
    );
}

#[test]
fn pages_of_named_origins_may_ask_and_figures_are_told() {
    let home =
        Home::new(&[], "[serve]\nport = 0\norigins = [\"http://page.example\"]\nbody_limit_bytes = 2000\n")
            .unwrap();
    let daemon = Daemon::start(home).unwrap();
    let from = |origin: &str| {
        let headers = [("Origin", origin), ("Access-Control-Request-Method", "POST")];
        daemon.exchange("OPTIONS", "/v1/chat/completions", None, &headers).unwrap().0
    };
    assert!(from("http://page.example").contains("access-control-allow-origin: http://page.example"));
    assert!(!from("http://other.example").contains("access-control-allow-origin"));
    let long = serde_json::json!({"model": "m", "input": "x".repeat(3000)});
    assert_eq!(daemon.ask("POST", "/v1/embeddings", Some(&long)).unwrap().0, 413);
    let missing = serde_json::json!({"model": "nobody", "messages": [{"role": "user", "content": "x"}]});
    assert_eq!(daemon.ask("POST", "/v1/chat/completions", Some(&missing)).unwrap().0, 404);
    let (status, page) = daemon.ask("GET", "/metrics", None).unwrap();
    assert!(status == 200 && page.contains("drophammer_requests_total{outcome=\"failed\"} 1"), "{page}");
}
