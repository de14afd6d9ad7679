//! Parsing and checking a safetensors header.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};

use super::dtype_from_name;
use crate::error::Fault;
use crate::tensor::{TensorInfo, check_spans, checked_byte_len};

/// The largest header the format's owner accepts.
pub const MAX_HEADER: u64 = 100_000_000;

/// A parsed and checked header.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Header {
    /// The free-form `__metadata__` strings, in file order.
    pub metadata: Vec<(String, String)>,
    /// The tensors, in the order of their data; offsets count from the file's start.
    pub tensors: Vec<TensorInfo>,
}

/// Where the tensor data begins: the first eight bytes' claim plus eight, checked against the file's length.
///
/// `prefix` is the file's beginning (eight bytes suffice), `file_len` its whole length.
///
/// # Errors
/// [`Fault::Truncated`] and [`Fault::HeaderTooLarge`].
pub fn header_len(prefix: &[u8], file_len: u64) -> Result<u64, Fault> {
    let Some((length, _)) = prefix.split_first_chunk::<8>() else {
        return Err(Fault::Truncated { what: "the header length", offset: 0, needed: 8, len: file_len });
    };
    let declared = u64::from_le_bytes(*length);
    if declared > MAX_HEADER {
        return Err(Fault::HeaderTooLarge { declared, limit: MAX_HEADER });
    }
    let end = declared + 8;
    if end > file_len {
        return Err(Fault::Truncated { what: "the header", offset: 8, needed: declared, len: file_len });
    }
    Ok(end)
}

/// Parses a whole file.
///
/// # Errors
/// Any [`Fault`] of the header or of a tensor's place.
pub fn parse(file: &[u8]) -> Result<Header, Fault> {
    let data_begin = header_len(file, file.len() as u64)?;
    parse_header(&file[8..data_begin as usize], file.len() as u64)
}

/// Parses the JSON header (without its eight bytes of length) of a file of `file_len` bytes.
///
/// # Errors
/// Any [`Fault`] of the header or of a tensor's place.
pub fn parse_header(json: &[u8], file_len: u64) -> Result<Header, Fault> {
    let data_begin = json.len() as u64 + 8;
    let data_len = file_len.checked_sub(data_begin).ok_or(Fault::Truncated {
        what: "the header",
        offset: 8,
        needed: json.len() as u64,
        len: file_len,
    })?;
    let raw: RawHeader<'_> = serde_json::from_slice(json)
        .map_err(|error| Fault::Json { what: "the header", message: error.to_string() })?;
    let mut names = HashSet::with_capacity(raw.tensors.len());
    let mut tensors = Vec::with_capacity(raw.tensors.len());
    for (name, entry) in raw.tensors {
        if !names.insert(name.clone()) {
            return Err(Fault::DuplicateTensor { tensor: name.into_owned() });
        }
        tensors.push(check_tensor(name.into_owned(), entry, data_begin, data_len)?);
    }
    let mut keys = HashSet::with_capacity(raw.metadata.len());
    if let Some((key, _)) = raw.metadata.iter().find(|(key, _)| !keys.insert(key.as_str())) {
        return Err(Fault::DuplicateKey { key: key.clone() });
    }
    let mut spans: Vec<_> = tensors
        .iter()
        .enumerate()
        .map(|(i, tensor)| (tensor.offset, tensor.offset + tensor.len, i))
        .collect();
    check_spans(&mut spans, |i| tensors[i].name.as_str(), Some((data_begin, file_len)))?;
    tensors.sort_by_key(|tensor| (tensor.offset, tensor.len));
    Ok(Header { metadata: raw.metadata, tensors })
}

fn check_tensor(name: String, entry: Entry<'_>, data_begin: u64, data_len: u64) -> Result<TensorInfo, Fault> {
    let Some(dtype) = dtype_from_name(&entry.dtype) else {
        return Err(Fault::UnknownDType { tensor: name, dtype: entry.dtype.into_owned() });
    };
    let expected = checked_byte_len(&name, dtype, &entry.shape)?;
    let [begin, end] = entry.data_offsets;
    if begin > end {
        let problem = format!("its data would end before they begin, at {end}");
        return Err(Fault::Offset { tensor: name, offset: begin, problem });
    }
    if end > data_len {
        return Err(Fault::Beyond {
            tensor: name,
            begin: begin.saturating_add(data_begin),
            end: end.saturating_add(data_begin),
            len: data_begin + data_len,
        });
    }
    if end - begin != expected {
        let problem = format!("{dtype} of this shape takes {expected} bytes, the file gives {}", end - begin);
        return Err(Fault::Shape { tensor: name, shape: entry.shape, problem });
    }
    Ok(TensorInfo { name, dtype, shape: entry.shape, file: 0, offset: data_begin + begin, len: expected })
}

#[derive(Deserialize)]
struct Entry<'a> {
    #[serde(borrow)]
    dtype: Cow<'a, str>,
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

/// The header as JSON has it, duplicates included: a map type would silently keep the last of them.
#[derive(Default)]
struct RawHeader<'a> {
    metadata: Vec<(String, String)>,
    tensors: Vec<(Cow<'a, str>, Entry<'a>)>,
}

impl<'de> Deserialize<'de> for RawHeader<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct HeaderVisitor;
        impl<'de> Visitor<'de> for HeaderVisitor {
            type Value = RawHeader<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawHeader<'de>, A::Error> {
                let mut header = RawHeader::default();
                let mut has_metadata = false;
                while let Some(Key(key)) = map.next_key()? {
                    if key != "__metadata__" {
                        header.tensors.push((key, map.next_value()?));
                    } else if std::mem::replace(&mut has_metadata, true) {
                        return Err(A::Error::custom("`__metadata__` appears twice"));
                    } else {
                        header.metadata = map.next_value::<Strings>()?.0;
                    }
                }
                Ok(header)
            }
        }
        deserializer.deserialize_map(HeaderVisitor)
    }
}

/// A borrowed key where the JSON has no escapes.
#[derive(Deserialize)]
struct Key<'a>(#[serde(borrow)] Cow<'a, str>);

/// `__metadata__`: an object of strings; `null`, which some writers leave, reads as empty.
struct Strings(Vec<(String, String)>);

impl<'de> Deserialize<'de> for Strings {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct StringsVisitor;
        impl<'de> Visitor<'de> for StringsVisitor {
            type Value = Strings;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of strings")
            }

            fn visit_unit<E>(self) -> Result<Strings, E> {
                Ok(Strings(Vec::new()))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Strings, A::Error> {
                let mut strings = Vec::new();
                while let Some(key) = map.next_key::<String>()? {
                    match map.next_value::<StringOrOther>()? {
                        StringOrOther::String(value) => strings.push((key, value)),
                        StringOrOther::Other(_) => {
                            return Err(A::Error::custom(format!("metadata `{key}` is not a string")));
                        }
                    }
                }
                Ok(Strings(strings))
            }
        }
        deserializer.deserialize_any(StringsVisitor)
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum StringOrOther {
    String(String),
    Other(IgnoredAny),
}
