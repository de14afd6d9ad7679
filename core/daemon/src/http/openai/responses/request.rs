//! What clients of the responses API send.

use serde::Deserialize;
use serde_json::{Value, json};

use super::super::refusal::Refusal;
use super::super::request::{schema, tools};
use crate::serving::{Ask, Prompt};

/// The body of `POST /v1/responses`. Unknown fields are ignored.
#[derive(Debug, Deserialize)]
pub(in crate::http::openai) struct Body {
    pub(super) model: String,
    input: Input,
    instructions: Option<String>,
    pub(super) previous_response_id: Option<String>,
    #[serde(default)]
    pub(super) stream: bool,
    #[serde(default = "yes")]
    pub(super) store: bool,
    max_output_tokens: Option<u32>,
    temperature: Option<f32>,
    top_p: Option<f32>,
    text: Option<Value>,
    tools: Option<Vec<Value>>,
    tool_choice: Option<Value>,
    parallel_tool_calls: Option<bool>,
    metadata: Option<Value>,
}

fn yes() -> bool {
    true
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Input {
    Text(String),
    Items(Vec<Value>),
}

impl Body {
    /// The response before anything is said.
    pub(super) fn document(&self, id: &str, created: u64) -> Value {
        json!({
            "id": id, "object": "response", "created_at": created, "status": "in_progress", "error": null,
            "incomplete_details": null, "instructions": self.instructions,
            "max_output_tokens": self.max_output_tokens, "model": self.model, "output": [],
            "parallel_tool_calls": self.parallel_tool_calls.unwrap_or(true),
            "previous_response_id": self.previous_response_id,
            "reasoning": {"effort": null, "summary": null}, "store": self.store,
            "temperature": self.temperature.unwrap_or(1.0),
            "text": self.text.clone().unwrap_or_else(|| json!({"format": {"type": "text"}})),
            "tool_choice": self.tool_choice.clone().unwrap_or_else(|| json!("auto")),
            "tools": self.tools.clone().unwrap_or_default(), "top_p": self.top_p.unwrap_or(1.0),
            "truncation": "disabled", "usage": null, "metadata": self.metadata.clone().unwrap_or_else(|| json!({})),
        })
    }

    /// The conversation without its instructions, and what is asked of the model. `earlier` is what was said before.
    pub(super) fn ask(self, earlier: Vec<Value>) -> Result<(Vec<Value>, Ask), Refusal> {
        let mut conversation = earlier;
        match self.input {
            Input::Text(text) => conversation.push(json!({"role": "user", "content": text})),
            Input::Items(items) => {
                if let Some(other) = items.iter().find(|item| !is_known(item)) {
                    let message = format!("an item of type {} cannot be read", other["type"]);
                    return Err(Refusal::invalid("input", message));
                }
                conversation.extend(messages_of(items.iter()));
            }
        }
        if conversation.is_empty() {
            return Err(Refusal::invalid("input", "there is nothing to answer"));
        }
        if self.max_output_tokens == Some(0) {
            return Err(Refusal::invalid("max_output_tokens", "it must be at least 1"));
        }
        // Instructions are this response's alone.
        let instructions = self.instructions.map(|text| json!({"role": "system", "content": text}));
        let messages = instructions.into_iter().chain(conversation.iter().cloned()).collect();
        let functions = self.tools.map(|list| list.into_iter().map(chat_tool).collect());
        // Its schema lies flat in the format here.
        let format = self.text.as_ref().and_then(|text| text.get("format")).map(|format| {
            let mut format = format.clone();
            if let Some(schema) = format.get("schema").cloned() {
                format["json_schema"] = json!({"schema": schema});
            }
            format
        });
        let ask = Ask {
            max_tokens: self.max_output_tokens,
            temperature: self.temperature.unwrap_or(1.0),
            top_p: self.top_p.unwrap_or(1.0),
            json_schema: schema(format.as_ref())?,
            tools: tools(functions, self.tool_choice.as_ref(), self.parallel_tool_calls)?,
            ..Ask::new(Prompt::Chat { messages })
        };
        Ok((conversation, ask))
    }
}

/// A function as chat completions have it: there its description is nested.
fn chat_tool(tool: Value) -> Value {
    if tool.get("function").is_some() { tool } else { json!({"type": tool["type"], "function": tool}) }
}

fn is_known(item: &Value) -> bool {
    match item["type"].as_str() {
        None => item["role"].is_string(),
        Some(kind) => ["message", "function_call", "function_call_output", "reasoning"].contains(&kind),
    }
}

/// Items as chat messages; calls that follow each other are one message.
pub(super) fn messages_of<'a>(items: impl Iterator<Item = &'a Value>) -> Vec<Value> {
    let mut messages: Vec<Value> = Vec::new();
    for item in items {
        match item["type"].as_str() {
            Some("function_call") => {
                let call = json!({"id": item["call_id"], "type": "function",
                    "function": {"name": item["name"], "arguments": item["arguments"]}});
                let calls = messages.last_mut().and_then(|last| last.get_mut("tool_calls")?.as_array_mut());
                match calls {
                    Some(calls) => calls.push(call),
                    None => messages.push(json!({"role": "assistant", "content": "", "tool_calls": [call]})),
                }
            }
            Some("function_call_output") => {
                let content = match &item["output"] {
                    Value::String(text) => text.clone(),
                    other => other.to_string(),
                };
                messages.push(json!({"role": "tool", "tool_call_id": item["call_id"], "content": content}));
            }
            Some("reasoning") => {}
            _ => {
                let content = match &item["content"] {
                    Value::Array(parts) => parts.iter().filter_map(|part| part["text"].as_str()).collect(),
                    other => other.as_str().unwrap_or_default().to_owned(),
                };
                // Developers speak in the system's place.
                let role = match item["role"].as_str() {
                    Some("developer") => "system",
                    other => other.unwrap_or("user"),
                };
                messages.push(json!({"role": role, "content": content}));
            }
        }
    }
    messages
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_become_a_conversation() {
        let body: Body = serde_json::from_value(json!({
            "model": "m", "instructions": "Be brief.", "max_output_tokens": 9,
            "input": [
                {"role": "user", "content": [{"type": "input_text", "text": "Time?"}]},
                {"type": "function_call", "call_id": "c1", "name": "time", "arguments": "{}"},
                {"type": "function_call", "call_id": "c2", "name": "time", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "c1", "output": "noon"},
            ],
            "tools": [{"type": "function", "name": "time", "parameters": {"type": "object"}}],
            "text": {"format": {"type": "text"}},
        }))
        .unwrap();
        let (conversation, ask) = body.ask(vec![json!({"role": "user", "content": "Hi"})]).unwrap();
        let Prompt::Chat { messages } = ask.prompt else { panic!("a conversation") };
        let roles: Vec<_> = messages.iter().map(|message| message["role"].as_str().unwrap()).collect();
        assert_eq!(roles, ["system", "user", "user", "assistant", "tool"]);
        assert_eq!(conversation.len(), 4, "without instructions");
        assert_eq!(messages[3]["tool_calls"].as_array().unwrap().len(), 2);
        assert_eq!(ask.tools.unwrap().list[0]["function"]["name"], "time");
        assert_eq!(ask.max_tokens, Some(9));
    }

    #[test]
    fn a_schema_lies_in_the_format_and_unknown_items_are_named() {
        let body = |extra: Value| {
            let mut body = json!({"model": "m", "input": "x"});
            body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
            serde_json::from_value::<Body>(body).unwrap().ask(Vec::new())
        };
        let format =
            json!({"text": {"format": {"type": "json_schema", "name": "n", "schema": {"type": "array"}}}});
        assert_eq!(body(format).unwrap().1.json_schema.unwrap()["type"], "array");
        let unknown = body(json!({"input": [{"type": "computer_call"}]})).unwrap_err();
        assert_eq!(unknown.param(), Some("input"));
    }
}
