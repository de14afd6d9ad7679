//! What a worker prints: lines for the job's log, and the last of them for its failure.

use std::collections::VecDeque;
use std::io;

use drophammer_client::api::LogSource;
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::sync::mpsc;

/// The longest line that is kept, bytes; a longer one is cut into several.
const LINE_LIMIT: usize = 4096;
/// Lines quoted in a failure.
const TAIL_LINES: usize = 20;

/// The last lines printed.
#[derive(Debug, Default)]
pub(super) struct Tail(VecDeque<String>);

impl Tail {
    pub(super) fn push(&mut self, line: &str) {
        if self.0.len() == TAIL_LINES {
            self.0.pop_front();
        }
        self.0.push_back(line.to_owned());
    }

    pub(super) fn into_lines(self) -> Vec<String> {
        self.0.into()
    }
}

/// Reads a worker's pipe to its end and sends each line. Waits when nobody takes them: a worker that floods its log
/// is slowed down, not stored.
pub(super) async fn read_lines(
    pipe: impl AsyncRead + Unpin,
    source: LogSource,
    lines: mpsc::Sender<(LogSource, String)>,
) -> io::Result<()> {
    let mut pipe = BufReader::new(pipe);
    let mut line = Vec::new();
    loop {
        let available = pipe.fill_buf().await?;
        if available.is_empty() {
            break;
        }
        let end = available.iter().position(|&byte| byte == b'\n' || byte == b'\r');
        let taken = end.map_or(available.len(), |end| end).min(LINE_LIMIT - line.len());
        line.extend_from_slice(&available[..taken]);
        let ended = end == Some(taken);
        pipe.consume(taken + usize::from(ended));
        if (ended || line.len() == LINE_LIMIT) && !send(&mut line, source, &lines).await {
            return Ok(());
        }
    }
    send(&mut line, source, &lines).await;
    Ok(())
}

/// Sends what was gathered, if anything; `false` when nobody listens any more.
async fn send(line: &mut Vec<u8>, source: LogSource, lines: &mpsc::Sender<(LogSource, String)>) -> bool {
    let text = printable(&String::from_utf8_lossy(line));
    line.clear();
    text.is_empty() || lines.send((source, text)).await.is_ok()
}

/// The text without control characters: it goes to terminals.
pub(super) fn printable(text: &str) -> String {
    text.trim_end()
        .chars()
        .map(|c| if c == '\t' || c == '\n' { ' ' } else { c })
        .filter(|c| !c.is_control())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn lines_of(bytes: &[u8]) -> Vec<String> {
        let (sender, mut receiver) = mpsc::channel(100);
        read_lines(bytes, LogSource::Stdout, sender).await.unwrap();
        let mut lines = Vec::new();
        while let Some((_, line)) = receiver.recv().await {
            lines.push(line);
        }
        lines
    }

    #[tokio::test]
    async fn lines_are_split_cleaned_and_bounded() {
        assert_eq!(lines_of(b"one\ntwo\r\nthree").await, ["one", "two", "three"]);
        assert_eq!(lines_of(b"\x1b[31mred\tx\x07\n\n").await, ["[31mred x"]);
        assert_eq!(lines_of(b"\xff\xfe\n").await, ["\u{fffd}\u{fffd}"]);
        let long = lines_of(&vec![b'x'; LINE_LIMIT * 2 + 5]).await;
        assert_eq!(long.iter().map(String::len).collect::<Vec<_>>(), [LINE_LIMIT, LINE_LIMIT, 5]);
    }

    #[test]
    fn the_tail_keeps_the_last_lines() {
        let mut tail = Tail::default();
        (0..100).for_each(|n| tail.push(&n.to_string()));
        let lines = tail.into_lines();
        assert_eq!((lines.len(), lines[0].as_str(), lines[19].as_str()), (20, "80", "99"));
    }
}
