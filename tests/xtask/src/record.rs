//! `cargo xtask record`: a tour of the dashboard, played by the real program over a real daemon, as a terminal
//! recording (asciicast, version 2) and a picture.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use drophammer_e2e::Home;
use drophammer_e2e::daemon::Daemon;
use drophammer_e2e::terminal::{Drawn, Terminal};
use serde_json::json;

use crate::shell::root;
use crate::{fetch, picture};

const COLUMNS: u16 = 120;
const ROWS: u16 = 34;
/// Nobody watches a still picture for longer than this, seconds.
const STILL: f64 = 1.2;

/// Options of the task.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Where recording and picture go.
    #[arg(long)]
    output: Option<PathBuf>,
}

/// Plays the tour with what end-to-end tests run (`DROPHAMMER_BUILT` names it, or it is built) and writes what was seen.
pub(crate) fn run(options: &Options) -> Result<()> {
    let smollm2 = fetch::path(fetch::Model::Smollm2)?;
    let place = options.output.clone().unwrap_or_else(|| root().join("tui/picture"));
    std::fs::create_dir_all(&place).with_context(|| place.display().to_string())?;
    let settings =
        "[serve]\nport = 0\n[targets]\ndefault = [\"gguf-q4_0\", \"gguf-q4_k_m\", \"gguf-q8_0\"]\n";
    let daemon = Daemon::start(Home::new(&[], settings)?)?;
    let mut terminal = Terminal::start(daemon.home.command(&[]), COLUMNS, ROWS)?;
    terminal.record();
    let picture = tour(&daemon, &mut terminal, &smollm2)?;
    let drawn = terminal.recorded();
    anyhow::ensure!(terminal.end()?.success(), "the dashboard ended badly");
    write(&place.join("dashboard.svg"), &picture::svg(&picture, "The Drophammer dashboard"))?;
    write(&place.join("tour.cast"), &asciicast(&drawn))
}

fn write(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).with_context(|| path.display().to_string())?;
    println!("{} · {} kB", path.display(), text.len() / 1000);
    Ok(())
}

/// Plays the tour and gives the screen that makes the picture.
fn tour(daemon: &Daemon, terminal: &mut Terminal, model: &Path) -> Result<String> {
    let look = |terminal: &mut Terminal, seconds: f64| terminal.look_for(Duration::from_secs_f64(seconds));
    terminal.wait_for("Drop a model")?;
    look(terminal, 1.5);
    daemon.drop_in(&root().join("tests/fixtures/shakespeare-llama"), "shakespeare-llama")?;
    terminal.wait_for("shakespeare-llama")?;
    look(terminal, 1.0);
    daemon.drop_in(model, "smollm2-135m-instruct.gguf")?;
    terminal.wait_for("smollm2-135m-instruct")?;
    for _ in 0..5 {
        terminal.press("j")?;
        look(terminal, 0.7);
    }
    // Longer than a step of a test may take.
    while working(&terminal.look()) {
        look(terminal, 0.2);
    }
    look(terminal, 1.5);

    // Every artifact, two of them compared, one kept loaded.
    terminal.press("2")?;
    terminal.wait_for("Size against KL")?;
    look(terminal, 1.2);
    for key in [" ", "j", " "] {
        terminal.press(key)?;
        look(terminal, 0.7);
    }
    look(terminal, 1.5);
    terminal.press("\x1b")?;
    look(terminal, 0.5);
    for key in ["G", "p"] {
        terminal.press(key)?;
        look(terminal, 0.6);
    }
    terminal.wait_for("●pinned")?;
    look(terminal, 1.5);
    let picture = terminal.styled_screen();

    // The machine, then a conversation with it.
    terminal.press("3")?;
    look(terminal, 3.0);
    terminal.press("5")?;
    look(terminal, 0.8);
    terminal.press("i")?;
    for letter in "What is the capital of France?".chars() {
        terminal.press(&letter.to_string())?;
        look(terminal, 0.04);
    }
    look(terminal, 0.3);
    terminal.press("\r")?;
    terminal.wait_until("the answer's end", |screen| screen.contains("tok/s · "))?;
    look(terminal, 1.5);
    terminal.press("\x1b")?;
    look(terminal, 0.4);
    terminal.press("6")?;
    look(terminal, 1.5);
    terminal.press("?")?;
    look(terminal, 2.0);
    terminal.press("\x1b")?;
    look(terminal, 0.3);
    terminal.press("1")?;
    look(terminal, 1.0);
    terminal.press("q")?;
    look(terminal, 0.5);
    Ok(picture)
}

/// Whether some job has not ended, as the status line says it.
fn working(screen: &str) -> bool {
    let top = screen.lines().next().unwrap_or_default();
    ["queued", "running"].iter().any(|word| top.contains(word))
}

/// What was drawn, in the form that `asciinema play` takes; pauses are cut short.
fn asciicast(drawn: &[Drawn]) -> String {
    let header = json!({
        "version": 2, "width": COLUMNS, "height": ROWS, "title": "Drophammer: two models forged, compared and asked",
        "env": {"TERM": "xterm-256color"},
    });
    let mut cast = format!("{header}\n");
    let (mut shown, mut before) = (0.0, 0.0);
    let mut rest: Vec<u8> = Vec::new();
    for piece in drawn {
        let moment = piece.moment.as_secs_f64();
        shown += (moment - before).clamp(0.0, STILL);
        before = moment;
        rest.extend_from_slice(&piece.bytes);
        // A character may come in two pieces.
        let whole = match std::str::from_utf8(&rest) {
            Ok(_) => rest.len(),
            Err(error) => error.valid_up_to(),
        };
        let text = String::from_utf8_lossy(&rest[..whole]).into_owned();
        rest.drain(..whole);
        if !text.is_empty() {
            let shown = (shown * 1e3).round() / 1e3;
            let _ = writeln!(cast, "{}", json!([shown, "o", text]));
        }
    }
    cast
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_stay_whole_and_pauses_are_cut_short() {
        let piece = |seconds: u64, bytes: &[u8]| Drawn {
            moment: Duration::from_secs(seconds),
            bytes: bytes.to_vec(),
        };
        let cast = asciicast(&[piece(1, b"a\xe2\x94"), piece(100, b"\x80"), piece(101, b"\x1b[0m")]);
        let lines: Vec<serde_json::Value> =
            cast.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!((&lines[0]["version"], &lines[0]["width"]), (&json!(2), &json!(120)));
        assert_eq!(
            lines[1..],
            [json!([1.0, "o", "a"]), json!([2.2, "o", "─"]), json!([3.2, "o", "\u{1b}[0m"])]
        );
    }
}
