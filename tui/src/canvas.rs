//! What views draw on: the screen's cells, the theme, and a map of what lies where for the mouse.

use ratatui::buffer::Buffer;
use ratatui::layout::{Position, Rect};
use ratatui::style::Style;
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, BorderType, Widget as _};

use crate::actions::Action;
use crate::keys::Keymap;
use crate::theme::Theme;

/// Parts of views that take focus, clicks and the wheel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Pane {
    /// The view's main list.
    List,
    /// A job's or plugin's log.
    Log,
    /// Details of what is selected.
    Details,
    /// A conversation.
    Talk,
    /// The message being written.
    Input,
    /// The overlay's list.
    Overlay,
}

/// What a place on the screen means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Spot {
    /// Clicking does this.
    Act(Action),
    /// Clicking selects this line.
    Row(Pane, usize),
    /// Clicking focuses this pane.
    Pane(Pane),
    /// Clicking sorts by this column.
    Column(usize),
    /// Outside of an overlay: clicking closes it.
    Outside,
}

/// What lies where; later entries lie on top.
#[derive(Debug, Default)]
pub(crate) struct Spots(Vec<(Rect, Spot)>);

impl Spots {
    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }

    pub(crate) fn add(&mut self, area: Rect, spot: Spot) {
        self.0.push((area, spot));
    }

    /// The topmost meaning of a cell.
    pub(crate) fn at(&self, x: u16, y: u16) -> Option<Spot> {
        let hit = self.0.iter().rev().find(|(area, _)| area.contains(Position { x, y }));
        hit.map(|(_, spot)| *spot)
    }

    /// The topmost pane under a cell, for the wheel.
    pub(crate) fn pane_at(&self, x: u16, y: u16) -> Option<Pane> {
        let here = self.0.iter().rev().filter(|(area, _)| area.contains(Position { x, y }));
        let mut panes = here.filter_map(|(_, spot)| match spot {
            Spot::Pane(pane) | Spot::Row(pane, _) => Some(*pane),
            _ => None,
        });
        panes.next()
    }

    /// Where something is drawn, for tests that click it.
    #[cfg(test)]
    pub(crate) fn find(&self, wanted: Spot) -> Option<Rect> {
        self.0.iter().rev().find(|(_, spot)| *spot == wanted).map(|(area, _)| *area)
    }
}

/// The time, as far as drawing needs it.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Clock {
    /// Unix seconds.
    pub(crate) now: f64,
    /// Seconds the local clock is ahead of UTC.
    pub(crate) offset: i32,
}

/// The screen while it is drawn.
pub(crate) struct Canvas<'a> {
    pub(crate) buffer: &'a mut Buffer,
    pub(crate) theme: &'a Theme,
    pub(crate) keymap: &'a Keymap,
    pub(crate) spots: &'a mut Spots,
    pub(crate) clock: Clock,
    /// Plain characters are text now, so that only other keys are worth a hint.
    pub(crate) typing: bool,
}

impl Canvas<'_> {
    /// Writes text and returns the columns used.
    pub(crate) fn text(&mut self, x: u16, y: u16, width: u16, text: &str, style: Style) -> u16 {
        if !self.buffer.area.contains(Position { x, y }) {
            return 0;
        }
        let (end, _) = self.buffer.set_stringn(x, y, text, usize::from(width), style);
        end - x
    }

    /// Writes text and cuts it with `…` if it does not fit.
    pub(crate) fn clipped(&mut self, x: u16, y: u16, width: u16, text: &str, style: Style) -> u16 {
        let text = crate::units::clip(text, usize::from(width));
        self.text(x, y, width, &text, style)
    }

    /// Writes text that ends at column `right` (exclusive).
    pub(crate) fn right(&mut self, right: u16, y: u16, width: u16, text: &str, style: Style) {
        let text = crate::units::clip(text, usize::from(width));
        let used = Span::raw(text.as_str()).width() as u16;
        self.text(right.saturating_sub(used), y, used, &text, style);
    }

    /// Writes styled text.
    pub(crate) fn line(&mut self, x: u16, y: u16, width: u16, line: &Line<'_>) {
        if self.buffer.area.contains(Position { x, y }) {
            self.buffer.set_line(x, y, line, width);
        }
    }

    /// Writes lines from the top of an area and returns how many fitted.
    pub(crate) fn lines(&mut self, area: Rect, lines: &[Line<'_>]) -> u16 {
        for (y, line) in (area.top()..area.bottom()).zip(lines) {
            self.line(area.x, y, area.width, line);
        }
        lines.len().min(usize::from(area.height)) as u16
    }

    /// Draws a bordered pane and returns its inside. The focused one is told by a double border too,
    /// so that it shows without colour.
    pub(crate) fn panel(&mut self, area: Rect, title: &str, focused: bool) -> Rect {
        let (kind, style, title_style) = if focused {
            (BorderType::Double, self.theme.border_focused, self.theme.accent)
        } else {
            (BorderType::Plain, self.theme.border, self.theme.title)
        };
        let room = usize::from(area.width.saturating_sub(4));
        let title = Span::styled(format!(" {} ", crate::units::clip(title, room)), title_style);
        let block = Block::bordered().border_type(kind).border_style(style).title(title);
        let inside = block.inner(area);
        block.render(area, self.buffer);
        inside
    }

    /// A pane that takes clicks and the wheel.
    pub(crate) fn pane(&mut self, area: Rect, title: &str, pane: Pane, focused: bool) -> Rect {
        self.spots.add(area, Spot::Pane(pane));
        self.panel(area, title, focused)
    }

    /// Clears an area for an overlay.
    pub(crate) fn clear(&mut self, area: Rect) {
        let area = area.intersection(self.buffer.area);
        for position in area.positions() {
            self.buffer[position].reset();
        }
        self.buffer.set_style(area, self.theme.text);
    }

    /// `⏎ open` for an action that has a key; the hint is clickable.
    pub(crate) fn hint(&mut self, x: u16, y: u16, width: u16, action: Action) -> u16 {
        let Some(key) = self.keymap.key(action, self.typing) else { return 0 };
        let (key, label) = (key.to_string(), action.entry().hint);
        let needed = (Span::raw(&key).width() + 1 + Span::raw(label).width()) as u16;
        if needed > width {
            return 0;
        }
        let used = self.text(x, y, width, &key, self.theme.key);
        self.text(x + used + 1, y, width - used - 1, label, self.theme.dim);
        self.spots.add(Rect::new(x, y, needed, 1), Spot::Act(action));
        needed
    }

    /// A teaching text in the middle of an empty pane.
    pub(crate) fn empty(&mut self, area: Rect, lines: &[&str]) {
        let wrapped: Vec<String> =
            lines.iter().flat_map(|line| crate::widgets::wrap::wrap(line, usize::from(area.width))).collect();
        let top = area.y + area.height.saturating_sub(wrapped.len() as u16) / 2;
        for (y, line) in (top..area.bottom()).zip(&wrapped) {
            let used = Span::raw(line.as_str()).width() as u16;
            self.text(area.x + area.width.saturating_sub(used) / 2, y, area.width, line, self.theme.dim);
        }
    }
}
