//! Every view and overlay at three sizes, with its styles in colour and without.

use std::collections::HashMap;
use std::fmt::Write as _;

use drophammer_client::api::{ChatChunk, ErrorReport, Usage};
use ratatui::buffer::Buffer;

use super::{app, draw, fresh, press, text, write};
use crate::app::App;
use crate::message::{ChatPiece, Loaded, Message};

const SIZES: [(u16, u16); 3] = [(40, 15), (120, 34), (200, 50)];

/// Snapshots what `prepare` leads to, in each size: text, then the styles of the dark theme and of the
/// theme without colour.
fn check(name: &str, start: fn(&str) -> App, prepare: fn(&mut App)) {
    for (width, height) in SIZES {
        let screens = ["dark", "none"].map(|theme| {
            let mut app = start(theme);
            prepare(&mut app);
            draw(&mut app, width, height)
        });
        let shown = text(&screens[0]);
        assert_eq!(shown, text(&screens[1]), "{name}: the text depends on the theme");
        for cell in screens[1].content() {
            let colourless = cell.style().fg.is_none_or(|fg| fg == ratatui::style::Color::Reset);
            assert!(colourless, "{name}: colour without colour");
        }
        let [dark, none] = screens.map(|screen| styles(&screen));
        let snapshot = format!("{shown}\n— dark —\n{dark}\n— none —\n{none}");
        insta::with_settings!({ omit_expression => true, prepend_module_to_snapshot => false }, {
            insta::assert_snapshot!(format!("{name}-{width}x{height}"), snapshot);
        });
    }
}

/// Runs of equal style, a line per row: `a12 b3 …`, and what the letters mean.
fn styles(buffer: &Buffer) -> String {
    let mut names: HashMap<String, usize> = HashMap::new();
    let mut legend = Vec::new();
    let mut lines = String::new();
    for y in 0..buffer.area.height {
        let mut runs: Vec<(usize, usize)> = Vec::new();
        for x in 0..buffer.area.width {
            let cell = &buffer[(x, y)];
            let look = format!("{} on {} {:?}", cell.fg, cell.bg, cell.modifier);
            let next = names.len();
            let id = *names.entry(look.clone()).or_insert_with(|| {
                legend.push(look);
                next
            });
            match runs.last_mut() {
                Some((last, count)) if *last == id => *count += 1,
                _ => runs.push((id, 1)),
            }
        }
        let runs: Vec<String> = runs.iter().map(|(id, count)| format!("{}{count}", letter(*id))).collect();
        let _ = writeln!(lines, "{}", runs.join(" "));
    }
    for (id, look) in legend.iter().enumerate() {
        let _ = writeln!(lines, "{} = {}", letter(id), look.replace("Modifier(", "").replace(')', ""));
    }
    lines
}

fn letter(id: usize) -> char {
    char::from_u32('a' as u32 + id as u32).unwrap_or('?')
}

fn keys(app: &mut App, keys: &str) {
    press(app, keys);
}

#[test]
fn forge() {
    check("forge", app, |_| {});
}

#[test]
fn forge_with_a_running_job() {
    check("forge-job", app, |app| keys(app, "down down down"));
}

#[test]
fn forge_with_a_failed_job() {
    check("forge-failed", app, |app| {
        keys(app, "/");
        write(app, "mlx");
        keys(app, "enter end");
    });
}

#[test]
fn forge_log_zoomed_and_searched() {
    check("forge-log", app, |app| {
        keys(app, "down down down enter /");
        write(app, "tensor");
    });
}

#[test]
fn forge_without_models() {
    check("forge-empty", empty, |_| {});
}

fn empty(theme: &str) -> App {
    let mut app = fresh(theme);
    app.update(Message::Connected);
    let status = Some(super::recorded().status);
    app.update(Message::Loaded(Box::new(Loaded { status, ..Loaded::default() })));
    app
}

