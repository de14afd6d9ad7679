//! A program in a terminal that nobody sees: what stands on its screen can be read, and keys pressed.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

/// Long enough for a machine that is busy with other things.
const PATIENCE: Duration = Duration::from_mins(2);

/// The terminal and the program in it, which ends with it.
pub struct Terminal {
    keyboard: File,
    child: Child,
    drawn: Receiver<Drawn>,
    screen: vt100::Parser,
    tape: Option<Vec<Drawn>>,
}

/// A piece of what a program drew.
#[derive(Debug, Clone)]
pub struct Drawn {
    /// When, since the terminal was opened.
    pub moment: Duration,
    /// Text with escapes, as it came.
    pub bytes: Vec<u8>,
}

impl Terminal {
    /// Starts a program in a terminal of this size.
    ///
    /// # Errors
    /// When there is no terminal or no program.
    pub fn start(mut program: Command, columns: u16, rows: u16) -> Result<Self> {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY)?;
        grantpt(&master)?;
        unlockpt(&master)?;
        let name = ptsname(&master, Vec::new())?;
        let slave = File::options().read(true).write(true).open(name.to_str()?)?;
        tcsetwinsize(&master, Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 })?;
        let child = program
            .env("TERM", "xterm-256color")
            .stdin(Stdio::from(slave.try_clone()?))
            .stdout(Stdio::from(slave.try_clone()?))
            .stderr(Stdio::from(slave))
            .spawn()
            .context("the program")?;
        let keyboard = File::from(master);
        let mut reader = keyboard.try_clone()?;
        let (sender, drawn) = channel();
        let opened = Instant::now();
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(count @ 1..) = reader.read(&mut bytes) {
                let piece = Drawn { moment: opened.elapsed(), bytes: bytes[..count].to_vec() };
                if sender.send(piece).is_err() {
                    return;
                }
            }
        });
        Ok(Self { keyboard, child, drawn, screen: vt100::Parser::new(rows, columns, 0), tape: None })
    }

    /// Presses keys.
    ///
    /// # Errors
    /// When the program is gone.
    pub fn press(&mut self, keys: &str) -> Result<()> {
        Ok(self.keyboard.write_all(keys.as_bytes())?)
    }

    /// What stands on the screen.
    pub fn screen(&self) -> String {
        self.screen.screen().contents()
    }

    /// Waits until the screen is as wanted.
    ///
    /// # Errors
    /// When it does not come to that; what stands there instead is told.
    pub fn wait_until(&mut self, what: &str, wanted: impl Fn(&str) -> bool) -> Result<()> {
        let start = Instant::now();
        while !wanted(&self.screen()) {
            if start.elapsed() > PATIENCE {
                bail!("{what} did not appear; the screen is:\n{}", self.screen());
            }
            match self.drawn.recv_timeout(Duration::from_millis(100)) {
                Ok(piece) => self.see(piece),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    bail!("the program ended before {what} appeared; the screen is:\n{}", self.screen())
                }
            }
        }
        Ok(())
    }

    /// Waits until some text stands on the screen.
    ///
    /// # Errors
    /// As [`Terminal::wait_until`].
    pub fn wait_for(&mut self, text: &str) -> Result<()> {
        self.wait_until(&format!("`{text}`"), |screen| screen.contains(text))
    }

    /// Takes what was drawn in the meantime.
    pub fn look(&mut self) -> String {
        while let Ok(piece) = self.drawn.try_recv() {
            self.see(piece);
        }
        self.screen()
    }

    fn see(&mut self, piece: Drawn) {
        self.screen.process(&piece.bytes);
        if let Some(tape) = &mut self.tape {
            tape.push(piece);
        }
    }

    /// Looks on for some time.
    pub fn look_for(&mut self, time: Duration) {
        let until = Instant::now() + time;
        while let Some(left) = until.checked_duration_since(Instant::now()) {
            match self.drawn.recv_timeout(left) {
                Ok(piece) => self.see(piece),
                Err(RecvTimeoutError::Timeout) => return,
                Err(RecvTimeoutError::Disconnected) => std::thread::sleep(left),
            }
        }
    }

    /// Keeps what is drawn from now on.
    pub fn record(&mut self) {
        self.tape = Some(Vec::new());
    }

    /// What was drawn since [`Terminal::record`].
    pub fn recorded(&mut self) -> Vec<Drawn> {
        self.look();
        self.tape.take().unwrap_or_default()
    }

    /// What stands on the screen, with its colours as escapes, a line per row.
    pub fn styled_screen(&self) -> String {
        let screen = self.screen.screen();
        let (rows, columns) = screen.size();
        let mut text = String::new();
        for row in 0..rows {
            let mut before = None;
            for cell in (0..columns).filter_map(|column| screen.cell(row, column)) {
                let look = style(cell);
                if before.as_ref() != Some(&look) {
                    text.push_str(&look);
                    before = Some(look);
                }
                match cell.contents() {
                    "" if cell.is_wide_continuation() => {}
                    "" => text.push(' '),
                    letters => text.push_str(letters),
                }
            }
            text.push_str("\x1b[0m\n");
        }
        text
    }

    /// The program's process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for the program's own end.
    ///
    /// # Errors
    /// When it does not end.
    pub fn end(mut self) -> Result<ExitStatus> {
        let start = Instant::now();
        loop {
            // Read on: a full terminal would hold the program up.
            self.look();
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            if start.elapsed() > PATIENCE {
                bail!("the program does not end; the screen is:\n{}", self.screen());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// The escape that makes letters look like those of a cell.
fn style(cell: &vt100::Cell) -> String {
    let mut codes = vec!["0".to_owned()];
    for (on, code) in [
        (cell.bold(), "1"),
        (cell.dim(), "2"),
        (cell.italic(), "3"),
        (cell.underline(), "4"),
        (cell.inverse(), "7"),
    ] {
        codes.extend(on.then(|| code.to_owned()));
    }
    for (colour, kind) in [(cell.fgcolor(), 38), (cell.bgcolor(), 48)] {
        match colour {
            vt100::Color::Default => {}
            vt100::Color::Idx(index) => codes.push(format!("{kind};5;{index}")),
            vt100::Color::Rgb(r, g, b) => codes.push(format!("{kind};2;{r};{g};{b}")),
        }
    }
    format!("\x1b[{}m", codes.join(";"))
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // A test that failed half-way leaves nothing running.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
