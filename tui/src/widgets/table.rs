//! A table that draws only the rows in sight and drops columns by importance where room is short.

use std::borrow::Cow;

use ratatui::layout::Rect;
use ratatui::style::Style;
use ratatui::text::Line;

use super::bar::bar;
use super::list::ListState;
use crate::canvas::{Canvas, Pane, Spot};

/// A column.
#[derive(Debug)]
pub(crate) struct Column {
    pub(crate) title: &'static str,
    /// Least width at which it is worth showing.
    pub(crate) width: u16,
    /// Share of the room left over.
    pub(crate) grow: u16,
    /// 0 is always shown; the highest number goes first.
    pub(crate) rank: u8,
    /// Numbers stand on the right.
    pub(crate) right: bool,
}

impl Column {
    pub(crate) const fn left(title: &'static str, width: u16, grow: u16, rank: u8) -> Self {
        Self { title, width, grow, rank, right: false }
    }

    pub(crate) const fn right(title: &'static str, width: u16, rank: u8) -> Self {
        Self { title, width, grow: 0, rank, right: true }
    }
}

/// One cell of a row.
pub(crate) enum Field {
    Text(Cow<'static, str>, Style),
    /// A bar and its number.
    Bar(f64, Style),
}

impl Field {
    pub(crate) fn new(text: impl Into<Cow<'static, str>>, style: Style) -> Self {
        Self::Text(text.into(), style)
    }
}

/// One row.
pub(crate) enum Row {
    Fields(Vec<Field>),
    /// A heading over the whole width.
    Line(Line<'static>),
}

/// What to draw.
pub(crate) struct Table<'a> {
    pub(crate) columns: &'a [Column],
    pub(crate) state: &'a ListState,
    pub(crate) len: usize,
    pub(crate) pane: Pane,
    pub(crate) focused: bool,
    /// The column sorted by, and whether downwards.
    pub(crate) sort: Option<(usize, bool)>,
}

impl Table<'_> {
    /// Draws the heads and the rows in sight, asking `row` only for those.
    pub(crate) fn draw(&self, canvas: &mut Canvas<'_>, area: Rect, mut row: impl FnMut(usize) -> Row) {
        if area.height < 2 || area.width < 4 {
            return;
        }
        // One column on the left is for the selection's mark, one on the right for the scroll bar.
        let inside = Rect { x: area.x + 1, width: area.width - 2, ..area };
        let columns = fit(self.columns, inside.width);
        self.draw_heads(canvas, inside, &columns);
        let height = usize::from(area.height - 1);
        let offset = self.state.offset(self.len, height);
        let last = self.len.min(offset + height);
        for (y, index) in (area.y + 1..).zip(offset..last) {
            let line = Rect { y, height: 1, ..inside };
            canvas.spots.add(Rect { y, height: 1, ..area }, Spot::Row(self.pane, index));
            match row(index) {
                Row::Line(text) => {
                    canvas.line(line.x, y, line.width, &text);
                    if text.width() > usize::from(line.width) {
                        canvas.text(line.right() - 1, y, 1, "…", canvas.theme.dim);
                    }
                }
                Row::Fields(fields) => draw_fields(canvas, line, self.columns, &columns, &fields),
            }
            if index == self.state.selected {
                let theme = canvas.theme;
                let style = if self.focused { theme.selection } else { theme.selection_idle };
                canvas.buffer.set_style(Rect { y, height: 1, width: area.width - 1, ..area }, style);
                canvas.text(area.x, y, 1, if self.focused { "▌" } else { "▏" }, theme.accent.patch(style));
            }
        }
        scroll_bar(canvas, Rect { y: area.y + 1, height: area.height - 1, ..area }, offset, self.len);
    }

    fn draw_heads(&self, canvas: &mut Canvas<'_>, area: Rect, columns: &[(usize, u16, u16)]) {
        for &(index, x, width) in columns {
            let column = &self.columns[index];
            let arrow = match self.sort {
                Some((by, down)) if by == index => {
                    if down {
                        "▾"
                    } else {
                        "▴"
                    }
                }
                _ => "",
            };
            let title = format!("{}{arrow}", column.title);
            let x = area.x + x;
            if column.right {
                canvas.right(x + width, area.y, width, &title, canvas.theme.dim);
            } else {
                canvas.text(x, area.y, width, &title, canvas.theme.dim);
            }
            if self.sort.is_some() {
                canvas.spots.add(Rect::new(x, area.y, width, 1), Spot::Column(index));
            }
        }
    }
}

