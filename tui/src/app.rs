//! The whole program without its surroundings: messages go in, effects come out, and the state can be
//! drawn at any time. It never reads a clock, a file or a socket.

use crossterm::event::{KeyEvent, KeyEventKind, MouseButton, MouseEvent, MouseEventKind};
use drophammer_client::api::{ErrorReport, Event};
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;

use crate::actions::{Action, EVERYWHERE};
use crate::canvas::{Canvas, Clock, Spot, Spots};
use crate::chrome;
use crate::keys::{Chord, Keymap};
use crate::message::{Effect, Message};
use crate::mirror::{Link, Mirror};
use crate::overlays::help::Help;
use crate::overlays::palette::Palette;
use crate::theme::Theme;
use crate::views::chat::Chat;
use crate::views::forge::Forge;
use crate::views::hardware::HardwareView;
use crate::views::models::ModelsView;
use crate::views::plugins::PluginsView;
use crate::views::requests::RequestsView;
use crate::views::{Ask, Notice, Outbox, View, ViewId};

/// How long a notice stays.
const NOTICE_SECONDS: f64 = 6.0;
/// Lines the wheel moves.
const WHEEL_LINES: isize = 3;

/// The dashboard's state.
pub struct App {
    pub(crate) mirror: Mirror,
    pub(crate) clock: Clock,
    pub(crate) theme: Theme,
    pub(crate) keymap: Keymap,
    pub(crate) view: ViewId,
    forge: Forge,
    models: ModelsView,
    hardware: HardwareView,
    plugins: PluginsView,
    chat: Chat,
    requests: RequestsView,
    overlays: Vec<Box<dyn View>>,
    pub(crate) notice: Option<(Notice, f64)>,
    mouse: bool,
    spots: Spots,
    dirty: bool,
    /// The mirror changed since the views last looked.
    stale: bool,
    /// Events since everything began to be read anew: what is read may be older than they are, so they
    /// are applied once more after it.
    missed: Option<Vec<Event>>,
}

impl App {
    /// A dashboard that knows nothing yet. `utc_offset` is how many seconds the local clock is ahead.
    pub fn new(theme: Theme, keymap: Keymap, mouse: bool, utc_offset: i32) -> Self {
        Self {
            mirror: Mirror::default(),
            clock: Clock { now: 0.0, offset: utc_offset },
            theme,
            keymap,
            view: ViewId::Forge,
            forge: Forge::default(),
            models: ModelsView::default(),
            hardware: HardwareView::default(),
            plugins: PluginsView::default(),
            chat: Chat::default(),
            requests: RequestsView::default(),
            overlays: Vec::new(),
            notice: None,
            mouse,
            spots: Spots::default(),
            dirty: true,
            stale: true,
            missed: None,
        }
    }

    /// Whether the screen no longer shows the state.
    pub fn is_dirty(&self) -> bool {
        self.dirty
    }

    /// Takes a message and says what is to be done outside.
    pub fn update(&mut self, message: Message) -> Vec<Effect> {
        let mut effects = Vec::new();
        match message {
            Message::Key(event) if event.kind != KeyEventKind::Release => self.key(event, &mut effects),
            Message::Key(_) => return effects,
            Message::Mouse(event) => self.mouse(event, &mut effects),
            Message::Paste(text) => {
                self.with_active(&mut effects, |view, mirror, out| view.paste(&text, mirror, out));
            }
            Message::Tick(now) => {
                self.tick(now);
                return effects;
            }
            Message::Resized => {}
            // The first event is a resync.
            Message::Connected => self.mirror.link = Link::Up,
            Message::Disconnected { error, retry_in } => {
                self.mirror.link = Link::Down { error, retry_at: self.clock.now + retry_in };
            }
            Message::Event(event) => {
                if *event == Event::Resync {
                    self.missed = Some(Vec::new());
                    effects.push(Effect::Load);
                } else if let Some(missed) = &mut self.missed
                    && !matches!(*event, Event::Hardware(_) | Event::Log(_))
                {
                    missed.push((*event).clone());
                }
                self.mirror.apply(*event);
                self.stale = true;
            }
            Message::Loaded(loaded) => {
                self.mirror.load(*loaded);
                for event in self.missed.take().unwrap_or_default() {
                    self.mirror.apply(event);
                }
                self.stale = true;
            }
            Message::LoadFailed(error) | Message::Done(Err(error)) => self.refused(&error),
            Message::JobLog(job, log) => self.mirror.set_log(job, log),
            Message::PluginLog(plugin, log) => self.mirror.set_plugin_log(plugin, log),
            Message::Plan(model, plan) => {
                self.mirror.plans.insert(model, plan);
            }
            Message::Done(Ok(text)) => self.say(Notice { text, bad: false }),
            Message::Chat { column, turn, seconds, piece } => self.chat.receive(column, turn, seconds, piece),
        }
        self.dirty = true;
        effects
    }

