//! Which operations of a session went to which provider.

use std::collections::BTreeMap;
use std::ffi::{CStr, c_char};
use std::path::Path;
use std::ptr;

use drophammer_sdk::{BackendError, ErrorCode, Result};
use ort::AsPointer;
use ort::environment::Environment;
use ort::session::Session;
use ort::session::builder::SessionBuilder;
use ort::sys::{OrtEpAssignedNode, OrtEpAssignedSubgraph, OrtStatusPtr};

use crate::{failed, graph, provider};

/// The session setting without which nothing is recorded; set it to `1`.
pub const RECORD: &str = "session.record_ep_graph_assignment_info";

/// Operations by provider and kind.
pub type Placement = BTreeMap<String, BTreeMap<String, u64>>;

/// A placement in words: how much a provider takes, which is called `name`, and what is left to the processor.
pub fn told(placement: &Placement, provider: &str, name: &str) -> String {
    let taken: u64 = placement.get(provider).map_or(0, |kinds| kinds.values().sum());
    let others = placement.iter().filter(|(other, _)| *other != provider).flat_map(|(_, kinds)| kinds);
    let others: Vec<String> = others.map(|(kind, count)| format!("{count} {kind}")).collect();
    if others.is_empty() {
        format!("all {taken} operations on {name}")
    } else {
        format!("{taken} operations on {name}, on the processor {}", others.join(", "))
    }
}

/// Where a graph's operations would go with each of the providers that have devices here, in words.
///
/// # Errors
/// What the library has against the graph.
pub fn by_provider(environment: &Environment, graph: &Path) -> Result<Vec<String>> {
    told_by_provider(environment, graph, |mut builder| builder.commit_from_file(graph))
}

/// The same of a graph whose file is not there yet: `bytes` are what it will be, but for its weights, which may be inputs. `graph` is what
/// it is called in errors.
///
/// # Errors
/// What the library has against the graph.
pub fn by_provider_of(environment: &Environment, bytes: &[u8], graph: &Path) -> Result<Vec<String>> {
    told_by_provider(environment, graph, |mut builder| builder.commit_from_memory(bytes))
}

fn told_by_provider(
    environment: &Environment,
    graph: &Path,
    open: impl Fn(SessionBuilder) -> ort::Result<Session>,
) -> Result<Vec<String>> {
    let refused = |error: ort::Error<_>| failed("a session cannot be prepared", &error);
    let mut told_all = Vec::new();
    for name in provider::names(environment) {
        let builder = Session::builder(environment)
            .map_err(|error| failed("a session cannot be prepared", &error))?
            .with_config_entry(RECORD, "1")
            .map_err(refused)?
            .with_devices(provider::devices(environment, &name), None)
            .map_err(refused)?;
        let session = open(builder).map_err(|error| graph::refusal(graph, &error))?;
        told_all.push(told(&of(&session)?, &name, &name));
    }
    Ok(told_all)
}

/// Where a session's operations went. It must have been made with [`RECORD`].
///
/// # Errors
/// When the library has no record.
#[allow(unsafe_code)] // the crate `ort` has no wrapper of these functions
pub fn of(session: &Session) -> Result<Placement> {
    let api = ort::api();
    let mut placement = Placement::new();
    // SAFETY: the session is alive for the whole function, and what these functions give belongs to it: arrays of so many
    // pointers, and strings that end with zero. All are written before they are read, as success says.
    unsafe {
        let mut graphs: *const *const OrtEpAssignedSubgraph = ptr::null();
        let mut count = 0;
        check((api.Session_GetEpGraphAssignmentInfo)(session.ptr(), &raw mut graphs, &raw mut count))?;
        for graph in 0..count {
            let graph = *graphs.add(graph);
            let provider = text(|out| (api.EpAssignedSubgraph_GetEpName)(graph, out))?;
            let operations = placement.entry(provider).or_default();
            let mut nodes: *const *const OrtEpAssignedNode = ptr::null();
            let mut count = 0;
            check((api.EpAssignedSubgraph_GetNodes)(graph, &raw mut nodes, &raw mut count))?;
            for node in 0..count {
                let node = *nodes.add(node);
                let kind = text(|out| (api.EpAssignedNode_GetOperatorType)(node, out))?;
                *operations.entry(kind).or_default() += 1;
            }
        }
    }
    Ok(placement)
}

/// A text that a function of the library points to.
#[allow(unsafe_code)]
fn text(ask: impl FnOnce(*mut *const c_char) -> OrtStatusPtr) -> Result<String> {
    let mut out = ptr::null();
    check(ask(&raw mut out))?;
    if out.is_null() {
        return Ok(String::new());
    }
    // SAFETY: on success `out` points to a string that ends with zero and lives as long as its session.
    Ok(unsafe { CStr::from_ptr(out) }.to_string_lossy().into_owned())
}

#[allow(unsafe_code)]
fn check(status: OrtStatusPtr) -> Result<()> {
    if status.0.is_null() {
        return Ok(());
    }
    // SAFETY: a status that is not null is an error of the library's, which the caller gives back.
    unsafe { (ort::api().ReleaseStatus)(status.0) };
    Err(BackendError::new(ErrorCode::Failed, "ONNX Runtime does not say where a session's operations went")
        .with_help("Use ONNX Runtime 1.24 or newer."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placements_are_told() {
        let kinds =
            |list: &[(&str, u64)]| list.iter().map(|(kind, count)| ((*kind).to_owned(), *count)).collect();
        let mut placement = Placement::from([("npu".to_owned(), kinds(&[("Gemm", 7), ("Add", 2)]))]);
        assert_eq!(told(&placement, "npu", "the NPU"), "all 9 operations on the NPU");
        placement.insert("CPUExecutionProvider".into(), kinds(&[("Gather", 1)]));
        assert_eq!(told(&placement, "npu", "the NPU"), "9 operations on the NPU, on the processor 1 Gather");
    }
}
