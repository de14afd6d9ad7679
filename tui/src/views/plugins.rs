//! The backends: what each can do here, what it misses, and how to get it.

use std::fmt::Write as _;

use drophammer_client::api::{Device, Plugin};
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::text::{Line, Span};

use super::job_details::push;
use super::log_pane::LogPane;
use super::vocabulary::{plugin_mark, plugin_style};
use super::{Ask, Outbox, View};
use crate::actions::Action;
use crate::canvas::{Canvas, Pane, Spot};
use crate::keys::Chord;
use crate::message::Effect;
use crate::mirror::Mirror;
use crate::theme::Theme;
use crate::units;
use crate::widgets::list::ListState;
use crate::widgets::table::{Column, Field, Row, Table};
use crate::widgets::wrap::wrap;

const COLUMNS: &[Column] = &[
    Column::left("PLUGIN", 13, 1, 0),
    Column::left("STATE", 13, 0, 0),
    Column::left("VERSION", 8, 0, 3),
    Column::left("RUNTIME", 10, 1, 2),
    Column::left("DEVICES", 10, 2, 1),
];

#[derive(Default)]
pub(crate) struct PluginsView {
    list: ListState,
    log: LogPane,
    log_focused: bool,
    chosen: Option<String>,
}

impl PluginsView {
    fn plugin<'a>(&self, mirror: &'a Mirror) -> Option<&'a Plugin> {
        mirror.plugins.get(self.list.selected)
    }

    fn choose(&mut self, mirror: &Mirror) {
        let chosen = self.plugin(mirror).map(|plugin| plugin.id.clone());
        if chosen != self.chosen {
            self.chosen = chosen;
            self.log = LogPane::default();
        }
    }
}

impl View for PluginsView {
    fn actions(&self, mirror: &Mirror) -> Vec<Action> {
        let mut actions = Vec::new();
        if self.log_focused {
            actions.extend(self.log.actions());
            if self.log.typing() {
                return actions;
            }
        } else if self.plugin(mirror).is_some() {
            actions.push(Action::Open);
        }
        if self.plugin(mirror).is_some() {
            actions.extend([Action::Reload, Action::Copy]);
        }
        if !self.log_focused {
            actions.extend([Action::Up, Action::Down, Action::PageUp, Action::PageDown]);
            actions.extend([Action::Top, Action::Bottom]);
        }
        actions.extend([Action::NextPane, Action::PreviousPane, Action::Back]);
        actions
    }

    fn act(&mut self, action: Action, mirror: &Mirror, out: &mut Outbox) {
        let log = self.chosen.as_deref().and_then(|id| mirror.plugin_log(id));
        if self.log_focused && self.log.act(action, log) {
            return;
        }
        match action {
            Action::Open | Action::NextPane | Action::PreviousPane if !self.log_focused => {
                self.log_focused = true;
                out.0.extend(self.chosen.clone().map(|id| Ask::Effect(Effect::PluginLog(id))));
            }
            Action::Back | Action::NextPane | Action::PreviousPane => self.log_focused = false,
            Action::Reload => out.0.extend(self.chosen.clone().map(|id| Ask::Effect(Effect::Reload(id)))),
            Action::Copy => {
                if let Some(plugin) = self.plugin(mirror) {
                    // The command that helps is what one wants to paste.
                    let help = plugin.problems.iter().find_map(|problem| problem.help.clone());
                    let text = help.unwrap_or_else(|| plugin.path.clone());
                    out.notice(format!("copied {}", units::clip(&text, 60)));
                    out.effect(Effect::Copy(text));
                }
            }
            _ => {
                if self.list.act(action, mirror.plugins.len()) {
                    self.choose(mirror);
                }
            }
        }
    }

    fn typing(&self) -> bool {
        self.log_focused && self.log.typing()
    }

    fn key(&mut self, chord: Chord, mirror: &Mirror, _out: &mut Outbox) {
        self.log.key(chord, self.chosen.as_deref().and_then(|id| mirror.plugin_log(id)));
    }

    fn click(&mut self, spot: Spot, mirror: &Mirror, out: &mut Outbox) {
        match spot {
            Spot::Row(Pane::List, index) => {
                self.log_focused = false;
                let again = self.list.selected == index;
                self.list.selected = index;
                self.choose(mirror);
                if again {
                    self.act(Action::Open, mirror, out);
                }
            }
            Spot::Pane(Pane::List) => self.log_focused = false,
            _ => {}
        }
    }

    fn wheel(&mut self, pane: Pane, lines: isize, mirror: &Mirror, _out: &mut Outbox) {
        if pane == Pane::Log {
            let log = self.chosen.as_deref().and_then(|id| mirror.plugin_log(id));
            self.log.scroll(lines, log.map_or(0, |log| log.lines.len()));
        } else {
            self.list.scroll(lines, mirror.plugins.len());
            self.choose(mirror);
        }
    }

