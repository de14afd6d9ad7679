//! What generated text must look like: a JSON schema, a regular expression or a grammar, enforced token by token.
//!
//! A [`ConstraintFactory`] belongs to one tokenizer (it holds a trie of the vocabulary) and compiles descriptions. A
//! [`Constraint`] follows one text: it says which tokens may come next, and takes note of the one that came. The
//! grammar engine is `llguidance`; its limits bound the work that a hostile schema can cause.

mod mask;

use llguidance::api::TopLevelGrammar;
use llguidance::toktrie::{ApproximateTokEnv, TokEnv, TokRxInfo, TokTrie};
use llguidance::{Matcher, ParserFactory};
use serde_json::{Value as Json, json};

pub use mask::TokenMask;

use crate::tokenizer::Tokenizer;

/// What a text must look like.
#[derive(Debug, Clone, PartialEq)]
pub enum Grammar {
    /// JSON that a schema accepts, written with `", "` and `": "` and without other white space, so that no model can
    /// fill a text with blanks. A schema that sets `x-guidance` decides about white space itself.
    JsonSchema(Json),
    /// Any JSON object.
    JsonObject,
    /// The whole text matches a regular expression, in the syntax of the `regex` crate.
    Regex(String),
    /// A grammar in llguidance's variant of Lark.
    Lark(String),
}

/// Why text cannot be constrained.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConstraintError {
    /// The vocabulary cannot be used.
    #[error(
        "this model's vocabulary cannot be used for constrained output: {0}; ask without a schema or grammar"
    )]
    Vocabulary(String),
    /// The description does not compile.
    #[error("the {kind} cannot be used: {message}; correct or simplify it")]
    Grammar {
        /// Which kind of description.
        kind: &'static str,
        /// What is wrong.
        message: String,
    },
    /// The text reached a state from which no token leads on.
    #[error("the constraint cannot be followed any further: {0}; simplify it")]
    Stuck(String),
}

/// Compiles descriptions for one tokenizer.
pub struct ConstraintFactory {
    parsers: ParserFactory,
    tokens: usize,
}

impl std::fmt::Debug for ConstraintFactory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ConstraintFactory").field("tokens", &self.tokens).finish_non_exhaustive()
    }
}

impl ConstraintFactory {
    /// Builds the trie of a vocabulary: some hundred milliseconds for a large one. Do it once per model.
    ///
    /// # Errors
    /// [`ConstraintError::Vocabulary`].
    pub fn new(tokenizer: &Tokenizer) -> Result<Self, ConstraintError> {
        let tokens = tokenizer.len();
        let marked = |name: &[u8]| [&[TokTrie::SPECIAL_TOKEN_MARKER], name].concat();
        let mut words: Vec<Vec<u8>> = (0..tokens as u32)
            .map(|id| {
                let bytes = tokenizer.token_bytes(id);
                if tokenizer.is_special(id) { marked(bytes) } else { bytes.to_vec() }
            })
            .collect();
        // A vocabulary without an end of text gets one that no model can choose.
        words.push(marked(b"<|end of constrained text|>"));
        let ends = &tokenizer.special().end_of_generation;
        let end = ends.first().copied().unwrap_or(tokens as u32);
        let info = TokRxInfo::new(words.len() as u32, end);
        let trie = TokTrie::from(&info, &words);
        let trie = if ends.is_empty() { trie } else { trie.with_eos_tokens(ends) };
        let environment: TokEnv = std::sync::Arc::new(ApproximateTokEnv::new(trie));
        let mut parsers = ParserFactory::new_simple(&environment)
            .map_err(|error| ConstraintError::Vocabulary(error.to_string()))?;
        parsers.quiet();
        parsers.limits_mut().verbose_errors = false;
        Ok(Self { parsers, tokens })
    }

    /// Compiles a description.
    ///
    /// # Errors
    /// [`ConstraintError::Grammar`].
    pub fn compile(&self, grammar: &Grammar) -> Result<Constraint, ConstraintError> {
        let (kind, top) = match grammar {
            Grammar::JsonSchema(schema) => {
                ("JSON schema", TopLevelGrammar::from_json_schema(compact(schema)))
            }
            Grammar::JsonObject => {
                ("JSON schema", TopLevelGrammar::from_json_schema(compact(&json!({"type": "object"}))))
            }
            Grammar::Regex(pattern) => ("regular expression", TopLevelGrammar::from_regex(pattern)),
            Grammar::Lark(text) => ("grammar", TopLevelGrammar::from_lark(text.clone())),
        };
        let parser = self.parsers.create_parser(top);
        let parser = parser.map_err(|error| ConstraintError::Grammar { kind, message: error.to_string() })?;
        let matcher = Box::new(Matcher::new(Ok(parser)));
        match matcher.get_error() {
            Some(message) => Err(ConstraintError::Grammar { kind, message }),
            None => Ok(Constraint { matcher, tokens: self.tokens }),
        }
    }
}

/// No white space but one blank after separators, unless the schema decides itself.
pub(crate) fn compact(schema: &Json) -> Json {
    let mut schema = if *schema == Json::Bool(true) { json!({}) } else { schema.clone() };
    if let Some(map) = schema.as_object_mut()
        && !map.contains_key("x-guidance")
    {
        let options = json!({"whitespace_flexible": false, "item_separator": ", ", "key_separator": ": "});
        map.insert("x-guidance".to_owned(), options);
    }
    schema
}

/// Follows one text.
pub struct Constraint {
    /// Boxed: it is large, and requests travel through channels.
    matcher: Box<Matcher>,
    tokens: usize,
}

impl Clone for Constraint {
    /// The clone follows its own text.
    fn clone(&self) -> Self {
        Self { matcher: Box::new(self.matcher.deep_clone()), tokens: self.tokens }
    }
}

impl std::fmt::Debug for Constraint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Constraint").field("complete", &self.is_complete()).finish_non_exhaustive()
    }
}

impl Constraint {
    /// Which tokens may come next. Tokens that end generation may come where the text is complete.
    ///
    /// # Errors
    /// [`ConstraintError::Stuck`].
    pub fn mask(&mut self) -> Result<TokenMask, ConstraintError> {
        let mask = self.matcher.compute_mask_or_eos().map_err(|e| ConstraintError::Stuck(e.to_string()))?;
        Ok(TokenMask::from_words(mask.as_slice(), self.tokens))
    }

    /// Takes note of the token that came.
    ///
    /// # Errors
    /// [`ConstraintError::Stuck`] for a token that may not come.
    pub fn accept(&mut self, token: u32) -> Result<(), ConstraintError> {
        self.matcher.consume_token(token).map_err(|e| ConstraintError::Stuck(e.to_string()))
    }

    /// Whether nothing may come any more.
    pub fn is_complete(&self) -> bool {
        self.matcher.is_stopped()
    }
}

#[cfg(test)]
mod tests;
