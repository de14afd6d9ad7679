//! Choosing further targets for a model, with what each would cost.

use std::collections::BTreeSet;

use drophammer_client::api::PlanReport;
use ratatui::layout::Rect;

use crate::actions::Action;
use crate::canvas::{Canvas, Pane, Spot};
use crate::message::Effect;
use crate::mirror::Mirror;
use crate::units;
use crate::views::vocabulary::{error_lines, on_device};
use crate::views::{Ask, Outbox, View};
use crate::widgets::list::ListState;
use crate::widgets::table::{Column, Field, Row, Table};
use crate::widgets::wrap::wrap;

const COLUMNS: &[Column] = &[
    Column::left("TARGET", 20, 2, 0),
    Column::left("BACKEND", 12, 1, 3),
    Column::right("SIZE", 8, 0),
    Column::right("MEMORY", 8, 2),
    Column::right("TIME", 6, 1),
    Column::left("", 8, 2, 4),
];

pub(crate) struct Targets {
    model: String,
    list: ListState,
    marked: BTreeSet<String>,
}

impl Targets {
    pub(crate) fn new(model: String) -> Self {
        Self { model, list: ListState::default(), marked: BTreeSet::new() }
    }

    fn plan<'a>(&self, mirror: &'a Mirror) -> Option<&'a PlanReport> {
        mirror.plans.get(&self.model)?.as_ref().ok()
    }

    fn toggle(&mut self, mirror: &Mirror) {
        let Some(target) = self.plan(mirror).and_then(|plan| plan.targets.get(self.list.selected)) else {
            return;
        };
        if target.supported && !self.marked.remove(&target.name) {
            self.marked.insert(target.name.clone());
        }
    }
}

impl View for Targets {
    fn actions(&self, mirror: &Mirror) -> Vec<Action> {
        let mut actions = vec![Action::Back];
        if self.plan(mirror).is_some() {
            actions.insert(0, Action::Toggle);
            if !self.marked.is_empty() {
                actions.insert(0, Action::Confirm);
            }
            actions.extend([Action::Up, Action::Down, Action::PageUp, Action::PageDown]);
            actions.extend([Action::Top, Action::Bottom]);
        }
        actions
    }

    fn act(&mut self, action: Action, mirror: &Mirror, out: &mut Outbox) {
        match action {
            Action::Back => out.push(Ask::Close),
            Action::Toggle => self.toggle(mirror),
            Action::Confirm => {
                let targets = self.marked.iter().cloned().collect();
                out.effect(Effect::Forge(self.model.clone(), targets));
                out.push(Ask::Close);
            }
            _ => {
                self.list.act(action, self.plan(mirror).map_or(0, |plan| plan.targets.len()));
            }
        }
    }

    fn click(&mut self, spot: Spot, mirror: &Mirror, _out: &mut Outbox) {
        if let Spot::Row(Pane::Overlay, index) = spot {
            self.list.selected = index;
            self.toggle(mirror);
        }
    }

    fn wheel(&mut self, _pane: Pane, lines: isize, mirror: &Mirror, _out: &mut Outbox) {
        self.list.scroll(lines, self.plan(mirror).map_or(0, |plan| plan.targets.len()));
    }

    fn draw(&self, canvas: &mut Canvas<'_>, area: Rect, mirror: &Mirror) {
        let title = format!("Forge from {}", self.model);
        let hints = self.actions(mirror);
        let inside = super::frame(canvas, area, 96, 26, &title, &hints);
        let plan = match mirror.plans.get(&self.model) {
            None => {
                canvas.empty(inside, &["Planning …"]);
                return;
            }
            Some(Err(error)) => {
                canvas.lines(inside, &error_lines(error, inside.width, canvas.theme));
                return;
            }
            Some(Ok(plan)) => plan,
        };
        if plan.targets.is_empty() {
            canvas.empty(inside, &["No target is known. Targets are files in config/targets."]);
            return;
        }
        let [list, why] = ratatui::layout::Layout::vertical([
            ratatui::layout::Constraint::Fill(1),
            ratatui::layout::Constraint::Length(4.min(inside.height / 3)),
        ])
        .areas(inside);
        let have: BTreeSet<&str> = mirror
            .models
            .get(&self.model)
            .map(|model| model.artifacts.iter().map(|artifact| artifact.target.as_str()).collect())
            .unwrap_or_default();
        let table = Table {
            columns: COLUMNS,
            state: &self.list,
            len: plan.targets.len(),
            pane: Pane::Overlay,
            focused: true,
            sort: None,
        };
        let theme = canvas.theme;
        table.draw(canvas, list, |index| {
            let target = &plan.targets[index];
            let style = if target.supported { theme.text } else { theme.dim };
            let mark = match (target.supported, self.marked.contains(&target.name)) {
                (false, _) => " ✗ ",
                (true, true) => "[×]",
                (true, false) => "[ ]",
            };
            let number = |text: Option<String>| Field::new(text.unwrap_or_else(|| "–".to_owned()), style);
            let note = match (have.contains(target.name.as_str()), target.supported) {
                (true, _) => "have it",
                (_, false) => "cannot",
                _ => "",
            };
            Row::Fields(vec![
                Field::new(format!("{mark} {}", target.name), style),
                Field::new(on_device(&target.backend, target.device.as_deref()), theme.dim),
                number(target.bytes.map(units::bytes)),
                number(target.peak_memory_bytes.map(units::bytes)),
                number(target.seconds.map(units::seconds)),
                Field::new(note, theme.dim),
            ])
        });
        let Some(target) = plan.targets.get(self.list.selected) else { return };
        let mut text = target.reason.clone().unwrap_or_default();
        if !target.steps.is_empty() {
            text = format!("{} {text}", target.steps.join(" → "));
        }
        for (y, line) in (why.top()..why.bottom()).zip(wrap(text.trim(), usize::from(why.width))) {
            canvas.text(why.x, y, why.width, &line, canvas.theme.dim);
        }
    }
}
