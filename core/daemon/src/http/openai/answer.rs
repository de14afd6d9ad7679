//! What a model says, in OpenAI's words: whole, or as a stream of chunks.

use std::convert::Infallible;

use axum::Json;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use drophammer_client::routes;
use futures::{Stream, StreamExt as _};
use serde_json::{Value, json};

use super::refusal::Refusal;
use super::request::Style;
use super::{Shared, fresh_id, usage_document};
use crate::moment::now;
use crate::serving::{Answers, Ask, Logprobs, Said, TokenLogprob, Usage};

/// Which of the two completions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Chat,
    Text,
}

/// What every document of one answer begins with.
#[derive(Debug, Clone)]
struct Frame {
    kind: Kind,
    id: String,
    model: String,
    created: u64,
    style: Style,
}

/// Asks the model and answers the client.
pub(super) async fn give(
    daemon: &Shared,
    kind: Kind,
    model: String,
    ask: Ask,
    style: Style,
) -> Result<Response, Refusal> {
    let created = now();
    let id = fresh_id(if kind == Kind::Chat { "chatcmpl-" } else { "cmpl-" }, created);
    let choices = ask.choices;
    let route = if kind == Kind::Chat { routes::CHAT_COMPLETIONS } else { "/v1/completions" };
    let said = daemon.serving.ask(&id, route, &model, ask).await?;
    let frame = Frame { kind, id, model, created: created as u64, style };
    if style.stream { Ok(stream(frame, choices, said)) } else { whole(&frame, choices, said).await }
}

impl Frame {
    fn document(&self, chunk: bool, choices: Vec<Value>) -> Value {
        let object = match (self.kind, chunk) {
            (Kind::Chat, true) => "chat.completion.chunk",
            (Kind::Chat, false) => "chat.completion",
            (Kind::Text, _) => "text_completion",
        };
        json!({
            "id": self.id, "object": object, "created": self.created, "model": self.model, "choices": choices,
        })
    }

    /// One chunk's only choice.
    fn chunk(&self, choice: u32, delta: Value, text: &str, logprobs: Value, reason: Option<&str>) -> Value {
        let mut document = match self.kind {
            Kind::Chat => json!({"index": choice, "delta": delta}),
            Kind::Text => json!({"index": choice, "text": text}),
        };
        document["logprobs"] = logprobs;
        document["finish_reason"] = json!(reason);
        self.document(true, vec![document])
    }

    fn text_chunk(
        &self,
        choice: u32,
        text: &str,
        logprobs: Option<&Logprobs>,
        reason: Option<&str>,
    ) -> Value {
        let delta = if text.is_empty() { json!({}) } else { json!({"content": text}) };
        let listed = logprobs.filter(|_| self.style.logprobs);
        let listed =
            listed.map_or(Value::Null, |one| logprobs_document(self.kind, std::slice::from_ref(one)));
        self.chunk(choice, delta, text, listed, reason)
    }
}

fn stream(frame: Frame, choices: u32, said: Answers) -> Response {
    let documents = documents(frame, choices, said);
    let events = documents.map(|document| {
        let data = document.map_or_else(|| "[DONE]".to_owned(), |document| document.to_string());
        Ok::<_, Infallible>(Event::default().data(data))
    });
    Sse::new(events).keep_alive(KeepAlive::default()).into_response()
}

/// Every document of a stream; `None` is its proper end, which a stream that broke does not have.
fn documents(frame: Frame, choices: u32, said: Answers) -> impl Stream<Item = Option<Value>> {
    let mut teller =
        Teller { frame, open: choices, usage: Usage::default(), calls: vec![0; choices as usize] };
    let first = teller.begin();
    let rest = futures::stream::unfold(Some((teller, said)), |state| async move {
        let (mut teller, mut said) = state?;
        let documents = teller.hear(said.next().await);
        let over = teller.open == 0;
        Some((documents, (!over).then_some((teller, said))))
    });
    futures::stream::iter(first).chain(rest.flat_map(futures::stream::iter))
}

