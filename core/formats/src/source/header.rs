//! Weight files' headers, read into memory.

use std::path::Path;

use crate::error::{Fault, Result};
use crate::mapped::MappedFile;
use crate::{gguf, safetensors};

/// Reads as much of a weight file as its header takes. What is wrong with the header is told when it is parsed.
pub(super) fn open(path: &Path) -> Result<MappedFile> {
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("safetensors") => {
            let prefix = MappedFile::open_prefix(path, 8)?;
            match safetensors::header_len(prefix.bytes(), prefix.len()) {
                Ok(header) => MappedFile::open_prefix(path, header),
                Err(_) => Ok(prefix),
            }
        }
        Some("gguf") => open_gguf(path),
        _ => MappedFile::open_prefix(path, 0),
    }
}

/// The header's length is not known beforehand: more is read until it parses or the file ends.
fn open_gguf(path: &Path) -> Result<MappedFile> {
    const MAX_HEADER: u64 = 1 << 30;
    let mut len = 1 << 20;
    loop {
        let prefix = MappedFile::open_prefix(path, len)?;
        let all = prefix.bytes().len() as u64 == prefix.len();
        match gguf::parse(prefix.bytes(), prefix.len()) {
            Err(Fault::Truncated { .. }) if !all && len < MAX_HEADER => len *= 4,
            _ => return Ok(prefix),
        }
    }
}

/// Where tensor data begin, and the header, of an open file.
pub(super) fn parse_safetensors(file: &MappedFile) -> Result<(u64, safetensors::Header), Fault> {
    let data_begin = safetensors::header_len(file.bytes(), file.len())?;
    let json = file.slice(8, data_begin - 8).ok_or(Fault::Truncated {
        what: "the header",
        offset: 8,
        needed: data_begin - 8,
        len: file.bytes().len() as u64,
    })?;
    Ok((data_begin, safetensors::parse_header(json, file.len())?))
}

/// What is wrong with a weight file, by its header alone.
pub(crate) fn fault(path: &Path) -> Result<Option<Fault>> {
    let file = open(path)?;
    Ok(match path.extension().and_then(|extension| extension.to_str()) {
        Some("safetensors") => parse_safetensors(&file).err(),
        Some("gguf") => gguf::parse(file.bytes(), file.len()).err(),
        _ => None,
    })
}
