//! The native CPU backend: the engine that needs nothing installed, and the reference that measures all others.
//!
//! Above the [`drophammer_sdk::Backend`] contract this crate is three rooms:
//! - [`model`] records an architecture once, as a list of steps over buffers, and runs the list on all threads;
//! - [`kernels`] is the arithmetic, written once over vectors of sixteen numbers and compiled for each instruction set;
//! - [`cache`] holds keys and values in pages that sequences share.
//!
//! Weights stay in the mapped file. *Reference mode* multiplies by them in float32, row by row. *Fast mode* lays weights out in
//! tiles, which may be kept for the next load, and multiplies in integers: quantized ones by activations in sixteen bits, or where
//! bytes are multiplied (AVX2, `dotprod`) in eight, those that stand out of their row by themselves; halves, as fixed-point numbers
//! of fourteen bits, by activations in thirteen. Where there is AMX, rows of a sequence that has 64 of them and more in a batch are
//! multiplied as bfloat16 instead, both sides. Only float32 stays float32. Keys and values are fixed-point numbers too.
//!
//! Besides logits a session tells how its weights are used ([`calibration`]) and where its time goes ([`profile`]).

mod ahead;
mod cache;
mod calibration;
mod convert;
mod crew;
pub mod graph;
mod kernels;
mod memory;
mod model;
mod observer;
mod probe;
mod profile;
mod quantize;
mod session;
mod threads;

use drophammer_sdk::{
    Backend, ForgeReport, ForgeRequest, HostInfo, JobContext, LoadRequest, ProbeReport, ProbeRequest, Result,
    Session,
};

/// The backend.
#[derive(Default)]
pub struct Native {
    host: HostInfo,
}

impl Native {
    /// Opens the backend; it needs nothing of the host.
    ///
    /// # Errors
    /// None today.
    pub fn open(host: HostInfo) -> Result<Self> {
        Ok(Self { host })
    }
}

impl Backend for Native {
    fn probe(&self, request: &ProbeRequest) -> Result<ProbeReport> {
        probe::report(request)
    }

    fn convert(&self, request: &ForgeRequest, job: &dyn JobContext) -> Result<ForgeReport> {
        convert::convert(request, job)
    }

    fn quantize(&self, request: &ForgeRequest, job: &dyn JobContext) -> Result<ForgeReport> {
        quantize::quantize(request, job)
    }

    fn load(&self, request: &LoadRequest, job: Box<dyn JobContext>) -> Result<Box<dyn Session>> {
        Ok(Box::new(session::NativeSession::load(&self.host, request, job.as_ref())?))
    }
}
