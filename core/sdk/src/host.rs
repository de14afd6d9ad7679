//! The host's side of the boundary: opens a plugin and shows it as a safe [`Backend`].
//!
//! A process that opens a plugin never closes it (native runtimes rarely survive unloading), so the host opens each
//! plugin in a worker process of its own.

use std::path::Path;

use drophammer_abi as abi;
use drophammer_abi::types::{ROption, RResult, RSlice, RSliceMut, RStr, TD_Opaque};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::backend::{Backend, Batch, Extension, JobContext, Limits, LogLevel, OutputKind, Session};
use crate::documents::{ForgeReport, ForgeRequest, HostInfo, LoadRequest, ProbeReport, ProbeRequest};
use crate::error::{BackendError, ErrorCode, Result};
use crate::guest::{ImportedExtension, export_extension, parse, print};
use crate::manifest::Manifest;

/// A plugin whose dylib was checked and opened.
pub struct Plugin {
    manifest: Manifest,
    backend: abi::BackendBox,
}

impl std::fmt::Debug for Plugin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Plugin").field("manifest", &self.manifest).finish_non_exhaustive()
    }
}

impl Plugin {
    /// Opens the plugin of a directory holding `plugin.toml` and the dylib it names. The manifest's ABI version and
    /// the dylib's SHA-256 are checked before the dylib is opened: opening runs its code.
    ///
    /// # Errors
    /// [`ErrorCode::UnsupportedInput`] for another ABI, [`ErrorCode::InvalidInput`] for a broken manifest, a digest
    /// that does not match or a dylib that is not a plugin; and whatever the plugin itself reports on opening.
    pub fn open(directory: &Path, host: &HostInfo) -> Result<Self> {
        let manifest = Manifest::read(directory)?;
        let dylib = manifest.verified_library(directory)?;
        let module = abi::open_module(&dylib).map_err(|error| {
            BackendError::new(
                ErrorCode::InvalidInput,
                format!("{} cannot be opened as a plugin: {error}", dylib.display()),
            )
            .with_help(
                "rebuild the plugin against this host's drophammer-sdk, or install its missing libraries",
            )
        })?;
        let place = directory.canonicalize().unwrap_or_else(|_| directory.to_owned());
        let document = print(&HostInfo { plugin: place, ..host.clone() })?;
        let backend = into_result(module.open()(document.as_rstr()))?;
        Ok(Self { manifest, backend })
    }

    /// The plugin's manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }
}

fn into_result<T>(result: abi::AbiResult<T>) -> Result<T> {
    match result {
        RResult::ROk(value) => Ok(value),
        RResult::RErr(error) => Err(error.into()),
    }
}

fn ask<Q: Serialize, A: DeserializeOwned>(
    request: &Q,
    call: impl FnOnce(RStr<'_>) -> abi::AbiResult<abi::types::RString>,
) -> Result<A> {
    let document = print(request)?;
    let answer = into_result(call(document.as_rstr()))?;
    parse(&answer).map_err(|error| BackendError {
        // The plugin's fault, not that of whoever asked.
        code: ErrorCode::Failed,
        message: format!("the plugin's answer: {}", error.message),
        help: error.help,
    })
}

impl Backend for Plugin {
    fn probe(&self, request: &ProbeRequest) -> Result<ProbeReport> {
        ask(request, |document| self.backend.probe(document))
    }

    fn convert(&self, request: &ForgeRequest, job: &dyn JobContext) -> Result<ForgeReport> {
        ask(request, |document| self.backend.convert(document, lend(job)))
    }

    fn quantize(&self, request: &ForgeRequest, job: &dyn JobContext) -> Result<ForgeReport> {
        ask(request, |document| self.backend.quantize(document, lend(job)))
    }

    fn load(&self, request: &LoadRequest, job: Box<dyn JobContext>) -> Result<Box<dyn Session>> {
        let document = print(request)?;
        let job = abi::JobContext_TO::from_value(HostJob(job), TD_Opaque);
        let session = into_result(self.backend.load(document.as_rstr(), job))?;
        Ok(Box::new(RemoteSession(session)))
    }

    fn extension(&self, id: &str) -> Option<Box<dyn Extension>> {
        import_extension(self.backend.extension(RStr::from(id)))
    }
}

/// A job context the plugin may use for the length of one call.
fn lend(job: &dyn JobContext) -> abi::JobContextBox<'_> {
    abi::JobContext_TO::from_value(HostJob(job), TD_Opaque)
}

fn import_extension(extension: ROption<abi::ExtensionBox>) -> Option<Box<dyn Extension>> {
    match extension {
        ROption::RSome(extension) => Some(Box::new(ImportedExtension(extension))),
        ROption::RNone => None,
    }
}

struct RemoteSession(abi::SessionBox);

impl Session for RemoteSession {
    fn limits(&self) -> Limits {
        let limits = self.0.limits();
        Limits {
            context: limits.context,
            max_sequences: limits.max_sequences,
            max_batch: limits.max_batch,
            output_width: limits.output_width,
            output_kind: if limits.output_kind == 0 { OutputKind::Logits } else { OutputKind::Hidden },
        }
    }

    fn forward(&mut self, batch: Batch<'_>, output: &mut [f32]) -> Result<()> {
        let batch = abi::Batch {
            tokens: RSlice::from(batch.tokens),
            positions: RSlice::from(batch.positions),
            sequences: RSlice::from(batch.sequences),
            outputs: RSlice::from(batch.outputs),
        };
        into_result(self.0.forward(batch, RSliceMut::from(output)))
    }

    fn keep(&mut self, sequence: u32, from: u32, to: u32) -> Result<()> {
        into_result(self.0.keep(sequence, from, to))
    }

    fn remove(&mut self, sequence: u32, from: u32, to: u32) -> Result<()> {
        into_result(self.0.remove(sequence, from, to))
    }

    fn copy(&mut self, source: u32, target: u32, from: u32, to: u32) -> Result<()> {
        into_result(self.0.copy(source, target, from, to))
    }

    fn extension(&self, id: &str) -> Option<Box<dyn Extension>> {
        import_extension(self.0.extension(RStr::from(id)))
    }
}

/// The host's job context as the plugin sees it.
struct HostJob<J>(J);

impl<'a, J> abi::JobContext for HostJob<J>
where
    J: std::ops::Deref<Target = dyn JobContext + 'a> + Send + Sync,
{
    fn progress(&self, stage: RStr<'_>, tensor: RStr<'_>, done: u64, total: u64) {
        self.0.progress(stage.as_str(), tensor.as_str(), done, total);
    }

    fn log(&self, level: u32, message: RStr<'_>) {
        self.0.log(LogLevel::from_number(level), message.as_str());
    }

    fn cancelled(&self) -> bool {
        self.0.cancelled()
    }

    fn budgets(&self) -> abi::Budgets {
        self.0.budgets()
    }

    fn extension(&self, id: RStr<'_>) -> ROption<abi::ExtensionBox> {
        export_extension(|| self.0.extension(id.as_str()))
    }
}
