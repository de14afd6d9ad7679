//! Choosing an artifact or a source to talk to.

use ratatui::layout::Rect;

use crate::actions::Action;
use crate::canvas::{Canvas, Pane, Spot};
use crate::keys::Chord;
use crate::mirror::Mirror;
use crate::units;
use crate::views::vocabulary::{on_device, served_mark, served_word};
use crate::views::{Ask, Outbox, View};
use crate::widgets::fuzzy;
use crate::widgets::input::Input;
use crate::widgets::list::ListState;
use crate::widgets::table::{Column, Field, Row, Table};

const COLUMNS: &[Column] = &[
    Column::left("MODEL", 16, 2, 0),
    Column::left("SCHEME", 10, 1, 0),
    Column::left("BACKEND", 10, 1, 2),
    Column::right("KL", 8, 1),
    Column::right("TOK/S", 6, 1),
    Column::left("", 9, 0, 3),
];

pub(crate) struct Picker {
    column: usize,
    /// What matches, by id.
    found: Vec<String>,
    query: Input,
    list: ListState,
}

impl Picker {
    pub(crate) fn new(column: usize, mirror: &Mirror) -> Self {
        let mut picker =
            Self { column, found: Vec::new(), query: Input::default(), list: ListState::default() };
        picker.search(mirror);
        picker
    }

    fn search(&mut self, mirror: &Mirror) {
        let query = self.query.text();
        let mut found: Vec<(i32, bool, &str)> = mirror
            .voices()
            .filter_map(|it| {
                let backend = it.artifact.map_or("source", |artifact| &artifact.backend);
                let text = format!("{} {} {backend} {}", it.model, it.scheme, it.format);
                let score = fuzzy::score(&query, &text)?;
                let first = it.artifact.is_some_and(|artifact| artifact.best) || it.served(mirror).is_some();
                Some((score, first, it.id))
            })
            .collect();
        found.sort_by_key(|(score, first, _)| std::cmp::Reverse((*score, *first)));
        self.found = found.into_iter().map(|(.., id)| id.to_owned()).collect();
        self.list.clamp(self.found.len());
    }

    fn pick(&self, out: &mut Outbox) {
        out.push(Ask::Close);
        if let Some(id) = self.found.get(self.list.selected) {
            out.push(Ask::Chat { column: self.column, artifact: Some(id.clone()) });
        }
    }
}

impl View for Picker {
    fn actions(&self, _mirror: &Mirror) -> Vec<Action> {
        vec![Action::Open, Action::Back, Action::Up, Action::Down, Action::PageUp, Action::PageDown]
    }

    fn act(&mut self, action: Action, _mirror: &Mirror, out: &mut Outbox) {
        match action {
            Action::Open => self.pick(out),
            Action::Back => out.push(Ask::Close),
            _ => {
                self.list.act(action, self.found.len());
            }
        }
    }

    fn typing(&self) -> bool {
        true
    }

    fn key(&mut self, chord: Chord, mirror: &Mirror, _out: &mut Outbox) {
        if self.query.key(chord) {
            self.search(mirror);
        }
    }

    fn click(&mut self, spot: Spot, _mirror: &Mirror, out: &mut Outbox) {
        if let Spot::Row(Pane::Overlay, index) = spot {
            self.list.selected = index;
            self.pick(out);
        }
    }

    fn wheel(&mut self, _pane: Pane, lines: isize, _mirror: &Mirror, _out: &mut Outbox) {
        self.list.scroll(lines, self.found.len());
    }

    fn refresh(&mut self, mirror: &Mirror, _out: &mut Outbox) {
        self.search(mirror);
    }

    fn draw(&self, canvas: &mut Canvas<'_>, area: Rect, mirror: &Mirror) {
        let title = if self.column == 0 { "Talk to" } else { "Side by side with" };
        let inside = super::frame(canvas, area, 78, 18, title, &[Action::Open, Action::Back]);
        canvas.text(inside.x, inside.y, 2, "/ ", canvas.theme.key);
        let line = Rect { x: inside.x + 2, width: inside.width.saturating_sub(2), height: 1, ..inside };
        self.query.draw(canvas, line, true, "model, scheme or backend");
        let body = Rect { y: inside.y + 1, height: inside.height.saturating_sub(1), ..inside };
        let table = Table {
            columns: COLUMNS,
            state: &self.list,
            len: self.found.len(),
            pane: Pane::Overlay,
            focused: true,
            sort: None,
        };
        let theme = canvas.theme;
        table.draw(canvas, body, |index| {
            let Some(it) = mirror.voice(&self.found[index]) else { return Row::Fields(Vec::new()) };
            let number =
                |text: Option<String>| Field::new(text.unwrap_or_else(|| "–".to_owned()), theme.text);
            let best = if it.artifact.is_some_and(|artifact| artifact.best) { "★ " } else { "  " };
            let served = it.served(mirror);
            let state =
                served.map_or(String::new(), |it| format!("{} {}", served_mark(it.state), served_word(it)));
            let backend = it.artifact.map_or_else(
                || "source".to_owned(),
                |artifact| on_device(&artifact.backend, artifact.device.as_deref()),
            );
            let measured = it.artifact.map(|artifact| &artifact.measurements);
            Row::Fields(vec![
                Field::new(format!("{best}{}", it.model), theme.text),
                Field::new(it.scheme.to_owned(), theme.text),
                Field::new(backend, theme.dim),
                number(measured.and_then(|it| it.kl_mean).map(units::divergence)),
                number(measured.and_then(|it| it.decode_tps).map(units::speed)),
                Field::new(state, theme.good),
            ])
        });
    }
}
