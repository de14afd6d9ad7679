//! Finding the texts before which an answer ends, in a stream.

/// Holds back text that may be the beginning of a stop text.
#[derive(Debug, Clone, Default)]
pub(super) struct StopStrings {
    stops: Vec<String>,
    held: String,
}

/// What is certain after some more text.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Released {
    pub(super) text: String,
    /// The stop text that came; it is not in `text`.
    pub(super) stop: Option<String>,
}

impl StopStrings {
    pub(super) fn new(stops: Vec<String>) -> Self {
        Self { stops, held: String::new() }
    }

    /// Takes some more text. After a stop text nothing is released any more.
    pub(super) fn push(&mut self, text: &str) -> Released {
        if self.stops.is_empty() {
            return Released { text: text.to_owned(), stop: None };
        }
        self.held.push_str(text);
        let found = self.stops.iter().filter_map(|stop| Some((self.held.find(stop.as_str())?, stop)));
        // The earliest counts; where two begin together, the longer.
        let first = found.min_by_key(|(at, stop)| (*at, std::cmp::Reverse(stop.len())));
        if let Some((at, stop)) = first {
            let stop = Some(stop.clone());
            let text = self.held[..at].to_owned();
            self.held.clear();
            return Released { text, stop };
        }
        let keep = self.stops.iter().map(|stop| longest_beginning(&self.held, stop)).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - keep);
        Released { text: std::mem::replace(&mut self.held, rest), stop: None }
    }

    /// The text ends: what was held back was no stop text.
    pub(super) fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

/// Length of the longest end of `text` that is a beginning of `stop`, but not all of it.
fn longest_beginning(text: &str, stop: &str) -> usize {
    let longest = stop.len().saturating_sub(1).min(text.len());
    (1..=longest).rev().find(|&n| text.as_bytes()[text.len() - n..] == stop.as_bytes()[..n]).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn run(stops: &[&str], chunks: &[&str]) -> (String, Option<String>) {
        let mut matcher = StopStrings::new(stops.iter().map(|&s| s.to_owned()).collect());
        let mut text = String::new();
        for chunk in chunks {
            let released = matcher.push(chunk);
            text.push_str(&released.text);
            if released.stop.is_some() {
                return (text, released.stop);
            }
        }
        text.push_str(&matcher.finish());
        (text, None)
    }

    #[test]
    fn an_answer_ends_before_its_stop_text_however_it_arrives() {
        for (stops, chunks, expected, stop) in [
            (&["END"][..], &["one E", "N", "D two"][..], "one ", Some("END")),
            (&["END"], &["one E", "N", "d two"], "one ENd two", None),
            (&["aab"], &["aa", "ab"], "a", Some("aab")),
            (&["\n\n", "\n"], &["x\n", "\ny"], "x", Some("\n")),
            (&["ab", "abc"], &["xabc"], "x", Some("abc")),
            (&["é!"], &["caf", "é", "?"], "café?", None),
            (&["tail"], &["ta"], "ta", None),
        ] {
            let (text, found) = run(stops, chunks);
            assert_eq!((text.as_str(), found.as_deref()), (expected, stop), "{chunks:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_released_is_the_text_before_the_first_stop_text(
            text in "[abé]{0,30}", stop in "[abé]{1,4}", cut in 1usize..5,
        ) {
            let chars: Vec<char> = text.chars().collect();
            let chunks: Vec<String> = chars.chunks(cut).map(|chunk| chunk.iter().collect()).collect();
            let chunks: Vec<&str> = chunks.iter().map(String::as_str).collect();
            let (released, found) = run(&[&stop], &chunks);
            let expected = text.split(stop.as_str()).next().unwrap();
            prop_assert_eq!(released, expected);
            prop_assert_eq!(found.is_some(), text.contains(&stop));
        }
    }
}
