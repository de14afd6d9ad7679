//! Streamed answers: of a chat, or continuing a text.

use std::collections::VecDeque;
use std::time::Duration;

use futures::Stream;
use futures::stream;
use http_body_util::BodyExt as _;
use hyper::Method;
use hyper::body::Incoming;
use serde::Serialize;
use serde_json::{Value, json};

use crate::api::{ChatChunk, ChatRequest, CompletionRequest, Usage};
use crate::client::encode;
use crate::sse::{EVENT_LIMIT, SseParser};
use crate::transport::read_error;
use crate::{Client, ClientError, routes};

/// How long the model may take to load and answer its first byte.
const FIRST_BYTE_TIMEOUT: Duration = Duration::from_mins(10);

struct Answer {
    client: Client,
    path: &'static str,
    body: Incoming,
    parser: SseParser,
    events: VecDeque<String>,
    chunks: VecDeque<ChatChunk>,
    done: bool,
}

impl Client {
    /// Asks a served model and yields its answer as it is generated. Dropping the stream closes the
    /// connection, which stops the generation.
    ///
    /// # Errors
    /// When the daemon cannot be reached or refuses; later errors come through the stream, which ends
    /// with them.
    pub async fn chat(
        &self,
        request: &ChatRequest,
    ) -> Result<impl Stream<Item = Result<ChatChunk, ClientError>> + Send + use<>, ClientError> {
        let path = routes::CHAT_COMPLETIONS;
        self.answer(path, document(path, request)?).await
    }

    /// Has a served model continue a text, as [`Client::chat`] answers a conversation.
    ///
    /// # Errors
    /// As for [`Client::chat`].
    pub async fn complete(
        &self,
        request: &CompletionRequest,
    ) -> Result<impl Stream<Item = Result<ChatChunk, ClientError>> + Send + use<>, ClientError> {
        let path = routes::COMPLETIONS;
        self.answer(path, document(path, request)?).await
    }

    async fn answer(
        &self,
        path: &'static str,
        mut body: Value,
    ) -> Result<impl Stream<Item = Result<ChatChunk, ClientError>> + Send + use<>, ClientError> {
        body["stream"] = json!(true);
        body["stream_options"] = json!({"include_usage": true});
        let response = self.send(Method::POST, path, Some(encode(path, &body)?), FIRST_BYTE_TIMEOUT).await?;
        let answer = Answer {
            client: self.clone(),
            path,
            body: response.into_body(),
            parser: SseParser::default(),
            events: VecDeque::new(),
            chunks: VecDeque::new(),
            done: false,
        };
        Ok(stream::try_unfold(answer, |mut answer| async move {
            Ok(answer.next().await?.map(|chunk| (chunk, answer)))
        }))
    }
}

fn document(path: &str, request: &impl Serialize) -> Result<Value, ClientError> {
    serde_json::to_value(request).map_err(|source| ClientError::Malformed { path: path.to_owned(), source })
}

impl Answer {
    async fn next(&mut self) -> Result<Option<ChatChunk>, ClientError> {
        loop {
            if let Some(chunk) = self.chunks.pop_front() {
                return Ok(Some(chunk));
            }
            if let Some(event) = self.events.pop_front() {
                if event == "[DONE]" {
                    self.done = true;
                } else {
                    self.chunks.extend(read_chunks(self.path, &event)?);
                }
            } else if self.done {
                return Ok(None);
            } else {
                self.receive().await?;
            }
        }
    }

    /// Waits for more bytes. The stream is whole only if `[DONE]` came: its sudden end is an error.
    async fn receive(&mut self) -> Result<(), ClientError> {
        let endpoint = self.client.endpoint();
        let lost = |reason: String| ClientError::Lost { endpoint: endpoint.clone(), reason };
        let frame = match self.body.frame().await {
            None => return Err(lost("the answer ended in the middle".to_owned())),
            Some(Err(error)) => return Err(lost(error.to_string())),
            Some(Ok(frame)) => frame,
        };
        let Some(bytes) = frame.data_ref() else { return Ok(()) };
        let (path, events) = (self.path, &mut self.events);
        self.parser.feed(bytes, |data| events.push_back(data)).map_err(|_| ClientError::TooLong {
            endpoint: endpoint.clone(),
            path: path.to_owned(),
            limit: EVENT_LIMIT,
        })
    }
}

/// What one chunk of either answer says.
fn read_chunks(path: &str, event: &str) -> Result<Vec<ChatChunk>, ClientError> {
    let value: Value = serde_json::from_str(event)
        .map_err(|source| ClientError::Malformed { path: path.to_owned(), source })?;
    if value.get("error").is_some()
        && let Some(report) = read_error(event.as_bytes())
    {
        return Err(ClientError::Api { status: 200, report: Box::new(report) });
    }
    let mut chunks = Vec::new();
    let choice = &value["choices"][0];
    let text = choice["delta"]["content"].as_str().or_else(|| choice["text"].as_str());
    if let Some(text) = text
        && !text.is_empty()
    {
        chunks.push(ChatChunk::Text(text.to_owned()));
    }
    if let Some(reason) = choice["finish_reason"].as_str() {
        chunks.push(ChatChunk::Finished(reason.to_owned()));
    }
    if value["usage"].is_object() {
        let tokens = |name: &str| value["usage"][name].as_u64().unwrap_or(0);
        chunks.push(ChatChunk::Usage(Usage {
            prompt_tokens: tokens("prompt_tokens"),
            completion_tokens: tokens("completion_tokens"),
        }));
    }
    Ok(chunks)
}
