//! The views, one file each, and what they have in common.
//!
//! A view draws itself, takes the actions it announces, and asks for everything else through an
//! [`Outbox`]. It never does IO and never changes the mirror.

pub(crate) mod chat;
pub(crate) mod comparison;
pub(crate) mod forge;
pub(crate) mod forge_rows;
pub(crate) mod hardware;
pub(crate) mod job_details;
pub(crate) mod log_pane;
pub(crate) mod machine;
pub(crate) mod models;
pub(crate) mod plot;
pub(crate) mod plugins;
pub(crate) mod requests;
pub(crate) mod vocabulary;

use ratatui::layout::Rect;

use crate::actions::Action;
use crate::canvas::{Canvas, Pane, Spot};
use crate::keys::Chord;
use crate::message::Effect;
use crate::mirror::Mirror;

/// A part of the program that is shown: one of the six views, or an overlay.
pub(crate) trait View {
    /// What can be done now, most useful first: keys, hint bar and palette offer exactly this.
    fn actions(&self, mirror: &Mirror) -> Vec<Action>;

    /// Does one of them.
    fn act(&mut self, action: Action, mirror: &Mirror, out: &mut Outbox);

    /// Whether plain characters are text now.
    fn typing(&self) -> bool {
        false
    }

    /// Takes a key as text; called while [`View::typing`] for keys that are no offered action.
    fn key(&mut self, _chord: Chord, _mirror: &Mirror, _out: &mut Outbox) {}

    /// Takes pasted text.
    fn paste(&mut self, _text: &str, _mirror: &Mirror, _out: &mut Outbox) {}

    /// Takes a click on what it drew.
    fn click(&mut self, _spot: Spot, _mirror: &Mirror, _out: &mut Outbox) {}

    /// Takes the wheel over a pane: lines down, negative for up.
    fn wheel(&mut self, _pane: Pane, _lines: isize, _mirror: &Mirror, _out: &mut Outbox) {}

    /// Follows the mirror, which has changed.
    fn refresh(&mut self, _mirror: &Mirror, _out: &mut Outbox) {}

    /// Draws itself.
    fn draw(&self, canvas: &mut Canvas<'_>, area: Rect, mirror: &Mirror);
}

/// The six views.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ViewId {
    Forge,
    Models,
    Hardware,
    Plugins,
    Chat,
    Requests,
}

impl ViewId {
    pub(crate) const ALL: [(Self, Action); 6] = [
        (Self::Forge, Action::GoForge),
        (Self::Models, Action::GoModels),
        (Self::Hardware, Action::GoHardware),
        (Self::Plugins, Action::GoPlugins),
        (Self::Chat, Action::GoChat),
        (Self::Requests, Action::GoRequests),
    ];
}

/// A sentence shown for a while at the bottom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Notice {
    pub(crate) text: String,
    pub(crate) bad: bool,
}

/// What a view asks of the program.
pub(crate) enum Ask {
    Effect(Effect),
    /// Show this above everything.
    Overlay(Box<dyn View>),
    /// Close the overlay that asks.
    Close,
    /// Do this as if its key had been pressed, once the overlay is closed.
    Run(Action),
    Notice(Notice),
    /// Talk to this artifact in this column; none dismisses the second column.
    Chat {
        column: usize,
        artifact: Option<String>,
    },
    /// Use these settings for the chat from now on.
    ChatSettings(chat::Settings),
}

/// What a view asked for while it handled something.
#[derive(Default)]
pub(crate) struct Outbox(pub(crate) Vec<Ask>);

impl Outbox {
    pub(crate) fn effect(&mut self, effect: Effect) {
        self.0.push(Ask::Effect(effect));
    }

    pub(crate) fn overlay(&mut self, overlay: impl View + 'static) {
        self.0.push(Ask::Overlay(Box::new(overlay)));
    }

    pub(crate) fn notice(&mut self, text: impl Into<String>) {
        self.0.push(Ask::Notice(Notice { text: text.into(), bad: false }));
    }

    pub(crate) fn push(&mut self, ask: Ask) {
        self.0.push(ask);
    }
}
