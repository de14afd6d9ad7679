//! Every artifact of every backend in one table, the plot of its model, and two of them compared.

use std::cmp::Ordering;

use drophammer_client::api::{Artifact, ErrorReport, ModelEntry};
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::text::{Line, Span};

use super::job_details::push;
use super::vocabulary::{
    error_lines, model_mark, model_style, on_device, served_mark, served_word, source_summary,
};
use super::{Ask, Outbox, View, comparison, plot};
use crate::actions::Action;
use crate::canvas::{Canvas, Pane, Spot};
use crate::keys::Chord;
use crate::message::Effect;
use crate::mirror::Mirror;
use crate::overlays::add::AddModel;
use crate::overlays::confirm::Confirm;
use crate::overlays::targets::Targets;
use crate::theme::Theme;
use crate::units;
use crate::widgets::input::Input;
use crate::widgets::list::ListState;
use crate::widgets::table::{Column, Field, Row, Table};

const COLUMNS: &[Column] = &[
    Column::left("MODEL", 20, 3, 0),
    Column::left("BACKEND", 12, 1, 5),
    Column::left("FORMAT", 8, 0, 7),
    Column::left("SCHEME", 13, 1, 0),
    Column::right("SIZE", 8, 1),
    Column::right("BPW", 5, 6),
    Column::right("KL", 8, 0),
    Column::right("KL 99%", 8, 10),
    Column::right("TOP-1", 6, 3),
    Column::right("PPL", 7, 9),
    Column::right("PREFILL", 7, 8),
    Column::right("TOK/S", 6, 2),
    Column::right("MEMORY", 8, 4),
    Column::left("", 8, 0, 3),
];

/// One line: an artifact, or a model that has none yet.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Entry {
    Artifact { model: String, at: usize },
    Bare(String),
}

#[derive(Default)]
pub(crate) struct ModelsView {
    list: ListState,
    lines: Vec<Entry>,
    chosen: Option<String>,
    filter: Input,
    filtering: bool,
    sort: usize,
    descending: bool,
    /// Ids of up to two artifacts.
    marks: Vec<String>,
}

/// The effect that loads an artifact, or unloads it if it is loaded.
pub(crate) fn serve(artifact: &Artifact, mirror: &Mirror) -> Effect {
    match mirror.served(&artifact.id) {
        Some(_) => Effect::Unserve(artifact.id.clone()),
        None => Effect::Serve(artifact.id.clone()),
    }
}

/// The effect that keeps an artifact loaded, or takes that back.
fn pin(artifact: &Artifact, mirror: &Mirror) -> Effect {
    match mirror.served(&artifact.id) {
        Some(served) if served.pinned => Effect::Unpin(artifact.id.clone()),
        _ => Effect::Pin(artifact.id.clone()),
    }
}

impl ModelsView {
    fn line<'a>(&self, mirror: &'a Mirror, index: usize) -> Option<(&'a ModelEntry, Option<&'a Artifact>)> {
        match self.lines.get(index)? {
            Entry::Artifact { model, at } => {
                let model = mirror.models.get(model)?;
                Some((model, model.artifacts.get(*at)))
            }
            Entry::Bare(model) => Some((mirror.models.get(model)?, None)),
        }
    }

    fn selected<'a>(&self, mirror: &'a Mirror) -> Option<(&'a ModelEntry, Option<&'a Artifact>)> {
        self.line(mirror, self.list.selected)
    }

    fn artifact<'a>(&self, mirror: &'a Mirror) -> Option<&'a Artifact> {
        self.selected(mirror)?.1
    }

    fn choose(&mut self, mirror: &Mirror) {
        self.list.clamp(self.lines.len());
        self.chosen = self.selected(mirror).map(|(model, artifact)| key(model, artifact));
    }

    fn sort_by(&mut self, column: usize, mirror: &Mirror, out: &mut Outbox) {
        if self.sort == column {
            self.descending = !self.descending;
        } else {
            self.sort = column;
            self.descending = false;
        }
        self.refresh(mirror, out);
    }

    fn mark(&mut self, mirror: &Mirror) {
        let Some(artifact) = self.artifact(mirror) else { return };
        if let Some(at) = self.marks.iter().position(|mark| *mark == artifact.id) {
            self.marks.remove(at);
        } else {
            if self.marks.len() == 2 {
                self.marks.remove(0);
            }
            self.marks.push(artifact.id.clone());
        }
    }
}

