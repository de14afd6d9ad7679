//! Editing a line of text.

use crossterm::event::{KeyCode, KeyModifiers};
use ratatui::layout::Rect;
use ratatui::style::Modifier;
use unicode_width::UnicodeWidthChar as _;

use crate::canvas::Canvas;
use crate::keys::Chord;

/// A text being edited. Line breaks are kept (paste, alt+enter) and drawn as `⏎`.
#[derive(Debug, Clone, Default)]
pub(crate) struct Input {
    text: Vec<char>,
    cursor: usize,
}

/// The most characters that are taken.
const LIMIT: usize = 100_000;

impl Input {
    pub(crate) fn new(text: &str) -> Self {
        let text: Vec<char> = text.chars().collect();
        Self { cursor: text.len(), text }
    }

    pub(crate) fn text(&self) -> String {
        self.text.iter().collect()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.text.is_empty()
    }

    /// Hands out the text and starts anew.
    pub(crate) fn take(&mut self) -> String {
        let text = self.text();
        *self = Self::default();
        text
    }

    /// Inserts pasted text.
    pub(crate) fn insert(&mut self, text: &str) {
        let room = LIMIT.saturating_sub(self.text.len());
        let new: Vec<char> = text.chars().filter(|c| !c.is_control() || *c == '\n').take(room).collect();
        let count = new.len();
        self.text.splice(self.cursor..self.cursor, new);
        self.cursor += count;
    }

    /// Takes a key; `false` when it means nothing here.
    pub(crate) fn key(&mut self, chord: Chord) -> bool {
        let ctrl = chord.modifiers == KeyModifiers::CONTROL;
        match chord.code {
            KeyCode::Char('a') if ctrl => self.cursor = 0,
            KeyCode::Char('e') if ctrl => self.cursor = self.text.len(),
            KeyCode::Char('u') if ctrl => {
                self.text.drain(..self.cursor);
                self.cursor = 0;
            }
            KeyCode::Char('k') if ctrl => self.text.truncate(self.cursor),
            KeyCode::Char('w') if ctrl => self.delete_word(),
            KeyCode::Enter if chord.modifiers == KeyModifiers::ALT => self.insert("\n"),
            KeyCode::Backspace if self.cursor > 0 => {
                self.cursor -= 1;
                self.text.remove(self.cursor);
            }
            KeyCode::Delete if self.cursor < self.text.len() => {
                self.text.remove(self.cursor);
            }
            KeyCode::Left => self.cursor = self.cursor.saturating_sub(1),
            KeyCode::Right => self.cursor = (self.cursor + 1).min(self.text.len()),
            KeyCode::Home => self.cursor = 0,
            KeyCode::End => self.cursor = self.text.len(),
            _ => match chord.types() {
                Some(c) => self.insert(c.encode_utf8(&mut [0; 4])),
                None => return false,
            },
        }
        true
    }

    fn delete_word(&mut self) {
        let before = &self.text[..self.cursor];
        let word_end = before.iter().rposition(|c| !c.is_whitespace()).map_or(0, |at| at + 1);
        let start = before[..word_end].iter().rposition(|c| c.is_whitespace()).map_or(0, |at| at + 1);
        self.text.drain(start..self.cursor);
        self.cursor = start;
    }

    /// Draws the text around the cursor in the area's first row.
    pub(crate) fn draw(&self, canvas: &mut Canvas<'_>, area: Rect, focused: bool, placeholder: &str) {
        if area.width == 0 || area.height == 0 {
            return;
        }
        if self.text.is_empty() {
            canvas.clipped(area.x, area.y, area.width, placeholder, canvas.theme.dim);
        }
        let columns = |c: &char| if *c == '\n' { 1 } else { c.width().unwrap_or(0) as u16 };
        // Start late enough that the cursor is in sight.
        let mut start = self.cursor;
        let mut room = area.width.saturating_sub(1);
        while start > 0 && columns(&self.text[start - 1]) <= room {
            start -= 1;
            room -= columns(&self.text[start]);
        }
        let mut x = area.x;
        for (at, c) in self.text.iter().enumerate().skip(start) {
            if x + columns(c) > area.right() {
                break;
            }
            let (shown, style) = if *c == '\n' { ('⏎', canvas.theme.dim) } else { (*c, canvas.theme.text) };
            if at == self.cursor && focused {
                cursor(canvas, x, area.y);
            }
            let style =
                if at == self.cursor && focused { style.add_modifier(Modifier::REVERSED) } else { style };
            x += canvas.text(x, area.y, 2, shown.encode_utf8(&mut [0; 4]), style);
        }
        if self.cursor == self.text.len() && focused && x < area.right() {
            cursor(canvas, x, area.y);
        }
    }
}

fn cursor(canvas: &mut Canvas<'_>, x: u16, y: u16) {
    if let Some(cell) = canvas.buffer.cell_mut((x, y)) {
        cell.modifier |= Modifier::REVERSED;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_edit_as_in_a_shell() {
        let mut input = Input::new("one two");
        for (key, expected) in [
            ("!", "one two!"),
            ("ctrl+w", "one "),
            ("ctrl+a", "one "),
            ("x", "xone "),
            ("delete", "xne "),
            ("right", "xne "),
            ("backspace", "xe "),
            ("ctrl+k", "x"),
            ("alt+enter", "x\n"),
            ("ctrl+u", ""),
            ("backspace", ""),
        ] {
            input.key(Chord::parse(key).unwrap());
            assert_eq!(input.text(), expected, "after {key}");
        }
        assert!(!input.key(Chord::parse("f5").unwrap()));
    }

    #[test]
    fn pasted_control_characters_are_left_out() {
        let mut input = Input::default();
        input.insert("a\u{1b}[2J\r\nb");
        assert_eq!(input.text(), "a[2J\nb");
    }
}
