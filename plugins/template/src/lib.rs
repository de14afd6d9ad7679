//! A complete small plugin: `drophammer plugin new NAME` writes it as a crate of its own, to be filled with other
//! mathematics.
//!
//! Its artifacts hold two matrices of a model, the embedding and the output; its sessions run them as that model without
//! the layers between. That says little, but it says it through every door a plugin has: it is planned, forged in float32
//! or eight bits, cancelled, measured and served as any other.
//!
//! `probe` says what can be done here, `convert` and `quantize` make artifacts, `session` runs them.

mod convert;
mod probe;
mod quantize;
mod session;

use drophammer_sdk::{
    Backend, BackendError, ErrorCode, ForgeReport, ForgeRequest, HostInfo, JobContext, LoadRequest,
    ProbeReport, ProbeRequest, Result, Session,
};

/// The plugin's id; its format and the extension of its artifacts are called the same.
const ID: &str = "template";

struct Template;

impl Backend for Template {
    fn probe(&self, request: &ProbeRequest) -> Result<ProbeReport> {
        probe::report(request)
    }

    fn convert(&self, request: &ForgeRequest, job: &dyn JobContext) -> Result<ForgeReport> {
        convert::forge(request, job, convert::Numbers::F32)
    }

    fn quantize(&self, request: &ForgeRequest, job: &dyn JobContext) -> Result<ForgeReport> {
        convert::forge(request, job, convert::Numbers::Int8)
    }

    fn load(&self, request: &LoadRequest, _: Box<dyn JobContext>) -> Result<Box<dyn Session>> {
        session::load(request)
    }
}

/// A failure to read or write a file, in the words of whoever failed.
fn failed(error: drophammer_formats::Error) -> BackendError {
    BackendError::new(ErrorCode::InvalidInput, error.to_string()).with_help(error.help())
}

drophammer_sdk::export_backend!(|_: HostInfo| Ok(Template));
