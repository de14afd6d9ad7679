//! The OpenAI-compatible server over a session whose answers are known: the plugin that misbehaves counts upwards from
//! the last token it was given, or does worse in its third forward pass.

// Whatever goes wrong in a test's own steps is its failure.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use drophammer_e2e::daemon::{counting, signal};
use serde_json::{Value, json};

fn completion(model: &str, extra: &Value) -> Value {
    let mut body = json!({"model": model, "prompt": [5, 6, 7], "max_tokens": 6, "temperature": 0});
    for (key, value) in extra.as_object().unwrap() {
        body[key] = value.clone();
    }
    body
}

#[test]
fn completions_and_chats_are_answered_whole_and_as_streams() {
    let daemon = counting(&[]).unwrap();
    let (status, whole) =
        daemon.ask_json("POST", "/v1/completions", Some(&completion("model", &json!({})))).unwrap();
    assert_eq!(status, 200, "{whole:#}");
    assert_eq!(whole["object"], "text_completion");
    assert_eq!(whole["choices"][0]["finish_reason"], "length");
    assert_eq!(
        whole["usage"],
        json!({
            "prompt_tokens": 3, "completion_tokens": 6, "total_tokens": 9,
            "prompt_tokens_details": {"cached_tokens": 0},
        })
    );

    let streamed =
        completion("model:counts", &json!({"stream": true, "stream_options": {"include_usage": true}}));
    let events = daemon.ask_stream("/v1/completions", &streamed).unwrap();
    assert_eq!(events.last().map(String::as_str), Some("[DONE]"));
    let chunks: Vec<Value> = events
        .iter()
        .filter(|data| *data != "[DONE]")
        .map(|data| serde_json::from_str(data).unwrap())
        .collect();
    let text: String =
        chunks.iter().filter_map(|chunk| chunk.pointer("/choices/0/text").and_then(Value::as_str)).collect();
    assert_eq!(
        Some(text.as_str()),
        whole["choices"][0]["text"].as_str(),
        "a stream says what the whole answer says"
    );
    assert_eq!(chunks.last().unwrap()["usage"]["completion_tokens"], 6);

    let chat = json!({"model": "model", "messages": [{"role": "user", "content": "Speak."}], "max_tokens": 4,
                      "logprobs": true, "top_logprobs": 2});
    let (status, answer) = daemon.ask_json("POST", "/v1/chat/completions", Some(&chat)).unwrap();
    assert_eq!(status, 200, "{answer:#}");
    assert_eq!(answer["choices"][0]["message"]["role"], "assistant");
    let logprobs = answer["choices"][0]["logprobs"]["content"].as_array().unwrap();
    assert_eq!((logprobs.len(), logprobs[0]["top_logprobs"].as_array().unwrap().len()), (4, 2));

    let (_, models) = daemon.ask_json("GET", "/v1/models", None).unwrap();
    let names: Vec<_> = models["data"].as_array().unwrap().iter().map(|model| model["id"].clone()).collect();
    // What else the plugins beside the program made of it may stand there too.
    assert!(["model", "model:counts"].iter().all(|name| names.iter().any(|id| id == name)), "{names:?}");
}

#[test]
fn clients_of_ollamas_api_are_answered_in_its_own_documents() {
    let daemon = counting(&[]).unwrap();
    let messages = json!([{"role": "user", "content": "Speak."}]);
    let ask = json!({"model": "model:latest", "messages": messages, "stream": false,
                     "options": {"num_predict": 5, "temperature": 0}});
    let (status, answer) = daemon.ask_json("POST", "/api/chat", Some(&ask)).unwrap();
    assert_eq!(
        (status, &answer["done"], &answer["eval_count"]),
        (200, &json!(true), &json!(5)),
        "{answer:#}"
    );
    assert_eq!(answer["message"]["role"], "assistant");

    let ask = json!({"model": "model", "prompt": "Speak.", "raw": true, "options": {"num_predict": 5}});
    let (_, text) = daemon.ask("POST", "/api/generate", Some(&ask)).unwrap();
    let lines: Vec<Value> =
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).filter(Value::is_object).collect();
    assert_eq!(lines.last().unwrap()["done_reason"], "length", "{text}");

    let (_, tags) = daemon.ask_json("GET", "/api/tags", None).unwrap();
    assert_eq!(tags["models"][0]["details"]["family"], "llama");
    let (status, answer) = daemon.ask_json("POST", "/api/show", Some(&json!({"model": "nobody"}))).unwrap();
    assert_eq!((status, answer["error"].is_string()), (404, true));
}

