//! Prints a recorded state as the dashboard draws it, for looking at layouts without a daemon.
//!
//! `cargo run -p drophammer-tui --example recorded -- WIDTH HEIGHT THEME KEY…`

use std::fmt::Write as _;

use crossterm::event::KeyEvent;
use drophammer_client::api::{
    Event, Hardware, Job, Log, ModelEntry, PlanReport, Plugin, Requests, ServedModel, Status,
};
use drophammer_tui::app::App;
use drophammer_tui::keys::{Chord, Keymap};
use drophammer_tui::message::{Effect, Loaded, Message};
use drophammer_tui::theme::Theme;
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::{Color, Modifier};
use serde::Deserialize;

#[derive(Deserialize)]
struct Recorded {
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

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let mut next = |default: &str| arguments.next().unwrap_or_else(|| default.to_owned());
    let (width, height): (u16, u16) = (next("120").parse()?, next("34").parse()?);
    let theme = Theme::named(&next("dark"))?;
    let recorded: Recorded = serde_json::from_str(include_str!("../fixtures/forge.json"))?;
    let mut app = App::new(theme, Keymap::default(), true, 0);
    app.update(Message::Tick(recorded.now));
    app.update(Message::Connected);
    let wave = |second: i32| (f64::from(second) / 9.0).sin();
    let samples: Vec<Hardware> = (0..120)
        .map(|second| {
            let mut sample = recorded.hardware.clone();
            sample.cpu.percent = 55.0 + 40.0 * wave(second);
            sample.disks[0].write_bytes_per_second = Some(2e8 + 2e8 * wave(second));
            sample
        })
        .collect();
    app.update(Message::Loaded(Box::new(Loaded {
        status: Some(recorded.status),
        jobs: recorded.jobs,
        models: recorded.models,
        plugins: recorded.plugins,
        served: recorded.served,
        hardware: None,
        requests: Some(recorded.requests),
    })));
    for sample in samples {
        app.update(Message::Event(Box::new(Event::Hardware(Box::new(sample)))));
    }
    app.prepare();
    for key in arguments {
        let chord = Chord::parse(&key).ok_or_else(|| format!("{key} is no key"))?;
        let mut effects = app.update(Message::Key(KeyEvent::new(chord.code, chord.modifiers)));
        effects.extend(app.prepare());
        for effect in effects {
            match effect {
                Effect::JobLog(id) => drop(app.update(Message::JobLog(id, Ok(recorded.log.clone())))),
                Effect::Plan(model) => drop(app.update(Message::Plan(model, Ok(recorded.plan.clone())))),
                _ => {}
            }
        }
    }
    let area = Rect::new(0, 0, width, height);
    let mut buffer = Buffer::empty(area);
    app.draw(area, &mut buffer);
    print!("{}", ansi(&buffer));
    Ok(())
}

/// The screen as text with colour escapes.
fn ansi(buffer: &Buffer) -> String {
    let mut out = String::new();
    for y in 0..buffer.area.height {
        for x in 0..buffer.area.width {
            let cell = &buffer[(x, y)];
            out.push_str("\x1b[0");
            for (modifier, code) in
                [(Modifier::BOLD, 1), (Modifier::DIM, 2), (Modifier::UNDERLINED, 4), (Modifier::REVERSED, 7)]
            {
                if cell.modifier.contains(modifier) {
                    let _ = write!(out, ";{code}");
                }
            }
            for (colour, code) in [(cell.fg, 38), (cell.bg, 48)] {
                if let Color::Rgb(r, g, b) = colour {
                    let _ = write!(out, ";{code};2;{r};{g};{b}");
                }
            }
            let _ = write!(out, "m{}", cell.symbol());
        }
        out.push_str("\x1b[0m\n");
    }
    out
}
