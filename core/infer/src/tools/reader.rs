//! Takes calls out of text as it streams by.

use serde_json::Value as Json;

use super::dialect::{CLOSE, Dialect, LIST, OPEN};

/// What a model's text consists of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// Text for the user.
    Text(String),
    /// A call.
    Call {
        /// The tool.
        name: String,
        /// Its arguments, as JSON text.
        arguments: String,
    },
}

/// Reads one answer. Text is given out as soon as it is certain not to begin a call; a call when it is complete. What looks
/// like a call and is none comes out as text: nothing is lost.
#[derive(Debug, Clone)]
pub struct CallReader {
    dialect: Dialect,
    held: String,
    /// Text that is no call has been given out.
    spoke: bool,
    /// Calls given out.
    called: bool,
}

impl CallReader {
    /// At the beginning of an answer.
    pub fn new(dialect: Dialect) -> Self {
        Self { dialect, held: String::new(), spoke: false, called: false }
    }

    /// Whether there was a call.
    pub fn called(&self) -> bool {
        self.called
    }

    /// Goes on with more text.
    pub fn push(&mut self, text: &str) -> Vec<Piece> {
        self.held.push_str(text);
        let mut pieces = Vec::new();
        match self.dialect {
            Dialect::Tagged { .. } => self.tagged(&mut pieces),
            Dialect::Listed | Dialect::Bare => {
                let first = self.held.trim_start();
                let opens = match self.dialect {
                    Dialect::Listed => first.starts_with('['),
                    _ => first.starts_with('{'),
                };
                // A call is the whole answer, so it is read at the end.
                if self.spoke || !(first.is_empty() || opens) {
                    let held = std::mem::take(&mut self.held);
                    self.say(&held, &mut pieces);
                }
            }
        }
        pieces
    }

    /// The answer is over.
    pub fn finish(&mut self) -> Vec<Piece> {
        let mut pieces = Vec::new();
        let held = std::mem::take(&mut self.held);
        let calls = match self.dialect {
            // The closing tag may have been the end of the text.
            Dialect::Tagged { .. } => {
                held.trim_start().strip_prefix(OPEN).and_then(|body| self.call(body)).map(|call| vec![call])
            }
            Dialect::Listed => {
                let list = held.trim().strip_prefix(LIST).unwrap_or(held.trim());
                let list: Option<Vec<Json>> = serde_json::from_str(list).ok();
                list.and_then(|list| list.iter().map(|call| self.piece(call)).collect::<Option<Vec<_>>>())
            }
            Dialect::Bare => self.call(&held).map(|call| vec![call]),
        };
        match calls.filter(|calls| !self.spoke && !calls.is_empty() || self.is_tagged()) {
            Some(calls) => {
                self.called = true;
                pieces.extend(calls);
            }
            None => self.say(&held, &mut pieces),
        }
        pieces
    }

    fn is_tagged(&self) -> bool {
        matches!(self.dialect, Dialect::Tagged { .. })
    }

    fn tagged(&mut self, pieces: &mut Vec<Piece>) {
        loop {
            let Some(at) = self.held.find(OPEN) else {
                // The beginning of a tag may be the end of what is there.
                let keep = (1..OPEN.len())
                    .rev()
                    .find(|&length| self.held.ends_with(&OPEN[..length]))
                    .unwrap_or_default();
                let rest = self.held.split_off(self.held.len() - keep);
                let text = std::mem::replace(&mut self.held, rest);
                self.say(&text, pieces);
                return;
            };
            let rest = self.held.split_off(at);
            let text = std::mem::replace(&mut self.held, rest);
            self.say(&text, pieces);
            let Some(end) = self.held.find(CLOSE) else { return };
            let rest = self.held.split_off(end + CLOSE.len());
            let whole = std::mem::replace(&mut self.held, rest);
            match self.call(&whole[OPEN.len()..end]) {
                Some(call) => {
                    self.called = true;
                    pieces.push(call);
                }
                None => self.say(&whole, pieces),
            }
        }
    }

    /// Gives out text; white space around calls is none.
    fn say(&mut self, text: &str, pieces: &mut Vec<Piece>) {
        let blank = text.trim().is_empty();
        if text.is_empty() || (blank && (self.called || !self.spoke && self.is_tagged())) {
            return;
        }
        self.spoke |= !blank;
        pieces.push(Piece::Text(text.to_owned()));
    }

    fn call(&self, body: &str) -> Option<Piece> {
        self.piece(&serde_json::from_str(body.trim()).ok()?)
    }

    fn piece(&self, call: &Json) -> Option<Piece> {
        let name = call["name"].as_str()?.to_owned();
        let arguments = call.get(self.dialect.arguments_key())?;
        arguments.is_object().then(|| Piece::Call { name, arguments: arguments.to_string() })
    }
}
