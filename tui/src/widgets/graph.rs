//! History drawn in braille: two values per column, four steps per row.

use ratatui::layout::Rect;
use ratatui::style::Style;

use crate::canvas::Canvas;

/// Dots of a braille cell filled from below, left column and right column, by height 0 to 4.
const LEFT: [u32; 5] = [0x00, 0x40, 0x44, 0x46, 0x47];
const RIGHT: [u32; 5] = [0x00, 0x80, 0xA0, 0xB0, 0xB8];

/// Fills `area` with the newest values of `history` (newest last), the newest at the right edge; `max`
/// reaches the top.
pub(crate) fn graph(canvas: &mut Canvas<'_>, area: Rect, history: &[f32], max: f32, style: Style) {
    if area.is_empty() {
        return;
    }
    let shown = &history[history.len().saturating_sub(2 * usize::from(area.width))..];
    let steps = 4 * usize::from(area.height);
    let height = |value: f32| -> usize {
        let part = if max > 0.0 && value.is_finite() { (value / max).clamp(0.0, 1.0) } else { 0.0 };
        let height = (part * steps as f32).round() as usize;
        // Something is never drawn as nothing.
        if value > 0.0 { height.max(1) } else { height }
    };
    let heights: Vec<usize> = shown.iter().map(|value| height(*value)).collect();
    for column in 0..usize::from(area.width) {
        // Counted from the right edge, so that the graph grows leftwards.
        let pick = |from_end: usize| heights.len().checked_sub(from_end + 1).map_or(0, |at| heights[at]);
        let (left, right) = (pick(2 * column + 1), pick(2 * column));
        for row in 0..usize::from(area.height) {
            let part = |height: usize| height.saturating_sub(4 * row).min(4);
            let dots = LEFT[part(left)] | RIGHT[part(right)];
            if dots != 0
                && let Some(symbol) = char::from_u32(0x2800 + dots)
            {
                let x = area.right() - 1 - column as u16;
                let y = area.bottom() - 1 - row as u16;
                canvas.text(x, y, 1, symbol.encode_utf8(&mut [0; 4]), style);
            }
        }
    }
}
