//! What clients of OpenAI's API send. Unknown fields are ignored, as that API does; known ones are checked.

use drophammer_infer::tools::{Choice, Tools};
use serde::Deserialize;
use serde_json::Value;

use super::refusal::Refusal;
use crate::serving::{Ask, Prompt};

/// Settings that both kinds of completion share.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Common {
    pub(super) model: String,
    pub(super) stream: bool,
    stream_options: Option<StreamOptions>,
    max_tokens: Option<i64>,
    max_completion_tokens: Option<i64>,
    temperature: Option<f32>,
    top_p: Option<f32>,
    top_k: Option<u32>,
    min_p: Option<f32>,
    presence_penalty: Option<f32>,
    frequency_penalty: Option<f32>,
    repetition_penalty: Option<f32>,
    logit_bias: Option<std::collections::BTreeMap<String, f32>>,
    seed: Option<i64>,
    stop: Option<OneOrMany<String>>,
    n: Option<u32>,
    response_format: Option<Value>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct StreamOptions {
    include_usage: bool,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum OneOrMany<T> {
    One(T),
    Many(Vec<T>),
}

impl<T> OneOrMany<T> {
    pub(super) fn into_vec(self) -> Vec<T> {
        match self {
            Self::One(one) => vec![one],
            Self::Many(many) => many,
        }
    }
}

/// Body of `/v1/chat/completions`.
#[derive(Debug, Deserialize)]
pub(super) struct Chat {
    #[serde(flatten)]
    pub(super) common: Common,
    messages: Vec<Value>,
    #[serde(default)]
    logprobs: bool,
    top_logprobs: Option<u32>,
    tools: Option<Vec<Value>>,
    tool_choice: Option<Value>,
    parallel_tool_calls: Option<bool>,
}

/// Body of `/v1/completions`.
#[derive(Debug, Deserialize)]
pub(super) struct Completion {
    #[serde(flatten)]
    pub(super) common: Common,
    prompt: PromptBody,
    logprobs: Option<u32>,
    #[serde(default)]
    echo: bool,
}

/// A prompt: text, tokens, or several of either, of which only one is taken at a time.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum PromptBody {
    Text(String),
    Tokens(Vec<u32>),
    Texts(Vec<String>),
    ManyTokens(Vec<Vec<u32>>),
}

/// How the answer is to be written.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Style {
    pub(super) stream: bool,
    pub(super) include_usage: bool,
    pub(super) logprobs: bool,
}

impl Common {
    fn style(&self, logprobs: bool) -> Style {
        let include_usage = self.stream_options.as_ref().is_some_and(|options| options.include_usage);
        Style { stream: self.stream, include_usage, logprobs }
    }

    fn ask(self, prompt: Prompt, top_logprobs: Option<u32>, usual_most: Option<u32>) -> Result<Ask, Refusal> {
        let most = self.max_completion_tokens.or(self.max_tokens);
        let max_tokens = match most {
            None => usual_most,
            Some(most) => Some(u32::try_from(most).ok().filter(|most| *most > 0).ok_or_else(|| {
                Refusal::invalid("max_tokens", format!("max_tokens is {most}; it must be at least 1"))
            })?),
        };
        let mut logit_bias = Vec::new();
        for (token, bias) in self.logit_bias.unwrap_or_default() {
            let id = token.parse().map_err(|_| {
                Refusal::invalid("logit_bias", format!("`{token}` is no token id; name tokens by number"))
            })?;
            logit_bias.push((id, bias));
        }
        Ok(Ask {
            max_tokens,
            temperature: self.temperature.unwrap_or(1.0),
            top_p: self.top_p.unwrap_or(1.0),
            top_k: self.top_k.unwrap_or(0),
            min_p: self.min_p.unwrap_or(0.0),
            presence_penalty: self.presence_penalty.unwrap_or(0.0),
            frequency_penalty: self.frequency_penalty.unwrap_or(0.0),
            repetition_penalty: self.repetition_penalty.unwrap_or(1.0),
            logit_bias,
            seed: self.seed.map(|seed| seed as u64),
            stop: self.stop.map(OneOrMany::into_vec).unwrap_or_default(),
            choices: self.n.unwrap_or(1),
            top_logprobs,
            json_schema: schema(self.response_format.as_ref())?,
            ..Ask::new(prompt)
        })
    }
}