/// Tells an answer piece by piece.
#[derive(Debug)]
struct Teller {
    frame: Frame,
    /// Choices that are not complete; none after a failure.
    open: u32,
    usage: Usage,
    /// Calls told, for each choice.
    calls: Vec<usize>,
}

impl Teller {
    fn begin(&mut self) -> Vec<Option<Value>> {
        if self.frame.kind == Kind::Text {
            return Vec::new();
        }
        let delta = json!({"role": "assistant", "content": ""});
        let chunk = |choice| Some(self.frame.chunk(choice, delta.clone(), "", Value::Null, None));
        (0..self.open).map(chunk).collect()
    }

    fn hear(&mut self, said: Said) -> Vec<Option<Value>> {
        let frame = &self.frame;
        match said {
            Said::Started | Said::Embedded(_) => Vec::new(),
            Said::Token { text, logprobs: None, .. } if text.is_empty() => Vec::new(),
            Said::Token { choice, text, logprobs } => {
                vec![Some(frame.text_chunk(choice, &text, logprobs.as_ref(), None))]
            }
            Said::Call { choice, name, arguments } => {
                let count = &mut self.calls[choice as usize];
                let mut call = call_document(&frame.id, choice, *count, &name, &arguments);
                call["index"] = json!(*count);
                *count += 1;
                vec![Some(frame.chunk(choice, json!({"tool_calls": [call]}), "", Value::Null, None))]
            }
            Said::Finished { choice, text, reason, usage } => {
                add(&mut self.usage, &usage);
                let mut chunks = Vec::new();
                if !text.is_empty() {
                    chunks.push(Some(frame.text_chunk(choice, &text, None, None)));
                }
                chunks.push(Some(frame.text_chunk(choice, "", None, Some(&reason))));
                self.open = self.open.saturating_sub(1);
                if self.open == 0 {
                    if frame.style.include_usage {
                        let mut last = frame.document(true, Vec::new());
                        last["usage"] = usage_document(&self.usage);
                        chunks.push(Some(last));
                    }
                    chunks.push(None);
                }
                chunks
            }
            Said::Failed(error) => {
                self.open = 0;
                vec![Some(Refusal::from(error).document())]
            }
        }
    }
}

/// Choices share their prompt.
fn add(sum: &mut Usage, one: &Usage) {
    sum.prompt_tokens = one.prompt_tokens;
    sum.cached_tokens = sum.cached_tokens.max(one.cached_tokens);
    sum.completion_tokens += one.completion_tokens;
}

/// A call; its id is the answer's with its number.
fn call_document(id: &str, choice: u32, number: usize, name: &str, arguments: &str) -> Value {
    let id = id.split_once('-').map_or(id, |(_, rest)| rest);
    json!({
        "id": format!("call_{id}_{choice}_{number}"), "type": "function",
        "function": {"name": name, "arguments": arguments},
    })
}

#[derive(Debug, Clone, Default)]
struct Answer {
    text: String,
    calls: Vec<Value>,
    logprobs: Vec<Logprobs>,
    reason: Option<String>,
}

