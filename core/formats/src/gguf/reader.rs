//! Parsing and checking the header of one GGUF file.

use std::collections::HashSet;

use super::metadata::Metadata;
use super::value::{Array, Value};
use super::{ALIGNMENT_KEY, DEFAULT_ALIGNMENT, MAGIC};
use crate::DType;
use crate::error::Fault;
use crate::tensor::{TensorInfo, check_spans, checked_byte_len};

/// The deepest nesting of array values; no known writer nests at all.
const MAX_DEPTH: usize = 8;
/// The most dimensions `ggml` has.
const MAX_DIMENSIONS: u32 = 4;
/// More than any model needs, by two orders of magnitude; a file may be sparse, so its length alone is no bound.
const MAX_TENSORS: u64 = 1 << 22;
/// Elements of all arrays together: the largest vocabularies have a few hundred thousand tokens and merges.
const MAX_ELEMENTS: u64 = 1 << 24;
const MAX_ALIGNMENT: u64 = 1 << 30;

/// One parsed and checked GGUF file.
#[derive(Debug, Clone, PartialEq)]
pub struct Gguf {
    /// The format's version: 2 or 3.
    pub version: u32,
    /// The key-value table.
    pub metadata: Metadata,
    /// The tensors in file order; offsets count from the file's start.
    pub tensors: Vec<TensorInfo>,
    /// Where tensor data begin: everything before is header and padding.
    pub data_begin: u64,
}

/// Parses the header at the beginning of a file.
///
/// `bytes` is the file or a beginning of it that holds the header; `file_len` the file's whole length, against
/// which tensors are checked.
///
/// # Errors
/// Any [`Fault`] of the header or of a tensor's place. [`Fault::Truncated`] with `len` = `bytes.len()` when
/// `bytes` ends inside the header.
pub fn parse(bytes: &[u8], file_len: u64) -> Result<Gguf, Fault> {
    let mut cursor = Cursor { bytes, position: 0, elements: 0 };
    check_magic(bytes)?;
    cursor.position = 4;
    let version = cursor.u32("the version")?;
    check_version(version)?;
    let tensor_count_at = cursor.offset();
    let tensor_count = cursor.u64("the tensor count")?;
    let key_count_at = cursor.offset();
    let key_count = cursor.u64("the metadata count")?;
    // Counts are bounded by the file, not by `bytes`: a caller with a prefix must be told to read on.
    let after_counts = file_len.saturating_sub(cursor.offset());
    check_count("tensors", tensor_count, (after_counts / MIN_TENSOR_INFO).min(MAX_TENSORS), tensor_count_at)?;
    check_count("metadata entries", key_count, after_counts / MIN_ENTRY, key_count_at)?;

    let mut metadata = Metadata::new();
    for _ in 0..key_count {
        let key = cursor.name("a metadata key")?;
        let value = cursor.value(&key)?;
        if metadata.get(&key).is_some() {
            return Err(Fault::DuplicateKey { key });
        }
        metadata.set(key, value);
    }
    let alignment = alignment(&metadata)?;
    // `bytes` must really hold this many before memory is reserved for them.
    let mut tensors = Vec::with_capacity(tensor_count.min(cursor.remaining() / MIN_TENSOR_INFO) as usize);
    let mut names = HashSet::with_capacity(tensors.capacity());
    for _ in 0..tensor_count {
        let tensor = cursor.tensor_info(alignment)?;
        if !names.insert(tensor.name.clone()) {
            return Err(Fault::DuplicateTensor { tensor: tensor.name });
        }
        tensors.push(tensor);
    }
    let data_begin = if tensors.iter().any(|tensor| tensor.len > 0) {
        cursor.offset().next_multiple_of(alignment)
    } else {
        cursor.offset()
    };
    place_tensors(&mut tensors, data_begin, file_len)?;
    Ok(Gguf { version, metadata, tensors, data_begin })
}

/// Bytes of the shortest tensor info: empty name, no dimensions, type, offset.
const MIN_TENSOR_INFO: u64 = 8 + 4 + 4 + 8;
/// Bytes of the shortest metadata entry: empty key, type, one byte.
const MIN_ENTRY: u64 = 8 + 4 + 1;

fn check_magic(bytes: &[u8]) -> Result<(), Fault> {
    let Some(&magic) = bytes.first_chunk::<4>() else {
        return Err(Fault::Truncated {
            what: "the magic number",
            offset: 0,
            needed: 4,
            len: bytes.len() as u64,
        });
    };
    if magic == MAGIC {
        return Ok(());
    }
    let found = match &magic {
        b"ggml" | b"lmgg" | b"tjgg" | b"ggjt" | b"fmgg" | b"ggmf" | b"algg" | b"ggla" => {
            "a GGML file from before GGUF; convert the original model again".to_owned()
        }
        b"vers" => "a Git LFS pointer, not the file itself; run `git lfs pull`".to_owned(),
        _ => format!("not a GGUF file: it begins with {magic:02x?}"),
    };
    Err(Fault::Magic { found })
}

