//! OpenVINO: artifacts made without Python or the runtime, and run by the runtime's own libraries.
//!
//! - [`graph`] writes an architecture down as IR; [`scheme`] chooses number formats (by [`mixture`] weight by weight, with
//!   [`statistics`] of activations), [`encoder`] makes their bytes;
//! - [`forge`] plans and makes a whole [`directory`], as OpenVINO GenAI and the Model Server take it, with the
//!   [`tokenizer`]'s graphs;
//! - [`plain`] makes IR of ONNX graphs that are no language models;
//! - [`runtime`] is the C interface, opened while running; [`session`] runs models through it, with what was kept of them.
//!
//! Making needs nothing installed, but for plain graphs. Running needs the runtime, which [`probe`] looks for and reports on.

mod convert;
mod directory;
mod encoder;
mod forge;
mod graph;
mod mixture;
mod outline;
mod plain;
mod probe;
mod quantize;
mod runtime;
mod scheme;
mod session;
mod statistics;
mod tokenizer;

use drophammer_sdk::{
    Backend, ForgeReport, ForgeRequest, HostInfo, JobContext, LoadRequest, ProbeReport, ProbeRequest, Result,
    Session,
};

use plain::PlainGraph;

/// The backend.
pub struct OpenVino {
    host: HostInfo,
}

impl OpenVino {
    /// Opens the backend; the runtime is looked for when it is needed.
    ///
    /// # Errors
    /// None today.
    pub fn open(host: HostInfo) -> Result<Self> {
        Ok(Self { host })
    }
}

impl Backend for OpenVino {
    fn probe(&self, request: &ProbeRequest) -> Result<ProbeReport> {
        probe::report(&self.host, request)
    }

    fn convert(&self, request: &ForgeRequest, job: &dyn JobContext) -> Result<ForgeReport> {
        if let Some(graph) = PlainGraph::find(&request.source) {
            return plain::forge(&self.host, &graph, request, job);
        }
        convert::convert(request, job)
    }

    fn quantize(&self, request: &ForgeRequest, job: &dyn JobContext) -> Result<ForgeReport> {
        if let Some(graph) = PlainGraph::find(&request.source) {
            return plain::forge(&self.host, &graph, request, job);
        }
        quantize::quantize(request, job)
    }

    fn load(&self, request: &LoadRequest, job: Box<dyn JobContext>) -> Result<Box<dyn Session>> {
        Ok(Box::new(session::OpenVinoSession::load(&self.host, request, job.as_ref())?))
    }
}

drophammer_sdk::export_backend!(OpenVino::open);
