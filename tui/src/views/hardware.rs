//! The machine in full: every core, memory, disks, network, accelerators, power, workers, history.

use drophammer_client::api::{Accelerator, Hardware};
use ratatui::layout::{Constraint, Layout, Rect};

use super::machine::{gauge, load_style, of};
use super::vocabulary::on_device;
use super::{Outbox, View};
use crate::actions::Action;
use crate::canvas::{Canvas, Pane};
use crate::mirror::{Mirror, Series};
use crate::units;
use crate::widgets::graph::graph;
use crate::widgets::list::ListState;
use crate::widgets::table::{Column, Field, Row, Table};
use crate::widgets::wrap::wrap;

const WORKERS: &[Column] = &[
    Column::left("WORKER", 8, 0, 0),
    Column::left("MODEL", 12, 2, 0),
    Column::left("PLUGIN", 11, 1, 3),
    Column::right("CPU", 6, 0),
    Column::right("MEMORY", 8, 0),
    Column::right("THREADS", 7, 4),
    Column::right("SEQS", 5, 5),
    Column::right("PID", 8, 6),
    Column::right("UP", 7, 2),
];

#[derive(Default)]
pub(crate) struct HardwareView {
    workers: ListState,
}

impl View for HardwareView {
    fn actions(&self, _mirror: &Mirror) -> Vec<Action> {
        vec![Action::Up, Action::Down, Action::PageUp, Action::PageDown, Action::Top, Action::Bottom]
    }

    fn act(&mut self, action: Action, mirror: &Mirror, _out: &mut Outbox) {
        let workers = mirror.hardware.as_ref().map_or(0, |sample| sample.workers.len());
        self.workers.act(action, workers);
    }

    fn wheel(&mut self, _pane: Pane, lines: isize, mirror: &Mirror, _out: &mut Outbox) {
        let workers = mirror.hardware.as_ref().map_or(0, |sample| sample.workers.len());
        self.workers.scroll(lines, workers);
    }

    fn refresh(&mut self, mirror: &Mirror, _out: &mut Outbox) {
        self.workers.clamp(mirror.hardware.as_ref().map_or(0, |sample| sample.workers.len()));
    }

    fn draw(&self, canvas: &mut Canvas<'_>, area: Rect, mirror: &Mirror) {
        let Some(sample) = &mirror.hardware else {
            let inside = canvas.panel(area, "Hardware", true);
            canvas.empty(inside, &["No sample yet.", "The daemon samples the machine while somebody looks."]);
            return;
        };
        let workers_height =
            if area.height >= 24 { (sample.workers.len() as u16 + 3).clamp(5, 12) } else { 0 };
        let [top, bottom] =
            Layout::vertical([Constraint::Fill(1), Constraint::Length(workers_height)]).areas(area);
        if area.width >= 90 {
            let [cpu, rest, history] = Layout::horizontal([
                Constraint::Fill(3),
                Constraint::Fill(3),
                if area.width >= 130 { Constraint::Fill(4) } else { Constraint::Length(0) },
            ])
            .areas(top);
            let (cpu, history) = if history.is_empty() {
                // Few cores leave room below them.
                let cores = (sample.cpu.cores.len() as u16 + 4).min(cpu.height * 3 / 5);
                Layout::vertical([Constraint::Length(cores), Constraint::Fill(1)]).areas::<2>(cpu).into()
            } else {
                (cpu, history)
            };
            draw_cpu(canvas, cpu, sample);
            draw_rest(canvas, rest, sample);
            draw_history(canvas, history, mirror);
        } else {
            let cores = (sample.cpu.cores.len() as u16 + 3).min(top.height / 2);
            let [cpu, rest] = Layout::vertical([Constraint::Length(cores), Constraint::Fill(1)]).areas(top);
            draw_cpu(canvas, cpu, sample);
            draw_rest(canvas, rest, sample);
        }
        if !bottom.is_empty() {
            self.draw_workers(canvas, bottom, sample);
        }
    }
}

