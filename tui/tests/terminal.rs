//! The real program in a real (pseudo-)terminal: what it draws, and that the terminal comes back whole
//! however it ends. No daemon runs, which the dashboard must survive too.

#![allow(clippy::unwrap_used)]

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use drophammer_client::Endpoint;
use drophammer_tui::{TuiConfig, TuiOptions};
use rustix::process::{Pid, Signal};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Termios, Winsize, tcgetattr, tcsetwinsize};

/// Set in the process that is to be the dashboard: this test program starts itself again.
const AS_DASHBOARD: &str = "DROPHAMMER_TEST_DASHBOARD";
/// Long enough for a machine that is busy with other things.
const PATIENCE: Duration = Duration::from_secs(30);

/// Not a test of its own: the dashboard, when started by one.
#[test]
fn the_dashboard() {
    let Some(mode) = std::env::var_os(AS_DASHBOARD) else { return };
    if mode == "panic" {
        std::thread::spawn(|| {
            std::thread::sleep(Duration::from_millis(500));
            panic!("a failure on request");
        });
    }
    let home = tempfile::tempdir().unwrap();
    let options = TuiOptions {
        endpoint: Endpoint::in_home(home.path()),
        key: None,
        config: TuiConfig::default(),
        theme: None,
    };
    drophammer_tui::run(options).unwrap();
    println!("left cleanly");
}

struct Terminal {
    master: File,
    /// Kept open, so that the settings can be read after the dashboard has left.
    slave: File,
    before: Termios,
    child: Child,
    output: Receiver<Vec<u8>>,
    seen: Vec<u8>,
}

impl Terminal {
    fn start(mode: &str) -> Self {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let name = ptsname(&master, Vec::new()).unwrap();
        let slave = File::options().read(true).write(true).open(name.to_str().unwrap()).unwrap();
        let size = Winsize { ws_row: 24, ws_col: 100, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&master, size).unwrap();
        let before = tcgetattr(&slave).unwrap();
        let end = || Stdio::from(slave.try_clone().unwrap());
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "the_dashboard", "--nocapture"])
            .env(AS_DASHBOARD, mode)
            .env_remove("NO_COLOR")
            .stdin(end())
            .stdout(end())
            .stderr(end())
            .spawn()
            .unwrap();
        let master = File::from(master);
        let mut reader = master.try_clone().unwrap();
        let (sender, output) = channel();
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(count @ 1..) = reader.read(&mut bytes) {
                if sender.send(bytes[..count].to_vec()).is_err() {
                    return;
                }
            }
        });
        Self { master, slave, before, child, output, seen: Vec::new() }
    }

    fn press(&mut self, keys: &[u8]) {
        self.master.write_all(keys).unwrap();
    }

    /// Waits until the text drawn since the last wait contains `wanted`.
    fn wait_for(&mut self, wanted: &str) {
        let start = Instant::now();
        loop {
            if plain(&self.seen).contains(wanted) {
                self.seen.clear();
                return;
            }
            assert!(start.elapsed() < PATIENCE, "`{wanted}` did not appear; seen: {}", plain(&self.seen));
            if let Ok(bytes) = self.output.recv_timeout(Duration::from_millis(100)) {
                self.seen.extend(bytes);
            }
        }
    }

    fn end(mut self) -> (ExitStatus, String) {
        let start = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(start.elapsed() < PATIENCE, "the dashboard does not leave");
            std::thread::sleep(Duration::from_millis(20));
        };
        while let Ok(bytes) = self.output.recv_timeout(Duration::from_millis(300)) {
            self.seen.extend(bytes);
        }
        let after = tcgetattr(self.slave.as_fd()).unwrap();
        assert_eq!(after.local_modes, self.before.local_modes, "the terminal stayed raw");
        assert!(after.local_modes.contains(LocalModes::ICANON | LocalModes::ECHO));
        let last = String::from_utf8_lossy(&self.seen).into_owned();
        for (what, sequence) in
            [("alternate screen", "\x1b[?1049l"), ("cursor", "\x1b[?25h"), ("mouse", "\x1b[?1000l")]
        {
            assert!(last.contains(sequence), "{what} was not given back: {last:?}");
        }
        (status, last)
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // A test that failed half-way leaves nothing running.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What was drawn, without escapes.
fn plain(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let mut plain = String::new();
    let mut characters = text.chars();
    while let Some(c) = characters.next() {
        if c == '\u{1b}' {
            let _ = characters.by_ref().find(char::is_ascii_alphabetic);
        } else {
            plain.push(c);
        }
    }
    plain
}

#[test]
fn without_a_daemon_it_says_so_and_leaves_at_a_key() {
    let mut terminal = Terminal::start("run");
    terminal.wait_for("no daemon is running at");
    terminal.press(b"?");
    // Cells that stay blank are not written again: one word at a time.
    terminal.wait_for("Help:");
    terminal.press(b"\x1b");
    terminal.wait_for("Reading");
    terminal.press(b"q");
    let (status, last) = terminal.end();
    assert!(status.success(), "{last}");
    assert!(last.contains("left cleanly"));
}

#[test]
fn ctrl_c_and_sigterm_leave_the_terminal_whole() {
    let mut terminal = Terminal::start("run");
    terminal.wait_for("no daemon is running at");
    terminal.press(b"\x03");
    assert!(terminal.end().0.success());

    let mut terminal = Terminal::start("run");
    terminal.wait_for("no daemon is running at");
    let pid = Pid::from_raw(terminal.child.id().try_into().unwrap()).unwrap();
    rustix::process::kill_process(pid, Signal::TERM).unwrap();
    assert!(terminal.end().0.success());
}

#[test]
fn a_panic_is_told_on_a_terminal_that_is_whole_again() {
    let mut terminal = Terminal::start("panic");
    terminal.wait_for("Forge");
    let (status, last) = terminal.end();
    assert!(!status.success());
    let (drawn, told) = last.split_once("\x1b[?1049l").unwrap();
    assert!(!drawn.contains("panicked at"), "the message was drawn over: {drawn:?}");
    assert!(told.contains("panicked at"), "{told:?}");
}