    /// Lets what is shown follow the daemon's news; to be called before drawing. News may come much
    /// faster than anybody looks.
    pub fn prepare(&mut self) -> Vec<Effect> {
        let mut effects = Vec::new();
        if std::mem::take(&mut self.stale) {
            let mut out = Outbox::default();
            let (view, mirror) = self.current();
            view.refresh(mirror, &mut out);
            if let Some(overlay) = self.overlays.last_mut() {
                overlay.refresh(&self.mirror, &mut out);
            }
            self.answer(out, &mut effects);
        }
        effects
    }

    /// Draws everything.
    pub fn draw(&mut self, area: Rect, buffer: &mut Buffer) {
        self.dirty = false;
        let mut spots = std::mem::take(&mut self.spots);
        spots.clear();
        buffer.set_style(area, self.theme.text);
        let mut canvas = Canvas {
            buffer,
            theme: &self.theme,
            keymap: &self.keymap,
            spots: &mut spots,
            clock: self.clock,
            typing: self.is_typing(),
        };
        if area.width < 30 || area.height < 8 {
            canvas.empty(area, &["This window is too small:", "at least 30 × 8, please."]);
        } else {
            let offered = self.offered();
            let body = chrome::draw(&mut canvas, area, self, &offered);
            self.view().draw(&mut canvas, body, &self.mirror);
            if let Some(overlay) = self.overlays.last() {
                overlay.draw(&mut canvas, body, &self.mirror);
            }
        }
        self.spots = spots;
    }

    /// What can be done now.
    pub(crate) fn offered(&self) -> Vec<Action> {
        let (mut actions, always) = match self.overlays.last() {
            Some(overlay) => (overlay.actions(&self.mirror), &[Action::Redraw, Action::Abort][..]),
            None => (self.view().actions(&self.mirror), EVERYWHERE),
        };
        actions.extend(always);
        if self.is_typing() {
            // Their keys are text now.
            actions.retain(|action| self.keymap.key(*action, true).is_some());
        }
        actions
    }

    pub(crate) fn is_typing(&self) -> bool {
        self.overlays.last().map_or_else(|| self.view().typing(), |overlay| overlay.typing())
    }

    pub(crate) fn has_overlay(&self) -> bool {
        !self.overlays.is_empty()
    }

    fn view(&self) -> &dyn View {
        match self.view {
            ViewId::Forge => &self.forge,
            ViewId::Models => &self.models,
            ViewId::Hardware => &self.hardware,
            ViewId::Plugins => &self.plugins,
            ViewId::Chat => &self.chat,
            ViewId::Requests => &self.requests,
        }
    }

    fn current(&mut self) -> (&mut dyn View, &Mirror) {
        let view: &mut dyn View = match self.view {
            ViewId::Forge => &mut self.forge,
            ViewId::Models => &mut self.models,
            ViewId::Hardware => &mut self.hardware,
            ViewId::Plugins => &mut self.plugins,
            ViewId::Chat => &mut self.chat,
            ViewId::Requests => &mut self.requests,
        };
        (view, &self.mirror)
    }

    /// Runs `act` on what has the keyboard: the topmost overlay or the view.
    fn with_active(
        &mut self,
        effects: &mut Vec<Effect>,
        act: impl FnOnce(&mut dyn View, &Mirror, &mut Outbox),
    ) {
        let mut out = Outbox::default();
        effects.extend(self.prepare());
        if let Some(overlay) = self.overlays.last_mut() {
            act(overlay.as_mut(), &self.mirror, &mut out);
        } else {
            let (view, mirror) = self.current();
            act(view, mirror, &mut out);
        }
        self.answer(out, effects);
    }

    fn key(&mut self, event: KeyEvent, effects: &mut Vec<Effect>) {
        let chord = Chord::from(event);
        effects.extend(self.prepare());
        let typing = self.is_typing();
        let is_text = typing && chord.types().is_some();
        match self.keymap.action(chord, &self.offered()).filter(|_| !is_text) {
            Some(action) => self.run(action, effects),
            None if typing => self.with_active(effects, |view, mirror, out| view.key(chord, mirror, out)),
            None => {}
        }
    }

