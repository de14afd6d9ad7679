//! A log with search and follow.

use std::cell::Cell;

use drophammer_client::api::{LogLevel, LogLine, LogSource};
use ratatui::layout::Rect;
use ratatui::style::Style;

use crate::actions::Action;
use crate::canvas::{Canvas, Pane, Spot};
use crate::keys::Chord;
use crate::mirror::LogTail;
use crate::units;
use crate::widgets::input::Input;
use crate::widgets::table::scroll_bar;

/// Where in a log one is.
#[derive(Debug)]
pub(crate) struct LogPane {
    follow: bool,
    /// The first line in sight while not following.
    top: usize,
    height: Cell<usize>,
    search: Input,
    searching: bool,
}

impl Default for LogPane {
    fn default() -> Self {
        Self { follow: true, top: 0, height: Cell::new(0), search: Input::default(), searching: false }
    }
}

impl LogPane {
    /// What can be done while it has the focus.
    pub(crate) fn actions(&self) -> Vec<Action> {
        if self.searching {
            return vec![Action::Open, Action::Back];
        }
        let mut actions = vec![Action::Filter, Action::Follow];
        if !self.search.is_empty() {
            actions.extend([Action::NextMatch, Action::PreviousMatch]);
        }
        actions.extend([
            Action::Up,
            Action::Down,
            Action::PageUp,
            Action::PageDown,
            Action::Top,
            Action::Bottom,
        ]);
        actions
    }

    pub(crate) fn typing(&self) -> bool {
        self.searching
    }

    pub(crate) fn key(&mut self, chord: Chord, log: Option<&LogTail>) {
        self.search.key(chord);
        self.find(log, 0);
    }

    /// `false` when the action means nothing here.
    pub(crate) fn act(&mut self, action: Action, log: Option<&LogTail>) -> bool {
        let len = log.map_or(0, |log| log.lines.len());
        let page = self.height.get().saturating_sub(1).max(1) as isize;
        match action {
            Action::Filter => self.searching = true,
            Action::Open if self.searching => self.searching = false,
            Action::Back if self.searching || !self.search.is_empty() => {
                self.searching = false;
                self.search = Input::default();
            }
            Action::Follow => self.follow = !self.follow,
            Action::NextMatch => self.find(log, 1),
            Action::PreviousMatch => self.find(log, -1),
            Action::Up => self.scroll(-1, len),
            Action::Down => self.scroll(1, len),
            Action::PageUp => self.scroll(-page, len),
            Action::PageDown => self.scroll(page, len),
            Action::Top => self.scroll(isize::MIN, len),
            Action::Bottom => self.follow = true,
            _ => return false,
        }
        true
    }

    /// Leaves the end when moving up, and follows again once it is reached.
    pub(crate) fn scroll(&mut self, lines: isize, len: usize) {
        let last_top = len.saturating_sub(self.height.get());
        let top = if self.follow { last_top } else { self.top.min(last_top) };
        self.top = top.saturating_add_signed(lines).min(last_top);
        self.follow = self.top >= last_top && lines > 0;
    }

    /// Goes to the next (1), previous (−1) or first (0, from what is in sight) line that matches.
    fn find(&mut self, log: Option<&LogTail>, direction: isize) {
        let needle = self.search.text().to_lowercase();
        let Some(log) = log.filter(|_| !needle.is_empty()) else { return };
        let len = log.lines.len();
        let last_top = len.saturating_sub(self.height.get());
        let here = if self.follow { last_top } else { self.top.min(len.saturating_sub(1)) };
        let matches = |at: &usize| log.lines[*at].message.to_lowercase().contains(&needle);
        let found = match direction {
            0 => (here..len).chain(0..here).find(matches),
            1 => (here + 1..len).chain(0..len.min(here + 1)).find(matches),
            _ => (0..here).rev().chain((here..len).rev()).find(matches),
        };
        if let Some(found) = found {
            self.follow = false;
            self.top = found;
        }
    }

    pub(crate) fn draw(&self, canvas: &mut Canvas<'_>, area: Rect, log: Option<&LogTail>, missing: &str) {
        canvas.spots.add(area, Spot::Pane(Pane::Log));
        let mut area = area;
        if (self.searching || !self.search.is_empty()) && area.height > 1 {
            let line = Rect { y: area.bottom() - 1, height: 1, ..area };
            area.height -= 1;
            canvas.text(line.x, line.y, 1, "/", canvas.theme.key);
            let input = Rect { x: line.x + 1, width: line.width.saturating_sub(1), ..line };
            self.search.draw(canvas, input, self.searching, "text to find in the log");
        }
        let height = usize::from(area.height);
        self.height.set(height);
        let Some(log) = log.filter(|log| !log.lines.is_empty()) else {
            let error = log.and_then(|log| log.error.as_ref()).map(ToString::to_string);
            canvas.clipped(area.x, area.y, area.width, error.as_deref().unwrap_or(missing), canvas.theme.dim);
            return;
        };
        let len = log.lines.len();
        let last_top = len.saturating_sub(height);
        // A match near the end is shown at the top, with blank lines after it.
        let top = if self.follow { last_top } else { self.top.min(len - 1) };
        let needle = self.search.text().to_lowercase();
        for (y, line) in (area.top()..area.bottom()).zip(log.lines.range(top..)) {
            let row = Rect { y, height: 1, width: area.width.saturating_sub(1), ..area };
            draw_line(canvas, row, line, &needle);
        }
        scroll_bar(canvas, area, top.min(last_top), len);
        if !self.follow && area.height > 1 {
            let note = format!(" {} of {len} ", (top + height).min(len));
            canvas.right(area.right().saturating_sub(1), area.bottom() - 1, 24, &note, canvas.theme.dim);
        }
    }
}

fn draw_line(canvas: &mut Canvas<'_>, row: Rect, line: &LogLine, needle: &str) {
    let theme = canvas.theme;
    // The word says what the colour says.
    let (word, style) = match (line.level, line.source) {
        (LogLevel::Error, _) => ("error ", theme.bad),
        (LogLevel::Warn, _) => ("warn ", theme.warn),
        (_, LogSource::Stdout | LogSource::Stderr) => ("│ ", theme.dim),
        (LogLevel::Debug, _) => ("", theme.dim),
        (LogLevel::Info, _) => ("", theme.text),
    };
    let mut x = row.x;
    if row.width > 40 {
        let time = units::clock(line.time, canvas.clock.offset);
        x += canvas.text(x, row.y, 9, &time, theme.dim) + 1;
    }
    x += canvas.text(x, row.y, row.right().saturating_sub(x), word, style);
    let room = row.right().saturating_sub(x);
    canvas.clipped(x, row.y, room, &line.message, style);
    mark_matches(canvas, Rect { x, width: room, ..row }, needle, theme.matched);
}

/// Marks what is searched for on the cells already drawn.
fn mark_matches(canvas: &mut Canvas<'_>, row: Rect, needle: &str, style: Style) {
    if needle.is_empty() {
        return;
    }
    let cells: Vec<String> =
        (row.left()..row.right()).map(|x| canvas.buffer[(x, row.y)].symbol().to_lowercase()).collect();
    let text = cells.concat();
    let mut from = 0;
    while let Some(found) = text.get(from..).and_then(|rest| rest.find(needle)) {
        let (start, end) = (from + found, from + found + needle.len());
        let mut at = 0;
        for (x, cell) in (row.left()..).zip(&cells) {
            if at >= start && at < end {
                canvas.buffer.set_style(Rect::new(x, row.y, 1, 1), style);
            }
            at += cell.len();
        }
        from = end;
    }
}
