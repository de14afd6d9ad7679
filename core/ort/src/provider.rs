//! Execution providers that come as libraries of their own.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use drophammer_sdk::{BackendError, ErrorCode, Result};
use ort::device::Device;
use ort::environment::Environment;
use ort::memory::DeviceType;

/// Kind of hardware behind a provider's device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hardware {
    /// A processor: what a provider for other hardware shows where it imitates it.
    Processor,
    /// A graphics processor.
    Graphics,
    /// A processor for neural networks.
    Neural,
}

/// Opens a provider's library under its name, once per process.
///
/// # Errors
/// When it cannot be opened.
pub fn register(environment: &Environment, name: &str, library: &Path) -> Result<()> {
    static OPENED: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());
    let mut opened = OPENED.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if opened.iter().any(|path| path == library) {
        return Ok(());
    }
    environment.register_ep_library(name, library).map_err(|error| {
        let message =
            format!("the provider {name} at {} cannot be opened: {}", library.display(), error.message());
        BackendError::new(ErrorCode::MissingRuntime, message)
            .with_help("`drophammer runtime list` says where runtimes were found; install it again.")
    })?;
    opened.push(library.to_path_buf());
    Ok(())
}

/// The providers that have devices here, by name.
pub fn names(environment: &Environment) -> BTreeSet<String> {
    environment.devices().filter_map(|device| Some(device.ep().ok()?.to_owned())).collect()
}

/// The devices of a provider.
pub fn devices<'e>(environment: &'e Environment, name: &str) -> Vec<Device<'e>> {
    environment.devices().filter(|device| device.ep().is_ok_and(|ep| ep == name)).collect()
}

/// What a device is.
pub fn hardware(device: &Device<'_>) -> Hardware {
    match device.hardware_device().ty() {
        DeviceType::GPU => Hardware::Graphics,
        DeviceType::NPU => Hardware::Neural,
        _ => Hardware::Processor,
    }
}