async fn whole(frame: &Frame, choices: u32, mut said: Answers) -> Result<Response, Refusal> {
    let mut answers = vec![Answer::default(); choices as usize];
    let mut usage = Usage::default();
    while answers.iter().any(|answer| answer.reason.is_none()) {
        let (choice, text) = match said.next().await {
            Said::Failed(error) => return Err(error.into()),
            Said::Started | Said::Embedded(_) => continue,
            Said::Call { choice, name, arguments } => {
                if let Some(answer) = answers.get_mut(choice as usize) {
                    let number = answer.calls.len();
                    answer.calls.push(call_document(&frame.id, choice, number, &name, &arguments));
                }
                continue;
            }
            Said::Token { choice, text, logprobs } => {
                if let Some(answer) = answers.get_mut(choice as usize) {
                    answer.logprobs.extend(logprobs);
                }
                (choice, text)
            }
            Said::Finished { choice, text, reason, usage: counted } => {
                add(&mut usage, &counted);
                if let Some(answer) = answers.get_mut(choice as usize) {
                    answer.reason = Some(reason);
                }
                (choice, text)
            }
        };
        if let Some(answer) = answers.get_mut(choice as usize) {
            answer.text.push_str(&text);
        }
    }
    let choices = (0..).zip(&answers).map(|(index, answer): (u32, _)| {
        let mut document = match frame.kind {
            Kind::Chat => {
                let mut message = json!({"role": "assistant", "content": answer.text, "refusal": null});
                if !answer.calls.is_empty() {
                    message["tool_calls"] = json!(answer.calls);
                    if answer.text.is_empty() {
                        message["content"] = Value::Null;
                    }
                }
                json!({"index": index, "message": message})
            }
            Kind::Text => json!({"index": index, "text": answer.text}),
        };
        document["logprobs"] =
            if frame.style.logprobs { logprobs_document(frame.kind, &answer.logprobs) } else { Value::Null };
        document["finish_reason"] = json!(answer.reason);
        document
    });
    let mut document = frame.document(false, choices.collect());
    document["usage"] = usage_document(&usage);
    Ok(Json(document).into_response())
}