    fn refresh(&mut self, mirror: &Mirror, _out: &mut Outbox) {
        let place = self.chosen.as_ref().and_then(|id| mirror.plugins.iter().position(|it| it.id == *id));
        self.list.selected = place.unwrap_or(self.list.selected);
        self.list.clamp(mirror.plugins.len());
        self.choose(mirror);
    }

    fn draw(&self, canvas: &mut Canvas<'_>, area: Rect, mirror: &Mirror) {
        let list_height = (mirror.plugins.len() as u16 + 3).clamp(5, (area.height / 2).max(5));
        let [top, bottom] =
            Layout::vertical([Constraint::Length(list_height), Constraint::Fill(1)]).areas(area);
        let (top, bottom) =
            if self.log_focused && area.height < 20 { (Rect::ZERO, area) } else { (top, bottom) };
        if !top.is_empty() {
            self.draw_list(canvas, top, mirror);
        }
        let Some(plugin) = self.plugin(mirror).filter(|_| bottom.height > 2) else { return };
        if self.log_focused {
            let title = format!("{} · log of its probe", plugin.id);
            let inside = canvas.pane(bottom, &title, Pane::Log, true);
            self.log.draw(canvas, inside, mirror.plugin_log(&plugin.id), "its probe printed nothing");
        } else {
            let inside = canvas.pane(bottom, &plugin.id, Pane::Details, false);
            let lines = details(plugin, canvas.theme, inside.width);
            canvas.lines(inside, &lines);
        }
    }
}

impl PluginsView {
    fn draw_list(&self, canvas: &mut Canvas<'_>, area: Rect, mirror: &Mirror) {
        let inside = canvas.pane(area, "Plugins", Pane::List, !self.log_focused);
        if mirror.plugins.is_empty() {
            let lines = ["No plugins found.", "See what this machine can run: drophammer doctor"];
            canvas.empty(inside, &lines);
            return;
        }
        let table = Table {
            columns: COLUMNS,
            state: &self.list,
            len: mirror.plugins.len(),
            pane: Pane::List,
            focused: !self.log_focused,
            sort: None,
        };
        let theme = canvas.theme;
        table.draw(canvas, inside, |index| {
            let plugin = &mirror.plugins[index];
            let state = format!("{} {}", plugin_mark(plugin.state), plugin.state);
            let devices: Vec<&str> = plugin.devices.iter().map(|device| device.id.as_str()).collect();
            Row::Fields(vec![
                Field::new(plugin.id.clone(), theme.text),
                Field::new(state, plugin_style(plugin.state, theme)),
                Field::new(plugin.version.clone(), theme.dim),
                Field::new(plugin.runtime_version.clone().unwrap_or_else(|| "–".to_owned()), theme.dim),
                Field::new(if devices.is_empty() { "–".to_owned() } else { devices.join(", ") }, theme.text),
            ])
        });
    }
}

fn details(plugin: &Plugin, theme: &Theme, width: u16) -> Vec<Line<'static>> {
    let mut lines = Vec::new();
    for problem in &plugin.problems {
        for (mark, text, style) in
            [("! ", Some(&problem.message), theme.warn), ("→ ", problem.help.as_ref(), theme.accent)]
        {
            for piece in text.into_iter().flat_map(|text| wrap(text, usize::from(width.saturating_sub(2)))) {
                lines.push(Line::from(vec![Span::styled(mark, style), Span::styled(piece, theme.text)]));
            }
        }
    }
    for device in &plugin.devices {
        push(&mut lines, "device", &device_line(device), theme, width);
    }
    let list = |words: &[String]| if words.is_empty() { "none".to_owned() } else { words.join(" ") };
    push(&mut lines, "formats", &list(&plugin.formats), theme, width);
    push(&mut lines, "schemes", &list(&plugin.schemes), theme, width);
    push(&mut lines, "path", &plugin.path, theme, width);
    let mut about = format!("version {} · plugin ABI {}", plugin.version, plugin.abi);
    if let Some(licence) = &plugin.licence {
        let _ = write!(about, " · {licence}");
    }
    push(&mut lines, "about", &about, theme, width);
    lines
}

fn device_line(device: &Device) -> String {
    let mut text = format!("{} · {} · {}", device.id, device.kind, device.name);
    if let Some(bytes) = device.memory_bytes {
        let _ = write!(text, " · {}", units::bytes(bytes));
    }
    if device.emulated {
        text.push_str(" · emulated: results are right, speed says nothing");
    }
    text
}
