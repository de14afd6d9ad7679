//! Arrays as NumPy keeps them: one in a `.npy` file, several by name in an `.npz` archive.
//!
//! Specification: <https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html>. Read are little-endian numbers in C order;
//! objects, which are pickles, are refused.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use zip::ZipArchive;

use crate::DType;
use crate::error::{Error, Fault, Result};
use crate::tensor::{MAX_DIMENSIONS, checked_byte_len};

const MAGIC: &[u8; 6] = b"\x93NUMPY";
/// Longest header that is read, in bytes: those of plain arrays take less than a hundred.
const MAX_HEADER: u64 = 64 << 10;
/// Largest array that is read, in bytes: an archive may promise any size.
const MAX_BYTES: u64 = 4 << 30;
/// Most arrays of an archive.
const MAX_ARRAYS: usize = 1 << 16;

/// An array.
#[derive(Debug, Clone, PartialEq)]
pub struct Array {
    /// The numbers' type.
    pub dtype: DType,
    /// Sizes, outermost first; none for a single number.
    pub shape: Vec<u64>,
    /// The numbers, little-endian, innermost dimension first.
    pub bytes: Vec<u8>,
}

/// Reads a file: a `.npy` file's array under an empty name, or each of an `.npz` archive's under its own, in the archive's order.
///
/// # Errors
/// [`Error::Io`], and [`Error::Malformed`] for what is neither, is cut off, or holds something else than numbers.
pub fn read(path: &Path) -> Result<Vec<(String, Array)>> {
    let open = || File::open(path).map_err(Error::io(path, "open"));
    let is_archive = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("npz"));
    if !is_archive {
        let array = parse(BufReader::new(open()?), "the array").map_err(Error::malformed(path))?;
        return Ok(vec![(String::new(), array)]);
    }
    let broken = |problem: String| {
        Error::malformed(path)(Fault::Magic { found: format!("no NumPy archive: {problem}") })
    };
    let mut archive = ZipArchive::new(BufReader::new(open()?)).map_err(|error| broken(error.to_string()))?;
    if archive.len() > MAX_ARRAYS {
        return Err(broken(format!("it claims {} arrays, {MAX_ARRAYS} are the most", archive.len())));
    }
    let mut arrays = Vec::new();
    for index in 0..archive.len() {
        let entry = archive.by_index(index).map_err(|error| broken(error.to_string()))?;
        let name = entry.name().map_err(|error| broken(error.to_string()))?.into_owned();
        let Some(stem) = name.strip_suffix(".npy") else { continue };
        let array = parse(entry, &name).map_err(Error::malformed(path))?;
        arrays.push((stem.to_owned(), array));
    }
    Ok(arrays)
}

/// Reads one array.
fn parse(mut reader: impl Read, name: &str) -> Result<Array, Fault> {
    let broken = |problem: &str| Fault::Metadata { key: name.to_owned(), problem: problem.to_owned() };
    let mut exactly = |len: u64| -> Result<Vec<u8>, Fault> {
        let mut bytes = Vec::new();
        let read = reader.by_ref().take(len).read_to_end(&mut bytes);
        let read = read.map_err(|error| broken(&format!("cannot be read: {error}")))? as u64;
        if read == len { Ok(bytes) } else { Err(broken(&format!("ends after {read} of {len} bytes"))) }
    };
    let head = exactly(8)?;
    if !head.starts_with(MAGIC) {
        return Err(Fault::Magic { found: format!("{name} is no NumPy array") });
    }
    let length = match head[6] {
        1 => u64::from(u16::from_le_bytes(exactly(2)?.try_into().unwrap_or_default())),
        2 | 3 => u64::from(u32::from_le_bytes(exactly(4)?.try_into().unwrap_or_default())),
        other => {
            return Err(Fault::Version { format: "NumPy array", version: other.into(), supported: "1 to 3" });
        }
    };
    if length > MAX_HEADER {
        return Err(Fault::HeaderTooLarge { declared: length, limit: MAX_HEADER });
    }
    let header = String::from_utf8(exactly(length)?).map_err(|_| broken("has a header that is no text"))?;
    let told = after(&header, "descr").and_then(quoted).ok_or_else(|| {
        broken("does not tell a plain number type: save it as numbers, without fields or objects")
    })?;
    let dtype =
        dtype(told).ok_or_else(|| broken(&format!("holds `{told}`, which is no little-endian number")))?;
    if !after(&header, "fortran_order").is_some_and(|rest| rest.starts_with("False")) {
        return Err(broken("is in Fortran order: save numpy.ascontiguousarray of it"));
    }
    let shape = after(&header, "shape").and_then(sizes).ok_or_else(|| broken("does not tell its shape"))?;
    let len = checked_byte_len(name, dtype, &shape)?;
    if len > MAX_BYTES {
        return Err(broken(&format!("takes {len} bytes, {MAX_BYTES} are the most")));
    }
    Ok(Array { dtype, shape, bytes: exactly(len)? })
}