fn key(model: &ModelEntry, artifact: Option<&Artifact>) -> String {
    artifact.map_or_else(|| format!("model {}", model.name), |artifact| artifact.id.clone())
}

impl View for ModelsView {
    fn actions(&self, mirror: &Mirror) -> Vec<Action> {
        if self.filtering {
            return vec![Action::Open, Action::Back];
        }
        let mut actions = Vec::new();
        let selected = self.selected(mirror);
        if let Some((model, Some(artifact))) = selected {
            actions.extend([Action::Serve, Action::Pin, Action::ChatWith, Action::Compare]);
            if !model.is_source(artifact) {
                actions.push(Action::Delete);
            }
        }
        if selected.is_some() {
            actions.push(Action::ForgeMore);
        }
        actions.extend([
            Action::Add,
            Action::Filter,
            Action::Sort,
            Action::Reverse,
            Action::Up,
            Action::Down,
        ]);
        actions.extend([Action::PageUp, Action::PageDown, Action::Top, Action::Bottom]);
        actions.extend([Action::Copy, Action::Back]);
        actions
    }

    fn act(&mut self, action: Action, mirror: &Mirror, out: &mut Outbox) {
        match action {
            Action::Open => self.filtering = false,
            Action::Back => {
                self.filtering = false;
                if self.filter.is_empty() {
                    self.marks.clear();
                }
                self.filter = Input::default();
                self.refresh(mirror, out);
            }
            Action::Filter => self.filtering = true,
            Action::Sort => {
                self.sort = (self.sort + 1) % (COLUMNS.len() - 1);
                self.refresh(mirror, out);
            }
            Action::Reverse => self.sort_by(self.sort, mirror, out),
            Action::Add => out.overlay(AddModel::default()),
            Action::Compare => self.mark(mirror),
            Action::ForgeMore => {
                if let Some((model, _)) = self.selected(mirror) {
                    out.effect(Effect::Plan(model.name.clone()));
                    out.overlay(Targets::new(model.name.clone()));
                }
            }
            Action::Serve => out.0.extend(self.artifact(mirror).map(|it| Ask::Effect(serve(it, mirror)))),
            Action::Pin => out.0.extend(self.artifact(mirror).map(|it| Ask::Effect(pin(it, mirror)))),
            Action::ChatWith => {
                let artifact = self.artifact(mirror).map(|artifact| artifact.id.clone());
                out.push(Ask::Chat { column: 0, artifact });
            }
            Action::Delete => {
                if let Some(artifact) = self.artifact(mirror) {
                    let what = format!(
                        "Remove {} {} of {} ({}) from the library? Its source stays.",
                        artifact.format,
                        artifact.scheme,
                        artifact.model,
                        units::bytes(artifact.bytes)
                    );
                    out.overlay(Confirm::new(what, Effect::Delete(artifact.id.clone())));
                }
            }
            Action::Copy => {
                if let Some((model, artifact)) = self.selected(mirror) {
                    let path = artifact.map_or(&model.source.path, |artifact| &artifact.path);
                    out.notice(format!("copied {}", units::clip(path, 60)));
                    out.effect(Effect::Copy(path.clone()));
                }
            }
            _ => {
                if self.list.act(action, self.lines.len()) {
                    self.choose(mirror);
                }
            }
        }
    }

    fn typing(&self) -> bool {
        self.filtering
    }

    fn key(&mut self, chord: Chord, mirror: &Mirror, out: &mut Outbox) {
        if self.filter.key(chord) {
            self.refresh(mirror, out);
        }
    }

