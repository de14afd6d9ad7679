//! Which line is selected and which lines are in sight.

use std::cell::Cell;

use crate::actions::Action;

/// Position in a list of any length. What is in sight is only known while drawing, so it is remembered
/// from there in cells.
#[derive(Debug, Clone, Default)]
pub(crate) struct ListState {
    pub(crate) selected: usize,
    offset: Cell<usize>,
    height: Cell<usize>,
}

impl ListState {
    /// The first line in sight, for `height` lines of `len`.
    pub(crate) fn offset(&self, len: usize, height: usize) -> usize {
        self.height.set(height);
        let mut offset = self.offset.get().min(len.saturating_sub(height));
        if self.selected < offset {
            offset = self.selected;
        } else if height > 0 && self.selected >= offset + height {
            offset = self.selected + 1 - height;
        }
        self.offset.set(offset);
        offset
    }

    /// Moves the selection if `action` is a movement.
    pub(crate) fn act(&mut self, action: Action, len: usize) -> bool {
        let page = self.height.get().saturating_sub(1).max(1);
        let last = len.saturating_sub(1);
        self.selected = match action {
            Action::Up => self.selected.saturating_sub(1),
            Action::Down => self.selected + 1,
            Action::PageUp => self.selected.saturating_sub(page),
            Action::PageDown => self.selected + page,
            Action::Top => 0,
            Action::Bottom => last,
            _ => return false,
        }
        .min(last);
        true
    }

    /// Moves by some lines, as the wheel does.
    pub(crate) fn scroll(&mut self, lines: isize, len: usize) {
        self.selected = self.selected.saturating_add_signed(lines).min(len.saturating_sub(1));
    }

    /// Keeps the selection inside the list.
    pub(crate) fn clamp(&mut self, len: usize) {
        self.selected = self.selected.min(len.saturating_sub(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_selection_stays_in_the_list_and_in_sight() {
        let mut list = ListState::default();
        assert_eq!(list.offset(100, 10), 0);
        for (action, selected, offset) in [
            (Action::Down, 1, 0),
            (Action::PageDown, 10, 1),
            (Action::Bottom, 99, 90),
            (Action::Down, 99, 90),
            (Action::Up, 98, 90),
            (Action::PageUp, 89, 89),
            (Action::Top, 0, 0),
            (Action::Up, 0, 0),
        ] {
            assert!(list.act(action, 100));
            assert_eq!((list.selected, list.offset(100, 10)), (selected, offset), "{action:?}");
        }
        list.act(Action::Bottom, 100);
        list.clamp(3);
        assert_eq!((list.selected, list.offset(3, 10)), (2, 0));
        assert!(!list.act(Action::Open, 3));
        list.act(Action::Down, 0);
        assert_eq!((list.selected, list.offset(0, 0)), (0, 0));
    }
}