fn logprobs_document(kind: Kind, tokens: &[Logprobs]) -> Value {
    let text = |token: &TokenLogprob| String::from_utf8_lossy(&token.bytes).into_owned();
    match kind {
        Kind::Chat => {
            let one = |token: &TokenLogprob| json!({"token": text(token), "logprob": token.logprob, "bytes": token.bytes});
            let content = tokens.iter().map(|token| {
                let mut document = one(&token.chosen);
                document["top_logprobs"] = token.top.iter().map(one).collect();
                document
            });
            json!({"content": content.collect::<Vec<_>>(), "refusal": null})
        }
        Kind::Text => {
            let mut offset = 0;
            let mut offsets = Vec::with_capacity(tokens.len());
            for token in tokens {
                offsets.push(offset);
                offset += text(&token.chosen).chars().count();
            }
            let top = |token: &Logprobs| {
                let listed = token.top.iter().map(|one| (text(one), json!(one.logprob)));
                Value::Object(listed.collect())
            };
            json!({
                "tokens": tokens.iter().map(|token| text(&token.chosen)).collect::<Vec<_>>(),
                "token_logprobs": tokens.iter().map(|token| token.chosen.logprob).collect::<Vec<_>>(),
                "top_logprobs": tokens.iter().map(top).collect::<Vec<_>>(),
                "text_offset": offsets,
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::sync::mpsc;

    use super::*;
    use crate::serving::{ServeError, Traffic};

    fn frame(kind: Kind) -> Frame {
        let style = Style { stream: true, include_usage: true, logprobs: false };
        Frame { kind, id: "x-1".into(), model: "m".into(), created: 7, style }
    }

    fn told(events: Vec<Said>, choices: u32) -> Answers {
        let (sender, receiver) = mpsc::unbounded_channel();
        for event in events {
            sender.send(event).unwrap();
        }
        let visit = Arc::new(Traffic::default()).arrive("x-1", "m", "/v1");
        Answers::new(receiver, visit, choices)
    }

    fn token(choice: u32, text: &str) -> Said {
        Said::Token { choice, text: text.into(), logprobs: None }
    }

    fn finished(choice: u32) -> Said {
        let usage = Usage { prompt_tokens: 5, cached_tokens: 0, completion_tokens: 2 };
        Said::Finished { choice, text: "!".into(), reason: "stop".into(), usage }
    }

    #[tokio::test]
    async fn a_stream_is_what_the_official_clients_read() {
        let said = told(vec![token(0, "Pa"), token(1, "Ro"), finished(1), token(0, "ris"), finished(0)], 2);
        let all: Vec<_> = documents(frame(Kind::Chat), 2, said).collect().await;
        let (end, chunks) = all.split_last().unwrap();
        assert!(end.is_none(), "a proper end");
        let chunks: Vec<Value> = chunks.iter().map(|chunk| chunk.clone().unwrap()).collect();
        assert!(
            chunks.iter().all(|chunk| chunk["object"] == "chat.completion.chunk" && chunk["id"] == "x-1")
        );
        let told = |choice: u64| -> (String, Vec<String>) {
            let own =
                chunks.iter().filter_map(|chunk| chunk["choices"].get(0)).filter(|c| c["index"] == choice);
            let text = own.clone().filter_map(|c| c["delta"]["content"].as_str()).collect();
            (text, own.filter_map(|c| c["finish_reason"].as_str().map(str::to_owned)).collect())
        };
        assert_eq!(told(0), ("Paris!".to_owned(), vec!["stop".to_owned()]));
        assert_eq!(told(1), ("Ro!".to_owned(), vec!["stop".to_owned()]));
        assert_eq!(chunks[0]["choices"][0]["delta"]["role"], "assistant");
        let last = chunks.last().unwrap();
        assert_eq!((&last["choices"], &last["usage"]["total_tokens"]), (&json!([]), &json!(9)));
    }

    #[tokio::test]
    async fn a_stream_that_breaks_ends_with_its_error_and_without_a_proper_end() {
        for broken in
            [vec![token(0, "Pa"), Said::Failed(ServeError::Broke("it died".into()))], vec![token(0, "Pa")]]
        {
            let all: Vec<_> = documents(frame(Kind::Text), 1, told(broken, 1)).collect().await;
            let last = all.last().unwrap().as_ref().expect("no proper end");
            assert_eq!(last["error"]["type"], "server_error");
        }
    }

    #[tokio::test]
    async fn calls_are_numbered_and_named_alike_in_streams_and_whole_answers() {
        let events = || {
            let call = |name: &str| Said::Call { choice: 0, name: name.into(), arguments: "{}".into() };
            let usage = Usage { prompt_tokens: 5, cached_tokens: 0, completion_tokens: 2 };
            let reason = "tool_calls".to_owned();
            vec![call("a"), call("b"), Said::Finished { choice: 0, text: String::new(), reason, usage }]
        };
        let response = whole(&frame(Kind::Chat), 1, told(events(), 1)).await.unwrap();
        let bytes = axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap();
        let document: Value = serde_json::from_slice(&bytes).unwrap();
        let choice = &document["choices"][0];
        assert_eq!(
            (&choice["message"]["content"], &choice["finish_reason"]),
            (&Value::Null, &json!("tool_calls"))
        );
        let calls = choice["message"]["tool_calls"].as_array().unwrap();
        assert_eq!((calls.len(), &calls[1]["function"]["name"]), (2, &json!("b")));
        assert_ne!(calls[0]["id"], calls[1]["id"]);
        let chunks: Vec<_> = documents(frame(Kind::Chat), 1, told(events(), 1)).collect().await;
        let streamed: Vec<Value> = chunks
            .iter()
            .flatten()
            .filter_map(|chunk| chunk.pointer("/choices/0/delta/tool_calls/0").cloned())
            .collect();
        assert_eq!(
            streamed.iter().map(|call| &call["id"]).collect::<Vec<_>>(),
            [&calls[0]["id"], &calls[1]["id"]]
        );
        assert_eq!(streamed.iter().map(|call| &call["index"]).collect::<Vec<_>>(), [0, 1]);
    }

    #[tokio::test]
    async fn a_whole_answer_holds_every_choice_and_what_it_took() {
        let said = told(vec![token(1, "b"), token(0, "a"), finished(0), finished(1)], 2);
        let response = whole(&frame(Kind::Text), 2, said).await.unwrap();
        let bytes = axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap();
        let document: Value = serde_json::from_slice(&bytes).unwrap();
        assert_eq!(document["choices"][0]["text"], "a!");
        assert_eq!(document["choices"][1]["text"], "b!");
        assert_eq!(document["usage"]["total_tokens"], 9);
    }
}
