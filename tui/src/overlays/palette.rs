//! Every action that can be done now, found by a few letters.

use ratatui::layout::Rect;

use crate::actions::Action;
use crate::canvas::{Canvas, Pane, Spot};
use crate::keys::Chord;
use crate::mirror::Mirror;
use crate::views::{Ask, Outbox, View};
use crate::widgets::fuzzy;
use crate::widgets::input::Input;
use crate::widgets::list::ListState;
use crate::widgets::table::{Column, Field, Row, Table};

const COLUMNS: &[Column] =
    &[Column::left("ACTION", 14, 0, 0), Column::left("", 16, 1, 1), Column::right("KEY", 9, 0)];

pub(crate) struct Palette {
    offered: Vec<Action>,
    found: Vec<Action>,
    query: Input,
    list: ListState,
}

impl Palette {
    pub(crate) fn new(offered: Vec<Action>) -> Self {
        Self { found: offered.clone(), offered, query: Input::default(), list: ListState::default() }
    }

    fn search(&mut self) {
        let query = self.query.text();
        let mut found: Vec<(i32, Action)> = self
            .offered
            .iter()
            .filter_map(|action| {
                let entry = action.entry();
                let text = format!("{} {} {}", entry.hint, entry.about, entry.name);
                Some((fuzzy::score(&query, &text)?, *action))
            })
            .collect();
        // Stable: equals keep the order in which they are offered.
        found.sort_by_key(|(score, _)| std::cmp::Reverse(*score));
        self.found = found.into_iter().map(|(_, action)| action).collect();
        self.list.selected = 0;
    }

    fn run(&self, out: &mut Outbox) {
        out.push(Ask::Close);
        if let Some(action) = self.found.get(self.list.selected) {
            out.push(Ask::Run(*action));
        }
    }
}

impl View for Palette {
    fn actions(&self, _mirror: &Mirror) -> Vec<Action> {
        vec![Action::Open, Action::Back, Action::Up, Action::Down, Action::PageUp, Action::PageDown]
    }

    fn act(&mut self, action: Action, _mirror: &Mirror, out: &mut Outbox) {
        match action {
            Action::Open => self.run(out),
            Action::Back => out.push(Ask::Close),
            _ => {
                self.list.act(action, self.found.len());
            }
        }
    }

    fn typing(&self) -> bool {
        true
    }

    fn key(&mut self, chord: Chord, _mirror: &Mirror, _out: &mut Outbox) {
        if self.query.key(chord) {
            self.search();
        }
    }

    fn paste(&mut self, text: &str, _mirror: &Mirror, _out: &mut Outbox) {
        self.query.insert(text);
        self.search();
    }

    fn click(&mut self, spot: Spot, _mirror: &Mirror, out: &mut Outbox) {
        if let Spot::Row(Pane::Overlay, index) = spot {
            self.list.selected = index;
            self.run(out);
        }
    }

    fn wheel(&mut self, _pane: Pane, lines: isize, _mirror: &Mirror, _out: &mut Outbox) {
        self.list.scroll(lines, self.found.len());
    }

    fn draw(&self, canvas: &mut Canvas<'_>, area: Rect, _mirror: &Mirror) {
        let inside = super::frame(canvas, area, 78, 20, "Palette", &[Action::Open, Action::Back]);
        canvas.text(inside.x, inside.y, 2, ": ", canvas.theme.key);
        let line = Rect { x: inside.x + 2, width: inside.width.saturating_sub(2), height: 1, ..inside };
        self.query.draw(canvas, line, true, "what to do");
        let body = Rect { y: inside.y + 1, height: inside.height.saturating_sub(1), ..inside };
        if self.found.is_empty() {
            canvas.empty(body, &["Nothing that can be done here matches."]);
            return;
        }
        let table = Table {
            columns: COLUMNS,
            state: &self.list,
            len: self.found.len(),
            pane: Pane::Overlay,
            focused: true,
            sort: None,
        };
        let (theme, keymap) = (canvas.theme, canvas.keymap);
        table.draw(canvas, body, |index| {
            let action = self.found[index];
            Row::Fields(vec![
                Field::new(action.entry().hint, theme.text),
                Field::new(action.entry().about, theme.dim),
                Field::new(keymap.keys(action), theme.key),
            ])
        });
    }
}
