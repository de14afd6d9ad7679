//! libmlx: where it lies, which version it is, and the shim over its C++ interface.
//!
//! The shim is a small library built with the plugin and carried inside it. It is loaded behind libmlx, whose symbols it takes:
//! so it runs with exactly the version whose headers it was built from, and another one is refused by name before anything of
//! it is used.

#![allow(unsafe_code)] // foreign libraries

mod array;
mod library;

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use drophammer_sdk::{BackendError, ErrorCode, HostInfo, Result};

pub(crate) use array::{Activation, Array, Binary, Packing, Quantized, Type};
use library::Api;

/// The version this plugin is built for.
pub(crate) const VERSION: &str = env!("DROPHAMMER_MLX_VERSION");
/// The library's file name on this system.
const LIBRARY: &str = if cfg!(target_os = "macos") { "libmlx.dylib" } else { "libmlx.so" };
/// How deep below the runtime's directory it may lie (packages keep it in `mlx/lib`, below a version or not).
const DEPTH: u32 = 4;
const INSTALL: &str = "Run `drophammer runtime install mlx`.";

/// libmlx with its shim; once per process, never unloaded.
pub(crate) struct Runtime {
    api: &'static Api,
}

/// A device of libmlx.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DeviceFacts {
    pub(crate) name: String,
    /// Bytes in all; 0 where libmlx does not say.
    pub(crate) memory: u64,
    /// Bytes that the system recommends to use at most; 0 where it does not say.
    pub(crate) recommended: u64,
}

/// Where libmlx lies: `library` of the plugin's configuration, or below the runtimes' `mlx`.
pub(crate) fn find(host: &HostInfo) -> Option<PathBuf> {
    if let Some(path) = host.config.get("library").and_then(serde_json::Value::as_str) {
        return Some(path.into());
    }
    search(&host.runtimes.join("mlx"), DEPTH)
}

fn search(directory: &Path, depth: u32) -> Option<PathBuf> {
    let mut entries: Vec<PathBuf> =
        std::fs::read_dir(directory).ok()?.filter_map(|entry| Some(entry.ok()?.path())).collect();
    // Of several versions side by side the last.
    entries.sort();
    let here = directory.join(LIBRARY);
    if here.is_file() {
        return Some(here);
    }
    let below = |path: &PathBuf| (depth > 0 && path.is_dir()).then(|| search(path, depth - 1)).flatten();
    entries.iter().rev().find_map(below)
}

/// Loads libmlx and the shim, once.
///
/// # Errors
/// [`ErrorCode::MissingRuntime`] where there is no libmlx, another version, or no shim in this build.
pub(crate) fn open(host: &HostInfo) -> Result<Runtime> {
    static API: OnceLock<Result<Api>> = OnceLock::new();
    let api = API.get_or_init(|| load(host));
    api.as_ref().map(|api| Runtime { api }).map_err(Clone::clone)
}

fn missing(message: String, help: &str) -> BackendError {
    BackendError::new(ErrorCode::MissingRuntime, message).with_help(help)
}

fn load(host: &HostInfo) -> Result<Api> {
    let path = find(host).ok_or_else(|| {
        let place = host.runtimes.join("mlx");
        missing(format!("libmlx {VERSION} is not installed: there is no {LIBRARY} below {}", place.display()), INSTALL)
    })?;
    let version = library::open_mlx(&path)
        .map_err(|problem| missing(format!("{}: {problem}", path.display()), INSTALL))?;
    if version != VERSION {
        let message = format!("{} is libmlx {version}; this plugin is built for {VERSION}", path.display());
        return Err(missing(message, INSTALL));
    }
    library::open_shim(&host.cache).map_err(|problem| {
        missing(
            format!("the MLX plugin cannot run models: {problem}"),
            "Use a release build of the plugin, or build it with MLX's headers (cargo xtask plugins fetches them).",
        )
    })
}

impl Runtime {
    /// Whether there is a GPU (Metal).
    pub(crate) fn has_gpu(&self) -> bool {
        // SAFETY: takes nothing.
        unsafe { (self.api.gpu_available)() != 0 }
    }

    /// What libmlx says of a device.
    pub(crate) fn device(&self, gpu: bool) -> Result<DeviceFacts> {
        let mut name = [0u8; 128];
        let (mut memory, mut recommended) = (0, 0);
        // SAFETY: the buffer has the length given; the numbers are written before it returns.
        let failed = unsafe {
            (self.api.device)(i32::from(gpu), name.as_mut_ptr().cast(), name.len(), &raw mut memory, &raw mut recommended)
        };
        self.api.check(failed)?;
        let end = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
        Ok(DeviceFacts { name: String::from_utf8_lossy(&name[..end]).into_owned(), memory, recommended })
    }

    /// A queue of work on a device.
    pub(crate) fn stream(&self, gpu: bool) -> Result<Stream> {
        // SAFETY: takes a number.
        let raw = unsafe { (self.api.stream)(i32::from(gpu)) };
        if raw.is_null() { Err(self.api.failure()) } else { Ok(Stream { raw, api: self.api }) }
    }

    /// Bounds what evaluation may allocate, and what freed buffers are kept.
    pub(crate) fn limit_memory(&self, bytes: u64) -> Result<()> {
        // SAFETY: takes numbers.
        unsafe {
            self.api.check((self.api.memory_limit)(bytes))?;
            self.api.check((self.api.cache_limit)(bytes / 8))
        }
    }

    /// How much stays resident for the GPU; where the system has no such limit nothing happens.
    pub(crate) fn limit_wired(&self, bytes: u64) {
        // SAFETY: takes a number; a refusal leaves the system's own limit.
        unsafe { (self.api.wired_limit)(bytes) };
    }

    /// Gives kept buffers back to the system.
    pub(crate) fn clear_cache(&self) {
        // SAFETY: takes nothing.
        unsafe { (self.api.clear_cache)() }
    }

    /// Bytes of arrays alive now, and the most there ever were.
    pub(crate) fn memory(&self) -> (u64, u64) {
        // SAFETY: takes nothing.
        unsafe { ((self.api.active_memory)(), (self.api.peak_memory)()) }
    }
}

/// A queue of work that any thread may use, one at a time.
pub(crate) struct Stream {
    raw: *const std::ffi::c_void,
    api: &'static Api,
}

// SAFETY: libmlx makes it for any thread; only its owner uses it.
unsafe impl Send for Stream {}

impl Stream {
    /// What this thread computes goes here from now on. Gives the means to make arrays.
    pub(crate) fn enter(&self) -> Result<Arrays> {
        // SAFETY: a stream that lives as long as the process.
        self.api.check(unsafe { (self.api.enter)(self.raw) })?;
        Ok(Arrays { api: self.api })
    }
}

/// Makes arrays.
#[derive(Clone, Copy)]
pub(crate) struct Arrays {
    api: &'static Api,
}