impl HardwareView {
    fn draw_workers(&self, canvas: &mut Canvas<'_>, area: Rect, sample: &Hardware) {
        let title = format!(
            "Workers ({}) · daemon {:.1}% cpu, {}",
            sample.workers.len(),
            sample.daemon.cpu_percent,
            units::bytes(sample.daemon.memory_bytes)
        );
        let inside = canvas.pane(area, &title, Pane::List, true);
        if sample.workers.is_empty() {
            canvas.empty(inside, &["No worker runs: nothing is forged or served now."]);
            return;
        }
        let table = Table {
            columns: WORKERS,
            state: &self.workers,
            len: sample.workers.len(),
            pane: Pane::List,
            focused: true,
            sort: None,
        };
        let (theme, now) = (canvas.theme, canvas.clock.now);
        table.draw(canvas, inside, |index| {
            let worker = &sample.workers[index];
            let number = |text: Option<String>| Field::new(text.unwrap_or_default(), theme.text);
            Row::Fields(vec![
                Field::new(worker.role.as_str(), theme.accent),
                Field::new(worker.model.clone().unwrap_or_default(), theme.text),
                Field::new(on_device(&worker.plugin, None), theme.dim),
                Field::new(format!("{:.0}%", worker.cpu_percent), theme.text),
                Field::new(units::bytes(worker.memory_bytes), theme.text),
                number(worker.threads.map(|count| count.to_string())),
                number(worker.sequences.map(|count| count.to_string())),
                Field::new(worker.pid.to_string(), theme.dim),
                Field::new(units::seconds(now - worker.started), theme.dim),
            ])
        });
    }
}

fn draw_cpu(canvas: &mut Canvas<'_>, area: Rect, sample: &Hardware) {
    let inside = canvas.panel(area, "Processor", false);
    let cores = &sample.cpu.cores;
    let mut head = sample.cpu.name.clone();
    if let Some(celsius) = sample.cpu.temperature_celsius {
        head = format!("{head} · {celsius:.0} °C");
    }
    canvas.clipped(inside.x, inside.y, inside.width, &head, canvas.theme.dim);
    let number = format!("{:>3.0}%", sample.cpu.percent);
    let all = Rect { y: inside.y + 1, ..inside };
    if inside.height > 1 {
        gauge(canvas, all, "all", sample.cpu.percent / 100.0, &number, 5);
    }
    // As many columns as it takes to show every core.
    let body = Rect { y: inside.y + 2, height: inside.height.saturating_sub(2), ..inside };
    if body.height == 0 {
        return;
    }
    let columns =
        cores.len().div_ceil(usize::from(body.height)).clamp(1, usize::from(body.width / 12).max(1)) as u16;
    let width = body.width / columns;
    for (at, core) in cores.iter().enumerate() {
        let (column, y) = (at as u16 / body.height, at as u16 % body.height);
        if column >= columns {
            return;
        }
        let place = Rect {
            x: body.x + column * width,
            y: body.y + y,
            width: width.saturating_sub(1).max(1),
            height: 1,
        };
        let mut number = format!("{:>3.0}%", core.percent);
        if width >= 28 {
            number.push_str(&core.mhz.map_or(String::new(), |mhz| format!(" {:.1}GHz", mhz as f64 / 1000.0)));
        }
        if width >= 36 {
            number.push_str(&core.temperature_celsius.map_or(String::new(), |c| format!(" {c:.0}°C")));
        }
        let number_width = match width {
            36.. => 17,
            28.. => 12,
            _ => 5,
        };
        gauge(canvas, place, &format!("cpu{at}"), core.percent / 100.0, &number, number_width);
    }
}

/// Memory, disks, network, accelerators, power, and why something is missing.
fn draw_rest(canvas: &mut Canvas<'_>, area: Rect, sample: &Hardware) {
    let inside = canvas.panel(area, "Memory, disks, accelerators", false);
    let (theme, mut y) = (canvas.theme, inside.y);
    let mut next = |height: u16| -> Option<Rect> {
        let place = Rect { y, height, ..inside };
        y += height;
        (y <= inside.bottom()).then_some(place)
    };
    let memory = &sample.memory;
    for (label, used, total) in [
        ("mem", memory.used_bytes, memory.total_bytes),
        ("swap", memory.swap_used_bytes, memory.swap_total_bytes),
    ] {
        match next(1) {
            Some(place) if total > 0 => {
                gauge(canvas, place, label, used as f64 / total as f64, &of(used, total), 14);
            }
            Some(place) => {
                canvas.clipped(place.x, place.y, place.width, &format!("{label:<6}none"), theme.dim);
            }
            None => return,
        }
    }
    for disk in &sample.disks {
        let used = disk.total_bytes.saturating_sub(disk.free_bytes);
        let fraction = used as f64 / disk.total_bytes.max(1) as f64;
        let Some(place) = next(1) else { return };
        gauge(canvas, place, "disk", fraction, &format!("{} free", units::bytes(disk.free_bytes)), 14);
        let Some(place) = next(1) else { return };
        let rate = |value: Option<f64>| value.map_or("–".to_owned(), units::rate);
        let text = format!(
            "      {} · read {} · write {}",
            disk.mount,
            rate(disk.read_bytes_per_second),
            rate(disk.write_bytes_per_second)
        );
        canvas.clipped(place.x, place.y, place.width, &text, theme.dim);
    }
    let network = &sample.network;
    let text = format!(
        "net   in {} · out {}",
        units::rate(network.received_bytes_per_second),
        units::rate(network.sent_bytes_per_second)
    );
    let mut lines = vec![(text, theme.dim)];
    if let Some(watts) = sample.power_watts {
        lines.push((format!("power {watts:.1} W"), theme.text));
    }
    for (kind, accelerators) in [("gpu", &sample.gpus), ("npu", &sample.npus)] {
        if accelerators.is_empty() {
            lines.push((format!("{kind}   none"), theme.dim));
        }
        for accelerator in accelerators {
            let style = load_style(accelerator.percent.unwrap_or(0.0), theme);
            lines.push((format!("{kind}   {}", accelerator.name), theme.text));
            lines.push((format!("      {}", accelerator_numbers(accelerator)), style));
        }
    }
    for problem in &sample.problems {
        let text = match &problem.help {
            Some(help) => format!("! {} → {help}", problem.message),
            None => format!("! {}", problem.message),
        };
        lines.extend(wrap(&text, usize::from(inside.width)).into_iter().map(|line| (line, theme.warn)));
    }
    for (text, style) in lines {
        let Some(place) = next(1) else { return };
        canvas.clipped(place.x, place.y, place.width, &text, style);
    }
}

