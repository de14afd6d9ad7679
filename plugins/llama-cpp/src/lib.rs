//! The llama.cpp backend: GGUF files made with this project's own writer or llama.cpp's quantizer, and run by libllama.
//!
//! Above the [`drophammer_sdk::Backend`] contract:
//! - [`ffi`] is all that touches the library: devices, models, contexts, the quantizer, its messages;
//! - [`check`] opens every file with our own parsers before the library sees it;
//! - [`fit`] says what memory a session takes and how many layers an accelerator holds;
//! - [`adapter`] makes GGUF adapters of Hugging Face ones.
//!
//! Reference mode computes in float32 with plain weights: float32 cache, no flash attention, no weights laid out anew, and on
//! the processor where no accelerator is asked for. With
//! quantized weights ggml rounds activations to eight bits whatever the mode; the job's log says so.

mod adapter;
mod check;
mod ffi;
mod fit;
mod probe;
mod quantize;
mod session;

use std::path::PathBuf;

use drophammer_sdk::{
    Backend, BackendError, ErrorCode, ForgeReport, ForgeRequest, HostInfo, JobContext, LoadRequest, Options,
    ProbeReport, ProbeRequest, Result, Session,
};

/// The backend.
pub struct LlamaCpp {
    /// Where converted adapters may lie for a while.
    cache: PathBuf,
    /// Options that hold where a request says nothing: the user's `[plugins.llama-cpp]`.
    usual: Options,
}

impl LlamaCpp {
    /// Opens the backend.
    ///
    /// # Errors
    /// On processors without the instructions this build of llama.cpp was compiled for.
    pub fn open(host: HostInfo) -> Result<Self> {
        if let Some(missing) = missing_instructions() {
            let message = format!("this build of llama.cpp needs a processor with {missing}");
            return Err(BackendError::new(ErrorCode::MissingRuntime, message)
                .with_help("Use the native backend, or build this plugin on this machine."));
        }
        ffi::find_kernels(&host.plugin);
        if !ffi::devices::has_processor() {
            let message = format!("{}: no kernels for this processor lie here", host.plugin.display());
            return Err(BackendError::new(ErrorCode::MissingRuntime, message)
                .with_help("Install the plugin again with all its files, or use the native backend."));
        }
        let cache = if host.cache.as_os_str().is_empty() { std::env::temp_dir() } else { host.cache };
        Ok(Self { cache, usual: host.config })
    }
}

impl LlamaCpp {
    /// Adds the usual options to those of a request.
    fn complete(&self, options: &mut Options) {
        for (key, value) in &self.usual {
            options.entry(key.clone()).or_insert_with(|| value.clone());
        }
    }
}

impl Backend for LlamaCpp {
    fn probe(&self, request: &ProbeRequest) -> Result<ProbeReport> {
        let mut request = request.clone();
        request.goals.iter_mut().for_each(|goal| self.complete(&mut goal.options));
        probe::report(&request)
    }

    fn convert(&self, request: &ForgeRequest, job: &dyn JobContext) -> Result<ForgeReport> {
        // With our own writer: llama.cpp's converter is a Python program.
        drophammer_forge::gguf::convert(request, job)
    }

    fn quantize(&self, request: &ForgeRequest, job: &dyn JobContext) -> Result<ForgeReport> {
        let mut request = request.clone();
        self.complete(&mut request.goal.options);
        quantize::quantize(&request, job)
    }

    fn load(&self, request: &LoadRequest, job: Box<dyn JobContext>) -> Result<Box<dyn Session>> {
        let mut request = request.clone();
        self.complete(&mut request.options);
        Ok(Box::new(session::LlamaSession::load(&request, job.into(), &self.cache)?))
    }
}

/// Instructions that llama.cpp's kernels were compiled with and this processor lacks: without them it would end the process.
/// Builds with kernels for several kinds of processor look for themselves.
#[cfg(all(target_arch = "x86_64", not(feature = "dynamic")))]
fn missing_instructions() -> Option<&'static str> {
    let present = [
        (std::arch::is_x86_feature_detected!("avx2"), "AVX2"),
        (std::arch::is_x86_feature_detected!("fma"), "FMA"),
        (std::arch::is_x86_feature_detected!("f16c"), "F16C"),
        (std::arch::is_x86_feature_detected!("bmi2"), "BMI2"),
    ];
    present.into_iter().find_map(|(there, name)| (!there).then_some(name))
}

#[cfg(not(all(target_arch = "x86_64", not(feature = "dynamic"))))]
fn missing_instructions() -> Option<&'static str> {
    None
}

drophammer_sdk::export_backend!(LlamaCpp::open);
