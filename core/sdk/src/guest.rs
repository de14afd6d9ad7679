//! The plugin's side of the boundary: wraps safe [`Backend`], [`Session`] and [`Extension`] objects into ABI objects.
//! Every entry catches panics and turns them into [`ErrorCode::Panic`]: an unwinding panic would abort the process.

use std::panic::{AssertUnwindSafe, catch_unwind};

use drophammer_abi as abi;
use drophammer_abi::types::{ROption, RResult, RSlice, RSliceMut, RStr, RString, RVec, TD_Opaque};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::backend::{Backend, Batch, Extension, JobContext, Limits, LogLevel, OutputKind, Session};
use crate::documents::HostInfo;
use crate::error::{BackendError, ErrorCode, Result};

/// Runs `body`; a panic becomes an error carrying the panic's message.
pub(crate) fn guarded<T>(body: impl FnOnce() -> Result<T>) -> abi::AbiResult<T> {
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(value)) => RResult::ROk(value),
        Ok(Err(error)) => RResult::RErr(error.into()),
        Err(payload) => RResult::RErr(panic_error(payload.as_ref()).into()),
    }
}

fn panic_error(payload: &(dyn std::any::Any + Send)) -> BackendError {
    let text = payload
        .downcast_ref::<&str>()
        .map(ToString::to_string)
        .or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "(no message)".to_owned());
    BackendError::new(ErrorCode::Panic, format!("the backend panicked: {text}"))
        .with_help("this is a defect of the plugin; the job's log holds the lines before it")
}

pub(crate) fn parse<T: DeserializeOwned>(document: &str) -> Result<T> {
    serde_json::from_str(document).map_err(|error| {
        BackendError::new(
            ErrorCode::InvalidRequest,
            format!("unreadable document at the plugin boundary: {error}"),
        )
        .with_help("host and plugin disagree about a document; update the older of the two")
    })
}

pub(crate) fn print<T: Serialize>(value: &T) -> Result<RString> {
    serde_json::to_string(value).map(RString::from).map_err(|error| {
        BackendError::new(ErrorCode::Failed, format!("a document could not be written: {error}"))
    })
}

/// Opens a backend for the host; what [`crate::export_backend!`] exports calls this.
pub fn open<B: Backend + 'static>(
    host: RStr<'_>,
    make: impl FnOnce(HostInfo) -> Result<B>,
) -> abi::AbiResult<abi::BackendBox> {
    guarded(|| {
        let backend = make(parse(host.as_str())?)?;
        Ok(abi::Backend_TO::from_value(GuestBackend(Box::new(backend)), TD_Opaque))
    })
}

struct GuestBackend(Box<dyn Backend>);

impl abi::Backend for GuestBackend {
    fn probe(&self, request: RStr<'_>) -> abi::AbiResult<RString> {
        guarded(|| print(&self.0.probe(&parse(request.as_str())?)?))
    }

    fn convert(&self, request: RStr<'_>, job: abi::JobContextBox<'_>) -> abi::AbiResult<RString> {
        guarded(|| print(&self.0.convert(&parse(request.as_str())?, &RemoteJob(job))?))
    }

    fn quantize(&self, request: RStr<'_>, job: abi::JobContextBox<'_>) -> abi::AbiResult<RString> {
        guarded(|| print(&self.0.quantize(&parse(request.as_str())?, &RemoteJob(job))?))
    }

    fn load(&self, request: RStr<'_>, job: abi::JobContextBox<'static>) -> abi::AbiResult<abi::SessionBox> {
        guarded(|| {
            let session = self.0.load(&parse(request.as_str())?, Box::new(RemoteJob(job)))?;
            Ok(abi::Session_TO::from_value(GuestSession(session), TD_Opaque))
        })
    }

    fn extension(&self, id: RStr<'_>) -> ROption<abi::ExtensionBox> {
        export_extension(|| self.0.extension(id.as_str()))
    }
}

struct GuestSession(Box<dyn Session>);

