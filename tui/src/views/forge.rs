//! The forge: every model and its jobs, what is known of the selected one, the machine, and the plot.

use std::collections::HashMap;

use drophammer_client::api::{Job, JobState, ModelEntry, ModelState};
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::text::{Line, Span};

use super::forge_rows::{Counts, ForgeRow, rows};
use super::log_pane::LogPane;
use super::vocabulary::{
    artifact_summary, job_mark, job_style, job_target, job_word, model_mark, model_style, on_device,
};
use super::{Ask, Outbox, View, job_details, machine, plot};
use crate::actions::Action;
use crate::canvas::{Canvas, Pane, Spot};
use crate::keys::Chord;
use crate::message::Effect;
use crate::mirror::Mirror;
use crate::overlays::add::AddModel;
use crate::overlays::targets::Targets;
use crate::theme::Theme;
use crate::units;
use crate::widgets::input::Input;
use crate::widgets::list::ListState;
use crate::widgets::table::{Column, Field, Row, Table};

const COLUMNS: &[Column] = &[
    Column::left("MODEL / TARGET", 23, 2, 0),
    Column::left("BACKEND", 12, 1, 4),
    Column::left("STAGE", 10, 0, 1),
    Column::left("PROGRESS", 12, 4, 0),
    Column::right("RATE", 9, 3),
    Column::right("ETA", 6, 2),
    Column::right("TIME", 6, 5),
];

/// What is selected, by name: it stays selected whatever moves around it.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Chosen {
    Model(String),
    Job(String),
}

#[derive(Default)]
pub(crate) struct Forge {
    list: ListState,
    rows: Vec<ForgeRow>,
    chosen: Option<Chosen>,
    folds: HashMap<String, bool>,
    filter: Input,
    filtering: bool,
    log: LogPane,
    log_focused: bool,
    zoomed: bool,
}

impl Forge {
    fn job<'a>(&self, mirror: &'a Mirror) -> Option<&'a Job> {
        match self.chosen.as_ref()? {
            Chosen::Job(id) => mirror.job(id),
            Chosen::Model(_) => None,
        }
    }

    /// The selected model, or the selected job's.
    fn model<'a>(&self, mirror: &'a Mirror) -> Option<&'a ModelEntry> {
        let name = match self.chosen.as_ref()? {
            Chosen::Model(name) => name,
            Chosen::Job(id) => &mirror.job(id)?.model,
        };
        mirror.models.get(name)
    }

    /// The selected job's artifact, or the selected model's best.
    fn artifact<'a>(&self, mirror: &'a Mirror) -> Option<&'a drophammer_client::api::Artifact> {
        if let Some(job) = self.job(mirror) {
            return mirror.artifact(job.artifact.as_deref()?);
        }
        let model = self.model(mirror)?;
        model.artifacts.iter().find(|artifact| artifact.best).or(model.artifacts.first())
    }

    fn choose(&mut self, mirror: &Mirror, out: &mut Outbox) {
        self.list.clamp(self.rows.len());
        let chosen = self.rows.get(self.list.selected).map(|row| match row {
            ForgeRow::Model { name, .. } => Chosen::Model(name.clone()),
            ForgeRow::Job(place) => Chosen::Job(mirror.jobs()[*place].id.clone()),
        });
        if chosen != self.chosen {
            self.chosen = chosen;
            self.log = LogPane::default();
        }
        self.want_log(mirror, out);
    }

    /// Asks for the selected job's log unless it is here.
    fn want_log(&self, mirror: &Mirror, out: &mut Outbox) {
        if let Some(Chosen::Job(id)) = &self.chosen
            && mirror.log(id).is_none()
        {
            out.effect(Effect::JobLog(id.clone()));
        }
    }

    fn fold(&mut self, open: bool, mirror: &Mirror, out: &mut Outbox) {
        let name = match self.rows.get(self.list.selected) {
            Some(ForgeRow::Model { name, .. }) => name.clone(),
            Some(ForgeRow::Job(place)) if !open => mirror.jobs()[*place].model.clone(),
            _ => return,
        };
        self.chosen = Some(Chosen::Model(name.clone()));
        self.folds.insert(name, open);
        self.refresh(mirror, out);
    }

    fn open(&mut self, mirror: &Mirror, out: &mut Outbox) {
        match self.rows.get(self.list.selected) {
            Some(ForgeRow::Model { open, count, .. }) if count.all > 0 => {
                let open = !*open;
                self.fold(open, mirror, out);
            }
            Some(_) => {
                self.log_focused = true;
                self.zoomed = true;
            }
            None => out.overlay(AddModel::default()),
        }
    }

    fn back(&mut self, mirror: &Mirror, out: &mut Outbox) {
        if self.zoomed || self.log_focused {
            self.zoomed = false;
            self.log_focused = false;
        } else {
            self.filtering = false;
            self.filter = Input::default();
            self.refresh(mirror, out);
        }
    }

    fn copy(&self, mirror: &Mirror, out: &mut Outbox) {
        let text = match (self.job(mirror), self.artifact(mirror), self.model(mirror)) {
            (Some(Job { error: Some(error), .. }), ..) => error.to_string(),
            (_, Some(artifact), _) => artifact.path.clone(),
            (Some(job), ..) => job.id.clone(),
            (_, _, Some(model)) => model.source.path.clone(),
            _ => return,
        };
        out.notice(format!("copied {}", units::clip(&text, 60)));
        out.effect(Effect::Copy(text));
    }
}

