//! The plugin ABI: the one boundary between Drophammer and a backend's dylib, and the only crate that names
//! `abi_stable`.
//!
//! A plugin exports one root module, [`BackendModule`]. The host opens it, gets a [`Backend`] object and from it
//! [`Session`] objects; the plugin in turn calls back into the [`JobContext`] the host hands it. That is all.
//!
//! Two rules keep it small for ever:
//!
//! * What is called per token crosses as `repr(C)` data ([`Batch`], slices of `f32`). Everything else (requests,
//!   reports, options) crosses as a JSON document whose schema lives in `drophammer-sdk`, so it grows without an ABI
//!   change.
//! * Nothing is ever appended to a trait or to the module: `abi_stable` lets a newer host refuse an older plugin as
//!   soon as a method is added. Growth goes through `extension(id)`, which every trait has, or through a second root
//!   module tried first. `tests/layout.rs` pins the layout.
//!
//! Nobody implements these traits by hand: `drophammer-sdk` wraps them in safe Rust and catches panics, which
//! `abi_stable` would otherwise turn into an abort.
//!
//! What must not come in: any policy, any dependency besides `abi_stable`.

// `sabi_trait` and `StableAbi` expand to unsafe code; this crate is one of the places DESIGN allows it.
#![allow(
    unsafe_code,
    missing_docs,
    clippy::pedantic,
    unreachable_pub,
    rust_2018_idioms,
    non_local_definitions
)]

use abi_stable::{
    StableAbi,
    library::{RootModule, lib_header_from_path},
    package_version_strings, sabi_trait,
    sabi_types::VersionStrings,
};

/// FFI-safe types a plugin or host needs to speak the ABI, re-exported so that nobody else names `abi_stable`.
pub mod types {
    pub use abi_stable::sabi_trait::TD_Opaque;
    pub use abi_stable::std_types::{RBox, ROption, RResult, RSlice, RSliceMut, RStr, RString, RVec};
}

use types::{RBox, ROption, RResult, RSlice, RSliceMut, RStr, RString, RVec};

/// The ABI version of this host, as `plugin.toml` states it in `abi`.
pub const ABI_VERSION: &str = env!("CARGO_PKG_VERSION");

/// An error crossing the boundary: what happened and what the user can do about it.
#[repr(C)]
#[derive(StableAbi, Debug, Clone, PartialEq, Eq)]
pub struct AbiError {
    /// A stable word for programs, such as `unsupported_input`, `missing_runtime`, `cancelled`, `panic`.
    pub code: RString,
    /// What happened, to which file or tensor.
    pub message: RString,
    /// What the user can do next; may be empty.
    pub help: RString,
}

/// Result of every fallible call.
pub type AbiResult<T> = RResult<T, AbiError>;

/// Tokens to push through a model. All slices but `outputs` have one entry per token.
#[repr(C)]
#[derive(StableAbi, Debug, Clone, Copy)]
pub struct Batch<'a> {
    /// Token ids.
    pub tokens: RSlice<'a, u32>,
    /// Position of each token in its sequence, counted from 0.
    pub positions: RSlice<'a, u32>,
    /// Sequence (cache slot) of each token, below [`SessionLimits::max_sequences`].
    pub sequences: RSlice<'a, u32>,
    /// Indices, ascending, of the tokens whose output row is wanted.
    pub outputs: RSlice<'a, u32>,
}

/// What a loaded model can take and what it gives.
#[repr(C)]
#[derive(StableAbi, Debug, Clone, Copy, PartialEq, Eq)]
pub struct SessionLimits {
    /// Longest sequence in tokens.
    pub context: u32,
    /// Number of sequences that can be held at once.
    pub max_sequences: u32,
    /// Largest number of tokens in one batch.
    pub max_batch: u32,
    /// Width of one output row in floats: the vocabulary for logits, the hidden size for embeddings.
    pub output_width: u32,
    /// 0: rows are logits, one per wanted token. 1: rows are hidden states, one per wanted token.
    pub output_kind: u32,
}

/// What a job may use.
#[repr(C)]
#[derive(StableAbi, Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budgets {
    /// Threads to compute with.
    pub threads: u32,
    /// Resident bytes the worker should stay below; 0 means no limit was set.
    pub memory_bytes: u64,
    /// Bytes that may be written to the staging directory; 0 means no limit was set.
    pub disk_bytes: u64,
}

/// A named, versioned set of calls beyond this ABI. Both sides agree on its meaning by the id it was asked for with.
#[sabi_trait]
pub trait Extension: Send + Sync {
    /// Calls `method` with a document or bytes the extension defines.
    #[sabi(last_prefix_field)]
    fn call(&self, method: RStr<'_>, payload: RSlice<'_, u8>) -> AbiResult<RVec<u8>>;
}

/// An owned [`Extension`] object.
pub type ExtensionBox = Extension_TO<'static, RBox<()>>;

