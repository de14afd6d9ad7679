//! Laying out and writing safetensors files.

use std::collections::HashSet;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::{INDEX_NAME, dtype_name};
use crate::error::{Error, Fault, Result};
use crate::layout::{FilePlan, Layout, Place, group_by_size};
use crate::tensor::TensorDecl;

/// Plans `{stem}.safetensors`, or with `max_file_bytes` and more data than that, numbered shards and their index.
///
/// Within a file data are ordered by falling element size, as the format's owner does, so that every tensor is
/// aligned to its element.
///
/// # Errors
/// [`Fault::DuplicateTensor`], [`Fault::Shape`], [`Fault::UnknownDType`] for block types.
pub fn plan(
    stem: &str,
    tensors: &[TensorDecl],
    metadata: &[(&str, &str)],
    max_file_bytes: Option<u64>,
) -> Result<Layout, Fault> {
    let mut names = HashSet::with_capacity(tensors.len());
    let mut sizes = Vec::with_capacity(tensors.len());
    for tensor in tensors {
        if tensor.name == "__metadata__" || !names.insert(tensor.name.as_str()) {
            return Err(Fault::DuplicateTensor { tensor: tensor.name.clone() });
        }
        if dtype_name(tensor.dtype).is_none() {
            let dtype = format!("{}, which safetensors does not have", tensor.dtype);
            return Err(Fault::UnknownDType { tensor: tensor.name.clone(), dtype });
        }
        sizes.push(tensor.byte_len()?);
    }
    let groups = group_by_size(&sizes, max_file_bytes);
    let mut layout = Layout {
        files: Vec::new(),
        places: vec![Place { file: 0, offset: 0, len: 0 }; tensors.len()],
        side_files: Vec::new(),
    };
    let mut weight_map = Map::new();
    for (number, group) in groups.iter().enumerate() {
        let name = if groups.len() == 1 {
            format!("{stem}.safetensors")
        } else {
            format!("{stem}-{:05}-of-{:05}.safetensors", number + 1, groups.len())
        };
        for tensor in &tensors[group.clone()] {
            weight_map.insert(tensor.name.clone(), name.clone().into());
        }
        let file = plan_file(name, number, group.clone(), tensors, metadata, &mut layout.places)?;
        layout.files.push(file);
    }
    if groups.len() > 1 {
        weight_map.sort_keys();
        let total: u64 = sizes.iter().sum();
        let index = json!({ "metadata": { "total_size": total }, "weight_map": weight_map });
        let name = if stem == "model" { INDEX_NAME.into() } else { format!("{stem}.safetensors.index.json") };
        layout.side_files.push((name, format!("{index:#}\n").into_bytes()));
    }
    Ok(layout)
}

fn plan_file(
    name: String,
    file: usize,
    group: std::ops::Range<usize>,
    tensors: &[TensorDecl],
    metadata: &[(&str, &str)],
    places: &mut [Place],
) -> Result<FilePlan, Fault> {
    let mut order: Vec<usize> = group.collect();
    order.sort_by_key(|&i| std::cmp::Reverse(tensors[i].dtype.block_bytes()));
    let mut header = Map::new();
    if !metadata.is_empty() {
        let strings: Map<String, Value> =
            metadata.iter().map(|&(key, value)| (key.to_owned(), value.into())).collect();
        header.insert("__metadata__".into(), strings.into());
    }
    let mut end = 0u64;
    for &i in &order {
        let tensor = &tensors[i];
        let begin = end;
        end = begin.checked_add(tensor.byte_len()?).ok_or_else(|| Fault::Shape {
            tensor: tensor.name.clone(),
            shape: tensor.shape.clone(),
            problem: "the file would be larger than 64 bits can count".into(),
        })?;
        places[i] = Place { file, offset: begin, len: end - begin };
        header.insert(
            tensor.name.clone(),
            json!({ "dtype": dtype_name(tensor.dtype), "shape": tensor.shape, "data_offsets": [begin, end] }),
        );
    }
    let mut json = Value::Object(header).to_string().into_bytes();
    json.resize(json.len().next_multiple_of(8), b' ');
    let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
    bytes.append(&mut json);
    let data_begin = bytes.len() as u64;
    for &i in &order {
        places[i].offset += data_begin;
    }
    Ok(FilePlan { name, header: bytes, len: data_begin + end })
}

/// Writes one whole file whose data are at hand.
///
/// # Errors
/// [`Error::Malformed`] for tensors that cannot be written, or data of the wrong length; [`Error::Io`].
pub fn write(path: &Path, tensors: &[(TensorDecl, &[u8])], metadata: &[(&str, &str)]) -> Result<()> {
    let decls: Vec<TensorDecl> = tensors.iter().map(|(decl, _)| decl.clone()).collect();
    let mut layout = plan("model", &decls, metadata, None).map_err(Error::malformed(path))?;
    if let (Some(file), Some(name)) = (layout.files.first_mut(), path.file_name()) {
        file.name = name.to_string_lossy().into_owned();
    }
    crate::placed::write_whole(path, layout, tensors)
}