impl abi::Session for GuestSession {
    fn limits(&self) -> abi::SessionLimits {
        let none = Limits {
            context: 0,
            max_sequences: 0,
            max_batch: 0,
            output_width: 0,
            output_kind: OutputKind::Logits,
        };
        let limits = catch_unwind(AssertUnwindSafe(|| self.0.limits())).unwrap_or(none);
        abi::SessionLimits {
            context: limits.context,
            max_sequences: limits.max_sequences,
            max_batch: limits.max_batch,
            output_width: limits.output_width,
            output_kind: u32::from(limits.output_kind == OutputKind::Hidden),
        }
    }

    fn forward(&mut self, batch: abi::Batch<'_>, mut output: RSliceMut<'_, f32>) -> abi::AbiResult<()> {
        guarded(|| {
            let batch = Batch {
                tokens: batch.tokens.as_slice(),
                positions: batch.positions.as_slice(),
                sequences: batch.sequences.as_slice(),
                outputs: batch.outputs.as_slice(),
            };
            batch.validate(&self.0.limits(), output.len())?;
            self.0.forward(batch, output.as_mut_slice())
        })
    }

    fn keep(&mut self, sequence: u32, from: u32, to: u32) -> abi::AbiResult<()> {
        guarded(|| self.0.keep(sequence, from, to))
    }

    fn remove(&mut self, sequence: u32, from: u32, to: u32) -> abi::AbiResult<()> {
        guarded(|| self.0.remove(sequence, from, to))
    }

    fn copy(&mut self, source: u32, target: u32, from: u32, to: u32) -> abi::AbiResult<()> {
        guarded(|| self.0.copy(source, target, from, to))
    }

    fn extension(&self, id: RStr<'_>) -> ROption<abi::ExtensionBox> {
        export_extension(|| self.0.extension(id.as_str()))
    }
}

pub(crate) struct ExportedExtension(Box<dyn Extension>);

impl abi::Extension for ExportedExtension {
    fn call(&self, method: RStr<'_>, payload: RSlice<'_, u8>) -> abi::AbiResult<RVec<u8>> {
        guarded(|| self.0.call(method.as_str(), payload.as_slice()).map(RVec::from))
    }
}

/// Wraps what `find` returns for the other side; a panic counts as "not there".
pub(crate) fn export_extension(
    find: impl FnOnce() -> Option<Box<dyn Extension>>,
) -> ROption<abi::ExtensionBox> {
    match catch_unwind(AssertUnwindSafe(find)) {
        Ok(Some(extension)) => {
            ROption::RSome(abi::Extension_TO::from_value(ExportedExtension(extension), TD_Opaque))
        }
        _ => ROption::RNone,
    }
}

/// An extension of the other side, as a safe object.
pub(crate) struct ImportedExtension(pub(crate) abi::ExtensionBox);

impl Extension for ImportedExtension {
    fn call(&self, method: &str, payload: &[u8]) -> Result<Vec<u8>> {
        match self.0.call(RStr::from(method), RSlice::from(payload)) {
            RResult::ROk(bytes) => Ok(bytes.into_vec()),
            RResult::RErr(error) => Err(error.into()),
        }
    }
}

/// The host's job context seen from the plugin.
struct RemoteJob<'a>(abi::JobContextBox<'a>);

impl JobContext for RemoteJob<'_> {
    fn progress(&self, stage: &str, tensor: &str, done: u64, total: u64) {
        self.0.progress(RStr::from(stage), RStr::from(tensor), done, total);
    }

    fn log(&self, level: LogLevel, message: &str) {
        self.0.log(level as u32, RStr::from(message));
    }

    fn cancelled(&self) -> bool {
        self.0.cancelled()
    }

    fn budgets(&self) -> abi::Budgets {
        self.0.budgets()
    }

    fn extension(&self, id: &str) -> Option<Box<dyn Extension>> {
        match self.0.extension(RStr::from(id)) {
            ROption::RSome(extension) => Some(Box::new(ImportedExtension(extension))),
            ROption::RNone => None,
        }
    }
}