impl View for Forge {
    fn actions(&self, mirror: &Mirror) -> Vec<Action> {
        if self.filtering {
            return vec![Action::Open, Action::Back];
        }
        let mut actions = Vec::new();
        if self.log_focused {
            actions.extend(self.log.actions());
            if self.log.typing() {
                return actions;
            }
        } else {
            actions.push(Action::Open);
        }
        if let Some(job) = self.job(mirror) {
            actions.push(if job.state.is_finished() { Action::RetryJob } else { Action::CancelJob });
            if job.state == JobState::Blocked {
                actions.push(Action::RetryJob);
            }
        }
        if self.model(mirror).is_some() {
            actions.push(Action::ForgeMore);
        }
        if self.artifact(mirror).is_some() {
            actions.extend([Action::Serve, Action::ChatWith]);
        }
        actions.push(Action::Add);
        if !self.log_focused {
            actions.extend([Action::Filter, Action::Up, Action::Down, Action::Left, Action::Right]);
            actions.extend([Action::PageUp, Action::PageDown, Action::Top, Action::Bottom]);
        }
        actions.extend([Action::NextPane, Action::PreviousPane, Action::Zoom, Action::Copy, Action::Back]);
        actions
    }

    fn act(&mut self, action: Action, mirror: &Mirror, out: &mut Outbox) {
        if self.log_focused && self.log.act(action, self.job(mirror).and_then(|job| mirror.log(&job.id))) {
            return;
        }
        match action {
            Action::Open if self.filtering => self.filtering = false,
            Action::Open => self.open(mirror, out),
            Action::Back => self.back(mirror, out),
            Action::Filter => self.filtering = true,
            Action::Left => self.fold(false, mirror, out),
            Action::Right => self.fold(true, mirror, out),
            Action::NextPane | Action::PreviousPane => {
                self.log_focused = !self.log_focused;
                self.zoomed &= self.log_focused;
            }
            Action::Zoom => {
                self.zoomed = !self.zoomed;
                self.log_focused |= self.zoomed;
            }
            Action::Add => out.overlay(AddModel::default()),
            Action::ForgeMore => {
                if let Some(model) = self.model(mirror) {
                    out.effect(Effect::Plan(model.name.clone()));
                    out.overlay(Targets::new(model.name.clone()));
                }
            }
            Action::CancelJob => {
                out.0.extend(self.job(mirror).map(|job| Ask::Effect(Effect::Cancel(job.id.clone()))));
            }
            Action::RetryJob => {
                out.0.extend(self.job(mirror).map(|job| Ask::Effect(Effect::Retry(job.id.clone()))));
            }
            Action::Serve => {
                out.0.extend(
                    self.artifact(mirror).map(|artifact| Ask::Effect(super::models::serve(artifact, mirror))),
                );
            }
            Action::ChatWith => {
                let artifact = self.artifact(mirror).map(|artifact| artifact.id.clone());
                out.push(Ask::Chat { column: 0, artifact });
            }
            Action::Copy => self.copy(mirror, out),
            _ => {
                if self.list.act(action, self.rows.len()) {
                    self.choose(mirror, out);
                }
            }
        }
    }

    fn typing(&self) -> bool {
        self.filtering || (self.log_focused && self.log.typing())
    }

    fn key(&mut self, chord: Chord, mirror: &Mirror, out: &mut Outbox) {
        if self.log_focused {
            self.log.key(chord, self.job(mirror).and_then(|job| mirror.log(&job.id)));
        } else if self.filter.key(chord) {
            self.refresh(mirror, out);
        }
    }

    fn click(&mut self, spot: Spot, mirror: &Mirror, out: &mut Outbox) {
        match spot {
            Spot::Row(Pane::List, index) => {
                self.log_focused = false;
                let again = self.list.selected == index;
                self.list.selected = index;
                self.choose(mirror, out);
                if again {
                    self.open(mirror, out);
                }
            }
            Spot::Pane(pane) => self.log_focused = pane == Pane::Log,
            _ => {}
        }
    }

