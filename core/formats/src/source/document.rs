//! JSON documents beside the weights, read with a bound on their size.

use std::borrow::Cow;
use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use serde_json::Value as Json;

use crate::error::{Error, Fault, Result};
use crate::safetensors::{ShardIndex, parse_index};

/// Far more than any configuration; the indices of the largest models take a few megabytes.
const MAX_DOCUMENT: u64 = 256 << 20;

/// Reads a JSON document.
///
/// # Errors
/// [`Error::Io`], and [`Error::Malformed`] for one that is too large or does not parse.
pub fn read_json(path: &Path) -> Result<Json> {
    parse_json(&read_bounded(path)?).map_err(Error::malformed(path))
}

/// Parses JSON as Python writes it: `NaN`, `Infinity` and `-Infinity` read as `null`, and a byte order mark is
/// skipped.
///
/// # Errors
/// [`Fault::Json`].
pub fn parse_json(bytes: &[u8]) -> Result<Json, Fault> {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    serde_json::from_slice(bytes).or_else(|error| {
        let retried = match without_non_finite(bytes) {
            Cow::Owned(repaired) => serde_json::from_slice(&repaired).ok(),
            Cow::Borrowed(_) => None,
        };
        retried.ok_or_else(|| Fault::Json { what: "the JSON document", message: error.to_string() })
    })
}

/// Reads a shard index.
pub(super) fn read_index(path: &Path) -> Result<ShardIndex> {
    parse_index(&read_bounded(path)?).map_err(Error::malformed(path))
}

fn read_bounded(path: &Path) -> Result<Vec<u8>> {
    let file = File::open(path).map_err(Error::io(path, "open"))?;
    let mut bytes = Vec::new();
    file.take(MAX_DOCUMENT + 1).read_to_end(&mut bytes).map_err(Error::io(path, "read"))?;
    if bytes.len() as u64 > MAX_DOCUMENT {
        let declared = std::fs::metadata(path).map_or(MAX_DOCUMENT + 1, |metadata| metadata.len());
        return Err(Error::malformed(path)(Fault::HeaderTooLarge { declared, limit: MAX_DOCUMENT }));
    }
    Ok(bytes)
}

/// Replaces the three words JSON does not have by `null`, outside of strings.
fn without_non_finite(bytes: &[u8]) -> Cow<'_, [u8]> {
    let mut out = Vec::new();
    let (mut position, mut copied, mut in_string) = (0, 0, false);
    while position < bytes.len() {
        match bytes[position] {
            b'\\' if in_string => position += 1,
            b'"' => in_string = !in_string,
            _ if !in_string => {
                let rest = &bytes[position..];
                let word = [&b"-Infinity"[..], b"Infinity", b"NaN"].into_iter().find(|w| rest.starts_with(w));
                if let Some(word) = word {
                    out.extend_from_slice(&bytes[copied..position]);
                    out.extend_from_slice(b"null");
                    position += word.len();
                    copied = position;
                    continue;
                }
            }
            _ => {}
        }
        position += 1;
    }
    if copied == 0 {
        return Cow::Borrowed(bytes);
    }
    out.extend_from_slice(&bytes[copied..]);
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn numbers_that_python_writes_and_json_lacks_read_as_null() {
        let text = br#"{"a": [0.0, Infinity], "b": -Infinity, "c": "NaN \" Infinity", "d": NaN}"#;
        let expected = json!({"a": [0.0, null], "b": null, "c": "NaN \" Infinity", "d": null});
        assert_eq!(parse_json(text).unwrap(), expected);
        assert_eq!(parse_json(b"\xef\xbb\xbf{}").unwrap(), json!({}));
    }

    #[test]
    fn broken_and_deeply_nested_documents_are_errors() {
        for text in [&b""[..], b"{", b"{\"a\":}", b"nul", &b"[".repeat(100_000)] {
            assert!(matches!(parse_json(text), Err(Fault::Json { .. })));
        }
    }
}
