//! How each role looks. Views name roles, never colours.

use ratatui::style::{Color, Modifier, Style};
use serde::Deserialize;

/// The themes that come along, by name; the first is the default.
const BUILT_IN: &[(&str, &str)] = &[
    ("dark", include_str!("../../config/themes/dark.toml")),
    ("light", include_str!("../../config/themes/light.toml")),
    ("high-contrast", include_str!("../../config/themes/high-contrast.toml")),
    ("colour-blind", include_str!("../../config/themes/colour-blind.toml")),
    ("none", include_str!("../../config/themes/none.toml")),
];

/// A style per role.
#[derive(Debug, Clone, PartialEq)]
pub struct Theme {
    /// Its name.
    pub name: String,
    pub(crate) text: Style,
    pub(crate) dim: Style,
    pub(crate) title: Style,
    pub(crate) border: Style,
    pub(crate) border_focused: Style,
    pub(crate) accent: Style,
    pub(crate) key: Style,
    pub(crate) selection: Style,
    pub(crate) selection_idle: Style,
    pub(crate) good: Style,
    pub(crate) busy: Style,
    pub(crate) warn: Style,
    pub(crate) bad: Style,
    pub(crate) bar: Style,
    pub(crate) bar_rest: Style,
    pub(crate) matched: Style,
    pub(crate) user: Style,
    pub(crate) model: Style,
    series: Vec<Style>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct File {
    text: Look,
    dim: Look,
    title: Look,
    border: Look,
    border_focused: Look,
    accent: Look,
    key: Look,
    selection: Look,
    selection_idle: Look,
    good: Look,
    busy: Look,
    warn: Look,
    bad: Look,
    bar: Look,
    bar_rest: Look,
    r#match: Look,
    user: Look,
    model: Look,
    series: Vec<String>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct Look {
    fg: Option<String>,
    bg: Option<String>,
    bold: bool,
    dim: bool,
    italic: bool,
    underline: bool,
    reverse: bool,
}

impl Theme {
    /// Names of the themes that come along.
    pub fn names() -> impl Iterator<Item = &'static str> {
        BUILT_IN.iter().map(|(name, _)| *name)
    }

    /// A theme that comes along.
    ///
    /// # Errors
    /// When there is none of that name; the text lists those there are.
    pub fn named(name: &str) -> Result<Self, String> {
        let Some((name, text)) = BUILT_IN.iter().find(|(known, _)| *known == name) else {
            let names = Self::names().collect::<Vec<_>>().join(", ");
            return Err(format!(
                "no theme is named `{name}`; there are {names}, or give a theme file's path"
            ));
        };
        Self::read(name, text)
    }

    /// Reads a theme file.
    ///
    /// # Errors
    /// When it is not one; the text says why.
    pub fn read(name: &str, text: &str) -> Result<Self, String> {
        let file: File = toml::from_str(text).map_err(|error| format!("theme {name}: {error}"))?;
        let style = |look: &Look| look.style().map_err(|colour| not_a_colour(name, &colour));
        let series = file.series.iter().map(|text| match text.parse::<Color>() {
            Ok(colour) => Ok(Style::new().fg(colour)),
            Err(_) => Err(not_a_colour(name, text)),
        });
        Ok(Self {
            name: name.to_owned(),
            text: style(&file.text)?,
            dim: style(&file.dim)?,
            title: style(&file.title)?,
            border: style(&file.border)?,
            border_focused: style(&file.border_focused)?,
            accent: style(&file.accent)?,
            key: style(&file.key)?,
            selection: style(&file.selection)?,
            selection_idle: style(&file.selection_idle)?,
            good: style(&file.good)?,
            busy: style(&file.busy)?,
            warn: style(&file.warn)?,
            bad: style(&file.bad)?,
            bar: style(&file.bar)?,
            bar_rest: style(&file.bar_rest)?,
            matched: style(&file.r#match)?,
            user: style(&file.user)?,
            model: style(&file.model)?,
            series: series.collect::<Result<_, _>>()?,
        })
    }

    /// The theme after this one.
    pub(crate) fn next(&self) -> Self {
        let here = BUILT_IN.iter().position(|(name, _)| *name == self.name);
        let (name, text) = BUILT_IN[here.map_or(0, |index| (index + 1) % BUILT_IN.len())];
        Self::read(name, text).unwrap_or_else(|_| self.clone())
    }

    /// The style of the n-th line or group of points in a graph.
    pub(crate) fn series(&self, n: usize) -> Style {
        if self.series.is_empty() { self.text } else { self.series[n % self.series.len()] }
    }

    /// The same in the 256 colours every terminal has.
    #[must_use]
    pub fn in_256_colours(mut self) -> Self {
        let Self {
            name: _,
            text,
            dim,
            title,
            border,
            border_focused,
            accent,
            key,
            selection,
            selection_idle,
            good,
            busy,
            warn,
            bad,
            bar,
            bar_rest,
            matched,
            user,
            model,
            series,
        } = &mut self;
        let single = [
            text,
            dim,
            title,
            border,
            border_focused,
            accent,
            key,
            selection,
            selection_idle,
            good,
            busy,
            warn,
            bad,
            bar,
            bar_rest,
            matched,
            user,
            model,
        ];
        for style in single.into_iter().chain(series) {
            style.fg = style.fg.map(nearest_of_256);
            style.bg = style.bg.map(nearest_of_256);
        }
        self
    }
}

impl Look {
    fn style(&self) -> Result<Style, String> {
        let colour = |text: &Option<String>| {
            text.as_ref().map(|text| text.parse::<Color>().map_err(|_| text.clone())).transpose()
        };
        let mut style = Style { fg: colour(&self.fg)?, bg: colour(&self.bg)?, ..Style::new() };
        for (on, modifier) in [
            (self.bold, Modifier::BOLD),
            (self.dim, Modifier::DIM),
            (self.italic, Modifier::ITALIC),
            (self.underline, Modifier::UNDERLINED),
            (self.reverse, Modifier::REVERSED),
        ] {
            if on {
                style = style.add_modifier(modifier);
            }
        }
        Ok(style)
    }
}

fn not_a_colour(theme: &str, text: &str) -> String {
    format!("theme {theme}: `{text}` is not a colour; write #rrggbb, 0 to 255 or a name such as red")
}

/// The nearest of xterm's 6×6×6 cube and 24 greys.
fn nearest_of_256(colour: Color) -> Color {
    const STEPS: [u8; 6] = [0, 95, 135, 175, 215, 255];
    let Color::Rgb(r, g, b) = colour else { return colour };
    let nearest = |value: u8| (0..6).min_by_key(|&i| STEPS[i].abs_diff(value)).unwrap_or(0);
    let cube = [nearest(r), nearest(g), nearest(b)];
    let average = (u16::from(r) + u16::from(g) + u16::from(b)) / 3;
    let grey = (average.saturating_sub(3) / 10).min(23);
    let grey_value = (8 + grey * 10) as u8;
    let distance =
        |x: [u8; 3]| -> u32 { [r, g, b].iter().zip(x).map(|(a, b)| u32::from(a.abs_diff(b)).pow(2)).sum() };
    if distance([grey_value; 3]) < distance(cube.map(|i| STEPS[i])) {
        Color::Indexed(232 + grey as u8)
    } else {
        Color::Indexed((16 + 36 * cube[0] + 6 * cube[1] + cube[2]) as u8)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_theme_that_comes_along_can_be_read_and_they_form_a_ring() {
        let first = Theme::named("dark").unwrap();
        let mut theme = first.clone();
        for name in Theme::names() {
            assert_eq!(theme.name, name);
            theme = theme.next();
        }
        assert_eq!(theme, first);
    }

    #[test]
    fn no_colour_means_none() {
        let theme = Theme::named("none").unwrap();
        for style in [theme.text, theme.bad, theme.selection, theme.bar, theme.series(3)] {
            assert_eq!((style.fg, style.bg), (None, None));
        }
    }

    #[test]
    fn a_wrong_theme_is_explained() {
        assert!(Theme::named("pink").unwrap_err().contains("high-contrast"));
        assert!(Theme::read("x", "good = { fg = '#12' }").unwrap_err().contains("`#12` is not a colour"));
        assert!(Theme::read("x", "gut = { }").is_err());
    }

    #[test]
    fn colours_are_rounded_to_the_nearest_of_256() {
        for (rgb, expected) in
            [((0, 0, 0), 16), ((255, 255, 255), 231), ((128, 128, 128), 244), ((255, 0, 0), 196)]
        {
            assert_eq!(nearest_of_256(Color::Rgb(rgb.0, rgb.1, rgb.2)), Color::Indexed(expected));
        }
        let theme = Theme::named("dark").unwrap().in_256_colours();
        assert!(matches!(theme.bad.fg, Some(Color::Indexed(_))));
    }
}
