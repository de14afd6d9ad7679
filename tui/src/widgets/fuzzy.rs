//! Fuzzy matching for the palette.

/// How well `query` matches `text`: all its characters in order, ignoring case and blanks. Matches at
/// word starts and in one piece count more. `None` when it does not match.
pub(crate) fn score(query: &str, text: &str) -> Option<i32> {
    let mut score = 0;
    let mut wanted = query.chars().filter(|c| !c.is_whitespace()).flat_map(char::to_lowercase).peekable();
    let mut before: Option<char> = None;
    let mut run = 0;
    for (at, c) in text.chars().flat_map(char::to_lowercase).enumerate() {
        if wanted.peek() == Some(&c) {
            wanted.next();
            let starts_word = before.is_none_or(|before| !before.is_alphanumeric());
            run += 1;
            score += 1 + 3 * run + if starts_word { 8 } else { 0 } - (at as i32 / 16);
        } else {
            run = 0;
        }
        before = Some(c);
        if wanted.peek().is_none() {
            break;
        }
    }
    wanted.peek().is_none().then_some(score)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn better_matches_score_higher() {
        let best = |query: &str, texts: &[&'static str]| {
            texts
                .iter()
                .copied()
                .filter_map(|text| Some((score(query, text)?, text)))
                .max()
                .map(|(_, text)| text)
        };
        let texts = ["retry: Queue this job again", "forge more", "theme: Use the next theme", "reverse"];
        for (query, expected) in [
            ("retry", Some("retry: Queue this job again")),
            ("fm", Some("forge more")),
            ("QUEUE", Some("retry: Queue this job again")),
            ("rev", Some("reverse")),
            ("zzz", None),
        ] {
            assert_eq!(best(query, &texts), expected, "{query}");
        }
        assert_eq!(score("", "anything"), Some(0));
    }
}
