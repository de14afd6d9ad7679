//! The `[tui]` table of the configuration, and what the environment says about colours and time.

use std::path::Path;

use anyhow::Context as _;
use serde::Deserialize;

use crate::keys::KeyRow;
use crate::theme::Theme;

/// The `[tui]` table.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TuiConfig {
    /// A theme's name, or the path of a theme file.
    pub theme: String,
    /// Whether the mouse is taken from the start.
    pub mouse: bool,
    /// Changed keys: `{ on = "ctrl+q", run = "quit", desc = "leave" }`.
    pub keys: Vec<KeyRow>,
}

impl Default for TuiConfig {
    fn default() -> Self {
        Self { theme: "dark".to_owned(), mouse: true, keys: Vec::new() }
    }
}

impl TuiConfig {
    /// Reads the `[tui]` table of a configuration.
    ///
    /// # Errors
    /// When a setting is unknown or of the wrong kind; the message names it.
    pub fn read(table: serde_json::Map<String, serde_json::Value>) -> anyhow::Result<Self> {
        serde_json::from_value(table.into()).context("table [tui] of the configuration")
    }

    /// The theme to use: `asked` (from the command line) goes first, then `NO_COLOR`, then the
    /// configuration; in 256 colours where the terminal does not claim more.
    pub(crate) fn theme(&self, asked: Option<&str>) -> Result<Theme, String> {
        let no_colour = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let name = asked.unwrap_or(if no_colour { "none" } else { &self.theme });
        let is_file = name.contains('/') || Path::new(name).extension().is_some_and(|it| it == "toml");
        let theme = if is_file {
            let text = std::fs::read_to_string(name)
                .map_err(|error| format!("cannot read the theme {name}: {error}"))?;
            Theme::read(name, &text)?
        } else {
            Theme::named(name)?
        };
        let colour_term = std::env::var("COLORTERM").unwrap_or_default();
        let many = ["truecolor", "24bit"].contains(&colour_term.as_str());
        Ok(if many { theme } else { theme.in_256_colours() })
    }
}

/// Seconds the local clock is ahead of UTC now.
pub(crate) fn utc_offset() -> i32 {
    jiff::Zoned::now().offset().seconds()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_may_be_empty_and_says_what_it_does_not_know() {
        let config: TuiConfig = toml::from_str("").unwrap();
        assert_eq!((config.theme.as_str(), config.mouse), ("dark", true));
        let text = "theme = 'light'\nmouse = false\n[[keys]]\non = 'Q'\nrun = 'quit'";
        let config: TuiConfig = toml::from_str(text).unwrap();
        assert_eq!((config.theme.as_str(), config.mouse, config.keys.len()), ("light", false, 1));
        assert!(toml::from_str::<TuiConfig>("colour = 'light'").is_err());
    }

    /// The commented settings of the shipped configuration are real ones, at their defaults.
    #[test]
    fn the_shipped_configuration_explains_this_table_truly() {
        let shipped = include_str!("../../config/drophammer.toml");
        let table = shipped.split("[tui]").nth(1).unwrap().split("\n\n").next().unwrap();
        let settings = table.lines().filter_map(|line| line.strip_prefix("# "));
        let settings: Vec<&str> =
            settings.filter(|line| line.contains(" = ") && !line.contains(';')).collect();
        let config: TuiConfig = toml::from_str(&settings.join("\n")).unwrap();
        assert_eq!((config.theme.as_str(), config.mouse), ("dark", true));
        assert!(crate::keys::Keymap::with(&config.keys).is_ok());
        assert_eq!(config.keys.len(), 2);
    }
}
