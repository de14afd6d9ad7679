//! Live API traffic: queue, batches, latency.

use drophammer_client::api::{Histogram, Requests};
use ratatui::layout::{Constraint, Layout, Rect};

use super::machine::gauge;
use super::{Outbox, View};
use crate::actions::Action;
use crate::canvas::{Canvas, Pane};
use crate::mirror::Mirror;
use crate::units;
use crate::widgets::bar::bar;
use crate::widgets::list::ListState;
use crate::widgets::table::{Column, Field, Row, Table};

const COLUMNS: &[Column] = &[
    Column::left("MODEL", 14, 2, 0),
    Column::left("PHASE", 8, 0, 0),
    Column::right("PROMPT", 7, 3),
    Column::right("OUT", 6, 1),
    Column::right("TOK/S", 7, 0),
    Column::right("FIRST", 7, 2),
    Column::right("AGE", 7, 1),
    Column::left("ROUTE", 16, 1, 4),
    Column::left("ID", 10, 2, 5),
];

#[derive(Default)]
pub(crate) struct RequestsView {
    list: ListState,
}

fn live(mirror: &Mirror) -> usize {
    mirror.requests.as_ref().map_or(0, |requests| requests.live.len())
}

impl View for RequestsView {
    fn actions(&self, _mirror: &Mirror) -> Vec<Action> {
        vec![Action::Up, Action::Down, Action::PageUp, Action::PageDown, Action::Top, Action::Bottom]
    }

    fn act(&mut self, action: Action, mirror: &Mirror, _out: &mut Outbox) {
        self.list.act(action, live(mirror));
    }

    fn wheel(&mut self, _pane: Pane, lines: isize, mirror: &Mirror, _out: &mut Outbox) {
        self.list.scroll(lines, live(mirror));
    }

    fn refresh(&mut self, mirror: &Mirror, _out: &mut Outbox) {
        self.list.clamp(live(mirror));
    }

    fn draw(&self, canvas: &mut Canvas<'_>, area: Rect, mirror: &Mirror) {
        let url = mirror.status.as_ref().and_then(|status| status.server.url.as_deref());
        let Some(requests) = &mirror.requests else {
            let inside = canvas.panel(area, "Requests", true);
            let url = url.map(|url| format!("Requests go to {url} all the same."));
            let lines =
                ["This daemon does not count requests.", url.as_deref().unwrap_or("Its server is off.")];
            canvas.empty(inside, &lines);
            return;
        };
        let numbers = if area.height >= 20 { (area.height / 2).clamp(9, 16) } else { 0 };
        let [top, bottom] = Layout::vertical([Constraint::Fill(1), Constraint::Length(numbers)]).areas(area);
        self.draw_live(canvas, top, requests, url);
        if bottom.is_empty() {
            return;
        }
        let [left, right] = if area.width >= 90 {
            Layout::horizontal([Constraint::Fill(2), Constraint::Fill(3)]).areas(bottom)
        } else {
            [Rect::ZERO, bottom]
        };
        if !left.is_empty() {
            draw_batches(canvas, left, requests);
        }
        draw_latency(canvas, right, requests);
    }
}

impl RequestsView {
    fn draw_live(&self, canvas: &mut Canvas<'_>, area: Rect, requests: &Requests, url: Option<&str>) {
        let title = format!(
            "Requests: {} now · {} answered · {} failed · {} cancelled · {} refused",
            requests.live.len(),
            requests.succeeded,
            requests.failed,
            requests.cancelled,
            requests.refused
        );
        let inside = canvas.pane(area, &title, Pane::List, true);
        if requests.live.is_empty() {
            let example =
                url.map_or("The server is off.".to_owned(), |url| format!("Try: curl {url}/models"));
            canvas.empty(inside, &["No request is being answered.", &example]);
            return;
        }
        let table = Table {
            columns: COLUMNS,
            state: &self.list,
            len: requests.live.len(),
            pane: Pane::List,
            focused: true,
            sort: None,
        };
        let theme = canvas.theme;
        table.draw(canvas, inside, |index| {
            let request = &requests.live[index];
            let number = |text: Option<String>| Field::new(text.unwrap_or_default(), theme.text);
            Row::Fields(vec![
                Field::new(request.model.clone(), theme.text),
                Field::new(request.phase.as_str(), theme.busy),
                Field::new(request.prompt_tokens.to_string(), theme.text),
                Field::new(request.generated_tokens.to_string(), theme.text),
                number(request.tps.map(units::speed)),
                number(request.first_token_seconds.map(units::seconds)),
                Field::new(units::seconds(request.seconds), theme.text),
                Field::new(request.route.clone(), theme.dim),
                Field::new(request.id.clone(), theme.dim),
            ])
        });
    }
}

