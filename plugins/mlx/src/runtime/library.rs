//! Loading libmlx and the shim.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::path::{Path, PathBuf};

use drophammer_sdk::{BackendError, ErrorCode, Result};
use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_LOCAL, RTLD_NOW, Symbol};

/// An array on the other side.
#[repr(C)]
pub(crate) struct Raw {
    _opaque: [u8; 0],
}

macro_rules! api {
    ($($name:ident($($argument:ty),*) $(-> $result:ty)?;)*) => {
        /// The shim's functions; see `shim.cpp`.
        pub(crate) struct Api {
            $(pub(crate) $name: unsafe extern "C" fn($($argument),*) $(-> $result)?,)*
        }

        impl Api {
            /// Looks all functions up.
            ///
            /// # Safety
            /// `library` is the shim of this very build and is never unloaded.
            #[cfg_attr(not(shim), allow(dead_code))]
            unsafe fn of(library: &Library) -> std::result::Result<Self, libloading::Error> {
                // SAFETY: names and types are those of `shim.cpp`.
                unsafe {
                    Ok(Self { $($name: *library.get(concat!("dh_", stringify!($name), "\0").as_bytes())?,)* })
                }
            }
        }
    };
}

type In = *const Raw;
type Out = *mut Raw;

api! {
    error() -> *const c_char;
    gpu_available() -> c_int;
    device(c_int, *mut c_char, usize, *mut u64, *mut u64) -> c_int;
    stream(c_int) -> *const c_void;
    enter(*const c_void) -> c_int;
    memory_limit(u64) -> c_int;
    memory_allowed() -> u64;
    cache_limit(u64) -> c_int;
    wired_limit(u64) -> c_int;
    active_memory() -> u64;
    peak_memory() -> u64;
    clear_cache();
    new(*const c_int, c_int, c_int, *mut *mut c_void) -> Out;
    free(Out);
    clone(In) -> Out;
    dims(In, *mut c_int, c_int) -> c_int;
    eval(*const In, c_int) -> c_int;
    start(*const In, c_int) -> c_int;
    read(In, *mut f32, usize) -> c_int;
    astype(In, c_int) -> Out;
    reshape(In, *const c_int, c_int) -> Out;
    transpose(In, *const c_int, c_int) -> Out;
    slice(In, c_int, c_int, c_int) -> Out;
    write(Out, In, c_int, c_int) -> Out;
    zeros(*const c_int, c_int, c_int) -> Out;
    concatenate(*const In, c_int, c_int) -> Out;
    take(In, In, c_int) -> Out;
    take_along(In, In, c_int) -> Out;
    binary(c_int, In, In) -> Out;
    scale(In, f32) -> Out;
    add_scalar(In, f32) -> Out;
    clip(In, f32, f32) -> Out;
    activate(c_int, In) -> Out;
    select(In, In, f32) -> Out;
    less(In, In) -> Out;
    lowest(In) -> f32;
    softmax(In) -> Out;
    sum(In, c_int, c_int) -> Out;
    largest(In, c_int) -> Out;
    sort(In) -> Out;
    matmul(In, In) -> Out;
    addmm(In, In, In) -> Out;
    quantized_matmul(In, In, In, In, c_int, c_int, c_int, *const c_char) -> Out;
    gather_mm(In, In, In) -> Out;
    gather_qmm(In, In, In, In, In, c_int, c_int, *const c_char) -> Out;
    dequantize(In, In, In, c_int, c_int, *const c_char, c_int) -> Out;
    quantize(In, c_int, c_int, *mut Out) -> c_int;
    rms_norm(In, In, f32) -> Out;
    layer_norm(In, In, In, f32) -> Out;
    rope(In, c_int, c_int, f32, f32, In, c_int, In) -> Out;
    turns(In, f32, c_int) -> Out;
    waves(In, In, c_int, *mut Out) -> c_int;
    rotate(In, In, In, c_int) -> Out;
    attention(In, In, In, f32, c_int, In, In) -> Out;
}