/// The JSON schema an answer has to follow, if any; `true` accepts any object.
pub(super) fn schema(format: Option<&Value>) -> Result<Option<Value>, Refusal> {
    let Some(format) = format else { return Ok(None) };
    match format.get("type").and_then(Value::as_str) {
        Some("text") => Ok(None),
        Some("json_object") => Ok(Some(serde_json::json!({"type": "object"}))),
        Some("json_schema") => match format.get("json_schema").and_then(|named| named.get("schema")) {
            Some(schema) => Ok(Some(schema.clone())),
            None => Err(Refusal::invalid("response_format", "json_schema holds no `schema`")),
        },
        _ => Err(Refusal::invalid("response_format", "its type must be text, json_object or json_schema")),
    }
}

impl Chat {
    /// What is asked of the model, and how it is to be told.
    pub(super) fn ask(self) -> Result<(Ask, Style), Refusal> {
        if self.messages.is_empty() {
            return Err(Refusal::invalid("messages", "there are no messages; send at least one"));
        }
        let style = self.common.style(self.logprobs);
        let top = self.logprobs.then(|| self.top_logprobs.unwrap_or(0));
        let tools = tools(self.tools, self.tool_choice.as_ref(), self.parallel_tool_calls)?;
        let ask = self.common.ask(Prompt::Chat { messages: self.messages }, top, None)?;
        Ok((Ask { tools, ..ask }, style))
    }
}

/// The tools a model may call, if any; `none` and no tools are the same.
pub(super) fn tools(
    list: Option<Vec<Value>>,
    choice: Option<&Value>,
    parallel: Option<bool>,
) -> Result<Option<Tools>, Refusal> {
    let list = list.unwrap_or_default();
    let named = |choice: &Value| {
        let name = choice.pointer("/function/name").or_else(|| choice.get("name"));
        name.and_then(Value::as_str).map(|name| Choice::Named(name.to_owned()))
    };
    let choice = match choice {
        None | Some(Value::Null) => Choice::Auto,
        Some(Value::String(word)) => match word.as_str() {
            "auto" => Choice::Auto,
            "required" => Choice::Required,
            "none" => return Ok(None),
            other => {
                let message = format!("`{other}` is none of none, auto, required and a named function");
                return Err(Refusal::invalid("tool_choice", message));
            }
        },
        Some(other) => named(other).ok_or_else(|| Refusal::invalid("tool_choice", "it names no function"))?,
    };
    if list.is_empty() {
        let wanted = choice != Choice::Auto;
        let missing = || Refusal::invalid("tool_choice", "a call is wanted, and there are no tools");
        return if wanted { Err(missing()) } else { Ok(None) };
    }
    let tools = Tools { list, choice, parallel: parallel.unwrap_or(true) };
    tools.check().map_err(|error| Refusal::invalid("tools", error.to_string()))?;
    Ok(Some(tools))
}

