//! libllama and ggml behind safe types. The only unsafe code of this crate, each block with its reason.
//!
//! Pointers are owned by the type that wraps them and freed by its `Drop`; a context holds its model, an adapter too.
//! Nothing of the library is called before [`start`] has told it where its messages go.

#![allow(unsafe_code)]

pub(crate) mod context;
pub(crate) mod devices;
pub(crate) mod log;
pub(crate) mod model;
pub(crate) mod quantize;

use std::ffi::{CStr, CString, c_char};
use std::path::Path;
use std::sync::{Once, OnceLock};

use drophammer_sdk::{BackendError, ErrorCode, Result};
use llama_cpp_sys_2 as sys;

/// Prepares the library, once per process.
pub(crate) fn start() {
    static START: Once = Once::new();
    START.call_once(|| {
        log::install();
        // SAFETY: takes no arguments and may be called once; `Once` sees to that.
        unsafe { sys::llama_backend_init() }
    });
}

/// In builds that bring kernels for several kinds of processor, finds those for this one in `directory`, or where they were
/// built if that is not told. Later calls change nothing.
pub(crate) fn find_kernels(directory: &Path) {
    static FOUND: Once = Once::new();
    start();
    if !cfg!(feature = "dynamic") {
        return;
    }
    FOUND.call_once(|| {
        let Ok(name) = path(directory) else { return };
        let place = if directory.as_os_str().is_empty() { std::ptr::null() } else { name.as_ptr() };
        // SAFETY: the string lives during the call; null stands for the places that the library knows.
        let said = log::kept(|| unsafe { sys::ggml_backend_load_all_from_path(place) });
        // The only place where it tells which file it chose.
        let chosen = said.iter().find_map(|line| {
            let (_, file) = line.split_once("loaded CPU backend from ")?;
            file.rsplit("ggml-cpu-").next()?.split('.').next()
        });
        let name = chosen.unwrap_or_default();
        let _ = KERNELS.set(name.to_owned());
    });
}

static KERNELS: OnceLock<String> = OnceLock::new();

/// The kind of processor that the kernels in use are for (`haswell`); `None` in builds that have one kind only.
pub(crate) fn kernels() -> Option<&'static str> {
    KERNELS.get().map(String::as_str).filter(|name| !name.is_empty())
}

/// The library's version, as it tells it.
pub(crate) fn version() -> String {
    // SAFETY: gives a string that lives as long as the program.
    let text = unsafe { sys::llama_version() };
    format!("llama.cpp {}", owned(text))
}

/// A C string's text; empty for none.
fn owned(text: *const c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: not null, and all strings that come here are terminated and outlive this call.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}

/// A path for the library.
fn path(path: &Path) -> Result<CString> {
    CString::new(path.as_os_str().as_encoded_bytes()).map_err(|_| {
        BackendError::new(
            ErrorCode::InvalidRequest,
            format!("{}: the path holds a zero byte", path.display()),
        )
        .with_help("Rename the file.")
    })
}
