//! A plot of points with labels, both axes logarithmic.

use ratatui::layout::Rect;
use ratatui::style::Style;

use crate::canvas::Canvas;

/// A point.
pub(crate) struct Point {
    pub(crate) x: f64,
    pub(crate) y: f64,
    pub(crate) label: String,
    pub(crate) symbol: &'static str,
    pub(crate) style: Style,
    /// Labels of weightier points are placed first.
    pub(crate) weight: u8,
}

/// How the axes are labelled.
pub(crate) struct Axes {
    pub(crate) x: fn(f64) -> String,
    pub(crate) y: fn(f64) -> String,
    pub(crate) y_title: &'static str,
}

/// Width of the numbers beside the vertical axis.
const MARGIN: u16 = 7;

/// Draws points whose coordinates are finite and above zero; the others cannot be placed on these axes.
pub(crate) fn scatter(canvas: &mut Canvas<'_>, area: Rect, points: &[Point], axes: &Axes) {
    let placeable = |p: &&Point| p.x.is_finite() && p.y.is_finite() && p.x > 0.0 && p.y > 0.0;
    let mut points: Vec<&Point> = points.iter().filter(placeable).collect();
    if area.height < 4 || area.width < MARGIN + 10 || points.is_empty() {
        return;
    }
    let plot =
        Rect { x: area.x + MARGIN, y: area.y + 1, width: area.width - MARGIN - 1, height: area.height - 3 };
    let (left, right) = range(points.iter().map(|p| p.x));
    let (low, high) = range(points.iter().map(|p| p.y));
    draw_axes(canvas, area, plot, (left, right), (low, high), axes);
    let place = |value: f64, (from, to): (f64, f64), cells: u16| -> u16 {
        let part = (value.ln() - from.ln()) / (to.ln() - from.ln());
        (part * f64::from(cells.saturating_sub(1))).round() as u16
    };
    points.sort_by_key(|p| p.weight);
    // Lighter points first, so that the weightier lie on top; labels the other way round.
    let placed: Vec<(u16, u16, &Point)> = points
        .iter()
        .map(|p| {
            let x = plot.x + place(p.x, (left, right), plot.width);
            let y = plot.bottom() - 1 - place(p.y, (low, high), plot.height);
            (x, y, *p)
        })
        .collect();
    for (x, y, point) in &placed {
        canvas.text(*x, *y, 1, point.symbol, point.style);
    }
    let mut taken: Vec<Rect> = placed.iter().map(|(x, y, _)| Rect::new(*x, *y, 1, 1)).collect();
    for (x, y, point) in placed.iter().rev() {
        let width = point.label.chars().count() as u16;
        let beside = [
            Some(Rect::new(x + 1, *y, width, 1)),
            x.checked_sub(width).map(|x| Rect::new(x, *y, width, 1)),
            y.checked_sub(1).map(|y| Rect::new(x + 1, y, width, 1)),
            Some(Rect::new(x + 1, y + 1, width, 1)),
        ];
        let free = beside.into_iter().flatten().find(|label| {
            plot.intersection(*label) == *label && !taken.iter().any(|other| other.intersects(*label))
        });
        if let Some(label) = free {
            canvas.text(label.x, label.y, width, &point.label, point.style);
            taken.push(label);
        }
    }
}

/// Rows of the vertical axis with what they say; one that would say what another does, as where all points are one, is left out.
fn ticks(plot: Rect, (low, high): (f64, f64), say: fn(f64) -> String) -> Vec<(u16, String)> {
    let middle = plot.y + plot.height / 2;
    let mut ticks = vec![(plot.top(), say(high)), (plot.bottom() - 1, say(low))];
    if plot.height >= 7 {
        let part = f64::from(plot.bottom() - 1 - middle) / f64::from(plot.height - 1);
        ticks.push((middle, say((low.ln() + part * (high.ln() - low.ln())).exp())));
    }
    let mut told = std::collections::HashSet::new();
    ticks.retain(|(_, label)| told.insert(label.clone()));
    ticks
}

fn draw_axes(
    canvas: &mut Canvas<'_>,
    area: Rect,
    plot: Rect,
    (left, right): (f64, f64),
    (low, high): (f64, f64),
    axes: &Axes,
) {
    let (line, text) = (canvas.theme.border, canvas.theme.dim);
    canvas.text(area.x, area.y, area.width, axes.y_title, text);
    for y in plot.top()..plot.bottom() {
        canvas.text(plot.x - 1, y, 1, "│", line);
    }
    for (y, label) in ticks(plot, (low, high), axes.y) {
        canvas.right(plot.x - 1, y, MARGIN - 1, &label, text);
        canvas.text(plot.x - 1, y, 1, "┤", line);
    }
    let bottom = plot.bottom();
    canvas.text(plot.x - 1, bottom, 1, "└", line);
    for x in plot.left()..plot.right() {
        canvas.text(x, bottom, 1, "─", line);
    }
    canvas.text(plot.x, bottom + 1, plot.width, &(axes.x)(left), text);
    canvas.right(plot.right(), bottom + 1, plot.width / 2, &(axes.x)(right), text);
}

/// From the least to the greatest with a tenth of air; a single value gets room on both sides.
fn range(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let (mut low, mut high) = (f64::MAX, f64::MIN_POSITIVE);
    for value in values {
        low = low.min(value);
        high = high.max(value);
    }
    if high / low < 1.5 { (low / 1.3, high * 1.3) } else { (low / 1.1, high * 1.1) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_ticks_say_the_same() {
        let say = |value: f64| format!("{value:.0e}");
        for (height, range, expected) in [
            (9, (1e-4, 1e-2), vec![(0, "1e-2"), (8, "1e-4"), (4, "1e-3")]),
            (9, (8e-7, 1.2e-6), vec![(0, "1e-6"), (8, "8e-7")]),
            (5, (1e-4, 1e-2), vec![(0, "1e-2"), (4, "1e-4")]),
        ] {
            let ticks = ticks(Rect::new(0, 0, 30, height), range, say);
            let ticks: Vec<_> = ticks.iter().map(|(y, label)| (*y, label.as_str())).collect();
            assert_eq!(ticks, expected, "{height} high, {range:?}");
        }
    }
}
