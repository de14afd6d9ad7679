//! Qualcomm QNN: models compiled for Hexagon NPUs as context binaries, and run by ONNX Runtime's QNN provider: on the NPU where there is
//! one, elsewhere in the emulation that QNN's package for x86-64 is.
//!
//! - [`forge`] makes a folder: fixed graphs of [`drophammer_models::export::onnx`], ranges of activations from [`calibrate`], for which
//!   the native engine runs [`floats`], contexts from [`compile`] for a chip of [`soc`]'s table; [`artifact`] is the folder's own
//!   description;
//! - [`common`] finds what all logits of a token have in common, which half precision need not hold;
//! - [`plain`] does the same for graphs that are no language models, and compares them with their originals;
//! - [`provider`] is the runtime, [`session`] runs contexts through it [`step`] by step.
//!
//! The libraries are Qualcomm's and proprietary: the user installs them (`drophammer runtime install qnn`), nothing of them is here.

mod artifact;
mod calibrate;
mod common;
mod compile;
mod convert;
mod floats;
mod forge;
mod plain;
mod probe;
mod provider;
mod quantize;
mod scheme;
mod session;
mod soc;
mod step;

use drophammer_forge::plain::PlainGraph;
use drophammer_sdk::{
    Backend, ForgeReport, ForgeRequest, HostInfo, JobContext, LoadRequest, ProbeReport, ProbeRequest, Result,
    Session,
};

/// The backend.
pub struct Qnn {
    host: HostInfo,
}

impl Qnn {
    /// Opens the backend; the runtime is looked for when something is to be compiled or run.
    ///
    /// # Errors
    /// None today.
    pub fn open(host: HostInfo) -> Result<Self> {
        Ok(Self { host })
    }
}

impl Backend for Qnn {
    fn probe(&self, request: &ProbeRequest) -> Result<ProbeReport> {
        probe::report(&self.host, request)
    }

    fn convert(&self, request: &ForgeRequest, job: &dyn JobContext) -> Result<ForgeReport> {
        if let Some(file) = PlainGraph::find(&request.source) {
            return plain::forge(&self.host, &file, request, job);
        }
        convert::convert(&self.host, request, job)
    }

    fn quantize(&self, request: &ForgeRequest, job: &dyn JobContext) -> Result<ForgeReport> {
        if let Some(file) = PlainGraph::find(&request.source) {
            return plain::forge(&self.host, &file, request, job);
        }
        quantize::quantize(&self.host, request, job)
    }

    fn load(&self, request: &LoadRequest, job: Box<dyn JobContext>) -> Result<Box<dyn Session>> {
        Ok(Box::new(session::QnnSession::load(&self.host, request, job.as_ref())?))
    }
}

drophammer_sdk::export_backend!(Qnn::open);