#[test]
fn senseless_requests_are_refused_in_openais_form() {
    let daemon = counting(&[]).unwrap();
    let body = |extra: Value| completion("model", &extra);
    for (path, body, status, word) in [
        ("/v1/completions", completion("nobody", &json!({})), 404, "model_not_found"),
        ("/v1/completions", body(json!({"max_tokens": 0})), 400, "max_tokens"),
        ("/v1/completions", body(json!({"temperature": -1})), 400, "temperature"),
        ("/v1/completions", body(json!({"prompt": [9_999_999]})), 400, "token"),
        ("/v1/completions", body(json!({"prompt": 7})), 400, "invalid_json"),
        ("/v1/chat/completions", json!({"model": "model", "messages": []}), 400, "messages"),
    ] {
        let (found, answer) = daemon.ask_json("POST", path, Some(&body)).unwrap();
        assert_eq!(found, status, "{answer:#}");
        assert!(answer["error"].to_string().contains(word), "{answer:#}");
    }
}

#[test]
fn a_worker_that_dies_mid_stream_ends_its_requests_with_an_error_and_nobody_elses() {
    let mut daemon = counting(&["segfault", "abort"]).unwrap();
    for way in ["segfault", "abort"] {
        // Twice: after the death of its worker a model is loaded anew.
        for _ in 0..2 {
            let ask = completion(&format!("model:{way}"), &json!({"stream": true, "max_tokens": 40}));
            let events = daemon.ask_stream("/v1/completions", &ask).unwrap();
            let last: Value = serde_json::from_str(events.last().unwrap()).unwrap();
            assert_eq!(last["error"]["type"], "server_error", "{events:?}");
            assert!(last["error"]["message"].as_str().unwrap().contains("SIG"), "{last:#}");
            let (status, answer) = daemon
                .ask_json("POST", "/v1/completions", Some(&completion("model:counts", &json!({}))))
                .unwrap();
            assert_eq!(status, 200, "{answer:#}");
        }
    }
    assert!(daemon.is_alive());
}

#[test]
fn a_killed_serving_worker_is_replaced_by_the_next_request() {
    let daemon = counting(&[]).unwrap();
    let ask = completion("model", &json!({}));
    for _ in 0..3 {
        let (status, answer) = daemon.ask_json("POST", "/v1/completions", Some(&ask)).unwrap();
        assert_eq!(status, 200, "{answer:#}");
        let status = daemon.home.json(&["status"]).unwrap();
        let workers = status["workers"].as_array().unwrap();
        let pid = workers.iter().find(|worker| worker["role"] == "serve").unwrap()["pid"].as_u64().unwrap();
        assert!(
            std::process::Command::new("kill").args(["-9", &pid.to_string()]).status().unwrap().success()
        );
        daemon
            .wait(&["status"], |status| {
                let workers = status["workers"].as_array()?;
                workers.iter().all(|worker| worker["pid"] != pid).then_some(())
            })
            .unwrap();
    }
}

#[test]
fn a_request_that_a_dying_worker_had_not_taken_goes_to_another() {
    let daemon = counting(&[]).unwrap();
    let ask = completion("model", &json!({}));
    let (_, expected) = daemon.ask_json("POST", "/v1/completions", Some(&ask)).unwrap();
    let (_, pid) = daemon.served().unwrap().remove(0);
    // A stopped worker takes nothing.
    signal("STOP", pid).unwrap();
    std::thread::scope(|scope| {
        let asked = scope.spawn(|| daemon.ask_json("POST", "/v1/completions", Some(&ask)).unwrap());
        let queued = |requests: &Value| (requests.pointer("/live/0/phase")? == "queued").then_some(());
        daemon.watch("/api/control/requests", queued).unwrap();
        signal("KILL", pid).unwrap();
        let (status, answer) = asked.join().unwrap();
        assert_eq!(status, 200, "{answer:#}");
        assert_eq!(answer["choices"], expected["choices"]);
    });
    assert_ne!(daemon.served().unwrap()[0].1, pid);
}
