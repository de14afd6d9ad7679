//! The library: found once, opened once per process.

use std::path::Path;
use std::sync::OnceLock;

use drophammer_runtimes::{Found, runtime};
use drophammer_sdk::{BackendError, ErrorCode, HostInfo, Result};
use ort::environment::Environment;

/// What the runtime is called in the table of runtimes.
const NAME: &str = "onnxruntime";

/// Where a runtime of the table lies; `key` names the plugin's setting that may name its library.
///
/// # Errors
/// [`ErrorCode::MissingRuntime`]: missing, too old or broken, and how to get it.
pub fn find(host: &HostInfo, name: &str, key: &str) -> Result<Found> {
    let pinned = runtime(name).ok_or_else(|| {
        BackendError::new(ErrorCode::Failed, format!("the table of runtimes has no {name}"))
            .with_help("This is a fault of the program: report it.")
    })?;
    let configured = host.config.get(key).and_then(|value| value.as_str()).map(Path::new);
    Ok(pinned.find(&host.runtimes, configured)?)
}

/// ONNX Runtime, opened; `key` as for [`find`].
///
/// # Errors
/// As for [`find`], and when the library cannot be opened.
pub fn environment(host: &HostInfo, key: &str) -> Result<&'static Environment> {
    static OPENED: OnceLock<Environment> = OnceLock::new();
    if let Some(environment) = OPENED.get() {
        return Ok(environment);
    }
    let library = find(host, NAME, key)?.library;
    let broken = |problem: String| {
        let message = format!("ONNX Runtime at {} cannot be opened: {problem}", library.display());
        BackendError::new(ErrorCode::MissingRuntime, message)
            .with_help("`drophammer runtime install onnxruntime`")
    };
    let builder = ort::init_from(&library).map_err(|error| broken(error.to_string()))?;
    let environment = builder
        .with_name("drophammer")
        .with_telemetry(false)
        .build()
        .map_err(|error| broken(error.to_string()))?;
    Ok(OPENED.get_or_init(|| environment))
}

/// A failure of the library.
pub fn failed<R>(what: &str, error: &ort::Error<R>) -> BackendError {
    BackendError::new(ErrorCode::Failed, format!("{what}: {}", error.message()))
        .with_help("The job's log holds the library's own messages.")
}