    fn click(&mut self, spot: Spot, mirror: &Mirror, out: &mut Outbox) {
        match spot {
            Spot::Row(Pane::List, index) => {
                self.list.selected = index;
                self.choose(mirror);
            }
            Spot::Column(column) => self.sort_by(column, mirror, out),
            _ => {}
        }
    }

    fn wheel(&mut self, _pane: Pane, lines: isize, mirror: &Mirror, _out: &mut Outbox) {
        self.list.scroll(lines, self.lines.len());
        self.choose(mirror);
    }

    fn refresh(&mut self, mirror: &Mirror, _out: &mut Outbox) {
        let filter = self.filter.text().to_lowercase();
        let mut lines: Vec<(Entry, &ModelEntry, Option<&Artifact>)> = Vec::new();
        for model in mirror.models.values() {
            if model.artifacts.is_empty() && model_matches(model, &filter) {
                lines.push((Entry::Bare(model.name.clone()), model, None));
            }
            for (at, artifact) in model.artifacts.iter().enumerate() {
                if artifact_matches(artifact, &filter) {
                    lines.push((Entry::Artifact { model: model.name.clone(), at }, model, Some(artifact)));
                }
            }
        }
        lines.sort_by(|(_, model_a, a), (_, model_b, b)| {
            let order = compare(self.sort, a.as_ref(), b.as_ref());
            let order = if self.descending { order.reverse() } else { order };
            // Lines without a value stay at the end either way.
            b.is_some().cmp(&a.is_some()).then(order).then_with(|| model_a.name.cmp(&model_b.name))
        });
        self.lines = lines.into_iter().map(|(line, ..)| line).collect();
        self.marks.retain(|mark| mirror.artifact(mark).is_some());
        if let Some(chosen) = &self.chosen {
            let here = |index: &usize| {
                self.line(mirror, *index).is_some_and(|(model, artifact)| key(model, artifact) == *chosen)
            };
            if let Some(index) = (0..self.lines.len()).find(here) {
                self.list.selected = index;
            }
        }
        self.choose(mirror);
    }

    fn draw(&self, canvas: &mut Canvas<'_>, area: Rect, mirror: &Mirror) {
        let below = if area.height >= 18 { (area.height * 2 / 5).clamp(9, 22) } else { 0 };
        let [top, bottom] = Layout::vertical([Constraint::Fill(1), Constraint::Length(below)]).areas(area);
        self.draw_table(canvas, top, mirror);
        if bottom.is_empty() {
            return;
        }
        let plot_width = if area.width >= 80 { area.width / 2 } else { 0 };
        let [left, right] =
            Layout::horizontal([Constraint::Fill(1), Constraint::Length(plot_width)]).areas(bottom);
        self.draw_details(canvas, left, mirror);
        if !right.is_empty() {
            let inside = canvas.panel(right, "Size against KL", false);
            let model = self.selected(mirror).map(|(model, _)| model);
            plot::draw(canvas, inside, model, self.artifact(mirror).map(|artifact| artifact.id.as_str()));
        }
    }
}

impl ModelsView {
    fn draw_table(&self, canvas: &mut Canvas<'_>, area: Rect, mirror: &Mirror) {
        let artifacts = self.lines.iter().filter(|line| matches!(line, Entry::Artifact { .. })).count();
        let title = format!("Artifacts ({artifacts})");
        let mut inside = canvas.pane(area, &title, Pane::List, true);
        if self.filtering || !self.filter.is_empty() {
            let line = Rect { y: inside.bottom().saturating_sub(1), height: 1, ..inside };
            inside.height = inside.height.saturating_sub(1);
            canvas.text(line.x, line.y, 2, "/", canvas.theme.key);
            let input = Rect { x: line.x + 1, width: line.width.saturating_sub(1), ..line };
            self.filter.draw(canvas, input, self.filtering, "model, backend, format or scheme");
        }
        if self.lines.is_empty() {
            let lines = if self.filter.is_empty() {
                ["No models yet.", "Drop one into the models folder, or press a to add one."]
            } else {
                ["Nothing matches.", "esc clears the filter."]
            };
            canvas.empty(inside, &lines);
            return;
        }
        let table = Table {
            columns: COLUMNS,
            state: &self.list,
            len: self.lines.len(),
            pane: Pane::List,
            focused: true,
            sort: Some((self.sort, self.descending)),
        };
        let theme = canvas.theme;
        table.draw(canvas, inside, |index| match self.line(mirror, index) {
            Some((model, Some(artifact))) => {
                Row::Fields(fields(model, artifact, mirror, theme, self.marks.contains(&artifact.id)))
            }
            Some((model, None)) => Row::Line(bare_line(model, theme)),
            None => Row::Fields(Vec::new()),
        });
    }

