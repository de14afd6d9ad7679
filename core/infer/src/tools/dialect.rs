//! The ways in which models write tool calls.

use serde_json::{Value as Json, json};

/// How a model writes calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// `<tool_call>{"name": …, "arguments": …}</tool_call>`, once for each call: Hermes, Qwen 2.5 and 3, SmolLM3,
    /// Granite 3.3 and many others.
    Tagged {
        /// Whether the template tells the model of tools; otherwise [`Dialect::tell`] does.
        told: bool,
    },
    /// `[TOOL_CALLS][{"name": …, "arguments": …}, …]`: Mistral.
    Listed,
    /// The answer is `{"name": …, "parameters": …}` and nothing else: Llama 3.1 to 3.3.
    Bare,
}

/// Begins a call in [`Dialect::Tagged`].
pub(super) const OPEN: &str = "<tool_call>";
/// Ends it.
pub(super) const CLOSE: &str = "</tool_call>";
/// Begins the list of [`Dialect::Listed`].
pub(super) const LIST: &str = "[TOOL_CALLS]";

impl Dialect {
    /// The dialect of a model with this chat template.
    pub fn of_template(template: &str) -> Self {
        let has = |word: &str| template.contains(word);
        if has("tools") && has(OPEN) {
            Self::Tagged { told: true }
        } else if has("tools") && has(LIST) && !has("[ARGS]") && !has("[CALL_ID]") {
            Self::Listed
        } else if has("tools") && has("<|start_header_id|>") && has("\"parameters\"") {
            Self::Bare
        } else {
            Self::Tagged { told: false }
        }
    }

    /// Whether the template is to be given the tools.
    pub fn in_template(self) -> bool {
        self != Self::Tagged { told: false }
    }

    pub(super) fn arguments_key(self) -> &'static str {
        match self {
            Self::Tagged { .. } | Self::Listed => "arguments",
            Self::Bare => "parameters",
        }
    }

    /// The conversation for a template that knows no tools: told of in the system message, with calls and their results
    /// as plain text.
    pub fn tell(messages: &[Json], tools: &[Json]) -> Vec<Json> {
        let mut told: Vec<Json> = messages.iter().map(plain).collect();
        if tools.is_empty() {
            return told;
        }
        let listed: Vec<String> = tools.iter().map(Json::to_string).collect();
        let note = format!(
            "You can call these functions, each described by a JSON object:\n<tools>\n{}\n</tools>\nTo call one, write a \
             JSON object with its name and arguments between tags:\n{OPEN}\n{{\"name\": \"the function\", \"arguments\": \
             {{}}}}\n{CLOSE}",
            listed.join("\n")
        );
        match told.first_mut().filter(|first| first["role"] == "system") {
            Some(first) => {
                let said = text(&first["content"]);
                first["content"] = json!(format!("{said}\n\n{note}"));
            }
            None => told.insert(0, json!({"role": "system", "content": note})),
        }
        told
    }
}

/// A message without roles and fields that only tool templates know.
fn plain(message: &Json) -> Json {
    match message["role"].as_str() {
        Some("tool") => {
            let result = text(&message["content"]);
            json!({"role": "user", "content": format!("<tool_response>\n{result}\n</tool_response>")})
        }
        Some("assistant") if message["tool_calls"].is_array() => {
            let mut content = text(&message["content"]);
            for call in message["tool_calls"].as_array().into_iter().flatten() {
                let function = &call["function"];
                let arguments = match &function["arguments"] {
                    Json::String(written) => serde_json::from_str(written).unwrap_or_else(|_| json!(written)),
                    other => other.clone(),
                };
                let call = json!({"name": function["name"], "arguments": arguments});
                if !content.is_empty() {
                    content.push('\n');
                }
                content.extend([OPEN, "\n", &call.to_string(), "\n", CLOSE]);
            }
            json!({"role": "assistant", "content": content})
        }
        _ => message.clone(),
    }
}

/// A message's content: text, or a list of parts of which some are text.
fn text(content: &Json) -> String {
    match content {
        Json::String(text) => text.clone(),
        Json::Array(parts) => parts.iter().filter_map(|part| part["text"].as_str()).collect(),
        _ => String::new(),
    }
}
