//! The ABI object around the backend, written by hand so that it can answer what the SDK never would.

use drophammer_sdk::abi::types::{ROption, RResult, RStr, RString, TD_Opaque};
use drophammer_sdk::abi::{self, AbiResult, BackendBox, ExtensionBox, JobContextBox, SessionBox};
use drophammer_sdk::{ForgeRequest, guest};

use crate::Faulty;
use crate::misbehaviour::Misbehaviour;

/// What the root module exports.
pub(crate) extern "C" fn open(host: RStr<'_>) -> AbiResult<BackendBox> {
    match guest::open(host, Faulty::new) {
        RResult::ROk(inner) => RResult::ROk(abi::Backend_TO::from_value(Raw(inner), TD_Opaque)),
        RResult::RErr(error) => RResult::RErr(error),
    }
}

struct Raw(BackendBox);

/// The scheme a request asks for.
fn scheme(request: RStr<'_>) -> Option<Misbehaviour> {
    let request: ForgeRequest = serde_json::from_str(request.as_str()).ok()?;
    Misbehaviour::named(&request.goal.scheme).ok()
}

impl abi::Backend for Raw {
    fn probe(&self, request: RStr<'_>) -> AbiResult<RString> {
        self.0.probe(request)
    }

    fn convert(&self, request: RStr<'_>, job: JobContextBox<'_>) -> AbiResult<RString> {
        match scheme(request) {
            Some(Misbehaviour::PanicUncaught) => panic!("a panic across the boundary"),
            Some(Misbehaviour::Garbage) => RResult::ROk("\u{0}not JSON {".into()),
            Some(Misbehaviour::WrongShape) => RResult::ROk("{\"files\": 7, \"bytes\": \"many\"}".into()),
            Some(Misbehaviour::Escape) => {
                RResult::ROk("{\"files\": [\"../../escaped\", \"/etc/passwd\"], \"bytes\": 1}".into())
            }
            _ => self.0.convert(request, job),
        }
    }

    fn quantize(&self, request: RStr<'_>, job: JobContextBox<'_>) -> AbiResult<RString> {
        self.convert(request, job)
    }

    fn load(&self, request: RStr<'_>, job: JobContextBox<'static>) -> AbiResult<SessionBox> {
        self.0.load(request, job)
    }

    fn extension(&self, id: RStr<'_>) -> ROption<ExtensionBox> {
        self.0.extension(id)
    }
}
