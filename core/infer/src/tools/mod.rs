//! Tool calls: how a model is told of tools, held to them, and how its calls are read out of its text.
//!
//! A model writes calls in the [`Dialect`] it was trained on, which its chat template gives away. One whose template
//! knows nothing of tools is told of them in a system message. While it writes, a grammar keeps every call to the
//! tool's own schema; [`CallReader`] takes the calls out of the text as it streams by.

mod dialect;
mod grammar;
mod reader;

use serde_json::{Value as Json, json};

pub use dialect::Dialect;
pub use reader::{CallReader, Piece};

/// Whether a model has to call, and what.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Choice {
    /// It decides.
    #[default]
    Auto,
    /// Something.
    Required,
    /// This tool.
    Named(String),
}

/// The tools of a conversation.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Tools {
    /// As OpenAI's API has them: `{"type": "function", "function": {"name", "description", "parameters"}}`.
    pub list: Vec<Json>,
    /// Whether one has to be called.
    pub choice: Choice,
    /// Whether an answer may hold several calls.
    pub parallel: bool,
}

/// Why tools cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ToolError {
    /// A tool is no function with a name.
    #[error("tool {0} is no function with a name")]
    Nameless(usize),
    /// The named tool is not among them.
    #[error("tool_choice names `{0}`, which is not among the tools")]
    Unknown(String),
}

/// A function a model may call.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Function<'a> {
    name: &'a str,
    parameters: Option<&'a Json>,
}

impl Tools {
    /// Checks that every tool has a name and that the chosen one exists.
    ///
    /// # Errors
    /// [`ToolError`].
    pub fn check(&self) -> Result<(), ToolError> {
        let functions = self.functions()?;
        match &self.choice {
            Choice::Named(name) if !functions.iter().any(|function| function.name == name) => {
                Err(ToolError::Unknown(name.clone()))
            }
            _ => Ok(()),
        }
    }

    fn functions(&self) -> Result<Vec<Function<'_>>, ToolError> {
        self.list
            .iter()
            .enumerate()
            .map(|(at, tool)| {
                let function = &tool["function"];
                let name = function["name"].as_str().filter(|name| !name.is_empty());
                let parameters = function.get("parameters").filter(|schema| schema.is_object());
                Ok(Function { name: name.ok_or(ToolError::Nameless(at))?, parameters })
            })
            .collect()
    }

    /// The grammar, in llguidance's Lark, of an answer in this dialect. `exact` keeps arguments to each tool's schema;
    /// otherwise they are any object.
    ///
    /// # Errors
    /// [`ToolError`].
    pub fn grammar(&self, dialect: Dialect, exact: bool) -> Result<String, ToolError> {
        self.check()?;
        let functions = self.functions()?;
        let offered = functions.iter().filter(|function| match &self.choice {
            Choice::Named(name) => function.name == name,
            Choice::Auto | Choice::Required => true,
        });
        let calls: Vec<Json> = offered
            .map(|function| {
                let arguments = function.parameters.filter(|_| exact);
                let arguments = arguments.cloned().unwrap_or_else(|| json!({"type": "object"}));
                let mut properties = serde_json::Map::new();
                properties.insert("name".to_owned(), json!({"const": function.name}));
                properties.insert(dialect.arguments_key().to_owned(), arguments);
                json!({
                    "type": "object", "properties": properties, "required": ["name", dialect.arguments_key()],
                    "additionalProperties": false,
                })
            })
            .collect();
        let single = !self.parallel || matches!(self.choice, Choice::Named(_));
        Ok(grammar::of(dialect, &calls, self.choice == Choice::Auto, single))
    }
}

#[cfg(test)]
mod tests;
