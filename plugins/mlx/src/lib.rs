//! The Apple MLX backend: mlx-lm directories from any source, and sessions on libmlx: Metal on Apple silicon, the CPU
//! library elsewhere.
//!
//! - [`forge`] makes directories; it streams through this project's own codecs and needs no libmlx.
//! - [`runtime`] finds libmlx, checks its version, and loads the shim over its C++ interface behind it.
//! - [`model`] executes an architecture as lazy MLX arrays, with a key/value cache for each sequence.

mod convert;
mod forge;
mod mixture;
mod model;
mod probe;
mod quantize;
mod runtime;
mod session;

use drophammer_sdk::{
    Backend, ForgeReport, ForgeRequest, HostInfo, JobContext, LoadRequest, ProbeReport, ProbeRequest, Result,
    Session,
};

/// The backend.
pub struct Mlx {
    host: HostInfo,
}

impl Mlx {
    /// Opens the backend. libmlx is looked for when it is needed.
    ///
    /// # Errors
    /// None today.
    pub fn open(host: HostInfo) -> Result<Self> {
        Ok(Self { host })
    }
}

impl Backend for Mlx {
    fn probe(&self, request: &ProbeRequest) -> Result<ProbeReport> {
        probe::report(&self.host, request)
    }

    fn convert(&self, request: &ForgeRequest, job: &dyn JobContext) -> Result<ForgeReport> {
        convert::convert(request, job)
    }

    fn quantize(&self, request: &ForgeRequest, job: &dyn JobContext) -> Result<ForgeReport> {
        quantize::quantize(request, job)
    }

    fn load(&self, request: &LoadRequest, job: Box<dyn JobContext>) -> Result<Box<dyn Session>> {
        Ok(Box::new(session::MlxSession::load(&self.host, request, job.as_ref())?))
    }
}

drophammer_sdk::export_backend!(Mlx::open);
