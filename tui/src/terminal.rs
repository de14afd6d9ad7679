//! Taking the terminal and giving it back, whatever happens in between.

use std::io::{Write as _, stdout};
use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context as _;
use crossterm::cursor::Show;
use crossterm::event::{
    DisableBracketedPaste, DisableMouseCapture, EnableBracketedPaste, EnableMouseCapture,
};
use crossterm::execute;
use crossterm::terminal::{EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode};
use ratatui::backend::CrosstermBackend;
use ratatui::layout::Rect;

/// The screen.
pub(crate) type Screen = ratatui::Terminal<CrosstermBackend<std::io::Stdout>>;

/// Whether the terminal is ours and must be given back.
static TAKEN: AtomicBool = AtomicBool::new(false);
static HOOK: Once = Once::new();

/// The terminal while it is ours; dropping it gives it back.
pub(crate) struct Taken {
    pub(crate) screen: Screen,
}

impl Taken {
    pub(crate) fn take(mouse: bool) -> anyhow::Result<Self> {
        HOOK.call_once(|| {
            let usual = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |info| {
                // First the terminal, or the message would be drawn over.
                restore();
                usual(info);
            }));
        });
        enable_raw_mode().context("this terminal does not let the dashboard read single keys")?;
        TAKEN.store(true, Ordering::SeqCst);
        let taken = || -> std::io::Result<Self> {
            execute!(stdout(), EnterAlternateScreen, EnableBracketedPaste)?;
            capture_mouse(mouse)?;
            let mut screen = Screen::new(CrosstermBackend::new(stdout()))?;
            screen.hide_cursor()?;
            clear(&mut screen)?;
            Ok(Self { screen })
        };
        taken().inspect_err(|_| restore()).context("cannot draw on this terminal")
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        restore();
    }
}

/// Makes the next drawing write every cell. Ratatui's own `clear` asks the terminal where its cursor is,
/// which some never answer; resizing to the present size clears without asking.
pub(crate) fn clear(screen: &mut Screen) -> std::io::Result<()> {
    let size = screen.size()?;
    screen.resize(Rect::new(0, 0, size.width, size.height))
}

/// Takes the mouse or leaves it to the terminal.
pub(crate) fn capture_mouse(on: bool) -> std::io::Result<()> {
    if on { execute!(stdout(), EnableMouseCapture) } else { execute!(stdout(), DisableMouseCapture) }
}

/// Puts text on the clipboard through the terminal (OSC 52), which also works over ssh.
pub(crate) fn copy(text: &str) -> std::io::Result<()> {
    let mut out = stdout().lock();
    write!(out, "\x1b]52;c;{}\x07", base64(text.as_bytes()))?;
    out.flush()
}

/// Whether the terminal is still ours: a panic anywhere gives it back.
pub(crate) fn is_taken() -> bool {
    TAKEN.load(Ordering::SeqCst)
}

/// Gives the terminal back, once.
fn restore() {
    if TAKEN.swap(false, Ordering::SeqCst) {
        // Each on its own: one that fails must not keep the others from being tried.
        let _ = execute!(stdout(), DisableMouseCapture);
        let _ = execute!(stdout(), DisableBracketedPaste);
        let _ = execute!(stdout(), LeaveAlternateScreen, Show);
        let _ = disable_raw_mode();
    }
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let byte = |at: usize| u32::from(chunk.get(at).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for digit in 0..4 {
            if digit <= chunk.len() {
                text.push(char::from(DIGITS[(bits >> (18 - 6 * digit) & 63) as usize]));
            } else {
                text.push('=');
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    #[test]
    fn base64_is_as_rfc_4648_says() {
        for (text, expected) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(super::base64(text.as_bytes()), expected);
        }
    }
}
