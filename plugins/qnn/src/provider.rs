//! ONNX Runtime with the QNN provider in it.

use std::path::Path;

use drophammer_ort::{failed, find, placement, provider};
use drophammer_sdk::{BackendError, ErrorCode, HostInfo, Result};
use ort::environment::Environment;
use ort::logging::LogLevel;
use ort::session::Session;
use ort::session::builder::SessionBuilder;

use crate::artifact::Target;

/// What ONNX Runtime calls the provider.
pub(crate) const NAME: &str = "QNNExecutionProvider";

/// Whether what runs here is an imitation: QNN's package for x86-64 computes what the NPU would, slowly.
pub(crate) const EMULATED: bool = cfg!(target_arch = "x86_64");

/// How emulation is told wherever something of it is shown.
pub(crate) const EMULATION: &str =
    "runs in emulation on this processor: the numbers are the NPU's, the speed says nothing about it";

/// The version of the provider found, if it and ONNX Runtime are.
///
/// # Errors
/// [`ErrorCode::MissingRuntime`] for each that is not, with the command that gets it.
pub(crate) fn look(host: &HostInfo) -> std::result::Result<String, Vec<BackendError>> {
    let provider = find(host, "qnn", "library");
    let runtime = find(host, "onnxruntime", "onnxruntime");
    match (provider, runtime) {
        (Ok(provider), Ok(_)) => Ok(provider.version.map(|v| v.to_string()).unwrap_or_default()),
        (provider, runtime) => Err([provider.err(), runtime.err()].into_iter().flatten().collect()),
    }
}

/// ONNX Runtime, with the provider opened.
///
/// # Errors
/// As for [`look`]; when one cannot be opened, or has no device here.
pub(crate) fn open(host: &HostInfo) -> Result<&'static Environment> {
    let library = find(host, "qnn", "library")?.library;
    let environment = drophammer_ort::environment(host, "onnxruntime")?;
    environment.set_log_level(LogLevel::Error);
    provider::register(environment, NAME, &library)?;
    if provider::devices(environment, NAME).is_empty() {
        let message = format!("the QNN provider at {} finds no device here", library.display());
        return Err(BackendError::new(ErrorCode::MissingRuntime, message).with_help(
            "Check that the NPU's driver is installed, and that the whole runtime was unpacked.",
        ));
    }
    Ok(environment)
}

/// A session's settings on the NPU, real or imitated, with options of the provider.
///
/// # Errors
/// What the library says.
pub(crate) fn on_npu(
    environment: &Environment,
    options: &[(&str, String)],
    entries: &[(&str, String)],
) -> Result<SessionBuilder> {
    let refused = |error: ort::Error<_>| failed("a session cannot be prepared", &error);
    let mut all = vec![
        (format!("{NAME}.backend_type"), "htp".to_owned()),
        // Floats at the graph's ends become codes on the NPU too, not on the processor.
        (format!("{NAME}.offload_graph_io_quantization"), "0".to_owned()),
    ];
    all.extend(options.iter().map(|(key, value)| (format!("{NAME}.{key}"), value.clone())));
    let mut builder = Session::builder(environment)
        .map_err(|error| failed("a session cannot be prepared", &error))?
        .with_config_entry(placement::RECORD, "1")
        .map_err(refused)?;
    for (key, value) in entries {
        builder = builder.with_config_entry(key, value).map_err(refused)?;
    }
    let devices = provider::devices(environment, NAME);
    builder.with_devices(devices, Some(&all)).map_err(refused)
}

/// Opens a compiled graph.
///
/// # Errors
/// What the library has against it, and for which chip it was made.
pub(crate) fn open_context(environment: &Environment, target: &Target, file: &Path) -> Result<Session> {
    let options = [("htp_arch", target.htp_arch.to_string()), ("soc_model", target.soc_model.to_string())];
    on_npu(environment, &options, &[])?.commit_from_file(file).map_err(|error| {
        let message = format!("{}: QNN refuses it: {}", file.display(), error.message());
        BackendError::new(ErrorCode::InvalidInput, message).with_help(format!(
            "It was compiled for {} by {}: make it again for this chip and runtime.",
            target.soc, target.compiler
        ))
    })
}
