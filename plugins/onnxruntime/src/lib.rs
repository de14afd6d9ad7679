//! The ONNX Runtime backend: ONNX directories that onnxruntime-genai takes as its own, and sessions on ONNX Runtime.
//!
//! What the graph looks like is decided in [`drophammer_models::export::onnx`]; here are the goals a user can name ([`forge`]), the
//! library ([`drophammer_ort`]), and the [`session`]. Making artifacts needs no library; running them does.
//! [`plain`] makes graphs that are no language models smaller, and compares them with their original.

mod convert;
mod forge;
mod model;
mod plain;
mod probe;
mod quantize;
mod session;

use drophammer_forge::plain::PlainGraph;
use drophammer_sdk::{
    Backend, ForgeReport, ForgeRequest, HostInfo, JobContext, LoadRequest, ProbeReport, ProbeRequest, Result,
    Session,
};

/// The backend.
pub struct OnnxRuntime {
    host: HostInfo,
}

impl OnnxRuntime {
    /// Opens the backend; the library is looked for when something is to be run.
    ///
    /// # Errors
    /// None today.
    pub fn open(host: HostInfo) -> Result<Self> {
        Ok(Self { host })
    }
}

impl Backend for OnnxRuntime {
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
        Ok(Box::new(session::OrtSession::load(&self.host, request, job.as_ref())?))
    }
}

drophammer_sdk::export_backend!(OnnxRuntime::open);
