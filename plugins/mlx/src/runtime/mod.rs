//! libmlx: where it lies, which version it is, and the shim over its C++ interface.
//!
//! The shim is a small library built with the plugin and carried inside it. It is loaded behind libmlx, whose symbols it takes:
//! so it runs with exactly the version whose headers it was built from, and another one is refused by name before anything of
//! it is used.

#![allow(unsafe_code)] // foreign libraries

mod array;
mod library;
mod operations;

use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use drophammer_sdk::{BackendError, ErrorCode, HostInfo, Result};

pub(crate) use array::{Array, Packing, Quantized, Type};
use library::{Api, MlxLibrary};
pub(crate) use operations::{Activation, Binary};

/// The version this plugin is built for.
pub(crate) const VERSION: &str = env!("DROPHAMMER_MLX_VERSION");
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

/// Loads libmlx and the shim; the first that fits serves the process.
///
/// # Errors
/// [`ErrorCode::MissingRuntime`] where there is no libmlx, another version, or no shim in this build.
pub(crate) fn open(host: &HostInfo) -> Result<Runtime> {
    static API: Mutex<Option<&'static Api>> = Mutex::new(None);
    let library = check(host)?;
    let mut api = API.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(api) = *api {
        return Ok(Runtime { api });
    }
    library.share().map_err(|problem| missing(problem, INSTALL))?;
    let opened = library::open_shim(&host.cache).map_err(|problem| {
        missing(
            format!("the MLX plugin cannot run models: {problem}"),
            "Use a release build of the plugin, or build it with `cargo xtask plugins`, which fetches MLX's headers.",
        )
    })?;
    let opened: &'static Api = Box::leak(Box::new(opened));
    *api = Some(opened);
    Ok(Runtime { api: opened })
}

fn missing(message: String, help: &str) -> BackendError {
    BackendError::new(ErrorCode::MissingRuntime, message).with_help(help)
}

/// Finds libmlx and sees that it is the version this plugin is built for.
fn check(host: &HostInfo) -> Result<MlxLibrary> {
    let pinned = drophammer_runtimes::runtime("mlx")
        .ok_or_else(|| missing("this program knows no runtime mlx".into(), INSTALL))?;
    let configured = host.config.get("library").and_then(serde_json::Value::as_str).map(Path::new);
    let path = pinned.find(&host.runtimes, configured)?.library;
    let library = MlxLibrary::open(&path)
        .map_err(|problem| missing(format!("{}: {problem}", path.display()), INSTALL))?;
    if library.version != VERSION {
        let message =
            format!("{} is libmlx {}; this plugin is built for {VERSION}", path.display(), library.version);
        return Err(missing(message, INSTALL));
    }
    Ok(library)
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
            (self.api.device)(
                i32::from(gpu),
                name.as_mut_ptr().cast(),
                name.len(),
                &raw mut memory,
                &raw mut recommended,
            )
        };
        self.api.check(failed)?;
        let end = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
        Ok(DeviceFacts { name: String::from_utf8_lossy(&name[..end]).into_owned(), memory, recommended })
    }

    /// The queue of work on a device; one for the process, since each has a thread that lives as long.
    pub(crate) fn stream(&self, gpu: bool) -> Result<Stream> {
        static STREAMS: [Mutex<Option<Stream>>; 2] = [const { Mutex::new(None) }; 2];
        let mut known = STREAMS[usize::from(gpu)].lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(stream) = *known {
            return Ok(stream);
        }
        // SAFETY: takes a number.
        let raw = unsafe { (self.api.stream)(i32::from(gpu)) };
        if raw.is_null() {
            return Err(self.api.failure());
        }
        Ok(*known.insert(Stream { raw, api: self.api }))
    }

    /// Bounds what evaluation may allocate, and what freed buffers are kept.
    pub(crate) fn limit_memory(&self, bytes: u64) -> Result<()> {
        // SAFETY: takes numbers.
        unsafe {
            self.api.check((self.api.memory_limit)(bytes))?;
            self.api.check((self.api.cache_limit)(bytes / 8))
        }
    }

    /// Bytes beyond which evaluation waits for others to be freed, as libmlx has it.
    pub(crate) fn memory_allowed(&self) -> u64 {
        // SAFETY: takes nothing.
        unsafe { (self.api.memory_allowed)() }
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
#[derive(Clone, Copy)]
pub(crate) struct Stream {
    raw: *const std::ffi::c_void,
    api: &'static Api,
}

// SAFETY: libmlx makes it for any thread, and [`Stream::enter`] lets only one work at a time.
unsafe impl Send for Stream {}

/// A thread's turn at libmlx.
pub(crate) struct Turn {
    /// The means to make arrays.
    pub(crate) arrays: Arrays,
    _alone: MutexGuard<'static, ()>,
}

impl Stream {
    /// Waits for other sessions' work to end; what this thread computes goes here then.
    pub(crate) fn enter(self) -> Result<Turn> {
        static WORK: Mutex<()> = Mutex::new(());
        let alone = WORK.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: a stream that lives as long as the process.
        self.api.check(unsafe { (self.api.enter)(self.raw) })?;
        Ok(Turn { arrays: Arrays { api: self.api }, _alone: alone })
    }
}

/// Makes arrays.
#[derive(Clone, Copy)]
pub(crate) struct Arrays {
    api: &'static Api,
}
