//! What a model says, as events of the responses API. The last one holds the whole answer.

use serde_json::{Value, json};

use super::Refusal;
use crate::serving::{Said, Usage};

/// Tells one answer.
#[derive(Debug)]
pub(super) struct Teller {
    document: Value,
    output: Vec<Value>,
    sequence: u64,
    /// Text of the message that is open, if one is.
    open: Option<String>,
    over: bool,
}

impl Teller {
    /// With the response as it is before anything is said.
    pub(super) fn new(document: Value) -> Self {
        Self { document, output: Vec::new(), sequence: 0, open: None, over: false }
    }

    /// Whether nothing follows.
    pub(super) fn is_over(&self) -> bool {
        self.over
    }

    /// The response; complete when it is over.
    pub(super) fn document(&self) -> &Value {
        &self.document
    }

    /// The events before anything is said.
    pub(super) fn begin(&mut self) -> Vec<Value> {
        let response = json!({"response": self.document});
        vec![self.event("response.created", response.clone()), self.event("response.in_progress", response)]
    }

    /// The events of something the model said.
    pub(super) fn hear(&mut self, said: Said) -> Vec<Value> {
        let mut events = Vec::new();
        match said {
            Said::Started | Said::Embedded(_) => {}
            Said::Token { text, .. } => self.say(&text, &mut events),
            Said::Call { name, arguments, .. } => {
                self.close(&mut events);
                self.call(&name, &arguments, &mut events);
            }
            Said::Finished { text, reason, usage, .. } => {
                self.say(&text, &mut events);
                self.close(&mut events);
                if self.output.is_empty() {
                    // A model may say nothing at all; that, too, is a message.
                    self.open_message(&mut events);
                    self.close(&mut events);
                }
                self.finish(&reason, &usage, &mut events);
            }
            Said::Failed(error) => {
                let error = Refusal::from(error).document();
                self.document["status"] = json!("failed");
                self.document["error"] = json!({
                    "code": "server_error", "message": error["error"]["message"],
                });
                self.document["output"] = json!(self.output);
                self.over = true;
                let response = json!({"response": self.document});
                events.push(self.event("response.failed", response));
            }
        }
        events
    }

    fn event(&mut self, name: &str, mut content: Value) -> Value {
        content["type"] = json!(name);
        content["sequence_number"] = json!(self.sequence);
        self.sequence += 1;
        content
    }

    fn item_id(&self, kind: &str) -> String {
        let number = self.output.len();
        let response = self.document["id"].as_str().unwrap_or_default().trim_start_matches("resp_");
        format!("{kind}_{response}{number:02x}")
    }

    fn open_message(&mut self, events: &mut Vec<Value>) {
        let (id, index) = (self.item_id("msg"), self.output.len());
        let item =
            json!({"id": id, "type": "message", "status": "in_progress", "role": "assistant", "content": []});
        let added = json!({"output_index": index, "item": item});
        events.push(self.event("response.output_item.added", added));
        let part = json!({"type": "output_text", "text": "", "annotations": []});
        let added = json!({"item_id": id, "output_index": index, "content_index": 0, "part": part});
        events.push(self.event("response.content_part.added", added));
        self.open = Some(String::new());
    }

    fn say(&mut self, text: &str, events: &mut Vec<Value>) {
        if text.is_empty() {
            return;
        }
        if self.open.is_none() {
            self.open_message(events);
        }
        if let Some(open) = &mut self.open {
            open.push_str(text);
        }
        let (id, index) = (self.item_id("msg"), self.output.len());
        let delta =
            json!({"item_id": id, "output_index": index, "content_index": 0, "delta": text, "logprobs": []});
        events.push(self.event("response.output_text.delta", delta));
    }

