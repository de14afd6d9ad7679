//! A question before something that cannot be undone.

use ratatui::layout::Rect;

use crate::actions::Action;
use crate::canvas::Canvas;
use crate::message::Effect;
use crate::mirror::Mirror;
use crate::views::{Ask, Outbox, View};
use crate::widgets::wrap::wrap;

pub(crate) struct Confirm {
    question: String,
    effect: Effect,
}

impl Confirm {
    pub(crate) fn new(question: String, effect: Effect) -> Self {
        Self { question, effect }
    }
}

impl View for Confirm {
    fn actions(&self, _mirror: &Mirror) -> Vec<Action> {
        vec![Action::Confirm, Action::Back]
    }

    fn act(&mut self, action: Action, _mirror: &Mirror, out: &mut Outbox) {
        if action == Action::Confirm {
            out.effect(self.effect.clone());
        }
        out.push(Ask::Close);
    }

    fn draw(&self, canvas: &mut Canvas<'_>, area: Rect, _mirror: &Mirror) {
        let width = 64.min(area.width);
        let lines = wrap(&self.question, usize::from(width.saturating_sub(4)));
        let height = lines.len() as u16 + 4;
        let inside = super::frame(canvas, area, width, height, "Sure?", &[Action::Confirm, Action::Back]);
        for (y, line) in (inside.top()..inside.bottom()).zip(&lines) {
            canvas.text(inside.x, y, inside.width, line, canvas.theme.text);
        }
    }
}
