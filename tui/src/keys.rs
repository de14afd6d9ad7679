//! Keys: how they are written, and which action they mean.

use std::fmt;

use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use serde::Deserialize;

use crate::actions::{Action, REGISTRY};

/// A key with its modifiers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Chord {
    /// The key.
    pub code: KeyCode,
    /// Ctrl, Alt and Shift; a letter's shift is its upper case.
    pub modifiers: KeyModifiers,
}

/// Names of keys that are not one character, as written in the configuration, and on the screen.
const NAMED: &[(&str, &str, KeyCode)] = &[
    ("enter", "⏎", KeyCode::Enter),
    ("esc", "esc", KeyCode::Esc),
    ("tab", "tab", KeyCode::Tab),
    ("backspace", "⌫", KeyCode::Backspace),
    ("delete", "del", KeyCode::Delete),
    ("insert", "ins", KeyCode::Insert),
    ("up", "↑", KeyCode::Up),
    ("down", "↓", KeyCode::Down),
    ("left", "←", KeyCode::Left),
    ("right", "→", KeyCode::Right),
    ("home", "home", KeyCode::Home),
    ("end", "end", KeyCode::End),
    ("pageup", "pgup", KeyCode::PageUp),
    ("pagedown", "pgdn", KeyCode::PageDown),
    ("space", "space", KeyCode::Char(' ')),
];

impl Chord {
    /// Reads `ctrl+p`, `shift+tab`, `G`, `enter`, `f1`, `/` …; `None` when it is no key.
    pub fn parse(text: &str) -> Option<Self> {
        let mut modifiers = KeyModifiers::NONE;
        let mut rest = text;
        loop {
            let (modifier, after) = if let Some(after) = rest.strip_prefix("ctrl+") {
                (KeyModifiers::CONTROL, after)
            } else if let Some(after) = rest.strip_prefix("alt+") {
                (KeyModifiers::ALT, after)
            } else if let Some(after) = rest.strip_prefix("shift+") {
                (KeyModifiers::SHIFT, after)
            } else {
                break;
            };
            modifiers |= modifier;
            rest = after;
        }
        let mut characters = rest.chars();
        let code = match (characters.next(), characters.next()) {
            (Some(c), None) => KeyCode::Char(c),
            _ => match NAMED.iter().find(|(name, ..)| *name == rest) {
                Some((_, _, code)) => *code,
                None => KeyCode::F(rest.strip_prefix('f')?.parse().ok().filter(|n| (1..=24).contains(n))?),
            },
        };
        Some(Self { code, modifiers }.normal())
    }

    /// One form for what terminals report differently.
    fn normal(mut self) -> Self {
        match self.code {
            KeyCode::BackTab => {
                self.code = KeyCode::Tab;
                self.modifiers |= KeyModifiers::SHIFT;
            }
            KeyCode::Char(c) if self.modifiers.contains(KeyModifiers::SHIFT) => {
                self.code = KeyCode::Char(c.to_uppercase().next().unwrap_or(c));
                self.modifiers -= KeyModifiers::SHIFT;
            }
            _ => {}
        }
        self.modifiers &= KeyModifiers::CONTROL | KeyModifiers::ALT | KeyModifiers::SHIFT;
        self
    }

    /// The character this key types, if it types one.
    pub fn types(self) -> Option<char> {
        match self.code {
            KeyCode::Char(c) if self.modifiers.is_empty() => Some(c),
            _ => None,
        }
    }
}

impl From<KeyEvent> for Chord {
    fn from(event: KeyEvent) -> Self {
        Self { code: event.code, modifiers: event.modifiers }.normal()
    }
}

impl fmt::Display for Chord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (modifier, text) in
            [(KeyModifiers::CONTROL, "^"), (KeyModifiers::ALT, "alt-"), (KeyModifiers::SHIFT, "⇧")]
        {
            if self.modifiers.contains(modifier) {
                f.write_str(text)?;
            }
        }
        match self.code {
            KeyCode::F(n) => write!(f, "F{n}"),
            code => match NAMED.iter().find(|(.., named)| *named == code) {
                Some((_, shown, _)) => f.write_str(shown),
                None => match code {
                    KeyCode::Char(c) if self.modifiers.contains(KeyModifiers::CONTROL) => {
                        write!(f, "{}", c.to_uppercase())
                    }
                    KeyCode::Char(c) => write!(f, "{c}"),
                    _ => f.write_str("?"),
                },
            },
        }
    }
}

/// One row of the configuration's key table.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyRow {
    /// One key or several.
    pub on: OneOrMany,
    /// Name of the action, or `none` to take the key away.
    pub run: String,
    /// For whoever reads the configuration.
    #[serde(default)]
    pub desc: Option<String>,
}

/// `"x"` or `["x", "y"]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub enum OneOrMany {
    /// One.
    One(String),
    /// Several.
    Many(Vec<String>),
}

