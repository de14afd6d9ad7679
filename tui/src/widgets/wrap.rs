//! Breaking text into lines.

use unicode_width::UnicodeWidthChar as _;

/// Breaks `text` at blanks (or inside words longer than a line) into lines of at most `width` columns.
/// Line breaks of the text itself are kept. Control characters are left out.
pub(crate) fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = Vec::new();
    for paragraph in text.split('\n') {
        wrap_paragraph(paragraph, width.max(1), &mut lines);
    }
    lines
}

fn wrap_paragraph(paragraph: &str, width: usize, lines: &mut Vec<String>) {
    let mut line = String::new();
    let mut used = 0;
    // Byte offset and column just behind the last blank: where the line may be broken.
    let mut blank: Option<(usize, usize)> = None;
    for c in paragraph.chars().map(|c| if c == '\t' { ' ' } else { c }) {
        if c.is_control() {
            continue;
        }
        let columns = c.width().unwrap_or(0);
        if used + columns > width {
            if c == ' ' {
                // A blank at the very edge is swallowed by the break.
                lines.push(std::mem::take(&mut line));
                (used, blank) = (0, None);
                continue;
            }
            let rest = if let Some((at, column)) = blank.take() {
                used -= column;
                line.split_off(at)
            } else {
                used = 0;
                String::new()
            };
            lines.push(std::mem::replace(&mut line, rest).trim_end().to_owned());
        }
        line.push(c);
        used += columns;
        if c == ' ' {
            blank = Some((line.len(), used));
        }
    }
    lines.push(line);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use unicode_width::UnicodeWidthStr as _;

    use super::*;

    #[test]
    fn text_is_broken_at_blanks() {
        for (text, width, expected) in [
            ("the quick brown fox", 9, vec!["the quick", "brown fox"]),
            ("the quick brown", 10, vec!["the quick", "brown"]),
            ("abcdefgh", 3, vec!["abc", "def", "gh"]),
            ("a\n\nb", 5, vec!["a", "", "b"]),
            ("日本語", 4, vec!["日本", "語"]),
            ("a\u{1b}[31mb", 9, vec!["a[31mb"]),
            ("", 5, vec![""]),
        ] {
            assert_eq!(wrap(text, width), expected, "{text:?} at {width}");
        }
    }

    proptest! {
        #[test]
        fn no_line_is_too_wide_and_no_word_is_lost(text in "[a-z ]{0,60}", width in 1usize..12) {
            let lines = wrap(&text, width);
            for line in &lines {
                prop_assert!(line.width() <= width, "{line:?}");
            }
            let squeeze = |text: &str| text.chars().filter(|c| *c != ' ').collect::<String>();
            prop_assert_eq!(squeeze(&lines.concat()), squeeze(&text));
        }
    }
}