    fn wheel(&mut self, pane: Pane, lines: isize, mirror: &Mirror, out: &mut Outbox) {
        if pane == Pane::Log {
            let log = self.job(mirror).and_then(|job| mirror.log(&job.id));
            self.log.scroll(lines, log.map_or(0, |log| log.lines.len()));
        } else {
            self.list.scroll(lines, self.rows.len());
            self.choose(mirror, out);
        }
    }

    fn refresh(&mut self, mirror: &Mirror, out: &mut Outbox) {
        self.rows = rows(mirror, &self.filter.text(), &self.folds);
        let is_chosen = |row: &ForgeRow| match (row, &self.chosen) {
            (ForgeRow::Model { name, .. }, Some(Chosen::Model(chosen))) => name == chosen,
            (ForgeRow::Job(place), Some(Chosen::Job(chosen))) => mirror.jobs()[*place].id == *chosen,
            _ => false,
        };
        if let Some(index) = self.rows.iter().position(is_chosen) {
            self.list.selected = index;
        }
        self.choose(mirror, out);
    }

    fn draw(&self, canvas: &mut Canvas<'_>, area: Rect, mirror: &Mirror) {
        let (main, side) = if area.width >= 110 {
            let [main, side] = Layout::horizontal([
                Constraint::Fill(1),
                Constraint::Length((area.width * 3 / 10).clamp(36, 70)),
            ])
            .areas(area);
            (main, Some(side))
        } else {
            (area, None)
        };
        if self.zoomed {
            self.draw_details(canvas, main, mirror);
        } else if main.height >= 18 {
            let details = (main.height * 2 / 5).clamp(8, 24);
            let [jobs, details] =
                Layout::vertical([Constraint::Fill(1), Constraint::Length(details)]).areas(main);
            self.draw_jobs(canvas, jobs, mirror);
            self.draw_details(canvas, details, mirror);
        } else {
            self.draw_jobs(canvas, main, mirror);
        }
        if let Some(side) = side {
            let machine_height = (side.height * 3 / 5).max(side.height.saturating_sub(24));
            let [top, bottom] =
                Layout::vertical([Constraint::Length(machine_height), Constraint::Fill(1)]).areas(side);
            let inside = canvas.panel(top, "Machine", false);
            machine::draw(canvas, inside, mirror);
            let inside = canvas.panel(bottom, "Size against KL", false);
            let selected = self.artifact(mirror).map(|artifact| artifact.id.as_str());
            plot::draw(canvas, inside, self.model(mirror), selected);
        }
    }
}

impl Forge {
    fn draw_jobs(&self, canvas: &mut Canvas<'_>, area: Rect, mirror: &Mirror) {
        let mut inside = canvas.pane(area, "Forge", Pane::List, !self.log_focused);
        if self.filtering || !self.filter.is_empty() {
            let line = Rect { y: inside.bottom().saturating_sub(1), height: 1, ..inside };
            inside.height = inside.height.saturating_sub(1);
            canvas.text(line.x, line.y, 2, "/", canvas.theme.key);
            let input = Rect { x: line.x + 1, width: line.width.saturating_sub(1), ..line };
            self.filter.draw(canvas, input, self.filtering, "model, target, backend or state");
        }
        if self.rows.is_empty() {
            self.draw_empty(canvas, inside, mirror);
            return;
        }
        let table = Table {
            columns: COLUMNS,
            state: &self.list,
            len: self.rows.len(),
            pane: Pane::List,
            focused: !self.log_focused,
            sort: None,
        };
        let theme = canvas.theme;
        let wide = inside.width >= 76;
        table.draw(canvas, inside, |index| match &self.rows[index] {
            ForgeRow::Model { name, open, count } => {
                Row::Line(model_line(name, *open, *count, mirror, theme))
            }
            ForgeRow::Job(place) => Row::Fields(job_fields(&mirror.jobs()[*place], mirror, theme, wide)),
        });
    }

    fn draw_empty(&self, canvas: &mut Canvas<'_>, area: Rect, mirror: &Mirror) {
        if !self.filter.is_empty() {
            canvas.empty(area, &["Nothing matches. esc clears the filter."]);
        } else if mirror.loaded {
            let folder = mirror.status.as_ref().map_or("the models folder", |status| &status.models_dir);
            let drop = format!("Drop a model into {folder}, or press a to add one.");
            let example = format!("Try: cp -r tests/fixtures/shakespeare-llama {folder}");
            canvas.empty(area, &["Nothing to forge yet.", "", &drop, &example]);
        } else {
            canvas.empty(area, &["Reading the daemon's jobs …"]);
        }
    }

