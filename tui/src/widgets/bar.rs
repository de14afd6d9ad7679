//! Bars that show a part of a whole to an eighth of a cell.

use ratatui::layout::Rect;
use ratatui::style::Style;

use crate::canvas::Canvas;

const EIGHTHS: [&str; 8] = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];

/// Draws `fraction` (0 to 1) of the area's first row.
pub(crate) fn bar(canvas: &mut Canvas<'_>, area: Rect, fraction: f64, style: Style) {
    let fraction = if fraction.is_finite() { fraction.clamp(0.0, 1.0) } else { 0.0 };
    let eighths = (fraction * f64::from(area.width) * 8.0).round() as u16;
    let (full, part) = (eighths / 8, usize::from(eighths % 8));
    for x in 0..area.width {
        let (symbol, style) = match x {
            _ if x < full => ("█", style),
            _ if x == full && part > 0 => (EIGHTHS[part], style),
            _ => ("░", canvas.theme.bar_rest),
        };
        canvas.text(area.x + x, area.y, 1, symbol, style);
    }
}
