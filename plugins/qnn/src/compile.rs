//! From a graph to a context binary, by the QNN provider.

use std::collections::BTreeSet;
use std::path::Path;

use drophammer_formats::layout::Layout;
use drophammer_formats::onnx::{self, Attribute, InitializerData};
use drophammer_ort::failed;
use drophammer_ort::placement::{self, Placement};
use drophammer_sdk::{BackendError, ErrorCode, Result};
use ort::environment::Environment;
use ort::session::Session;
use ort::session::builder::SessionBuilder;

use crate::artifact::{self, Compiled};
use crate::provider::{self, NAME};
use crate::soc::Soc;

/// The largest graph around a context that is read.
const LARGEST: u64 = 64 << 20;
/// The most bytes of weights of a graph that is compiled only to see what goes where.
const MOST_ASKED: u64 = 256 << 20;

/// Compiles `graph` for a chip, into `{stem}.onnx` of `folder` and the binary beside it.
///
/// # Errors
/// When the compiler refuses, puts nothing on the NPU, or writes no binary.
pub(crate) fn compile(
    environment: &Environment,
    graph: &Path,
    folder: &Path,
    stem: &str,
    soc: &Soc,
) -> Result<Compiled> {
    let model = format!("{stem}.onnx");
    let target = folder.join(&model);
    // What an interrupted attempt left would be refused.
    for name in [model.clone(), format!("{stem}_qnn.bin")] {
        let _ = std::fs::remove_file(folder.join(name));
    }
    let entries = [
        ("ep.context_enable", "1".to_owned()),
        ("ep.context_file_path", target.display().to_string()),
        ("ep.context_embed_mode", "0".to_owned()),
        as_written(),
    ];
    let refused = |problem: String| {
        let message = format!("{stem}: the QNN compiler refuses the graph for {}: {problem}", soc.name);
        BackendError::new(ErrorCode::Failed, message)
            .with_help("The job's log holds QNN's own messages; another scheme or chip may do.")
    };
    let session = from_memory(provider::on_npu(environment, &options(soc, 3), &entries)?, graph)?
        .map_err(|error| refused(error.message().to_owned()))?;
    let placement = placement::of(&session)?;
    drop(session);
    if placement.get(NAME).is_none_or(std::collections::BTreeMap::is_empty) {
        return Err(refused("it takes none of its operations".into()));
    }
    let mut files = vec![artifact::told(folder, &model)?];
    for binary in binaries(&target)? {
        if !folder.join(&binary).is_file() {
            return Err(refused(format!("{binary} was not written")));
        }
        files.push(artifact::told(folder, &binary)?);
    }
    if files.len() < 2 {
        return Err(refused("no binary was written".into()));
    }
    Ok(Compiled { model, files, placement })
}

/// The compiler's options for a chip; `effort` goes from 0 to 3.
fn options(soc: &Soc, effort: u8) -> [(&'static str, String); 4] {
    [
        ("htp_arch", soc.htp_arch.to_string()),
        ("soc_model", soc.model.to_string()),
        ("htp_graph_finalization_optimization_mode", effort.to_string()),
        ("enable_htp_fp16_precision", "1".to_owned()),
    ]
}

/// The setting without which the runtime would round the weights of what was left in floats between whole numbers.
fn as_written() -> (&'static str, String) {
    ("optimization.disable_specified_optimizers", "WeightBiasQuantization".to_owned())
}

/// Where the compiler would put the operations of the graphs of a layout, by their files' names. Nothing is written, and weights are not
/// read: any will do. `None` where they are too many to ask beforehand.
///
/// # Errors
/// When the compiler refuses one.
pub(crate) fn ask(
    environment: &Environment,
    layout: &Layout,
    soc: &Soc,
) -> Result<Option<Vec<(String, Placement)>>> {
    let bytes: u64 = layout.files.iter().map(|file| file.len).sum();
    if bytes > MOST_ASKED {
        return Ok(None);
    }
    let mut told = Vec::new();
    for (name, graph) in &layout.side_files {
        let mut builder = provider::on_npu(environment, &options(soc, 0), &[as_written()])?;
        for file in &layout.files {
            // As floats, whole numbers and scales these bytes are usual numbers.
            let filling = vec![0x3c; file.len as usize];
            builder = builder
                .with_external_initializer_file_in_memory(&file.name, filling.into())
                .map_err(|error| failed("a session cannot be prepared", &error))?;
        }
        let session = builder.commit_from_memory(graph).map_err(|error| {
            let message = format!("the QNN compiler refuses {name} for {}: {}", soc.name, error.message());
            BackendError::new(ErrorCode::UnsupportedInput, message).with_help(
                "Check a graph of your own with onnx.checker; another scheme, chip or runtime may do.",
            )
        })?;
        told.push((name.clone(), placement::of(&session)?));
    }
    Ok(Some(told))
}

/// A session of a graph and the data beside it, neither of which has a path then: the runtime calls what it compiles by a digest of the
/// path, which would be another one in every build.
fn from_memory(builder: SessionBuilder, graph: &Path) -> Result<ort::Result<Session>> {
    let unreadable = |path: &Path, error: std::io::Error| {
        BackendError::new(ErrorCode::Failed, format!("{}: {error}", path.display()))
            .with_help("Check free space and permissions.")
    };
    let bytes = std::fs::read(graph).map_err(|error| unreadable(graph, error))?;
    let model = onnx::parse(&bytes).map_err(|fault| {
        BackendError::new(ErrorCode::Failed, format!("{}: {fault}", graph.display()))
            .with_help("This is a fault of the program: report it.")
    })?;
    let external = model.graph.initializers.iter().filter_map(|tensor| match &tensor.data {
        InitializerData::External { location, .. } => Some(location.as_str()),
        _ => None,
    });
    let mut builder = builder;
    for location in external.collect::<BTreeSet<_>>() {
        let path = graph.with_file_name(location);
        let data = std::fs::read(&path).map_err(|error| unreadable(&path, error))?;
        builder = builder
            .with_external_initializer_file_in_memory(location, data.into())
            .map_err(|error| failed("a session cannot be prepared", &error))?;
    }
    Ok(builder.commit_from_memory(&bytes))
}

/// The binaries that a graph of contexts names.
fn binaries(model: &Path) -> Result<Vec<String>> {
    let unreadable = |problem: String| {
        BackendError::new(ErrorCode::Failed, format!("{}: {problem}", model.display()))
            .with_help("The job's log holds QNN's own messages.")
    };
    let length = std::fs::metadata(model).map_err(|error| unreadable(error.to_string()))?.len();
    if length > LARGEST {
        return Err(unreadable("is too large".into()));
    }
    let bytes = std::fs::read(model).map_err(|error| unreadable(error.to_string()))?;
    let parsed = onnx::parse(&bytes).map_err(|fault| unreadable(fault.to_string()))?;
    let contexts = parsed.graph.nodes.iter().filter(|node| node.op_type == "EPContext");
    let mut names: Vec<String> = contexts
        .flat_map(|node| &node.attributes)
        .filter_map(|(name, value)| match value {
            Attribute::String(text) if name == "ep_cache_context" => String::from_utf8(text.clone()).ok(),
            _ => None,
        })
        .filter(|name| !name.is_empty())
        .collect();
    names.sort();
    names.dedup();
    Ok(names)
}