/// Which key means which action.
#[derive(Debug, Clone)]
pub struct Keymap {
    bindings: Vec<(Chord, Action)>,
}

impl Default for Keymap {
    fn default() -> Self {
        let bindings = REGISTRY
            .iter()
            .flat_map(|entry| entry.keys.iter().filter_map(|key| Some((Chord::parse(key)?, entry.action))));
        Self { bindings: bindings.collect() }
    }
}

impl Keymap {
    /// The registry's keys, changed by the configuration's rows. A row's key no longer means anything
    /// else; its action keeps its other keys.
    ///
    /// # Errors
    /// When a row names no key or no action; the text says which.
    pub fn with(rows: &[KeyRow]) -> Result<Self, String> {
        let mut keymap = Self::default();
        let mut own = Vec::new();
        for row in rows {
            let keys = match &row.on {
                OneOrMany::One(key) => std::slice::from_ref(key),
                OneOrMany::Many(keys) => keys,
            };
            let action = match row.run.as_str() {
                "none" => None,
                name => Some(Action::by_name(name).ok_or_else(|| {
                    format!("no action is named `{name}`; the palette (:) shows every name")
                })?),
            };
            for key in keys {
                let chord = Chord::parse(key).ok_or_else(|| {
                    format!("`{key}` is not a key; write it like `x`, `ctrl+x`, `enter` or `f5`")
                })?;
                keymap.bindings.retain(|(bound, _)| *bound != chord);
                own.extend(action.map(|action| (chord, action)));
            }
        }
        own.append(&mut keymap.bindings);
        Ok(Self { bindings: own })
    }

    /// What `chord` means where `offered` can be done; earlier offers win.
    pub fn action(&self, chord: Chord, offered: &[Action]) -> Option<Action> {
        offered.iter().copied().find(|action| self.bindings.contains(&(chord, *action)))
    }

    /// The first key of an action; while `typing`, the first that is not text.
    pub fn key(&self, action: Action, typing: bool) -> Option<Chord> {
        let keys = self.bindings.iter().filter(|(_, bound)| *bound == action).map(|(chord, _)| *chord);
        keys.into_iter().find(|chord| !typing || chord.types().is_none())
    }

    /// Every key of an action, as shown on the screen.
    pub fn keys(&self, action: Action) -> String {
        let keys = self.bindings.iter().filter(|(_, bound)| *bound == action);
        keys.map(|(chord, _)| chord.to_string()).collect::<Vec<_>>().join(" ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_default_key_is_a_key() {
        for entry in REGISTRY {
            for key in entry.keys {
                assert!(Chord::parse(key).is_some(), "{key} of {}", entry.name);
            }
        }
    }

    #[test]
    fn keys_are_read_and_shown() {
        for (text, shown) in [
            ("ctrl+p", Some("^P")),
            ("shift+tab", Some("⇧tab")),
            ("shift+g", Some("G")),
            ("G", Some("G")),
            ("enter", Some("⏎")),
            ("f12", Some("F12")),
            ("alt+x", Some("alt-x")),
            ("+", Some("+")),
            ("f99", None),
            ("hyper+x", None),
            ("", None),
        ] {
            assert_eq!(Chord::parse(text).map(|chord| chord.to_string()).as_deref(), shown, "{text}");
        }
        let back_tab = KeyEvent::new(KeyCode::BackTab, KeyModifiers::SHIFT);
        assert_eq!(Some(Chord::from(back_tab)), Chord::parse("shift+tab"));
        let shifted = KeyEvent::new(KeyCode::Char('G'), KeyModifiers::SHIFT);
        assert_eq!(Some(Chord::from(shifted)), Chord::parse("G"));
    }

    fn rows(text: &str) -> Vec<KeyRow> {
        #[derive(Deserialize)]
        struct Table {
            keys: Vec<KeyRow>,
        }
        toml::from_str::<Table>(text).unwrap().keys
    }

    #[test]
    fn a_row_moves_a_key_and_none_takes_it_away() {
        let keymap = Keymap::with(&rows(
            "keys = [{ on = ['ctrl+q', 'Q'], run = 'quit', desc = 'go' }, { on = 'q', run = 'none' }]",
        ))
        .unwrap();
        let offered = [Action::Quit];
        for (key, expected) in [("ctrl+q", true), ("Q", true), ("q", false)] {
            let found = keymap.action(Chord::parse(key).unwrap(), &offered);
            assert_eq!(found.is_some(), expected, "{key}");
        }
        assert_eq!(keymap.keys(Action::Quit), "^Q Q");
    }

    #[test]
    fn a_wrong_row_is_named() {
        let error = |text| Keymap::with(&rows(text)).unwrap_err();
        assert!(error("keys = [{ on = 'x', run = 'fly' }]").contains("`fly`"));
        assert!(error("keys = [{ on = 'hyper+x', run = 'quit' }]").contains("`hyper+x`"));
    }
}
