//! Laying out and writing GGUF files.

use std::collections::HashSet;
use std::path::Path;

use super::metadata::Metadata;
use super::split::split_keys;
use super::value::write_string;
use super::{ALIGNMENT_KEY, DEFAULT_ALIGNMENT, MAGIC, VERSION};
use crate::error::{Error, Fault, Result};
use crate::layout::{FilePlan, Layout, Place, group_by_size};
use crate::tensor::TensorDecl;

/// Plans `{stem}.gguf`, or with `max_file_bytes` of tensor data and more data than that, numbered parts of which
/// the first carries the metadata, as `llama-gguf-split` makes them.
///
/// # Errors
/// [`Fault::DuplicateTensor`], [`Fault::Shape`] (also for more than four dimensions), [`Fault::UnknownDType`] for
/// types GGUF does not have, [`Fault::Metadata`] for an impossible alignment.
pub fn plan(
    stem: &str,
    metadata: &Metadata,
    tensors: &[TensorDecl],
    max_file_bytes: Option<u64>,
) -> Result<Layout, Fault> {
    let alignment = match metadata.get(ALIGNMENT_KEY) {
        None => DEFAULT_ALIGNMENT,
        Some(value) => value.as_u64().filter(|a| a.is_power_of_two() && *a <= 1 << 20).ok_or_else(|| {
            Fault::Metadata {
                key: ALIGNMENT_KEY.into(),
                problem: "an alignment must be a power of two".into(),
            }
        })?,
    };
    let mut names = HashSet::with_capacity(tensors.len());
    let mut sizes = Vec::with_capacity(tensors.len());
    for tensor in tensors {
        if !names.insert(tensor.name.as_str()) {
            return Err(Fault::DuplicateTensor { tensor: tensor.name.clone() });
        }
        if tensor.shape.len() > 4 {
            let problem = "more dimensions than the four GGUF has".into();
            return Err(Fault::Shape { tensor: tensor.name.clone(), shape: tensor.shape.clone(), problem });
        }
        sizes.push(tensor.byte_len()?);
    }
    let groups = group_by_size(&sizes, max_file_bytes);
    let mut layout =
        Layout { files: Vec::new(), places: Vec::with_capacity(tensors.len()), side_files: Vec::new() };
    let count = u16::try_from(groups.len()).map_err(|_| Fault::Split {
        problem: format!("{} parts are too many: allow larger files", groups.len()),
    })?;
    for (number, group) in (0u16..).zip(groups) {
        let (name, metadata) = if count == 1 {
            (format!("{stem}.gguf"), metadata.clone())
        } else {
            let part = part_metadata(metadata, number, count, tensors.len());
            (format!("{stem}-{:05}-of-{count:05}.gguf", number + 1), part)
        };
        let file = plan_file(name, number.into(), &metadata, &tensors[group], alignment, &mut layout.places)?;
        layout.files.push(file);
    }
    Ok(layout)
}

/// The first part carries everything; the others only what is needed to find their data.
fn part_metadata(metadata: &Metadata, number: u16, count: u16, tensors: usize) -> Metadata {
    let mut part = if number == 0 { metadata.clone() } else { Metadata::new() };
    if let Some(alignment) = metadata.get(ALIGNMENT_KEY) {
        part.set(ALIGNMENT_KEY, alignment.clone());
    }
    split_keys(&mut part, number, count, tensors as i32);
    part
}

fn plan_file(
    name: String,
    file: usize,
    metadata: &Metadata,
    tensors: &[TensorDecl],
    alignment: u64,
    places: &mut Vec<Place>,
) -> Result<FilePlan, Fault> {
    let mut header = MAGIC.to_vec();
    header.extend(VERSION.to_le_bytes());
    header.extend((tensors.len() as u64).to_le_bytes());
    header.extend((metadata.len() as u64).to_le_bytes());
    for (key, value) in metadata.iter() {
        write_string(key, &mut header);
        header.extend(value.type_id().to_le_bytes());
        value.write(&mut header);
    }
    let first = places.len();
    let mut end = 0u64;
    for tensor in tensors {
        let Some(id) = tensor.dtype.ggml_id() else {
            let dtype = format!("{}, which GGUF does not have", tensor.dtype);
            return Err(Fault::UnknownDType { tensor: tensor.name.clone(), dtype });
        };
        write_string(&tensor.name, &mut header);
        header.extend((tensor.shape.len() as u32).to_le_bytes());
        for dimension in tensor.shape.iter().rev() {
            header.extend(dimension.to_le_bytes());
        }
        header.extend(id.to_le_bytes());
        header.extend(end.to_le_bytes());
        let len = tensor.byte_len()?;
        places.push(Place { file, offset: end, len });
        end = end.checked_add(len).and_then(|e| e.checked_next_multiple_of(alignment)).ok_or_else(|| {
            let problem = "the file would be larger than 64 bits can count".into();
            Fault::Shape { tensor: tensor.name.clone(), shape: tensor.shape.clone(), problem }
        })?;
    }
    // Padding after the last tensor too, as llama.cpp writes it.
    header.resize((header.len() as u64).next_multiple_of(alignment) as usize, 0);
    let data_begin = header.len() as u64;
    for place in &mut places[first..] {
        place.offset += data_begin;
    }
    Ok(FilePlan { name, header, len: data_begin + end })
}

/// Writes one whole file whose data are at hand.
///
/// # Errors
/// [`Error::Malformed`] for tensors that cannot be written, or data of the wrong length; [`Error::Io`].
pub fn write(path: &Path, metadata: &Metadata, tensors: &[(TensorDecl, &[u8])]) -> Result<()> {
    let decls: Vec<TensorDecl> = tensors.iter().map(|(decl, _)| decl.clone()).collect();
    let mut layout = plan("model", metadata, &decls, None).map_err(Error::malformed(path))?;
    if let (Some(file), Some(name)) = (layout.files.first_mut(), path.file_name()) {
        file.name = name.to_string_lossy().into_owned();
    }
    crate::placed::write_whole(path, layout, tensors)
}