fn check_version(version: u32) -> Result<(), Fault> {
    match version {
        2 | 3 => Ok(()),
        // A byte-swapped small number: the file was written for big-endian machines.
        _ if version.swap_bytes() < 16 && version != 0 && version > 15 => {
            Err(Fault::Magic { found: "a big-endian GGUF file, which only big-endian machines use".into() })
        }
        _ => Err(Fault::Version { format: "GGUF", version, supported: "2 and 3" }),
    }
}

fn check_count(what: &'static str, count: u64, possible: u64, offset: u64) -> Result<(), Fault> {
    if count > possible { Err(Fault::Count { what, count, possible, offset }) } else { Ok(()) }
}

fn alignment(metadata: &Metadata) -> Result<u64, Fault> {
    let Some(value) = metadata.get(ALIGNMENT_KEY) else { return Ok(DEFAULT_ALIGNMENT) };
    match value.as_u64() {
        Some(alignment) if alignment.is_power_of_two() && alignment <= MAX_ALIGNMENT => Ok(alignment),
        _ => Err(Fault::Metadata {
            key: ALIGNMENT_KEY.into(),
            problem: "an alignment must be a power of two".into(),
        }),
    }
}

/// Turns offsets within the data into offsets within the file, and checks that they lie there.
fn place_tensors(tensors: &mut [TensorInfo], data_begin: u64, file_len: u64) -> Result<(), Fault> {
    let mut spans = Vec::with_capacity(tensors.len());
    for (index, tensor) in tensors.iter_mut().enumerate() {
        let begin = tensor.offset.saturating_add(data_begin);
        let end = begin.saturating_add(tensor.len);
        if end > file_len && tensor.len > 0 || end == u64::MAX {
            return Err(Fault::Beyond { tensor: tensor.name.clone(), begin, end, len: file_len });
        }
        // An empty tensor at the end may point past a file that needs no padding.
        tensor.offset = begin.min(file_len);
        spans.push((begin, end, index));
    }
    check_spans(&mut spans, |index| tensors[index].name.as_str(), None)
}

/// Reads forward through untrusted bytes.
struct Cursor<'a> {
    bytes: &'a [u8],
    position: usize,
    /// Array elements met so far.
    elements: u64,
}

impl<'a> Cursor<'a> {
    fn offset(&self) -> u64 {
        self.position as u64
    }

    fn remaining(&self) -> u64 {
        (self.bytes.len() - self.position) as u64
    }