fn draw_fields(
    canvas: &mut Canvas<'_>,
    line: Rect,
    columns: &[Column],
    fitted: &[(usize, u16, u16)],
    fields: &[Field],
) {
    for (place, &(index, x, width)) in fitted.iter().enumerate() {
        let x = line.x + x;
        match fields.get(index) {
            Some(Field::Text(text, style)) if columns[index].right => {
                canvas.right(x + width, line.y, width, text, *style);
            }
            Some(Field::Text(text, style)) => {
                // A text without anything after it may run on to the end.
                let rest_is_empty = fitted[place + 1..].iter().all(
                    |(other, ..)| matches!(fields.get(*other), Some(Field::Text(text, _)) if text.is_empty()),
                );
                let room = if rest_is_empty { line.right().saturating_sub(x) } else { width };
                canvas.clipped(x, line.y, room, text, *style);
            }
            Some(Field::Bar(fraction, style)) => {
                let width = width.min(40);
                bar(canvas, Rect::new(x, line.y, width.saturating_sub(5), 1), *fraction, *style);
                let percent = format!("{:.0}%", (fraction * 100.0).clamp(0.0, 100.0).floor());
                canvas.right(x + width, line.y, 4, &percent, canvas.theme.text);
            }
            None => {}
        }
    }
}

/// A thumb on the right edge when not everything is in sight.
pub(crate) fn scroll_bar(canvas: &mut Canvas<'_>, area: Rect, offset: usize, len: usize) {
    let height = usize::from(area.height);
    if len <= height || height == 0 {
        return;
    }
    let thumb = (height * height / len).max(1);
    let top = (offset * (height - thumb)).div_ceil(len - height);
    for y in 0..height {
        let (symbol, style) = if (top..top + thumb).contains(&y) {
            ("┃", canvas.theme.dim)
        } else {
            ("│", canvas.theme.border)
        };
        canvas.text(area.right() - 1, area.y + y as u16, 1, symbol, style);
    }
}

/// Width below which an essential column that can grow is not squeezed.
const LEAST: u16 = 8;

/// Which columns fit: (index, x, width), one blank between them.
fn fit(columns: &[Column], width: u16) -> Vec<(usize, u16, u16)> {
    let mut shown: Vec<usize> = (0..columns.len()).collect();
    let needed = |shown: &[usize]| -> u16 {
        shown.iter().map(|i| columns[*i].width).sum::<u16>() + (shown.len() as u16).saturating_sub(1)
    };
    while needed(&shown) > width && shown.len() > 1 {
        let Some(dropped) = (0..shown.len()).max_by_key(|at| columns[shown[*at]].rank) else { break };
        if columns[shown[dropped]].rank == 0 {
            break;
        }
        shown.remove(dropped);
    }
    let mut widths: Vec<u16> = shown.iter().map(|at| columns[*at].width).collect();
    // Where not even the essential columns fit, those that can grow give up what they can.
    let mut missing = needed(&shown).saturating_sub(width);
    for (own, at) in widths.iter_mut().zip(&shown).filter(|(_, at)| columns[**at].grow > 0) {
        let given = missing.min(own.saturating_sub(LEAST.min(columns[*at].width)));
        *own -= given;
        missing -= given;
    }
    let mut spare = width.saturating_sub(needed(&shown));
    let mut shares: u16 = shown.iter().map(|i| columns[*i].grow).sum();
    let mut x = 0;
    let mut fitted = Vec::with_capacity(shown.len());
    for (index, least) in shown.into_iter().zip(widths) {
        let column = &columns[index];
        let extra = if column.grow > 0 { spare * column.grow / shares } else { 0 };
        spare -= extra;
        shares -= column.grow;
        let own = (least + extra).min(width.saturating_sub(x));
        fitted.push((index, x, own));
        x += own + 1;
    }
    fitted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn essential_columns_are_squeezed_rather_than_lost() {
        let columns = [Column::left("A", 20, 1, 0), Column::left("B", 13, 1, 0), Column::right("C", 8, 0)];
        assert_eq!(fit(&columns, 36), [(0, 0, 13), (1, 14, 13), (2, 28, 8)]);
        assert_eq!(fit(&columns, 26), [(0, 0, 8), (1, 9, 8), (2, 18, 8)]);
    }

    #[test]
    fn columns_go_by_rank_and_the_rest_share_the_room() {
        let columns = [Column::left("A", 6, 1, 0), Column::right("B", 4, 2), Column::left("C", 5, 2, 1)];
        for (width, expected) in [
            (20, vec![(0, 0, 7), (1, 8, 4), (2, 13, 7)]),
            (17, vec![(0, 0, 6), (1, 7, 4), (2, 12, 5)]),
            (16, vec![(0, 0, 7), (2, 8, 8)]),
            (8, vec![(0, 0, 8)]),
            (3, vec![(0, 0, 3)]),
        ] {
            assert_eq!(fit(&columns, width), expected, "{width} wide");
        }
    }
}
