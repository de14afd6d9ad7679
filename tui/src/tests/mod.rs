//! The dashboard driven by keys and mouse and looked at, without terminal or daemon. Its state is the
//! recorded one of `fixtures/forge.json`.

mod keys;
mod mouse;
mod screens;

use crossterm::event::{KeyEvent, KeyModifiers, MouseEvent, MouseEventKind};
use drophammer_client::api::{
    Hardware, Job, Log, ModelEntry, PlanReport, Plugin, Requests, ServedModel, Status,
};
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use serde::Deserialize;

use crate::app::App;
use crate::keys::{Chord, Keymap};
use crate::message::{Effect, Loaded, Message};
use crate::theme::Theme;

/// A recorded daemon.
#[derive(Deserialize, Clone)]
pub(super) struct Recorded {
    now: f64,
    status: Status,
    models: Vec<ModelEntry>,
    jobs: Vec<Job>,
    plugins: Vec<Plugin>,
    hardware: Hardware,
    served: Vec<ServedModel>,
    requests: Requests,
    log: Log,
    plan: PlanReport,
}

fn recorded() -> Recorded {
    serde_json::from_str(include_str!("../../fixtures/forge.json")).unwrap()
}

impl Recorded {
    fn loaded(&self) -> Loaded {
        Loaded {
            status: Some(self.status.clone()),
            jobs: self.jobs.clone(),
            models: self.models.clone(),
            plugins: self.plugins.clone(),
            served: self.served.clone(),
            hardware: Some(self.hardware.clone()),
            requests: Some(self.requests.clone()),
        }
    }
}

/// A dashboard that has not heard of a daemon.
fn fresh(theme: &str) -> App {
    let mut app = App::new(Theme::named(theme).unwrap(), Keymap::default(), true, 0);
    app.update(Message::Tick(recorded().now));
    app
}

/// A dashboard of the recorded daemon, with a minute of hardware history.
fn app(theme: &str) -> App {
    let recorded = recorded();
    let mut app = fresh(theme);
    app.update(Message::Connected);
    app.update(Message::Loaded(Box::new(recorded.loaded())));
    for second in 0..120u32 {
        let mut sample = recorded.hardware.clone();
        let wave = (f64::from(second) / 9.0).sin();
        sample.cpu.percent = 55.0 + 40.0 * wave;
        sample.disks[0].write_bytes_per_second = Some(2e8 + 2e8 * wave);
        app.update(Message::Event(Box::new(drophammer_client::api::Event::Hardware(Box::new(sample)))));
    }
    settle(&mut app, &recorded, Vec::new());
    app
}

/// Answers what the dashboard asks of the daemon, as the recorded one would.
fn settle(app: &mut App, recorded: &Recorded, mut effects: Vec<Effect>) {
    effects.extend(app.prepare());
    for effect in effects {
        let message = match effect {
            Effect::JobLog(id) => {
                let log = if id == "9" { recorded.log.clone() } else { Log::default() };
                Message::JobLog(id, Ok(log))
            }
            Effect::PluginLog(id) => Message::PluginLog(id, Ok(recorded.log.clone())),
            Effect::Plan(model) => Message::Plan(model, Ok(recorded.plan.clone())),
            _ => continue,
        };
        app.update(message);
    }
}

/// Presses keys, written as in the configuration and separated by blanks.
fn press(app: &mut App, keys: &str) -> Vec<Effect> {
    let recorded = recorded();
    let mut all = Vec::new();
    for key in keys.split_whitespace() {
        let chord = Chord::parse(key).unwrap_or_else(|| panic!("{key} is no key"));
        let effects = app.update(Message::Key(KeyEvent::new(chord.code, chord.modifiers)));
        all.extend(effects.clone());
        settle(app, &recorded, effects);
    }
    all
}

/// Types text.
fn write(app: &mut App, text: &str) {
    for c in text.chars() {
        let key = if c == ' ' { "space".to_owned() } else { c.to_string() };
        press(app, &key);
    }
}

fn draw(app: &mut App, width: u16, height: u16) -> Buffer {
    let recorded = recorded();
    settle(app, &recorded, Vec::new());
    let area = Rect::new(0, 0, width, height);
    let mut buffer = Buffer::empty(area);
    app.draw(area, &mut buffer);
    buffer
}

/// What is on the screen, as lines.
fn text(buffer: &Buffer) -> String {
    let mut text = String::new();
    for y in buffer.area.top()..buffer.area.bottom() {
        let mut line = String::new();
        let mut x = buffer.area.left();
        while x < buffer.area.right() {
            let symbol = buffer[(x, y)].symbol();
            line.push_str(symbol);
            // A wide character covers the next cell as well.
            x += ratatui::text::Span::raw(symbol).width().max(1) as u16;
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

fn mouse(app: &mut App, kind: MouseEventKind, x: u16, y: u16) -> Vec<Effect> {
    let event = MouseEvent { kind, column: x, row: y, modifiers: KeyModifiers::NONE };
    let effects = app.update(Message::Mouse(event));
    settle(app, &recorded(), effects.clone());
    effects
}