/// What follows a key of the header, a Python dictionary.
fn after<'h>(header: &'h str, key: &str) -> Option<&'h str> {
    let (_, rest) = header.split_once(&format!("'{key}':"))?;
    Some(rest.trim_start())
}

fn quoted(text: &str) -> Option<&str> {
    Some(text.strip_prefix('\'')?.split_once('\'')?.0)
}

/// A tuple of sizes.
fn sizes(text: &str) -> Option<Vec<u64>> {
    let (inside, _) = text.strip_prefix('(')?.split_once(')')?;
    let sizes = inside.split(',').map(str::trim).filter(|size| !size.is_empty());
    let sizes: Vec<u64> = sizes.map(|size| size.parse().ok()).collect::<Option<_>>()?;
    (sizes.len() <= MAX_DIMENSIONS).then_some(sizes)
}

fn dtype(told: &str) -> Option<DType> {
    Some(match told {
        "<f8" => DType::F64,
        "<f4" => DType::F32,
        "<f2" => DType::F16,
        "<i8" => DType::I64,
        "<i4" => DType::I32,
        "<i2" => DType::I16,
        "|i1" | "<i1" => DType::I8,
        "<u8" => DType::U64,
        "<u4" => DType::U32,
        "<u2" => DType::U16,
        "|u1" | "<u1" => DType::U8,
        "|b1" => DType::Bool,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use proptest::prelude::*;

    use super::*;

    fn file(descr: &str, order: &str, shape: &str, data: &[u8]) -> Vec<u8> {
        let header = format!("{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}\n");
        let mut bytes = MAGIC.to_vec();
        bytes.extend([1, 0]);
        bytes.extend((header.len() as u16).to_le_bytes());
        bytes.extend(header.as_bytes());
        bytes.extend(data);
        bytes
    }

    #[test]
    fn arrays_and_archives_read_as_they_were_written() {
        let dir = tempfile::tempdir().unwrap();
        let data: Vec<u8> = (0..24).collect();
        let plain = file("'<f4'", "False", "(2, 3)", &data);
        let path = dir.path().join("a.npy");
        std::fs::write(&path, &plain).unwrap();
        let due = Array { dtype: DType::F32, shape: vec![2, 3], bytes: data };
        assert_eq!(read(&path).unwrap(), [(String::new(), due.clone())]);
        let path = dir.path().join("a.npz");
        let mut archive = zip::ZipWriter::new(File::create(&path).unwrap());
        for (name, bytes) in
            [("x.npy", plain), ("readme", vec![1]), ("rate.npy", file("'<i8'", "False", "()", &[7; 8]))]
        {
            archive.start_file(name, zip::write::SimpleFileOptions::default()).unwrap();
            archive.write_all(&bytes).unwrap();
        }
        archive.finish().unwrap();
        let rate = Array { dtype: DType::I64, shape: vec![], bytes: vec![7; 8] };
        assert_eq!(read(&path).unwrap(), [("x".to_owned(), due), ("rate".to_owned(), rate)]);
    }

    #[test]
    fn each_broken_array_is_refused_with_the_reason() {
        let table: &[(Vec<u8>, &str)] = &[
            (b"PK\x03\x04    ".to_vec(), "no NumPy array"),
            (file("'<f4'", "False", "(2, 3)", &[0; 20]), "ends after 20 of 24"),
            (file("'>f4'", "False", "(1,)", &[0; 4]), "no little-endian number"),
            (file("'|O'", "False", "(1,)", &[0; 4]), "`|O`"),
            (file("[('a', '<f4')]", "False", "(1,)", &[0; 4]), "without fields"),
            (file("'<f4'", "True", "(1, 2)", &[0; 8]), "Fortran"),
            (file("'<f4'", "False", "(99999999999, 99999999999)", &[]), "shape"),
            (file("'<f4'", "False", "(4294967296,)", &[]), "are the most"),
            (file("'<f4'", "False", "(-1,)", &[]), "does not tell its shape"),
        ];
        for (bytes, words) in table {
            let message = parse(&bytes[..], "x").expect_err(words).to_string();
            assert!(message.contains(words), "{message:?} does not say {words:?}");
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.npz");
        std::fs::write(&path, b"not an archive").unwrap();
        assert!(read(&path).unwrap_err().to_string().contains("no NumPy archive"));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&bytes[..], "x");
            let mut headed = MAGIC.to_vec();
            headed.extend(&bytes);
            let _ = parse(&headed[..], "x");
        }
    }
}
