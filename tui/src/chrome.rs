//! The lines around every view: tabs and summary above, hints or a notice below.

use ratatui::layout::Rect;
use ratatui::text::Span;

use crate::actions::{Action, Group};
use crate::app::App;
use crate::canvas::{Canvas, Spot};
use crate::mirror::Link;
use crate::units;
use crate::views::ViewId;

/// Draws them and returns the room left for the view.
pub(crate) fn draw(canvas: &mut Canvas<'_>, area: Rect, app: &App, offered: &[Action]) -> Rect {
    draw_header(canvas, Rect { height: 1, ..area }, app);
    let mut body = Rect { y: area.y + 1, height: area.height - 2, ..area };
    if let Link::Down { error, retry_at } = &app.mirror.link {
        let wait = (retry_at - app.clock.now).max(0.0);
        let help = error.help.as_deref().unwrap_or("it is tried again");
        let lines = [
            (format!(" ✗ {}", error.message), canvas.theme.bad),
            (format!(" → {help} · next attempt in {wait:.0} s"), canvas.theme.text),
        ];
        for (text, style) in lines {
            canvas.clipped(body.x, body.y, body.width, &text, style);
            body = Rect { y: body.y + 1, height: body.height - 1, ..body };
        }
    }
    draw_footer(canvas, Rect { y: area.bottom() - 1, height: 1, ..area }, app, offered);
    body
}

fn draw_header(canvas: &mut Canvas<'_>, area: Rect, app: &App) {
    let theme = canvas.theme;
    let mut x = area.x + 1;
    // With little room, only the open view's name is spelt out.
    let narrow = area.width < 84;
    if !narrow {
        x += canvas.text(x, area.y, 12, "drophammer ", theme.accent);
    }
    for (view, action) in ViewId::ALL {
        let key = canvas.keymap.key(action, false).map_or(String::new(), |chord| chord.to_string());
        let open = view == app.view;
        let (left, right) = if open { ("▏", "▕") } else { (" ", " ") };
        let name = if narrow && !open { "" } else { action.entry().hint };
        let tab = if name.is_empty() {
            format!("{left}{key}{right}")
        } else {
            format!("{left}{key} {name}{right}")
        };
        let style = if open { theme.title } else { theme.dim };
        let used = canvas.text(x, area.y, area.right().saturating_sub(x), &tab, style);
        canvas.spots.add(Rect { x, width: used, ..area }, Spot::Act(action));
        x += used;
    }
    draw_summary(canvas, Rect { x, width: area.right().saturating_sub(x), ..area }, app);
}

/// Written from the right, the most important first, as far as there is room.
fn draw_summary(canvas: &mut Canvas<'_>, area: Rect, app: &App) {
    let theme = canvas.theme;
    let counts = app.mirror.counts();
    let mut parts = vec![(units::clock(app.clock.now, app.clock.offset), theme.dim)];
    let troubles = app.mirror.troubles();
    if troubles > 0 {
        parts.push((format!("⚠ {troubles}"), theme.warn));
    }
    match &app.mirror.link {
        Link::Up => {}
        Link::Connecting => parts.push(("connecting …".to_owned(), theme.busy)),
        Link::Down { .. } => parts.push(("away".to_owned(), theme.bad)),
    }
    if counts.running > 0 {
        parts.push((format!("▶ {} running", counts.running), theme.busy));
    }
    if counts.queued > 0 {
        parts.push((format!("{} queued", counts.queued), theme.dim));
    }
    if let Some(status) = &app.mirror.status {
        parts.push((status.models_dir.clone(), theme.dim));
    }
    let mut right = area.right().saturating_sub(1);
    for (text, style) in parts {
        let width = Span::raw(text.as_str()).width() as u16;
        if right < area.x + width + 1 {
            return;
        }
        canvas.right(right, area.y, width, &text, style);
        right = right.saturating_sub(width + 2);
    }
}

fn draw_footer(canvas: &mut Canvas<'_>, area: Rect, app: &App, offered: &[Action]) {
    if let Some((notice, _)) = &app.notice {
        let (mark, style) = if notice.bad { ("✗", canvas.theme.bad) } else { ("✓", canvas.theme.good) };
        canvas.clipped(area.x + 1, area.y, area.width - 1, &format!("{mark} {}", notice.text), style);
        return;
    }
    if app.has_overlay() {
        // It tells its own.
        return;
    }
    let mut x = area.x + 1;
    // Help and leaving are always told.
    let fixed: Vec<Action> =
        [Action::Help, Action::Quit].into_iter().filter(|action| offered.contains(action)).collect();
    let reserved = 10 * fixed.len() as u16;
    let end = area.right().saturating_sub(1);
    let wanted = |action: &&Action| is_worth_a_hint(**action) && !fixed.contains(action);
    for action in offered.iter().filter(wanted) {
        let used = canvas.hint(x, area.y, end.saturating_sub(x + reserved), *action);
        x += if used > 0 { used + 2 } else { 0 };
    }
    for action in fixed {
        let used = canvas.hint(x, area.y, end.saturating_sub(x), action);
        x += if used > 0 { used + 2 } else { 0 };
    }
}

/// Tabs are hints of their own; moving about needs none once one has a hand on the arrows.
pub(crate) fn is_worth_a_hint(action: Action) -> bool {
    match action {
        Action::Open | Action::Back => true,
        Action::PreviousPane | Action::Abort | Action::Redraw => false,
        _ => {
            let is_tab = ViewId::ALL.iter().any(|(_, go)| *go == action);
            !is_tab && action.entry().group != Group::Move
        }
    }
}