    fn draw_details(&self, canvas: &mut Canvas<'_>, area: Rect, mirror: &Mirror) {
        let theme = canvas.theme;
        if let [one, other] = &self.marks[..]
            && let (Some(one), Some(other)) = (mirror.artifact(one), mirror.artifact(other))
        {
            let inside = canvas.panel(area, "Compared", false);
            canvas.lines(inside, &comparison::lines(one, other, theme, inside.width));
            return;
        }
        let Some((model, artifact)) = self.selected(mirror) else {
            canvas.panel(area, "Details", false);
            return;
        };
        let title =
            artifact.map_or(model.name.clone(), |it| format!("{} · {} {}", model.name, it.format, it.scheme));
        let inside = canvas.panel(area, &title, false);
        let lines = match artifact {
            Some(artifact) => artifact_lines(model, artifact, mirror, theme, inside.width),
            None => super::job_details::model(model, theme, inside.width),
        };
        canvas.lines(inside, &lines);
    }
}

fn model_matches(model: &ModelEntry, filter: &str) -> bool {
    model.name.to_lowercase().contains(filter) || model.state.as_str().contains(filter)
}

fn artifact_matches(artifact: &Artifact, filter: &str) -> bool {
    [&artifact.model, &artifact.backend, &artifact.format, &artifact.scheme, &artifact.target]
        .into_iter()
        .any(|word| word.to_lowercase().contains(filter))
}

/// By the value of a column; missing values last.
fn compare(column: usize, a: Option<&&Artifact>, b: Option<&&Artifact>) -> Ordering {
    let (Some(a), Some(b)) = (a, b) else { return Ordering::Equal };
    let number = |value: fn(&Artifact) -> Option<f64>| match (value(a), value(b)) {
        (Some(a), Some(b)) => a.total_cmp(&b),
        (a, b) => b.is_some().cmp(&a.is_some()),
    };
    match column {
        0 => a.model.cmp(&b.model).then(a.bytes.cmp(&b.bytes)),
        1 => a.backend.cmp(&b.backend),
        2 => a.format.cmp(&b.format),
        3 => a.scheme.cmp(&b.scheme),
        4 => a.bytes.cmp(&b.bytes),
        5 => number(|it| it.bits_per_weight),
        6 => number(|it| it.measurements.kl_mean),
        7 => number(|it| it.measurements.kl_p99),
        8 => number(|it| it.measurements.top1),
        9 => number(|it| it.measurements.perplexity),
        10 => number(|it| it.measurements.prefill_tps),
        11 => number(|it| it.measurements.decode_tps),
        _ => number(|it| it.measurements.peak_memory_bytes.map(|bytes| bytes as f64)),
    }
}

