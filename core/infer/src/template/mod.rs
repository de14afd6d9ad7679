//! Chat templates: a conversation → the prompt text the model was trained on.
//!
//! Templates are Jinja, rendered with the conventions of Hugging Face's `apply_chat_template`: `trim_blocks` and
//! `lstrip_blocks`, Python's methods on strings, lists and dictionaries, `raise_exception`, `strftime_now`, a `tojson`
//! that writes what Python's `json.dumps` writes, `break` and `continue`, `{% generation %}` blocks. A template comes
//! from a model's files, so it is untrusted: it can compute text, and its work and output are bounded.

mod error;
mod find;
mod python;
mod time;

use minijinja::value::Value;
use minijinja::{AutoEscape, Environment, UndefinedBehavior};
use serde_json::{Map, Value as Json};

pub use error::TemplateError;
pub use find::{Origin, TemplateFiles};
pub use time::CivilTime;

use crate::tokenizer::Tokenizer;
use crate::tools::Dialect;

/// Instructions one rendering may run: some thousand times what a long conversation takes.
const FUEL: u64 = 50_000_000;

/// Longest rendered prompt, in bytes.
const LONGEST_PROMPT: usize = 64 << 20;

/// A conversation to render.
#[derive(Debug, Clone, Default)]
pub struct Conversation<'a> {
    /// Messages as in OpenAI's API. Content given as a list of text parts is joined; arguments of tool calls given as
    /// JSON text are parsed, since templates expect objects.
    pub messages: &'a [Json],
    /// Tools as in OpenAI's API.
    pub tools: Option<&'a Json>,
    /// Documents for retrieval.
    pub documents: Option<&'a Json>,
    /// Ends the prompt where the assistant's answer begins.
    pub add_generation_prompt: bool,
    /// Further variables, such as `enable_thinking`.
    pub variables: Map<String, Json>,
    /// What `strftime_now` shows; without it the template's own default for models without a date is used.
    pub now: Option<CivilTime>,
}

/// A compiled template.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    origin: Origin,
    has_tool_template: bool,
    dialect: Dialect,
    bos: String,
    eos: String,
}

const MAIN: &str = "chat_template";
const WITH_TOOLS: &str = "tool_use";

impl ChatTemplate {
    /// Compiles the template of a model, or the best substitute where it has none: see [`Origin::is_fallback`].
    ///
    /// # Errors
    /// [`TemplateError`] when a file cannot be read or the template does not compile.
    pub fn of_model(files: &TemplateFiles, tokenizer: &Tokenizer) -> Result<Self, TemplateError> {
        let special = tokenizer.special();
        let text =
            |id: Option<u32>| id.map(|id| String::from_utf8_lossy(tokenizer.token_bytes(id)).into_owned());
        let (bos, eos) = (text(special.bos).unwrap_or_default(), text(special.eos).unwrap_or_default());
        if let Some(main) = &files.main {
            return Self::compile(main, files.with_tools.as_deref(), files.origin.clone(), bos, eos);
        }
        let (text, origin) = find::fallback(tokenizer);
        Self::compile(text, None, origin, bos, eos)
    }

    /// Compiles a template. `with_tools` is the one for conversations with tools, where there are two.
    ///
    /// # Errors
    /// [`TemplateError::Syntax`].
    pub fn compile(
        main: &str,
        with_tools: Option<&str>,
        origin: Origin,
        bos: String,
        eos: String,
    ) -> Result<Self, TemplateError> {
        let mut environment = Environment::new();
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.set_undefined_behavior(UndefinedBehavior::Lenient);
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment.set_fuel(Some(FUEL));
        environment.set_recursion_limit(128);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.set_formatter(python::format);
        environment.add_filter("tojson", python::tojson);
        environment.add_function("raise_exception", python::raise_exception);
        for (name, text) in [(MAIN, Some(main)), (WITH_TOOLS, with_tools)] {
            if let Some(text) = text {
                environment
                    .add_template_owned(name, python::without_generation_blocks(text))
                    .map_err(|source| TemplateError::syntax(&origin, &source))?;
            }
        }
        let dialect = Dialect::of_template(with_tools.unwrap_or(main));
        Ok(Self { environment, origin, has_tool_template: with_tools.is_some(), dialect, bos, eos })
    }

    /// Where the template comes from.
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// How its model writes tool calls.
    pub fn dialect(&self) -> Dialect {
        self.dialect
    }

    /// The prompt of a conversation. Encode it without a frame: the template writes its own beginning-of-text token.
    ///
    /// # Errors
    /// [`TemplateError::Refused`] with the template's own words when it does not take the conversation,
    /// [`TemplateError::Failed`] when it breaks or does too much.
    pub fn render(&self, conversation: &Conversation<'_>) -> Result<String, TemplateError> {
        let with_tools = self.has_tool_template && conversation.tools.is_some_and(|tools| !tools.is_null());
        let name = if with_tools { WITH_TOOLS } else { MAIN };
        let failed = |error: minijinja::Error| TemplateError::from_render(&self.origin, &error);
        let template = self.environment.get_template(name).map_err(failed)?;
        let mut output = python::Bounded::new(LONGEST_PROMPT);
        template.render_captured_to(self.variables(conversation), &mut output).map_err(failed)?;
        output.into_text().ok_or_else(|| TemplateError::Failed {
            origin: self.origin.clone(),
            message: "its output is no text".to_owned(),
        })
    }

    fn variables(&self, conversation: &Conversation<'_>) -> Value {
        let messages: Vec<Json> = conversation.messages.iter().map(find::normalized_message).collect();
        let mut variables: Vec<(&str, Value)> = vec![
            ("bos_token", self.bos.as_str().into()),
            ("eos_token", self.eos.as_str().into()),
            ("messages", Value::from_serialize(messages)),
            ("tools", Value::from_serialize(conversation.tools)),
            ("documents", Value::from_serialize(conversation.documents)),
            ("add_generation_prompt", conversation.add_generation_prompt.into()),
        ];
        if let Some(now) = conversation.now {
            let strftime = move |format: &str| now.format(format);
            variables.push(("strftime_now", Value::from_function(strftime)));
        }
        let given =
            conversation.variables.iter().map(|(key, value)| (key.as_str(), Value::from_serialize(value)));
        // Later pairs win: a caller cannot replace the conversation.
        given.chain(variables).collect()
    }
}

#[cfg(test)]
mod tests;