impl Api {
    /// The failure of the last call of this thread.
    pub(crate) fn failure(&self) -> BackendError {
        // SAFETY: a string that lives until this thread's next call.
        let words = unsafe { CStr::from_ptr((self.error)()) }.to_string_lossy().into_owned();
        let code = if words.contains("alloc") || words.contains("memory") {
            ErrorCode::OutOfResources
        } else {
            ErrorCode::Failed
        };
        BackendError::new(code, format!("libmlx: {words}"))
            .with_help("Ask for a shorter context or fewer sequences, or report this with the model's name.")
    }

    /// A status as a result.
    pub(crate) fn check(&self, status: c_int) -> Result<()> {
        if status == 0 { Ok(()) } else { Err(self.failure()) }
    }
}

/// libmlx, opened and never closed: its threads and static objects live as long as the process.
pub(super) struct MlxLibrary {
    path: PathBuf,
    pub(super) version: String,
}

impl MlxLibrary {
    /// Opens a library, to itself, and asks for its version.
    pub(super) fn open(path: &Path) -> std::result::Result<Self, String> {
        // `const char* mlx::core::version()`, in the names of the C++ ABI that all its builds share.
        const VERSION: &[u8] = b"_ZN3mlx4core7versionEv\0";
        // SAFETY: the library runs its initializers, which is what it was installed for.
        let library = unsafe { Library::open(Some(path), RTLD_NOW | RTLD_LOCAL) };
        let library = library.map_err(|error| format!("cannot be loaded: {error}"))?;
        // SAFETY: a function without arguments that gives a static string.
        let version = unsafe {
            let version: Symbol<unsafe extern "C" fn() -> *const c_char> = library
                .get(VERSION)
                .map_err(|_| "is not libmlx, or a version without `version()`".to_owned())?;
            CStr::from_ptr(version()).to_string_lossy().into_owned()
        };
        std::mem::forget(library);
        Ok(Self { path: path.to_owned(), version })
    }

    /// Lets what is loaded after it take its symbols.
    pub(super) fn share(&self) -> std::result::Result<(), String> {
        // SAFETY: it is loaded already; this only widens who sees it.
        let library = unsafe { Library::open(Some(&self.path), RTLD_NOW | RTLD_GLOBAL) };
        std::mem::forget(library.map_err(|error| format!("{}: {error}", self.path.display()))?);
        Ok(())
    }
}

/// Loads the shim that this build carries.
#[cfg(shim)]
pub(super) fn open_shim(cache: &Path) -> std::result::Result<Api, String> {
    const SHIM: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/shim.bin"));
    let (path, _file) =
        lay_out(SHIM, cache).map_err(|error| format!("its shim cannot be laid out: {error}"))?;
    // SAFETY: the library built with this plugin, from bytes inside it.
    let library = unsafe { Library::open(Some(&path), RTLD_NOW) };
    let library = library.map_err(|error| format!("its shim cannot be loaded: {error}"))?;
    // SAFETY: it is this build's shim.
    let api = unsafe { Api::of(&library) }.map_err(|error| error.to_string())?;
    std::mem::forget(library);
    Ok(api)
}

/// There is none.
#[cfg(not(shim))]
pub(super) fn open_shim(_: &Path) -> std::result::Result<Api, String> {
    Err("it was built without MLX's headers, so its session half is missing".to_owned())
}

/// The shim as a file that the loader can open: in memory, where the system has such files.
#[cfg(all(shim, target_os = "linux"))]
fn lay_out(bytes: &[u8], _: &Path) -> std::io::Result<(PathBuf, impl Sized)> {
    use std::io::Write;
    use std::os::fd::AsRawFd;
    let file = rustix::fs::memfd_create("drophammer-mlx-shim", rustix::fs::MemfdFlags::CLOEXEC)?;
    let mut file = std::fs::File::from(file);
    file.write_all(bytes)?;
    Ok((format!("/proc/self/fd/{}", file.as_raw_fd()).into(), file))
}

/// In the plugin's cache, under a name of its own.
#[cfg(all(shim, not(target_os = "linux")))]
fn lay_out(bytes: &[u8], cache: &Path) -> std::io::Result<(PathBuf, impl Sized)> {
    std::fs::create_dir_all(cache)?;
    let path = cache.join(format!("mlx-shim-{}.dylib", std::process::id()));
    std::fs::write(&path, bytes)?;
    Ok((path, ()))
}