    fn run(&mut self, action: Action, effects: &mut Vec<Effect>) {
        match action {
            Action::Abort => effects.push(Effect::Quit),
            Action::Redraw => effects.push(Effect::Redraw),
            _ if self.overlays.is_empty() && EVERYWHERE.contains(&action) => {
                self.run_anywhere(action, effects);
            }
            _ => self.with_active(effects, |view, mirror, out| view.act(action, mirror, out)),
        }
    }

    fn run_anywhere(&mut self, action: Action, effects: &mut Vec<Effect>) {
        if let Some((view, _)) = ViewId::ALL.iter().find(|(_, go)| *go == action) {
            self.go(*view);
            return;
        }
        match action {
            Action::Palette => {
                let mut offered = self.offered();
                // Moving about is done with the keys themselves.
                offered.retain(|action| action.entry().group != crate::actions::Group::Move);
                offered.retain(|action| *action != Action::Palette);
                self.overlays.push(Box::new(Palette::new(offered)));
            }
            Action::Help => self.overlays.push(Box::new(Help::default())),
            Action::Theme => {
                self.theme = self.theme.next();
                self.say(Notice { text: format!("theme {}", self.theme.name), bad: false });
            }
            Action::Mouse => {
                self.mouse = !self.mouse;
                effects.push(Effect::Mouse(self.mouse));
                let text = if self.mouse { "the mouse works here" } else { "the mouse selects text" };
                self.say(Notice { text: text.to_owned(), bad: false });
            }
            Action::Quit => effects.push(Effect::Quit),
            _ => {}
        }
    }

    fn go(&mut self, view: ViewId) {
        self.view = view;
        self.stale = true;
    }

    fn mouse(&mut self, event: MouseEvent, effects: &mut Vec<Effect>) {
        let (x, y) = (event.column, event.row);
        let wheel = match event.kind {
            MouseEventKind::ScrollDown => WHEEL_LINES,
            MouseEventKind::ScrollUp => -WHEEL_LINES,
            MouseEventKind::Down(MouseButton::Left) => 0,
            _ => return,
        };
        if wheel != 0 {
            if let Some(pane) = self.spots.pane_at(x, y) {
                self.with_active(effects, |view, mirror, out| view.wheel(pane, wheel, mirror, out));
            }
            return;
        }
        match self.spots.at(x, y) {
            Some(Spot::Act(action)) if self.offered().contains(&action) => self.run(action, effects),
            Some(Spot::Outside) => {
                self.overlays.pop();
            }
            Some(spot) => self.with_active(effects, |view, mirror, out| view.click(spot, mirror, out)),
            None => {}
        }
    }

    /// Does what a view asked for.
    fn answer(&mut self, out: Outbox, effects: &mut Vec<Effect>) {
        for ask in out.0 {
            match ask {
                Ask::Effect(effect) => {
                    match &effect {
                        Effect::JobLog(job) => self.mirror.begin_log(job),
                        Effect::Plan(model) => {
                            self.mirror.plans.remove(model);
                        }
                        _ => {}
                    }
                    effects.push(effect);
                }
                Ask::Overlay(overlay) => self.overlays.push(overlay),
                Ask::Close => {
                    self.overlays.pop();
                }
                Ask::Run(action) => self.run(action, effects),
                Ask::Notice(notice) => self.say(notice),
                Ask::Chat { column, artifact } => {
                    self.go(ViewId::Chat);
                    let mut out = Outbox::default();
                    self.chat.talk_to(column, artifact, &mut out);
                    self.answer(out, effects);
                }
                Ask::ChatSettings(settings) => self.chat.set(settings),
            }
        }
    }

    fn say(&mut self, notice: Notice) {
        self.notice = Some((notice, self.clock.now + NOTICE_SECONDS));
    }

    fn refused(&mut self, error: &ErrorReport) {
        self.say(Notice { text: error.to_string(), bad: true });
    }

    fn tick(&mut self, now: f64) {
        // The clock on the screen shows seconds.
        self.dirty |= now.floor() != self.clock.now.floor();
        self.clock.now = now;
        if self.notice.as_ref().is_some_and(|(_, until)| *until <= now) {
            self.notice = None;
            self.dirty = true;
        }
    }

    #[cfg(test)]
    pub(crate) fn spots(&self) -> &Spots {
        &self.spots
    }
}