fn draw_batches(canvas: &mut Canvas<'_>, area: Rect, requests: &Requests) {
    let inside = canvas.panel(area, "Batches", false);
    if requests.batches.is_empty() {
        canvas.empty(inside, &["No model is loaded."]);
        return;
    }
    let mut y = inside.y;
    for batch in &requests.batches {
        if y + 1 >= inside.bottom() {
            return;
        }
        canvas.clipped(inside.x, y, inside.width, &batch.model, canvas.theme.text);
        for (label, part, whole) in
            [("batch", batch.running, batch.capacity), ("queue", batch.queued, batch.queue_capacity)]
        {
            y += 1;
            if y < inside.bottom() {
                let place = Rect { y, height: 1, ..inside };
                let fraction = f64::from(part) / f64::from(whole.max(1));
                gauge(canvas, place, label, fraction, &format!("{part}/{whole}"), 9);
            }
        }
        y += 1;
    }
}

fn draw_latency(canvas: &mut Canvas<'_>, area: Rect, requests: &Requests) {
    let inside = canvas.panel(area, "Latency", false);
    let histograms = [
        ("first token", &requests.first_token),
        ("per token", &requests.token),
        ("request", &requests.total),
    ];
    let columns = if inside.width >= 66 { 3 } else { 1 };
    let width = inside.width / columns;
    for (at, (title, histogram)) in histograms.into_iter().take(usize::from(columns)).enumerate() {
        let place = Rect {
            x: inside.x + at as u16 * width,
            width: width.saturating_sub(u16::from(columns > 1)),
            ..inside
        };
        draw_histogram(canvas, place, title, histogram);
    }
}

fn draw_histogram(canvas: &mut Canvas<'_>, area: Rect, title: &str, histogram: &Histogram) {
    let shown = |q: f64| histogram.quantile_seconds(q).map_or("–".to_owned(), precise);
    canvas.clipped(area.x, area.y, area.width, title, canvas.theme.text);
    let area = Rect { y: area.y + 1, height: area.height.saturating_sub(1), ..area };
    let head = format!("half ≤ {}, 99% ≤ {}", shown(0.5), shown(0.99));
    canvas.clipped(area.x, area.y, area.width, &head, canvas.theme.dim);
    // Empty buckets at both ends say nothing.
    let used: Vec<usize> = (0..histogram.counts.len()).filter(|at| histogram.counts[*at] > 0).collect();
    let (Some(&first), Some(&last)) = (used.first(), used.last()) else {
        canvas.clipped(area.x, area.y + 1, area.width, "nothing measured yet", canvas.theme.dim);
        return;
    };
    let most = histogram.counts.iter().copied().max().unwrap_or(1).max(1);
    for (y, at) in (area.y + 1..area.bottom()).zip(first..=last) {
        let label = match histogram.bounds_seconds.get(at) {
            Some(bound) => format!("≤{}", precise(*bound)),
            None => "more".to_owned(),
        };
        canvas.right(area.x + 8, y, 8, &label, canvas.theme.dim);
        let count = histogram.counts[at];
        let number = count.to_string();
        let number_width = number.len() as u16 + 1;
        let width = area.width.saturating_sub(9 + number_width);
        let place = Rect { x: area.x + 9, y, width, height: 1 };
        bar(canvas, place, count as f64 / most as f64, canvas.theme.series(1));
        canvas.right(area.right(), y, number_width, &number, canvas.theme.dim);
    }
}

/// Milliseconds below a second.
fn precise(seconds: f64) -> String {
    if seconds < 1.0 { format!("{:.0}ms", seconds * 1000.0) } else { units::seconds(seconds) }
}
