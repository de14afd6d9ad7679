//! Every key, from the registry.

use ratatui::layout::Rect;
use ratatui::text::{Line, Span};

use crate::actions::{Action, REGISTRY};
use crate::canvas::{Canvas, Pane};
use crate::mirror::Mirror;
use crate::views::{Ask, Outbox, View};
use crate::widgets::list::ListState;
use crate::widgets::table::{Column, Field, Row, Table};

const COLUMNS: &[Column] =
    &[Column::left("KEY", 12, 0, 0), Column::left("WHAT IT DOES", 20, 1, 0), Column::left("NAME", 18, 0, 1)];

#[derive(Default)]
pub(crate) struct Help {
    list: ListState,
}

/// A chapter's heading or an entry, by place in the registry.
enum HelpRow {
    Chapter(&'static str),
    Entry(usize),
}

fn rows() -> Vec<HelpRow> {
    let mut rows = Vec::new();
    let mut chapter = None;
    for (at, entry) in REGISTRY.iter().enumerate() {
        if chapter != Some(entry.group) {
            chapter = Some(entry.group);
            rows.push(HelpRow::Chapter(entry.group.title()));
        }
        rows.push(HelpRow::Entry(at));
    }
    rows
}

impl View for Help {
    fn actions(&self, _mirror: &Mirror) -> Vec<Action> {
        vec![
            Action::Back,
            Action::Help,
            Action::Up,
            Action::Down,
            Action::PageUp,
            Action::PageDown,
            Action::Top,
            Action::Bottom,
        ]
    }

    fn act(&mut self, action: Action, _mirror: &Mirror, out: &mut Outbox) {
        if !self.list.act(action, rows().len()) {
            out.push(Ask::Close);
        }
    }

    fn wheel(&mut self, _pane: Pane, lines: isize, _mirror: &Mirror, _out: &mut Outbox) {
        self.list.scroll(lines, rows().len());
    }

    fn draw(&self, canvas: &mut Canvas<'_>, area: Rect, _mirror: &Mirror) {
        let rows = rows();
        let height = (rows.len() as u16 + 5).min(area.height);
        let hints = [Action::Back, Action::PageDown];
        let inside = super::frame(canvas, area, 100, height, "Help: every key", &hints);
        let table = Table {
            columns: COLUMNS,
            state: &self.list,
            len: rows.len(),
            pane: Pane::Overlay,
            focused: true,
            sort: None,
        };
        let (theme, keymap) = (canvas.theme, canvas.keymap);
        table.draw(canvas, inside, |index| match rows[index] {
            HelpRow::Chapter(title) => Row::Line(Line::from(Span::styled(title, theme.accent))),
            HelpRow::Entry(at) => {
                let entry = &REGISTRY[at];
                Row::Fields(vec![
                    Field::new(format!(" {}", keymap.keys(entry.action)), theme.key),
                    Field::new(entry.about, theme.text),
                    Field::new(entry.name, theme.dim),
                ])
            }
        });
    }
}