fn fields(
    model: &ModelEntry,
    artifact: &Artifact,
    mirror: &Mirror,
    theme: &Theme,
    marked: bool,
) -> Vec<Field> {
    let measured = &artifact.measurements;
    let text = |text: String| Field::new(text, theme.text);
    let number = |value: Option<String>| match value {
        Some(value) => Field::new(value, theme.text),
        None => Field::new("–", theme.dim),
    };
    let mark = if marked { "◆ " } else { "" };
    let best = if artifact.best { "★" } else { " " };
    let served = mirror.served(&artifact.id);
    let source = if model.is_source(artifact) { "source" } else { "" };
    let state = served.map_or(format!("{best}{source}"), |served| {
        format!("{best}{}{}", served_mark(served.state), served_word(served))
    });
    let kl_style = if plot::is_on_front(artifact, &model.artifacts) { theme.good } else { theme.text };
    let kl = measured.kl_mean.map(units::divergence);
    vec![
        text(format!("{mark}{}", artifact.model)),
        Field::new(on_device(&artifact.backend, artifact.device.as_deref()), theme.dim),
        Field::new(artifact.format.clone(), theme.dim),
        text(artifact.scheme.clone()),
        text(units::bytes(artifact.bytes)),
        number(artifact.bits_per_weight.map(|bits| format!("{bits:.2}"))),
        kl.map_or_else(|| Field::new("–", theme.dim), |kl| Field::new(kl, kl_style)),
        number(measured.kl_p99.map(units::divergence)),
        number(measured.top1.map(units::fraction)),
        number(measured.perplexity.map(|value| format!("{value:.2}"))),
        number(measured.prefill_tps.map(units::speed)),
        number(measured.decode_tps.map(units::speed)),
        number(measured.peak_memory_bytes.map(units::bytes)),
        Field::new(state, if served.is_some() { theme.good } else { theme.accent }),
    ]
}

fn bare_line(model: &ModelEntry, theme: &Theme) -> Line<'static> {
    let style = model_style(model.state, theme);
    let mut spans = vec![
        Span::styled(model.name.clone(), theme.text),
        Span::styled(format!("  {} {}", model_mark(model.state), model.state), style),
    ];
    let told = model.error.as_ref().map(|error: &ErrorReport| error.message.clone());
    if let Some(told) = told.or_else(|| model.waits_for.clone()) {
        spans.push(Span::styled(format!("  {told}"), style));
    }
    Line::from(spans)
}

fn artifact_lines(
    model: &ModelEntry,
    artifact: &Artifact,
    mirror: &Mirror,
    theme: &Theme,
    width: u16,
) -> Vec<Line<'static>> {
    let mut lines = Vec::new();
    let measured = &artifact.measurements;
    push(&mut lines, "source", &source_summary(&model.source), theme, width);
    push(&mut lines, "path", &artifact.path, theme, width);
    push(&mut lines, "api", &format!("model = \"{}\"", artifact.api_name), theme, width);
    if let (Some(own), Some(source)) = (measured.perplexity, measured.reference_perplexity)
        && !model.is_source(artifact)
    {
        let text = format!("{own:.3}, the source {source:.3} ({:+.2}%)", (own / source - 1.0) * 100.0);
        push(&mut lines, "ppl", &text, theme, width);
    }
    let mut notes = Vec::new();
    if model.is_source(artifact) {
        notes.push("the source itself, as it was dropped");
    } else {
        let smaller = model.source.bytes as f64 / artifact.bytes.max(1) as f64;
        let text = format!("{} · source ÷ {smaller:.1}", units::bytes(artifact.bytes));
        push(&mut lines, "size", &text, theme, width);
    }
    if artifact.best {
        notes.push("★ best of its model: served for its bare name");
    }
    if plot::is_on_front(artifact, &model.artifacts) {
        notes.push("nothing smaller is closer to the source");
    }
    if !notes.is_empty() {
        push(&mut lines, "note", &notes.join("; "), theme, width);
    }
    if let Some(served) = mirror.served(&artifact.id) {
        let kept = if served.pinned { " · pinned: it stays loaded" } else { "" };
        let text =
            format!("{} {} · {} sequences{kept}", served_mark(served.state), served.state, served.sequences);
        push(&mut lines, "served", &text, theme, width);
        if let Some(error) = &served.error {
            lines.extend(error_lines(error, width, theme));
        }
    }
    lines
}