impl Completion {
    /// What is asked of the model, and how it is to be told.
    pub(super) fn ask(self) -> Result<(Ask, Style), Refusal> {
        let one = || Refusal::invalid("prompt", "one prompt is answered at a time; send each on its own");
        let prompt = match self.prompt {
            PromptBody::Text(text) => Prompt::Text(text),
            PromptBody::Tokens(tokens) => Prompt::Tokens(tokens),
            PromptBody::Texts(texts) => {
                <[String; 1]>::try_from(texts).map(|[text]| Prompt::Text(text)).map_err(|_| one())?
            }
            PromptBody::ManyTokens(many) => {
                <[Vec<u32>; 1]>::try_from(many).map(|[tokens]| Prompt::Tokens(tokens)).map_err(|_| one())?
            }
        };
        if self.echo {
            return Err(Refusal::invalid("echo", "the prompt cannot be echoed; leave `echo` out"));
        }
        let style = self.common.style(self.logprobs.is_some());
        // OpenAI's own default for this older call.
        Ok((self.common.ask(prompt, self.logprobs, Some(16))?, style))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chat(json: Value) -> Result<(Ask, Style), Refusal> {
        serde_json::from_value::<Chat>(json).unwrap().ask()
    }

    #[test]
    fn what_the_client_says_reaches_the_model() {
        let (ask, style) = chat(serde_json::json!({
            "model": "m", "messages": [{"role": "user", "content": "hi"}], "temperature": 0, "stop": "\n",
            "max_completion_tokens": 7, "stream": true, "stream_options": {"include_usage": true}, "seed": -1,
            "logit_bias": {"5": -100}, "unknown": [1, 2], "response_format": {"type": "json_object"},
        }))
        .unwrap();
        assert!(style.stream && style.include_usage && !style.logprobs);
        assert_eq!((ask.temperature, ask.max_tokens, ask.stop), (0.0, Some(7), vec!["\n".to_owned()]));
        assert_eq!((ask.logit_bias, ask.seed), (vec![(5, -100.0)], Some(u64::MAX)));
        assert_eq!(ask.json_schema.unwrap()["type"], "object");
    }

    #[test]
    fn senseless_values_are_refused_by_the_name_of_their_field() {
        let message = serde_json::json!([{"role": "user", "content": "hi"}]);
        for (field, value) in [
            ("messages", serde_json::json!([])),
            ("max_tokens", serde_json::json!(0)),
            ("logit_bias", serde_json::json!({"x": 1})),
            ("response_format", serde_json::json!({"type": "yaml"})),
            ("tools", serde_json::json!([{"type": "function"}])),
            ("tool_choice", serde_json::json!("required")),
        ] {
            let mut body = serde_json::json!({"model": "m", "messages": message});
            body[field] = value;
            assert_eq!(chat(body).unwrap_err().param(), Some(field));
        }
    }

    #[test]
    fn tools_are_offered_ordered_or_left_out() {
        let tool = |name: &str| serde_json::json!({"type": "function", "function": {"name": name}});
        let named = serde_json::json!({"type": "function", "function": {"name": "b"}});
        for (choice, expected) in [
            (Value::Null, Some(Choice::Auto)),
            (serde_json::json!("none"), None),
            (serde_json::json!("required"), Some(Choice::Required)),
            (named, Some(Choice::Named("b".into()))),
        ] {
            let found = tools(Some(vec![tool("a"), tool("b")]), Some(&choice), Some(false)).unwrap();
            assert_eq!(found.map(|tools| tools.choice), expected, "{choice}");
        }
        let unknown = serde_json::json!({"type": "function", "function": {"name": "c"}});
        assert_eq!(tools(Some(vec![tool("a")]), Some(&unknown), None).unwrap_err().param(), Some("tools"));
    }

    #[test]
    fn a_prompt_may_be_text_or_tokens_or_one_of_either_in_a_list() {
        for (prompt, expected) in [
            (serde_json::json!("a"), Some(Prompt::Text("a".into()))),
            (serde_json::json!(["a"]), Some(Prompt::Text("a".into()))),
            (serde_json::json!([1, 2]), Some(Prompt::Tokens(vec![1, 2]))),
            (serde_json::json!([[1, 2]]), Some(Prompt::Tokens(vec![1, 2]))),
            (serde_json::json!(["a", "b"]), None),
        ] {
            let body = serde_json::json!({"model": "m", "prompt": prompt});
            let asked = serde_json::from_value::<Completion>(body).unwrap().ask();
            assert_eq!(asked.ok().map(|(ask, _)| ask.prompt), expected);
        }
    }
}