    fn take(&mut self, len: u64, what: &'static str) -> Result<&'a [u8], Fault> {
        if len > self.remaining() {
            let (offset, len_all) = (self.offset(), self.bytes.len() as u64);
            return Err(Fault::Truncated { what, offset, needed: len, len: len_all });
        }
        let begin = self.position;
        self.position += len as usize;
        Ok(&self.bytes[begin..self.position])
    }

    fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], Fault> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N as u64, what)?);
        Ok(out)
    }

    fn u32(&mut self, what: &'static str) -> Result<u32, Fault> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    fn u64(&mut self, what: &'static str) -> Result<u64, Fault> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    fn string_bytes(&mut self, what: &'static str) -> Result<&'a [u8], Fault> {
        let len = self.u64(what)?;
        self.take(len, what)
    }

    fn name(&mut self, what: &'static str) -> Result<String, Fault> {
        let offset = self.offset();
        let bytes = self.string_bytes(what)?;
        std::str::from_utf8(bytes).map(str::to_owned).map_err(|_| Fault::Utf8 { what, offset })
    }

    fn string(&mut self) -> Result<String, Fault> {
        Ok(String::from_utf8_lossy(self.string_bytes("a metadata string")?).into_owned())
    }

    fn bool(&mut self, key: &str) -> Result<bool, Fault> {
        match self.array::<1>("a metadata value")? {
            [0] => Ok(false),
            [1] => Ok(true),
            [other] => {
                Err(Fault::Metadata { key: key.to_owned(), problem: format!("{other} is no truth value") })
            }
        }
    }

    fn value(&mut self, key: &str) -> Result<Value, Fault> {
        const WHAT: &str = "a metadata value";
        let offset = self.offset();
        Ok(match self.u32("a metadata type")? {
            0 => Value::U8(u8::from_le_bytes(self.array(WHAT)?)),
            1 => Value::I8(i8::from_le_bytes(self.array(WHAT)?)),
            2 => Value::U16(u16::from_le_bytes(self.array(WHAT)?)),
            3 => Value::I16(i16::from_le_bytes(self.array(WHAT)?)),
            4 => Value::U32(u32::from_le_bytes(self.array(WHAT)?)),
            5 => Value::I32(i32::from_le_bytes(self.array(WHAT)?)),
            6 => Value::F32(f32::from_le_bytes(self.array(WHAT)?)),
            7 => Value::Bool(self.bool(key)?),
            8 => Value::String(self.string()?),
            9 => Value::Array(self.array_value(key, 1)?),
            10 => Value::U64(u64::from_le_bytes(self.array(WHAT)?)),
            11 => Value::I64(i64::from_le_bytes(self.array(WHAT)?)),
            12 => Value::F64(f64::from_le_bytes(self.array(WHAT)?)),
            found => return Err(Fault::ValueType { key: key.to_owned(), found, offset }),
        })
    }

    fn array_value(&mut self, key: &str, depth: usize) -> Result<Array, Fault> {
        let offset = self.offset();
        if depth > MAX_DEPTH {
            return Err(Fault::Nesting { what: "a metadata array", limit: MAX_DEPTH, offset });
        }
        let kind = self.u32("an array's type")?;
        let count_at = self.offset();
        let count = self.u64("an array's length")?;
        let unknown = || Fault::ValueType { key: key.to_owned(), found: kind, offset };
        let least = match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            8 | 10..=12 => 8,
            9 => 12,
            _ => return Err(unknown()),
        };
        self.elements = self.elements.saturating_add(count);
        if self.elements > MAX_ELEMENTS {
            return Err(Fault::Count {
                what: "array elements",
                count,
                possible: MAX_ELEMENTS,
                offset: count_at,
            });
        }
        if count * least > self.remaining() {
            let (needed, len) = (count * least, self.bytes.len() as u64);
            return Err(Fault::Truncated { what: "a metadata array", offset: self.offset(), needed, len });
        }
        Ok(match kind {
            0 => Array::U8(self.numbers(count, u8::from_le_bytes)?),
            1 => Array::I8(self.numbers(count, i8::from_le_bytes)?),
            2 => Array::U16(self.numbers(count, u16::from_le_bytes)?),
            3 => Array::I16(self.numbers(count, i16::from_le_bytes)?),
            4 => Array::U32(self.numbers(count, u32::from_le_bytes)?),
            5 => Array::I32(self.numbers(count, i32::from_le_bytes)?),
            6 => Array::F32(self.numbers(count, f32::from_le_bytes)?),
            7 => Array::Bool((0..count).map(|_| self.bool(key)).collect::<Result<_, _>>()?),
            8 => Array::String((0..count).map(|_| self.string()).collect::<Result<_, _>>()?),
            9 => {
                Array::Array((0..count).map(|_| self.array_value(key, depth + 1)).collect::<Result<_, _>>()?)
            }
            10 => Array::U64(self.numbers(count, u64::from_le_bytes)?),
            11 => Array::I64(self.numbers(count, i64::from_le_bytes)?),
            12 => Array::F64(self.numbers(count, f64::from_le_bytes)?),
            _ => return Err(unknown()),
        })
    }

    /// `count` numbers of `N` bytes; the caller has checked that they fit.
    fn numbers<T, const N: usize>(&mut self, count: u64, read: fn([u8; N]) -> T) -> Result<Vec<T>, Fault> {
        let bytes = self.take(count * N as u64, "a metadata array")?;
        let (chunks, _) = bytes.as_chunks::<N>();
        Ok(chunks.iter().map(|&chunk| read(chunk)).collect())
    }

    /// One tensor info; `offset` still counts from the beginning of the data.
    fn tensor_info(&mut self, alignment: u64) -> Result<TensorInfo, Fault> {
        let name = self.name("a tensor name")?;
        let dimensions = self.u32("a tensor's dimensions")?;
        if dimensions > MAX_DIMENSIONS {
            let problem = format!("{dimensions} dimensions, more than {MAX_DIMENSIONS}");
            return Err(Fault::Shape { tensor: name, shape: Vec::new(), problem });
        }
        let mut shape =
            (0..dimensions).map(|_| self.u64("a tensor's dimensions")).collect::<Result<Vec<_>, _>>()?;
        shape.reverse();
        let id = self.u32("a tensor's type")?;
        let Some(dtype) = DType::from_ggml_id(id) else {
            return Err(Fault::UnknownDType { tensor: name, dtype: unknown_type(id) });
        };
        let offset = self.u64("a tensor's offset")?;
        if !offset.is_multiple_of(alignment) {
            let problem = format!("it is not a multiple of the alignment {alignment}");
            return Err(Fault::Offset { tensor: name, offset, problem });
        }
        let len = checked_byte_len(&name, dtype, &shape)?;
        Ok(TensorInfo { name, dtype, shape, file: 0, offset, len })
    }
}

/// The name of a type number that is not read: types once withdrawn from `ggml`, or a newer one.
fn unknown_type(id: u32) -> String {
    let withdrawn = match id {
        4 => "q4_2",
        5 => "q4_3",
        9 => "q8_1",
        15 => "q8_k",
        31 => "q4_0_4_4",
        32 => "q4_0_4_8",
        33 => "q4_0_8_8",
        36 => "iq4_nl_4_4",
        37 => "iq4_nl_4_8",
        38 => "iq4_nl_8_8",
        _ => return format!("ggml type {id}"),
    };
    format!("{withdrawn} (ggml type {id}, not used in files any more)")
}