    fn draw_details(&self, canvas: &mut Canvas<'_>, area: Rect, mirror: &Mirror) {
        let job = self.job(mirror);
        let title = match (job, self.model(mirror)) {
            (Some(job), _) => format!("{} · {}", job.model, job_target(job)),
            (None, Some(model)) => model.name.clone(),
            _ => "Details".to_owned(),
        };
        let inside = canvas.pane(area, &title, Pane::Log, self.log_focused);
        let theme = canvas.theme;
        let Some(job) = job else {
            let lines = self.model(mirror).map(|model| job_details::model(model, theme, inside.width));
            canvas.lines(inside, &lines.unwrap_or_default());
            return;
        };
        let lines = job_details::job(job, mirror, theme, inside.width);
        // The log gets at least a third.
        let room = (inside.height - inside.height / 3).min(lines.len() as u16);
        let used = canvas.lines(Rect { height: room, ..inside }, &lines);
        let rest = Rect { y: inside.y + used, height: inside.height - used, ..inside };
        self.log.draw(canvas, rest, mirror.log(&job.id), "no log yet");
    }
}

fn model_line(name: &str, open: bool, count: Counts, mirror: &Mirror, theme: &Theme) -> Line<'static> {
    let model = mirror.models.get(name);
    let fold = if count.all == 0 {
        "  "
    } else if open {
        "▾ "
    } else {
        "▸ "
    };
    let mut spans = vec![Span::styled(fold, theme.dim), Span::styled(name.to_owned(), theme.title)];
    let mut add = |text: String, style| spans.push(Span::styled(format!("  {text}"), style));
    let state = model.map_or(ModelState::Missing, |model| model.state);
    let style = model_style(state, theme);
    match model {
        Some(ModelEntry { error: Some(error), .. }) => add(format!("✗ {}", error.message), theme.bad),
        Some(ModelEntry { waits_for: Some(waits_for), .. }) => {
            add(format!("{} {state}: {waits_for}", model_mark(state)), style);
        }
        _ => add(format!("{} {state}", model_mark(state)), style),
    }
    for (number, word, style) in [
        (count.running, "running", theme.busy),
        (count.queued, "queued", theme.dim),
        (count.blocked, "blocked", theme.warn),
        (count.failed, "failed", theme.bad),
    ] {
        if number > 0 {
            add(format!("{number} {word}"), style);
        }
    }
    if let Some(model) = model.filter(|model| !model.artifacts.is_empty()) {
        let plural = if model.artifacts.len() == 1 { "" } else { "s" };
        add(format!("{} artifact{plural}", model.artifacts.len()), theme.text);
        if let Some(best) = model.artifacts.iter().find(|artifact| artifact.best) {
            add(format!("★ {} {}", best.scheme, artifact_summary(best)), theme.good);
        }
    } else if let Some(model) = model.filter(|model| model.error.is_none() && model.source.bytes > 0) {
        add(units::bytes(model.source.bytes), theme.dim);
    }
    Line::from(spans)
}

fn job_fields(job: &Job, mirror: &Mirror, theme: &Theme, wide: bool) -> Vec<Field> {
    let style = job_style(job.state, theme);
    let running = job.state == JobState::Running;
    let backend = job.backend.as_deref().map(|backend| on_device(backend, job.device.as_deref()));
    let told = match job.state {
        JobState::Succeeded => {
            job.artifact.as_deref().and_then(|id| mirror.artifact(id)).map(artifact_summary)
        }
        JobState::Failed | JobState::Blocked => job.error.as_ref().map(|error| error.message.clone()),
        _ => job.activity.clone(),
    };
    let number = |text: Option<String>| Field::new(text.unwrap_or_default(), theme.text);
    // Where the stage has no column of its own, its mark leads the target.
    let lead = if wide { "    ".to_owned() } else { format!("  {} ", job_mark(job.state)) };
    vec![
        Field::new(format!("{lead}{}", job_target(job)), if running { theme.text } else { theme.dim }),
        Field::new(backend.unwrap_or_default(), theme.dim),
        Field::new(format!("{} {}", job_mark(job.state), job_word(job)), style),
        if running {
            Field::Bar(job.progress, theme.bar)
        } else {
            Field::new(told.unwrap_or_default(), style)
        },
        number(job.rate.filter(|_| running).map(units::rate)),
        number(job.eta_seconds.filter(|_| running).map(units::seconds)),
        number(running.then(|| units::seconds(job.seconds))),
    ]
}
