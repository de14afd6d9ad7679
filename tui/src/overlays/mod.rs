//! What opens above a view: help, palette, questions, choices.

pub(crate) mod add;
pub(crate) mod chat_settings;
pub(crate) mod confirm;
pub(crate) mod help;
pub(crate) mod palette;
pub(crate) mod picker;
pub(crate) mod targets;

use ratatui::layout::Rect;

use crate::actions::Action;
use crate::canvas::{Canvas, Pane, Spot};

/// Draws a frame in the middle, at most this big, and returns its inside. A click outside closes it.
/// The overlay's own hints are its last line.
fn frame(
    canvas: &mut Canvas<'_>,
    area: Rect,
    width: u16,
    height: u16,
    title: &str,
    hints: &[Action],
) -> Rect {
    canvas.spots.add(area, Spot::Outside);
    let (width, height) = (width.min(area.width), height.min(area.height));
    let place =
        Rect { x: area.x + (area.width - width) / 2, y: area.y + (area.height - height) / 3, width, height };
    canvas.clear(place);
    let inside = canvas.pane(place, title, Pane::Overlay, true);
    let inside = Rect { x: inside.x + 1, width: inside.width.saturating_sub(2), ..inside };
    let mut x = inside.x;
    let y = inside.bottom().saturating_sub(1);
    for action in hints.iter().filter(|action| crate::chrome::is_worth_a_hint(**action)) {
        let used = canvas.hint(x, y, inside.right().saturating_sub(x), *action);
        x += if used > 0 { used + 2 } else { 0 };
    }
    Rect { height: inside.height.saturating_sub(1), ..inside }
}
