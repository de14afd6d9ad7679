//! The machine in a narrow pane: cores, memory, disk, accelerators, history, workers.

use std::fmt::Write as _;

use drophammer_client::api::{Accelerator, Hardware, Worker};
use ratatui::layout::Rect;
use ratatui::style::Style;

use super::vocabulary::on_device;
use crate::canvas::Canvas;
use crate::mirror::Mirror;
use crate::theme::Theme;
use crate::units;
use crate::widgets::bar::bar;
use crate::widgets::graph::graph;

/// Draws from the top what fits, the most important first.
pub(crate) fn draw(canvas: &mut Canvas<'_>, area: Rect, mirror: &Mirror) {
    let Some(sample) = &mirror.hardware else {
        canvas.empty(area, &["no sample yet"]);
        return;
    };
    let mut rows = Rows { area, y: area.y };
    draw_cores(canvas, &mut rows, sample, area.height / 3);
    draw_memory(canvas, &mut rows, sample);
    draw_disk(canvas, &mut rows, sample);
    for (kind, accelerators) in [("gpu", &sample.gpus), ("npu", &sample.npus)] {
        for accelerator in accelerators {
            draw_accelerator(canvas, &mut rows, kind, accelerator);
        }
    }
    if sample.gpus.is_empty() && sample.npus.is_empty() {
        rows.text(canvas, "gpu  none · npu none", canvas.theme.dim);
    }
    let workers = sample.workers.len().clamp(1, 6) as u16 + 1;
    let left = rows.left();
    if left > workers + 3 {
        // Two samples per column, one sample per second.
        let span = units::seconds(2.0 * f64::from(area.width));
        rows.text(canvas, &format!("cpu, last {span}"), canvas.theme.dim);
        let height = (left - workers - 1).min(4);
        if let Some(place) = rows.take(height) {
            graph(canvas, place, mirror.history.cpu.values(), 100.0, canvas.theme.series(0));
        }
    }
    if rows.left() > 1 {
        rows.text(canvas, "workers", canvas.theme.dim);
        if sample.workers.is_empty() {
            rows.text(canvas, " none: nothing is forged or served now", canvas.theme.dim);
        }
        for worker in &sample.workers {
            if let Some(place) = rows.take(1) {
                draw_worker(canvas, place, worker);
            }
        }
    }
}

struct Rows {
    area: Rect,
    y: u16,
}

impl Rows {
    fn left(&self) -> u16 {
        self.area.bottom().saturating_sub(self.y)
    }

    fn take(&mut self, height: u16) -> Option<Rect> {
        let fits = height > 0 && self.left() >= height;
        let place = Rect { y: self.y, height, ..self.area };
        self.y += if fits { height } else { 0 };
        fits.then_some(place)
    }

    fn text(&mut self, canvas: &mut Canvas<'_>, text: &str, style: Style) {
        if let Some(place) = self.take(1) {
            canvas.clipped(place.x, place.y, place.width, text, style);
        }
    }
}

/// How worrying a load is.
pub(crate) fn load_style(percent: f64, theme: &Theme) -> Style {
    match percent {
        p if p >= 95.0 => theme.bad,
        p if p >= 80.0 => theme.warn,
        _ => theme.bar,
    }
}

/// A label, a bar, and a number at the right edge.
pub(crate) fn gauge(
    canvas: &mut Canvas<'_>,
    place: Rect,
    label: &str,
    fraction: f64,
    number: &str,
    number_width: u16,
) {
    let label_width = 6.min(place.width);
    canvas.clipped(place.x, place.y, label_width, label, canvas.theme.dim);
    let number_width = number_width.min(place.width.saturating_sub(label_width));
    canvas.right(place.right(), place.y, number_width, number, canvas.theme.text);
    let style = load_style(fraction * 100.0, canvas.theme);
    let width = place.width.saturating_sub(label_width + number_width + 1);
    bar(canvas, Rect { x: place.x + label_width, width, height: 1, ..place }, fraction, style);
}

/// One line per core while there is room, else two or more cores on a line as plain steps.
fn draw_cores(canvas: &mut Canvas<'_>, rows: &mut Rows, sample: &Hardware, room: u16) {
    let cores = &sample.cpu.cores;
    if cores.len() <= usize::from(room.max(2)) {
        for (at, core) in cores.iter().enumerate() {
            if let Some(place) = rows.take(1) {
                let mut number = format!("{:>3.0}%", core.percent);
                if let Some(mhz) = core.mhz {
                    let _ = write!(number, " {:.1}GHz", mhz as f64 / 1000.0);
                }
                gauge(canvas, place, &format!("cpu{at}"), core.percent / 100.0, &number, 12);
            }
        }
        return;
    }
    if let Some(place) = rows.take(1) {
        let number = format!("{:>3.0}% of {}", sample.cpu.percent, cores.len());
        gauge(canvas, place, "cpu", sample.cpu.percent / 100.0, &number, 12);
    }
    draw_core_map(canvas, rows, cores.iter().map(|core| core.percent));
}