/// The host's side of one job, handed to the plugin.
#[sabi_trait]
pub trait JobContext: Send + Sync {
    /// Reports bytes (or other units) done out of `total` in `stage`; `tensor` may be empty.
    fn progress(&self, stage: RStr<'_>, tensor: RStr<'_>, done: u64, total: u64);
    /// Writes one line to the job's log. Levels: 1 error, 2 warning, 3 information, 4 debug, 5 trace.
    fn log(&self, level: u32, message: RStr<'_>);
    /// Whether the user asked for the job to end. Long work asks at least a few times a second.
    fn cancelled(&self) -> bool;
    /// What the job may use.
    fn budgets(&self) -> Budgets;
    /// Further services of the host, by id.
    #[sabi(last_prefix_field)]
    fn extension(&self, id: RStr<'_>) -> ROption<ExtensionBox>;
}

/// A [`JobContext`] object; `'a` bounds what it borrows from the host.
pub type JobContextBox<'a> = JobContext_TO<'a, RBox<()>>;

/// A loaded model.
#[sabi_trait]
pub trait Session: Send {
    /// Sizes and kind of output; constant for the session's life.
    fn limits(&self) -> SessionLimits;
    /// Runs a batch and writes `batch.outputs.len()` rows of `output_width` floats.
    fn forward(&mut self, batch: Batch<'_>, output: RSliceMut<'_, f32>) -> AbiResult<()>;
    /// Forgets everything of `sequence` outside positions `from..to`.
    fn keep(&mut self, sequence: u32, from: u32, to: u32) -> AbiResult<()>;
    /// Forgets positions `from..to` of `sequence`.
    fn remove(&mut self, sequence: u32, from: u32, to: u32) -> AbiResult<()>;
    /// Makes positions `from..to` of `source` also those of `target`, replacing what `target` held.
    fn copy(&mut self, source: u32, target: u32, from: u32, to: u32) -> AbiResult<()>;
    /// Further abilities of the session, by id.
    #[sabi(last_prefix_field)]
    fn extension(&self, id: RStr<'_>) -> ROption<ExtensionBox>;
}

/// An owned [`Session`] object.
pub type SessionBox = Session_TO<'static, RBox<()>>;

/// A backend: all requests and reports are JSON documents described in `drophammer-sdk`.
#[sabi_trait]
pub trait Backend: Send + Sync {
    /// What this backend can do on this machine, optionally for one source.
    fn probe(&self, request: RStr<'_>) -> AbiResult<RString>;
    /// Turns a source into this backend's format at full or chosen precision.
    fn convert(&self, request: RStr<'_>, job: JobContextBox<'_>) -> AbiResult<RString>;
    /// Turns a source into a quantized artifact, in one pass where it can.
    fn quantize(&self, request: RStr<'_>, job: JobContextBox<'_>) -> AbiResult<RString>;
    /// Loads an artifact.
    fn load(&self, request: RStr<'_>, job: JobContextBox<'static>) -> AbiResult<SessionBox>;
    /// Further abilities of the backend, by id.
    #[sabi(last_prefix_field)]
    fn extension(&self, id: RStr<'_>) -> ROption<ExtensionBox>;
}

/// An owned [`Backend`] object.
pub type BackendBox = Backend_TO<'static, RBox<()>>;

/// The root module every plugin exports.
#[repr(C)]
#[derive(StableAbi)]
#[sabi(kind(Prefix(prefix_ref = BackendModuleRef)))]
#[sabi(missing_field(panic))]
pub struct BackendModule {
    /// Opens the backend. `host` is a JSON document (`drophammer_sdk::HostInfo`).
    #[sabi(last_prefix_field)]
    pub open: extern "C" fn(host: RStr<'_>) -> AbiResult<BackendBox>,
}

impl RootModule for BackendModuleRef {
    abi_stable::declare_root_module_statics! {BackendModuleRef}
    const BASE_NAME: &'static str = "drophammer_backend";
    const NAME: &'static str = "drophammer_backend";
    const VERSION_STRINGS: VersionStrings = package_version_strings!();
}

/// Opens a plugin's dylib and checks that its layout is the one this host was built with.
///
/// Everything is checked by the dynamic loader and `abi_stable`; check the sidecar's digest *before* calling this,
/// since opening a dylib runs its initialisers.
///
/// # Errors
/// The loader's or `abi_stable`'s own message: not a dylib, no root module, another ABI version or layout.
pub fn open_module(path: &std::path::Path) -> Result<BackendModuleRef, String> {
    let header = lib_header_from_path(path).map_err(|error| error.to_string())?;
    header.init_root_module::<BackendModuleRef>().map_err(|error| error.to_string())
}

/// What [`export_module!`] expands to; not for direct use.
#[doc(hidden)]
pub mod export {
    pub use abi_stable::library::{__call_root_module_loader, CheckTypeLayout, LibHeader, RootModuleResult};
    use abi_stable::prefix_type::PrefixTypeTrait;

    /// Builds the root module around a plugin's `open`.
    pub fn module(
        open: extern "C" fn(crate::types::RStr<'_>) -> crate::AbiResult<crate::BackendBox>,
    ) -> crate::BackendModuleRef {
        crate::BackendModule { open }.leak_into_prefix()
    }
}

/// Exports a plugin's root module from its dylib, under the symbol `abi_stable` looks for.
///
/// The symbol is spelled out because `abi_stable`'s own attribute needs that crate named in every plugin.
#[macro_export]
macro_rules! export_module {
    ($open:path) => {
        // SAFETY: the symbol is exported once per dylib, and its static has the type the loader expects.
        #[allow(unsafe_code, missing_docs)]
        #[unsafe(export_name = "_1as_0lib_1header_0root_bmodule_bloader")]
        pub static DROPHAMMER_ROOT_MODULE: $crate::export::LibHeader = {
            fn root() -> $crate::BackendModuleRef {
                $crate::export::module($open)
            }
            extern "C" fn erased() -> $crate::export::RootModuleResult {
                $crate::export::__call_root_module_loader(root)
            }
            unsafe {
                $crate::export::LibHeader::from_constructor::<$crate::BackendModuleRef>(
                    erased,
                    $crate::export::CheckTypeLayout::Yes,
                )
            }
        };
    };
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_exported_symbol_is_the_one_the_loader_looks_for() {
        assert_eq!(abi_stable::library::ROOT_MODULE_LOADER_NAME, "_1as_0lib_1header_0root_bmodule_bloader");
    }
}
