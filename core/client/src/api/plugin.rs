//! Plugins and the devices they reach.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Problem, words};

/// Answer of `plugins`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Plugins {
    /// By id.
    pub plugins: Vec<Plugin>,
}

words! {
    /// How a plugin is.
    PluginState {
        /// Being probed in a worker.
        Probing = "probing",
        /// All it offers works here.
        Ready = "ready",
        /// Some of it works; its problems say what does not.
        Degraded = "degraded",
        /// Its runtime is missing; its problems say how to get it.
        Unavailable = "unavailable",
        /// Not opened: its sidecar, digest or ABI does not fit.
        Refused = "refused",
        /// Its probe crashed or hung.
        Crashed = "crashed",
    }
}

/// One plugin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Plugin {
    /// Its backend's name.
    pub id: String,
    /// Its own version.
    pub version: String,
    /// The plugin ABI it was built for.
    pub abi: String,
    /// Its dylib on the daemon's machine.
    pub path: String,
    /// How it is.
    pub state: PluginState,
    /// Version of the runtime behind it.
    pub runtime_version: Option<String>,
    /// What it can run on.
    pub devices: Vec<Device>,
    /// Formats it writes.
    pub formats: Vec<String>,
    /// Schemes it can make here.
    pub schemes: Vec<String>,
    /// What does not work, and what to do about it.
    pub problems: Vec<Problem>,
    /// Such as `MIT OR Apache-2.0`.
    pub licence: Option<String>,
}

words! {
    /// What kind of device.
    DeviceKind {
        /// Central processor.
        Cpu = "cpu",
        /// Graphics processor.
        Gpu = "gpu",
        /// Neural processor.
        Npu = "npu",
    }
}

/// One device as a plugin's runtime names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Device {
    /// The runtime's name for it, such as `GPU.0`.
    pub id: String,
    /// What the maker calls it.
    pub name: String,
    /// What it is.
    pub kind: DeviceKind,
    /// Its memory.
    pub memory_bytes: Option<u64>,
    /// Simulated in software: results are right, speed says nothing.
    pub emulated: bool,
}