/// One character per core, as high as it is busy.
fn draw_core_map(canvas: &mut Canvas<'_>, rows: &mut Rows, percents: impl Iterator<Item = f64>) {
    let percents: Vec<f64> = percents.collect();
    let width = rows.area.width.saturating_sub(6).max(1);
    for line in percents.chunks(usize::from(width)).take(4) {
        let Some(place) = rows.take(1) else { return };
        canvas.text(place.x, place.y, 6, "cores", canvas.theme.dim);
        for (x, percent) in (place.x + 6..).zip(line) {
            let step = (percent / 100.0 * 8.0).ceil().clamp(1.0, 8.0) as u32;
            let symbol = char::from_u32(0x2580 + step).unwrap_or('?');
            let style = load_style(*percent, canvas.theme);
            canvas.text(x, place.y, 1, symbol.encode_utf8(&mut [0; 4]), style);
        }
    }
}

fn draw_memory(canvas: &mut Canvas<'_>, rows: &mut Rows, sample: &Hardware) {
    let memory = &sample.memory;
    let mut line = |canvas: &mut Canvas<'_>, label: &str, used: u64, total: u64| {
        if let Some(place) = rows.take(1) {
            let fraction = used as f64 / total.max(1) as f64;
            gauge(canvas, place, label, fraction, &of(used, total), 12);
        }
    };
    line(canvas, "mem", memory.used_bytes, memory.total_bytes);
    if memory.swap_used_bytes > 0 {
        line(canvas, "swap", memory.swap_used_bytes, memory.swap_total_bytes);
    }
}

/// `7.1/23.5 GB`.
pub(crate) fn of(used: u64, total: u64) -> String {
    if total >= 1_000_000_000 {
        format!("{:.1}/{:.1} GB", used as f64 / 1e9, total as f64 / 1e9)
    } else {
        format!("{:.0}/{:.0} MB", used as f64 / 1e6, total as f64 / 1e6)
    }
}

fn draw_disk(canvas: &mut Canvas<'_>, rows: &mut Rows, sample: &Hardware) {
    let Some(disk) = sample.disks.first() else { return };
    let tight = disk.free_bytes < disk.total_bytes / 20;
    let style = if tight { canvas.theme.warn } else { canvas.theme.dim };
    let mut text = format!("disk  {} free", units::bytes(disk.free_bytes));
    if let (Some(read), Some(write)) = (disk.read_bytes_per_second, disk.write_bytes_per_second) {
        // On one line where there is room.
        if rows.area.width < 54 {
            rows.text(canvas, &text, style);
            text = "     ".to_owned();
        }
        let _ = write!(text, " r {} · w {}", units::rate(read), units::rate(write));
    }
    rows.text(canvas, &text, style);
}

fn draw_accelerator(canvas: &mut Canvas<'_>, rows: &mut Rows, kind: &str, accelerator: &Accelerator) {
    let Some(place) = rows.take(1) else { return };
    match (accelerator.percent, accelerator.memory_used_bytes, accelerator.memory_total_bytes) {
        (Some(percent), used, total) => {
            let number = match (used, total) {
                (Some(used), Some(total)) => of(used, total),
                _ => format!("{percent:.0}%"),
            };
            gauge(canvas, place, kind, percent / 100.0, &number, 12);
        }
        _ => {
            canvas.clipped(
                place.x,
                place.y,
                place.width,
                &format!("{kind}   {}", accelerator.name),
                canvas.theme.dim,
            );
        }
    }
}

fn draw_worker(canvas: &mut Canvas<'_>, place: Rect, worker: &Worker) {
    let what = worker.model.as_deref().unwrap_or(&worker.plugin);
    let who = format!(" {:<7} {}", worker.role, on_device(what, None));
    let numbers = format!("{:>4.0}% {:>8}", worker.cpu_percent, units::bytes(worker.memory_bytes));
    let numbers_width = numbers.chars().count() as u16;
    canvas.clipped(place.x, place.y, place.width.saturating_sub(numbers_width + 1), &who, canvas.theme.text);
    canvas.right(place.right(), place.y, numbers_width, &numbers, canvas.theme.text);
}
