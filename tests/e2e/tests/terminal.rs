//! What people see: the dashboard and a conversation, in a real (pseudo-)terminal, over a real daemon.

// Whatever goes wrong in a test's own steps is its failure.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use drophammer_e2e::daemon::{Daemon, counting, write_model};
use drophammer_e2e::terminal::Terminal;

#[test]
fn a_dropped_model_shows_without_a_key_press_and_keys_alone_lead_to_an_answer() {
    let daemon = counting(&[]).unwrap();
    let mut terminal = Terminal::start(daemon.home.command(&[]), 120, 34).unwrap();
    terminal.wait_for("model").unwrap();
    // Dropped while somebody looks.
    write_model(&daemon.models().join("newcomer")).unwrap();
    terminal.wait_for("newcomer").unwrap();
    daemon.wait_for_model("newcomer", "ready").unwrap();

    terminal.press("5").unwrap();
    terminal.wait_for("Chat").unwrap();
    terminal.press("m").unwrap();
    terminal.wait_for("SCHEME").unwrap();
    terminal.press("\r").unwrap();
    terminal.wait_until("the picker's end", |screen| !screen.contains("SCHEME")).unwrap();
    terminal.press("Speak to me.").unwrap();
    terminal.wait_for("Speak to me.").unwrap();
    terminal.press("\r").unwrap();
    // It counts on until the context is full, or its sampler draws the end.
    terminal.wait_until("the answer's end", |screen| screen.contains("tok/s · ")).unwrap();
    terminal.press("\x03").unwrap();
    assert!(terminal.end().unwrap().success());
}

#[test]
fn the_dashboard_starts_a_daemon_and_leaves_it_running() {
    let home = drophammer_e2e::Home::new(&[], "[serve]\nport = 0\n").unwrap();
    let mut terminal = Terminal::start(home.command(&[]), 60, 20).unwrap();
    terminal.wait_for("Forge").unwrap();
    terminal.press("q").unwrap();
    assert!(terminal.end().unwrap().success());
    let status = home.json(&["status"]).unwrap();
    let pid = status["pid"].to_string();
    let socket = home.path().join("control.sock").display().to_string();
    let elsewhere = drophammer_e2e::Home::new(&[], "").unwrap();
    assert_eq!(elsewhere.json(&["status", "--connect", &socket]).unwrap()["pid"].to_string(), pid);
    assert!(std::process::Command::new("kill").arg(&pid).status().unwrap().success());
}

#[test]
fn what_is_wrong_with_the_dashboards_settings_is_said_before_it_takes_the_terminal() {
    let home = drophammer_e2e::Home::new(&[], "[tui]\ncolour = \"blue\"\n").unwrap();
    let answer = home.run(&[]).unwrap();
    assert_eq!(answer.code, 1, "{answer:?}");
    assert!(answer.stderr.contains("colour") && answer.stderr.contains("[tui]"), "{answer:?}");
}

/// Whether a line is waited for: an answer may end with any sign, but not on a line of its own.
fn prompts(screen: &str) -> bool {
    screen.trim_end().lines().last().is_some_and(|line| line.trim_end() == ">")
}

#[test]
fn a_conversation_goes_on_line_by_line_until_ctrl_d() {
    let daemon: Daemon = counting(&[]).unwrap();
    let arguments = ["run", "model", "-n", "5", "--temperature", "0"];
    let mut terminal = Terminal::start(daemon.home.command(&arguments), 100, 30).unwrap();
    terminal.wait_for("Ctrl-D leaves").unwrap();
    for turn in 1..=2 {
        terminal.wait_until("the prompt", prompts).unwrap();
        terminal.press(&format!("Turn {turn}.\r")).unwrap();
        terminal.wait_for(&format!("> Turn {turn}.")).unwrap();
    }
    terminal.wait_until("the prompt", prompts).unwrap();
    terminal.press("\x04").unwrap();
    assert!(terminal.end().unwrap().success());
}