#[test]
fn every_other_view_without_anything() {
    for (name, key) in [
        ("models-empty", "2"),
        ("hardware-empty", "3"),
        ("plugins-empty", "4"),
        ("chat-empty", "5"),
        ("requests-empty", "6"),
    ] {
        let mut app = empty("dark");
        press(&mut app, key);
        insta::with_settings!({ omit_expression => true, prepend_module_to_snapshot => false }, {
            insta::assert_snapshot!(name, text(&draw(&mut app, 80, 20)));
        });
    }
}

#[test]
fn models() {
    check("models", app, |app| keys(app, "2"));
}

#[test]
fn models_compared() {
    check("models-compared", app, |app| keys(app, "2 o o o o O space down down space"));
}

#[test]
fn hardware() {
    check("hardware", app, |app| keys(app, "3"));
}

#[test]
fn plugins() {
    check("plugins", app, |app| keys(app, "4 down down down"));
}

#[test]
fn requests() {
    check("requests", app, |app| keys(app, "6"));
}

fn answer(app: &mut App, column: usize, turn: u64, words: &[&str]) {
    for (at, word) in words.iter().enumerate() {
        let piece = ChatPiece::Chunk(ChatChunk::Text((*word).to_owned()));
        app.update(Message::Chat { column, turn, seconds: 0.31 + 0.02 * at as f64, piece });
    }
    let usage = Usage { prompt_tokens: 9, completion_tokens: words.len() as u64 };
    for piece in [ChatChunk::Finished("stop".into()), ChatChunk::Usage(usage)] {
        app.update(Message::Chat { column, turn, seconds: 0.5, piece: ChatPiece::Chunk(piece) });
    }
}

#[test]
fn chat_side_by_side() {
    check("chat", app, |app| {
        keys(app, "5 v");
        write(app, "q8_0");
        keys(app, "enter");
        write(app, "What is the capital of France?");
        keys(app, "enter");
        answer(app, 0, 1, &["The ", "capital ", "of ", "France ", "is ", "Paris", "."]);
        answer(app, 1, 1, &["The ", "capital ", "of ", "France ", "was ", "always ", "Paris", "."]);
    });
}

#[test]
fn chat_that_failed() {
    check("chat-failed", app, |app| {
        keys(app, "5 i");
        write(app, "hi");
        keys(app, "enter");
        let error = ErrorReport::new("worker_died", "the worker died (SIGKILL)")
            .help("it is loaded again: ask once more");
        app.update(Message::Chat { column: 0, turn: 1, seconds: 1.0, piece: ChatPiece::Failed(error) });
    });
}

#[test]
fn help() {
    check("help", app, |app| keys(app, "?"));
}

#[test]
fn palette() {
    check("palette", app, |app| {
        keys(app, ":");
        write(app, "for");
    });
}

#[test]
fn add() {
    check("add", app, |app| keys(app, "a"));
}

#[test]
fn targets() {
    check("targets", app, |app| keys(app, "f down space"));
}

#[test]
fn delete() {
    check("delete", app, |app| keys(app, "2 D"));
}

#[test]
fn picker() {
    check("picker", app, |app| keys(app, "5 m"));
}

#[test]
fn chat_settings() {
    check("chat-settings", app, |app| {
        keys(app, "5 o down");
        write(app, "9");
        keys(app, "enter");
    });
}

#[test]
fn a_daemon_that_went_away() {
    check("away", app, |app| {
        let error = ErrorReport::new("no_daemon", "no daemon is running at /run/control.sock")
            .help("start it with `drophammer daemon`");
        app.update(Message::Disconnected { error, retry_in: 4.0 });
    });
}

#[test]
fn every_theme_shows_the_same_text_and_every_size_is_survived() {
    let reference = text(&draw(&mut app("dark"), 120, 34));
    for theme in crate::theme::Theme::names() {
        assert_eq!(text(&draw(&mut app(theme), 120, 34)), reference, "{theme}");
    }
    for view in ["1", "2", "3", "4", "5", "6", "?", ":", "a", "f"] {
        let mut app = app("dark");
        press(&mut app, view);
        for (width, height) in
            [(1, 1), (29, 7), (30, 8), (40, 15), (60, 20), (81, 17), (110, 18), (300, 80), (500, 9)]
        {
            draw(&mut app, width, height);
        }
    }
}
