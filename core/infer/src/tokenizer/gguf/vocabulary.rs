//! The arrays of a GGUF vocabulary, checked against each other.

use std::borrow::Cow;

use drophammer_formats::gguf::{Array, Metadata};

use super::super::error::Problem;
use super::super::pieces::SPACE_MARK;

/// What a token is for; the numbers are the format's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TokenKind {
    /// Text.
    Normal,
    /// Stands for what the vocabulary lacks.
    Unknown,
    /// Controls the model.
    Control,
    /// Text that is never cut.
    UserDefined,
    /// Not used.
    Unused,
    /// One byte, named like `<0x0A>`.
    Byte,
}

impl TokenKind {
    fn from_number(number: i64) -> Self {
        match number {
            2 => Self::Unknown,
            3 => Self::Control,
            4 => Self::UserDefined,
            5 => Self::Unused,
            6 => Self::Byte,
            _ => Self::Normal,
        }
    }
}

/// Tokens by id, with what the file says about each.
pub(super) struct Vocabulary<'a> {
    pub(super) tokens: Vec<Cow<'a, str>>,
    pub(super) kinds: Vec<TokenKind>,
    /// Empty where the file has none.
    pub(super) scores: Vec<f32>,
}

impl<'a> Vocabulary<'a> {
    pub(super) fn read(metadata: &'a Metadata) -> Result<Self, Problem> {
        let tokens =
            metadata.array("tokenizer.ggml.tokens").and_then(Array::as_strings).ok_or_else(|| {
                Problem::broken("`tokenizer.ggml.tokens` is not there or not a list of strings")
            })?;
        if tokens.is_empty() || u32::try_from(tokens.len()).is_err() {
            return Err(Problem::broken(format!("`tokenizer.ggml.tokens` has {} tokens", tokens.len())));
        }
        let kinds = match metadata.array("tokenizer.ggml.token_type") {
            None => vec![TokenKind::Normal; tokens.len()],
            Some(kinds) => {
                let kinds = kinds.to_i64s().unwrap_or_default();
                same_length("token_type", kinds.len(), tokens.len())?;
                kinds.into_iter().map(TokenKind::from_number).collect()
            }
        };
        let scores = match metadata.array("tokenizer.ggml.scores") {
            None => Vec::new(),
            Some(scores) => {
                let scores = scores.to_f32s().unwrap_or_default();
                same_length("scores", scores.len(), tokens.len())?;
                if let Some(id) = scores.iter().position(|score| score.is_nan()) {
                    return Err(Problem::broken(format!("the score of token {id} is not a number")));
                }
                scores
            }
        };
        Ok(Self { tokens: tokens.iter().map(|token| Cow::Borrowed(token.as_str())).collect(), kinds, scores })
    }

    /// Takes `▁` from the front of tokens that begin a word and puts `##` before the others: WordPiece as it was
    /// before it was written into the file.
    pub(super) fn restore_wordpiece(&mut self) {
        for (token, kind) in self.tokens.iter_mut().zip(&self.kinds) {
            let in_brackets = token.starts_with('[') && token.ends_with(']');
            if *kind == TokenKind::Normal && !in_brackets {
                *token = match token.strip_prefix(SPACE_MARK) {
                    Some(word) => word.to_owned().into(),
                    None => format!("##{token}").into(),
                };
            }
        }
    }

    /// Id and text of tokens of some kinds.
    pub(super) fn of_kinds<'b>(&'b self, kinds: &'b [TokenKind]) -> impl Iterator<Item = (u32, &'b str)> {
        let all = self.tokens.iter().zip(&self.kinds).zip(0u32..);
        all.filter(|((_, kind), _)| kinds.contains(kind)).map(|((token, _), id)| (id, token.as_ref()))
    }
}

fn same_length(key: &str, found: usize, expected: usize) -> Result<(), Problem> {
    if found == expected {
        return Ok(());
    }
    Err(Problem::broken(format!("`tokenizer.ggml.{key}` has {found} numbers for {expected} tokens")))
}