fn accelerator_numbers(accelerator: &Accelerator) -> String {
    let mut parts = Vec::new();
    parts.extend(accelerator.percent.map(|percent| format!("{percent:.0}%")));
    parts.extend(match (accelerator.memory_used_bytes, accelerator.memory_total_bytes) {
        (Some(used), Some(total)) => Some(of(used, total)),
        // It has none of its own, and takes the system's.
        (Some(used), None) => Some(units::bytes(used)),
        _ => None,
    });
    parts.extend(accelerator.mhz.map(|mhz| format!("{:.1} GHz", mhz as f64 / 1000.0)));
    parts.extend(accelerator.temperature_celsius.map(|celsius| format!("{celsius:.0} °C")));
    parts.extend(accelerator.power_watts.map(|watts| format!("{watts:.0} W")));
    if parts.is_empty() { "its driver reports no load".to_owned() } else { parts.join(" · ") }
}

/// Title, values, the value at the top (or the greatest one), and how a value is written.
type Graph<'a> = (&'a str, &'a Series, Option<f32>, &'a dyn Fn(f32) -> String);

/// One graph per measured value, as many as fit.
fn draw_history(canvas: &mut Canvas<'_>, area: Rect, mirror: &Mirror) {
    let inside = canvas.panel(area, "History, newest on the right", false);
    let history = &mirror.history;
    let percent = |value: f32| format!("{value:.0}%");
    let rate = |value: f32| units::rate(f64::from(value));
    let mut graphs: Vec<Graph<'_>> = vec![
        ("cpu", &history.cpu, Some(100.0), &percent),
        ("memory", &history.memory, Some(100.0), &percent),
        ("disk write", &history.disk_write, None, &rate),
        ("disk read", &history.disk_read, None, &rate),
        ("net in", &history.received, None, &rate),
        ("net out", &history.sent, None, &rate),
    ];
    let sample = mirror.hardware.iter();
    let names = sample.flat_map(|sample| sample.gpus.iter().chain(&sample.npus)).map(|it| it.name.as_str());
    for (series, name) in history.accelerators.iter().zip(names) {
        graphs.insert(2, (name, series, Some(100.0), &percent));
    }
    let watts = |value: f32| format!("{value:.0} W");
    if !history.power.values().is_empty() {
        graphs.push(("power", &history.power, None, &watts));
    }
    // A title and two rows each, or fewer graphs.
    let count = graphs.len().min(usize::from(inside.height / 3)).max(1);
    let height = inside.height / count as u16;
    for (at, (title, series, max, show)) in graphs.into_iter().take(count).enumerate() {
        let y = inside.y + at as u16 * height;
        let now = series.values().last().copied().unwrap_or(0.0);
        let most = series.max();
        canvas.clipped(inside.x, y, inside.width, &format!("{title} {}", show(now)), canvas.theme.text);
        let peak = format!("most {}", show(most));
        canvas.right(inside.right(), y, inside.width / 2, &peak, canvas.theme.dim);
        let place = Rect { y: y + 1, height: height.saturating_sub(1), ..inside };
        graph(canvas, place, series.values(), max.unwrap_or(most), canvas.theme.series(at));
    }
}
