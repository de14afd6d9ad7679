//! Bringing a model into the watched folder.

use ratatui::layout::Rect;

use crate::actions::Action;
use crate::canvas::Canvas;
use crate::keys::Chord;
use crate::message::Effect;
use crate::mirror::Mirror;
use crate::views::{Ask, Outbox, View};
use crate::widgets::input::Input;

#[derive(Default)]
pub(crate) struct AddModel {
    path: Input,
}

impl View for AddModel {
    fn actions(&self, _mirror: &Mirror) -> Vec<Action> {
        vec![Action::Confirm, Action::Back]
    }

    fn act(&mut self, action: Action, _mirror: &Mirror, out: &mut Outbox) {
        let path = self.path.text().trim().to_owned();
        if action == Action::Confirm && path.is_empty() {
            return;
        }
        if action == Action::Confirm {
            out.effect(Effect::Add(path));
        }
        out.push(Ask::Close);
    }

    fn typing(&self) -> bool {
        true
    }

    fn key(&mut self, chord: Chord, _mirror: &Mirror, _out: &mut Outbox) {
        self.path.key(chord);
    }

    fn paste(&mut self, text: &str, _mirror: &Mirror, _out: &mut Outbox) {
        // Terminals paste a dragged file as a quoted path.
        let text = text.trim().trim_matches(['\'', '"']);
        self.path.insert(text.lines().next().unwrap_or_default());
    }

    fn draw(&self, canvas: &mut Canvas<'_>, area: Rect, mirror: &Mirror) {
        let inside = super::frame(canvas, area, 76, 7, "Add a model", &[Action::Confirm, Action::Back]);
        let folder = mirror.status.as_ref().map_or("the models folder", |status| &status.models_dir);
        let text = format!("A model file or directory on the daemon's machine goes into {folder}.");
        let lines = crate::widgets::wrap::wrap(&text, usize::from(inside.width));
        let mut y = inside.y;
        for line in lines.iter().take(2) {
            canvas.text(inside.x, y, inside.width, line, canvas.theme.dim);
            y += 1;
        }
        let input = Rect { y: inside.bottom().saturating_sub(2).max(y), height: 1, ..inside };
        self.path.draw(canvas, input, true, "path, or drop a file here");
    }
}
