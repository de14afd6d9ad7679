//! System prompt and sampling.

use std::str::FromStr;

use ratatui::layout::Rect;

use crate::actions::Action;
use crate::canvas::{Canvas, Pane, Spot};
use crate::keys::Chord;
use crate::mirror::Mirror;
use crate::views::chat::Settings;
use crate::views::{Ask, Outbox, View};
use crate::widgets::input::Input;

const FIELDS: [(&str, &str); 5] = [
    ("system prompt", "none"),
    ("temperature", "the server's; 0 always takes the likeliest token"),
    ("top-p", "the server's; 0 to 1"),
    ("most tokens", "the server's"),
    ("seed", "random"),
];

pub(crate) struct ChatSettings {
    inputs: [Input; FIELDS.len()],
    at: usize,
    wrong: Option<String>,
}

impl ChatSettings {
    pub(crate) fn new(settings: &Settings) -> Self {
        fn number<T: ToString>(value: Option<T>) -> Input {
            Input::new(&value.map_or(String::new(), |value| value.to_string()))
        }
        let inputs = [
            Input::new(&settings.system),
            number(settings.temperature),
            number(settings.top_p),
            number(settings.max_tokens),
            number(settings.seed),
        ];
        Self { inputs, at: 0, wrong: None }
    }

    /// What the fields say, or which one says nothing sensible.
    fn read(&self) -> Result<Settings, String> {
        let in_range = |at: usize, range: std::ops::RangeInclusive<f64>| match self.number::<f64>(at)? {
            Some(value) if !range.contains(&value) => {
                Err(format!("{} must lie between {} and {}", FIELDS[at].0, range.start(), range.end()))
            }
            value => Ok(value),
        };
        Ok(Settings {
            system: self.inputs[0].text().trim().to_owned(),
            temperature: in_range(1, 0.0..=2.0)?,
            top_p: in_range(2, 0.0..=1.0)?,
            max_tokens: self.number(3)?,
            seed: self.number(4)?,
        })
    }

    fn number<T: FromStr>(&self, at: usize) -> Result<Option<T>, String> {
        let text = self.inputs[at].text();
        match text.trim() {
            "" => Ok(None),
            text => {
                text.parse().map(Some).map_err(|_| format!("{}: `{text}` is not such a number", FIELDS[at].0))
            }
        }
    }
}

impl View for ChatSettings {
    fn actions(&self, _mirror: &Mirror) -> Vec<Action> {
        vec![Action::Confirm, Action::Back, Action::Up, Action::Down, Action::NextPane, Action::PreviousPane]
    }

    fn act(&mut self, action: Action, _mirror: &Mirror, out: &mut Outbox) {
        let count = FIELDS.len();
        match action {
            Action::Confirm => match self.read() {
                Ok(settings) => {
                    out.push(Ask::ChatSettings(settings));
                    out.push(Ask::Close);
                }
                Err(wrong) => self.wrong = Some(wrong),
            },
            Action::Back => out.push(Ask::Close),
            Action::Up | Action::PreviousPane => self.at = (self.at + count - 1) % count,
            _ => self.at = (self.at + 1) % count,
        }
    }

    fn typing(&self) -> bool {
        true
    }

    fn key(&mut self, chord: Chord, _mirror: &Mirror, _out: &mut Outbox) {
        self.inputs[self.at].key(chord);
        self.wrong = None;
    }

    fn paste(&mut self, text: &str, _mirror: &Mirror, _out: &mut Outbox) {
        self.inputs[self.at].insert(text);
    }

    fn click(&mut self, spot: Spot, _mirror: &Mirror, _out: &mut Outbox) {
        if let Spot::Row(Pane::Overlay, index) = spot {
            self.at = index.min(FIELDS.len() - 1);
        }
    }

    fn draw(&self, canvas: &mut Canvas<'_>, area: Rect, _mirror: &Mirror) {
        let height = FIELDS.len() as u16 + 5;
        let hints = [Action::Confirm, Action::Back, Action::NextPane];
        let inside = super::frame(canvas, area, 72, height, "How answers are sampled", &hints);
        for (at, (y, (label, placeholder))) in (inside.top()..inside.bottom()).zip(FIELDS).enumerate() {
            let focused = at == self.at;
            let style = if focused { canvas.theme.accent } else { canvas.theme.dim };
            let mark = if focused { "▸ " } else { "  " };
            canvas.text(inside.x, y, 16, &format!("{mark}{label}"), style);
            let place = Rect { x: inside.x + 17, y, width: inside.width.saturating_sub(17), height: 1 };
            canvas.spots.add(Rect { y, height: 1, ..inside }, Spot::Row(Pane::Overlay, at));
            self.inputs[at].draw(canvas, place, focused, placeholder);
        }
        if let Some(wrong) = &self.wrong {
            let y = inside.bottom().saturating_sub(1);
            canvas.clipped(inside.x, y, inside.width, wrong, canvas.theme.bad);
        }
    }
}
