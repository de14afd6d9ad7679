//! Where a model keeps its chat template, and what stands in where it has none.

use std::fmt;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use drophammer_formats::source::read_json;
use drophammer_formats::{Source, TokenizerFiles};
use serde_json::Value as Json;

use super::error::TemplateError;
use crate::tokenizer::Tokenizer;

/// Real templates take up to some tens of kilobytes.
const MAX_TEMPLATE: u64 = 4 << 20;

/// Where a template comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// A file of the model.
    File(PathBuf),
    /// The metadata of a GGUF file.
    Gguf(PathBuf),
    /// Given by a user.
    Given,
    /// The model has none; it knows ChatML's tokens, so ChatML is used.
    ChatMl,
    /// The model has none; the conversation is written as plain text.
    Plain,
}

impl Origin {
    /// Whether the model has no template of its own. Then say so to the user: [`Self::notice`].
    pub fn is_fallback(&self) -> bool {
        matches!(self, Self::ChatMl | Self::Plain)
    }

    /// What the user should know about the template.
    pub fn notice(&self) -> Option<&'static str> {
        match self {
            Self::ChatMl => Some(
                "the model has no chat template; ChatML is used because its vocabulary knows it. Put the model's \
                 chat_template.jinja beside its weights to be sure",
            ),
            Self::Plain => Some(
                "the model has no chat template and is probably no chat model; the conversation is given to it as \
                 plain text, and answers may be poor",
            ),
            _ => None,
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "the chat template in {}", path.display()),
            Self::Gguf(path) => write!(f, "the chat template in the metadata of {}", path.display()),
            Self::Given => f.write_str("the given chat template"),
            Self::ChatMl | Self::Plain => f.write_str("the substitute chat template"),
        }
    }
}

/// The template texts of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TemplateFiles {
    /// The one for every conversation.
    pub main: Option<String>,
    /// The one for conversations with tools, where it is another.
    pub with_tools: Option<String>,
    /// Where they come from.
    pub origin: Origin,
}

impl TemplateFiles {
    /// Finds the templates of an open model.
    ///
    /// # Errors
    /// When a file is there and cannot be read.
    pub fn of_source(source: &Source) -> Result<Self, TemplateError> {
        let metadata = source.metadata();
        if let Some(main) = metadata.str("tokenizer.chat_template") {
            let with_tools = metadata.str("tokenizer.chat_template.tool_use").map(str::to_owned);
            let origin = Origin::Gguf(source.root().to_owned());
            return Ok(Self { main: Some(main.to_owned()), with_tools, origin });
        }
        Self::of_files(source.tokenizer())
    }

    /// Finds the templates among a model's files. A `chat_template.jinja` counts more than what older files say.
    ///
    /// # Errors
    /// As for [`Self::of_source`].
    pub fn of_files(files: &TokenizerFiles) -> Result<Self, TemplateError> {
        if let Some(path) = &files.chat_template_jinja {
            return Ok(Self::one(read_text(path)?, path));
        }
        for path in [&files.chat_template_json, &files.tokenizer_config].into_iter().flatten() {
            match read_json(path)?.get("chat_template") {
                Some(Json::String(text)) => return Ok(Self::one(text.clone(), path)),
                Some(Json::Array(list)) => {
                    let named = |name: &str| {
                        let entry = list.iter().find(|entry| entry["name"] == name)?;
                        entry["template"].as_str().map(str::to_owned)
                    };
                    let first = || Some(list.first()?["template"].as_str()?.to_owned());
                    if let Some(main) = named("default").or_else(first) {
                        return Ok(Self { with_tools: named("tool_use"), ..Self::one(main, path) });
                    }
                }
                _ => {}
            }
        }
        Ok(Self { main: None, with_tools: None, origin: Origin::Plain })
    }

    fn one(main: String, path: &Path) -> Self {
        Self { main: Some(main), with_tools: None, origin: Origin::File(path.to_owned()) }
    }
}

fn read_text(path: &Path) -> Result<String, TemplateError> {
    let io = |source| TemplateError::Io { path: path.to_owned(), source };
    let mut text = String::new();
    File::open(path).map_err(io)?.take(MAX_TEMPLATE).read_to_string(&mut text).map_err(io)?;
    Ok(text)
}

const CHAT_ML: &str = "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n\
                       {% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

const PLAIN: &str = "{{ bos_token }}{% for message in messages %}{{ message.role | capitalize }}: \
                     {{ message.content }}\n\n{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}";

/// What stands in for a template, by what the vocabulary knows.
pub(super) fn fallback(tokenizer: &Tokenizer) -> (&'static str, Origin) {
    let knows = |name: &str| tokenizer.token_id(name).is_some_and(|id| tokenizer.is_special(id));
    if knows("<|im_start|>") && knows("<|im_end|>") {
        (CHAT_ML, Origin::ChatMl)
    } else {
        (PLAIN, Origin::Plain)
    }
}

/// A message as templates expect it: content of text parts only as one string, arguments of tool calls as objects.
pub(super) fn normalized_message(message: &Json) -> Json {
    let mut message = message.clone();
    if let Some(parts) = message.get("content").and_then(Json::as_array)
        && !parts.is_empty()
    {
        let texts: Option<Vec<&str>> = parts
            .iter()
            .map(|part| part.get("text").and_then(Json::as_str).filter(|_| part["type"] == "text"))
            .collect();
        if let Some(texts) = texts {
            message["content"] = Json::String(texts.concat());
        }
    }
    for call in message.get_mut("tool_calls").and_then(Json::as_array_mut).into_iter().flatten() {
        if let Some(arguments) = call.pointer_mut("/function/arguments")
            && let Some(parsed) = arguments.as_str().and_then(|text| serde_json::from_str::<Json>(text).ok())
            && parsed.is_object()
        {
            *arguments = parsed;
        }
    }
    message
}
