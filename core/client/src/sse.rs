//! Server-sent events, as the WHATWG HTML standard defines the stream: lines, of which only `data` and
//! comments concern us.

/// Longest event that is read. A model with a thousand artifacts takes under 1 MiB.
pub(crate) const EVENT_LIMIT: usize = 16 << 20;

/// Cuts a byte stream into events.
#[derive(Debug, Default)]
pub(crate) struct SseParser {
    line: Vec<u8>,
    data: Vec<u8>,
    has_data: bool,
    after_cr: bool,
}

/// An event was longer than [`EVENT_LIMIT`].
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct EventTooLong;

impl SseParser {
    /// Takes the next bytes and hands each completed event's data to `event`. Bytes that are not UTF-8
    /// become replacement characters, as the standard says.
    pub(crate) fn feed(&mut self, bytes: &[u8], mut event: impl FnMut(String)) -> Result<(), EventTooLong> {
        for &byte in bytes {
            let follows_cr = std::mem::take(&mut self.after_cr);
            match byte {
                b'\n' if follows_cr => {}
                b'\n' | b'\r' => {
                    self.after_cr = byte == b'\r';
                    self.end_line(&mut event);
                }
                _ => {
                    if self.line.len() + self.data.len() >= EVENT_LIMIT {
                        return Err(EventTooLong);
                    }
                    self.line.push(byte);
                }
            }
        }
        Ok(())
    }

    fn end_line(&mut self, event: &mut impl FnMut(String)) {
        if self.line.is_empty() {
            if std::mem::take(&mut self.has_data) {
                event(String::from_utf8_lossy(&self.data).into_owned());
            }
            self.data.clear();
            return;
        }
        if let Some(value) = self.line.strip_prefix(b"data")
            && let Some(value) = value.strip_prefix(b":").or(value.is_empty().then_some(value))
        {
            if self.has_data {
                self.data.push(b'\n');
            }
            self.has_data = true;
            self.data.extend_from_slice(value.strip_prefix(b" ").unwrap_or(value));
        }
        self.line.clear();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(chunks: &[&[u8]]) -> Vec<String> {
        let mut parser = SseParser::default();
        let mut events = Vec::new();
        for chunk in chunks {
            parser.feed(chunk, |data| events.push(data)).unwrap();
        }
        events
    }

    #[test]
    fn events_are_cut_as_the_standard_says() {
        for (input, expected) in [
            ("data: a\n\n", vec!["a"]),
            ("data:a\r\n\r\ndata:b\r\r", vec!["a", "b"]),
            ("data: a\ndata: b\n\n", vec!["a\nb"]),
            (": comment\n\n", vec![]),
            ("event: x\nid: 3\ndata: a\nretry: 5\n\n", vec!["a"]),
            ("data\n\n", vec![""]),
            ("data:  two spaces\n\n", vec![" two spaces"]),
            ("data: unfinished", vec![]),
            ("database: no\n\n", vec![]),
        ] {
            assert_eq!(parse(&[input.as_bytes()]), expected, "{input:?}");
        }
    }

    #[test]
    fn an_endless_line_is_refused() {
        let mut parser = SseParser::default();
        let chunk = vec![b'x'; EVENT_LIMIT];
        assert_eq!(parser.feed(&chunk, |_| ()), Ok(()));
        assert_eq!(parser.feed(b"x", |_| ()), Err(EventTooLong));
    }

    proptest! {
        #[test]
        fn where_the_stream_is_cut_makes_no_difference(
            bytes in proptest::collection::vec(prop_oneof![
                Just(b'\n'), Just(b'\r'), Just(b':'), Just(b' '), Just(b'd'), any::<u8>()
            ], 0..200),
            cut in 0usize..200,
        ) {
            let mut stream = b"data: ".to_vec();
            stream.extend(bytes);
            let (left, right) = stream.split_at(cut.min(stream.len()));
            prop_assert_eq!(parse(&[&stream]), parse(&[left, right]));
        }
    }
}
