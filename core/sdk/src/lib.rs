//! What a plugin author writes against: a backend in safe Rust.
//!
//! # The contract
//!
//! A plugin is a dylib plus `plugin.toml` in one directory. The host reads the manifest, checks ABI version and SHA-256,
//! and opens the dylib in a *worker process* that does one job or hosts one model: a plugin may crash, abort or leak, and
//! costs that worker only. Nothing is ever unloaded.
//!
//! * [`Backend::probe`] is cheap and free of side effects. It says what can be done here, and *why not* for what cannot:
//!   a missing runtime is a [`Problem`] with the command that fixes it, never an error. Given a source, it also says what
//!   each goal would take before any work starts.
//! * [`Backend::convert`] and [`Backend::quantize`] write only inside [`ForgeRequest::staging`], never into the source.
//!   They stream: memory stays bounded whatever the model's size. They report progress, ask [`JobContext::cancelled`]
//!   several times a second, and resume from what an earlier attempt left in the same staging directory. Same source,
//!   goal and plugin version give the same bytes.
//! * [`Backend::load`] gives a [`Session`]: mathematics only. Tokenizing, templates, sampling, batching and measuring are
//!   the host's, above [`Session::forward`].
//! * What was made for a session and could be made again may be kept where [`HostInfo::cache`] says, never more than the user
//!   allows ([`Kept`]).
//! * What only some backends can do is an [`Extension`], asked for by id: so far [`calibration`], by which a session tells how its
//!   weights are used, and [`profile`], where its time goes.
//! * Every error says what happened, to which file or tensor, and what the user can do next ([`BackendError`]).
//! * Panics are caught here and reported as errors. Standard output and error belong to the job's log.
//!
//! # A complete plugin
//!
//! ```
//! use drophammer_sdk::*;
//!
//! struct Echo;
//!
//! impl Backend for Echo {
//!     fn probe(&self, _: &ProbeRequest) -> Result<ProbeReport> {
//!         Ok(ProbeReport::default())
//!     }
//!     fn convert(&self, request: &ForgeRequest, _: &dyn JobContext) -> Result<ForgeReport> {
//!         Err(BackendError::new(
//!             ErrorCode::UnsupportedInput,
//!             format!("{}: this backend makes nothing yet", request.source.display()),
//!         ))
//!     }
//!     fn quantize(&self, request: &ForgeRequest, job: &dyn JobContext) -> Result<ForgeReport> {
//!         self.convert(request, job)
//!     }
//!     fn load(&self, request: &LoadRequest, _: Box<dyn JobContext>) -> Result<Box<dyn Session>> {
//!         Err(BackendError::new(
//!             ErrorCode::UnsupportedInput,
//!             format!("{}: this backend runs nothing yet", request.path.display()),
//!         ))
//!     }
//! }
//!
//! drophammer_sdk::export_backend!(|_host: HostInfo| Ok(Echo));
//! # fn main() {}
//! ```

mod backend;
pub mod calibration;
mod documents;
mod error;
pub mod guest;
pub mod host;
mod kept;
pub mod manifest;
pub mod profile;

pub use backend::{
    Backend, Batch, Budgets, Extension, JobContext, Limits, LogLevel, OutputKind, Session, Unwatched,
    most_likely,
};
pub use documents::{
    Device, Estimate, ForgeReport, ForgeRequest, FormatSupport, Goal, HostInfo, LoadRequest, Options,
    ProbeReport, ProbeRequest, Problem,
};
pub use drophammer_abi as abi;
pub use error::{BackendError, ErrorCode, Result};
pub use kept::Kept;
pub use manifest::Manifest;

/// Exports a backend from a dylib. Takes a function or closure `HostInfo -> Result<impl Backend>`; once per plugin.
#[macro_export]
macro_rules! export_backend {
    ($make:expr) => {
        const _: () = {
            extern "C" fn open(
                host: $crate::abi::types::RStr<'_>,
            ) -> $crate::abi::AbiResult<$crate::abi::BackendBox> {
                $crate::guest::open(host, $make)
            }
            $crate::abi::export_module!(open);
        };
    };
}