    fn close(&mut self, events: &mut Vec<Value>) {
        let Some(text) = self.open.take() else { return };
        let (id, index) = (self.item_id("msg"), self.output.len());
        let place = json!({"item_id": id, "output_index": index, "content_index": 0});
        let part = json!({"type": "output_text", "text": text, "annotations": []});
        let mut done = place.clone();
        done["text"] = json!(text);
        done["logprobs"] = json!([]);
        events.push(self.event("response.output_text.done", done));
        let mut done = place;
        done["part"] = part.clone();
        events.push(self.event("response.content_part.done", done));
        let item = json!({
            "id": id, "type": "message", "status": "completed", "role": "assistant", "content": [part],
        });
        events.push(self.event("response.output_item.done", json!({"output_index": index, "item": item})));
        self.output.push(item);
    }

    fn call(&mut self, name: &str, arguments: &str, events: &mut Vec<Value>) {
        let (id, index) = (self.item_id("fc"), self.output.len());
        let call_id = self.item_id("call");
        let item = |status: &str, arguments: &str| {
            json!({
                "id": id, "type": "function_call", "status": status, "call_id": call_id, "name": name,
                "arguments": arguments,
            })
        };
        let added = json!({"output_index": index, "item": item("in_progress", "")});
        events.push(self.event("response.output_item.added", added));
        let delta = json!({"item_id": id, "output_index": index, "delta": arguments});
        events.push(self.event("response.function_call_arguments.delta", delta));
        let done = json!({"item_id": id, "output_index": index, "name": name, "arguments": arguments});
        events.push(self.event("response.function_call_arguments.done", done));
        let item = item("completed", arguments);
        events.push(self.event("response.output_item.done", json!({"output_index": index, "item": item})));
        self.output.push(item);
    }

    fn finish(&mut self, reason: &str, usage: &Usage, events: &mut Vec<Value>) {
        self.over = true;
        self.document["output"] = json!(self.output);
        self.document["usage"] = json!({
            "input_tokens": usage.prompt_tokens,
            "input_tokens_details": {"cached_tokens": usage.cached_tokens},
            "output_tokens": usage.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        });
        let name = if reason == "length" {
            self.document["status"] = json!("incomplete");
            self.document["incomplete_details"] = json!({"reason": "max_output_tokens"});
            "response.incomplete"
        } else {
            self.document["status"] = json!("completed");
            "response.completed"
        };
        let response = json!({"response": self.document});
        events.push(self.event(name, response));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serving::ServeError;

    fn teller() -> Teller {
        Teller::new(json!({"id": "resp_1", "status": "in_progress", "output": []}))
    }

    fn finished(reason: &str) -> Said {
        let usage = Usage { prompt_tokens: 5, cached_tokens: 1, completion_tokens: 2 };
        Said::Finished { choice: 0, text: String::new(), reason: reason.into(), usage }
    }

    fn names(events: &[Value]) -> Vec<&str> {
        events.iter().map(|event| event["type"].as_str().unwrap()).collect()
    }

    #[test]
    fn an_answer_is_told_from_its_first_word_to_the_whole() {
        let mut teller = teller();
        let mut events = teller.begin();
        for text in ["Pa", "ris"] {
            events.extend(teller.hear(Said::Token { choice: 0, text: text.into(), logprobs: None }));
        }
        let call = Said::Call { choice: 0, name: "f".into(), arguments: "{}".into() };
        events.extend(teller.hear(call));
        events.extend(teller.hear(finished("tool_calls")));
        insta::assert_json_snapshot!(names(&events));
        assert!(events.iter().zip(0..).all(|(event, at)| event["sequence_number"] == at));
        let document = teller.document();
        assert_eq!(document["status"], "completed");
        assert_eq!(document["output"][0]["content"][0]["text"], "Paris");
        assert_eq!(document["output"][1]["arguments"], "{}");
        assert_eq!(document["usage"]["total_tokens"], 7);
    }

    #[test]
    fn an_answer_that_was_cut_off_or_broke_says_so() {
        let mut cut = teller();
        cut.hear(finished("length"));
        assert_eq!(cut.document()["incomplete_details"]["reason"], "max_output_tokens");
        assert_eq!(cut.document()["output"].as_array().unwrap().len(), 1);
        let mut broken = teller();
        let events = broken.hear(Said::Failed(ServeError::Broke("it died".into())));
        assert_eq!(names(&events), ["response.failed"]);
        assert_eq!(broken.document()["error"]["message"], "it died");
    }
}
