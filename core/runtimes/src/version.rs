//! Versions as runtimes write them.

use std::fmt;

/// A version: numbers between dots. What follows the last number (`-22982-e213a147257`) says nothing here.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(Vec<u32>);

impl Version {
    /// Reads the numbers at the beginning of a text; `None` if there are none.
    pub fn read(text: &str) -> Option<Self> {
        let end = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
        let numbers: Option<Vec<u32>> =
            text[..end].trim_end_matches('.').split('.').map(|number| number.parse().ok()).collect();
        numbers.map(Self)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let numbers: Vec<String> = self.0.iter().map(ToString::to_string).collect();
        f.write_str(&numbers.join("."))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare_by_their_numbers() {
        let read = |text| Version::read(text).unwrap();
        assert!(read("2026.4.1-22982-e213a147257") > read("2026.4"));
        assert!(read("1.9.0") < read("1.32.0"));
        assert_eq!(read("2026.4.1").to_string(), "2026.4.1");
        for text in ["", "so", ".1", "1..2", "99999999999"] {
            assert_eq!(Version::read(text), None, "{text}");
        }
    }
}
