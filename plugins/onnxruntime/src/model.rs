//! A model's files as the runtime is to see them.

use std::path::{Path, PathBuf};

use drophammer_formats::onnx::{self, Attribute};
use drophammer_formats::source::read_json;
use drophammer_sdk::{BackendError, ErrorCode, Result};

/// Files of a graph that is read to change it: graphs with their weights inside are left as they are.
const LARGEST_GRAPH: u64 = 256 << 20;

/// The graph's file: `path` itself, or what a directory's `genai_config.json` names, or its only one.
///
/// # Errors
/// [`ErrorCode::InvalidInput`] where there is none, or the directory's configuration cannot be read.
pub(crate) fn file(path: &Path) -> Result<PathBuf> {
    let directory = if path.is_file() { path.parent().unwrap_or(Path::new("")) } else { path };
    let config = directory.join("genai_config.json");
    let config = if config.exists() {
        // A directory whose configuration is damaged is not whole, whatever the graph's file says.
        Some(read_json(&config).map_err(|error| {
            BackendError::new(ErrorCode::InvalidInput, error.to_string()).with_help(
                "Make the directory again, or put the .onnx file and its data into one of their own.",
            )
        })?)
    } else {
        None
    };
    if path.is_file() {
        return Ok(path.to_owned());
    }
    let named = config.as_ref().and_then(|config| config.pointer("/model/decoder/filename")?.as_str());
    let name = named.unwrap_or("model.onnx");
    let plain = Path::new(name).components().count() == 1 && !name.contains("..");
    let found = Some(path.join(name)).filter(|file| plain && file.is_file());
    found.ok_or_else(|| {
        BackendError::new(ErrorCode::InvalidInput, format!("{}: holds no {name}", path.display()))
            .with_help("Name the .onnx file itself.")
    })
}

/// The longest sequence that the directory's `genai_config.json` tells.
pub(crate) fn told_context(file: &Path) -> Option<u32> {
    let config = read_json(&file.parent()?.join("genai_config.json")).ok()?;
    u32::try_from(config.pointer("/model/context_length")?.as_u64()?).ok()
}

/// Heads of keys and values, and their width, as the directory's `genai_config.json` tells them: its owner's builder leaves the width open
/// in the graph.
pub(crate) fn told_heads(file: &Path) -> [Option<usize>; 2] {
    let config = file.parent().and_then(|folder| read_json(&folder.join("genai_config.json")).ok());
    ["num_key_value_heads", "head_size"].map(|key| {
        let size = config.as_ref()?.pointer("/model/decoder")?.get(key)?.as_u64()?;
        usize::try_from(size).ok().filter(|size| *size > 0)
    })
}

/// The graph with products of blocks in float32, where it has any that would round activations to eight bits.
///
/// # Errors
/// When the file cannot be read.
pub(crate) fn exact(file: &Path) -> Result<Option<Vec<u8>>> {
    let unreadable = |problem: String| {
        BackendError::new(ErrorCode::InvalidInput, format!("{}: {problem}", file.display()))
            .with_help("Check that the file is complete.")
    };
    let length = std::fs::metadata(file).map_err(|error| unreadable(error.to_string()))?.len();
    if length > LARGEST_GRAPH {
        return Ok(None);
    }
    let bytes = std::fs::read(file).map_err(|error| unreadable(error.to_string()))?;
    let unsound = |fault: drophammer_formats::Fault| unreadable(fault.to_string()).with_help(fault.help());
    let mut model = onnx::parse(&bytes).map_err(unsound)?;
    let mut changed = false;
    let kinds = ["MatMulNBits", "QMoE"];
    let nodes = model.graph.nodes.iter_mut().filter(|node| kinds.contains(&node.op_type.as_str()));
    for (name, value) in nodes.flat_map(|node| node.attributes.iter_mut()) {
        if name == "accuracy_level" && *value != Attribute::Int(0) {
            *value = Attribute::Int(0);
            changed = true;
        }
    }
    if !changed || model.functions > 0 {
        return Ok(None);
    }
    model.graph.hold(&bytes);
    let layout = onnx::plan("model", &model, &[]).map_err(unsound)?;
    Ok(layout.side_files.into_iter().next().map(|(_, content)| content))
}
