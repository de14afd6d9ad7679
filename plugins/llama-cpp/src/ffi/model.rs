//! Loaded weights, and adapters to them.

use std::ffi::{CString, c_void};
use std::path::Path;
use std::sync::Arc;

use drophammer_sdk::{BackendError, ErrorCode, Result};
use llama_cpp_sys_2 as sys;

use super::devices::Device;
use super::{log, path as c_path, start};

/// Weights that libllama has loaded.
#[derive(Debug)]
pub(crate) struct Model {
    pub(super) pointer: *mut sys::llama_model,
}

// SAFETY: a model is only read after it was loaded, and the library keeps no thread-bound state in it.
unsafe impl Send for Model {}
// SAFETY: as above.
unsafe impl Sync for Model {}

/// How to load.
pub(crate) struct LoadOptions<'a> {
    /// Layers on accelerators; the rest stays with the processor.
    pub(crate) gpu_layers: u32,
    /// The only device besides the processor; `None` leaves everything to the processor.
    pub(crate) device: Option<&'a Device>,
    /// Whether weights may be laid out anew for faster products.
    pub(crate) repack: bool,
    /// Hears a share between 0 and 1; `false` ends the loading.
    pub(crate) progress: &'a mut dyn FnMut(f32) -> bool,
}

impl Model {
    /// Loads a file that our own parser has accepted.
    ///
    /// # Errors
    /// [`ErrorCode::Cancelled`] when the progress function said so, else the library's own words.
    pub(crate) fn load(path: &Path, options: LoadOptions<'_>) -> Result<Self> {
        start();
        let name = c_path(path)?;
        log::clear_errors();
        let mut cancelled = false;
        let mut hear = |share: f32| {
            let go_on = (options.progress)(share);
            cancelled |= !go_on;
            go_on
        };
        let mut hear: &mut dyn FnMut(f32) -> bool = &mut hear;
        // Without a list the library takes every accelerator, for products of long prompts even where no layer lies on it.
        let mut devices =
            [options.device.map_or(std::ptr::null_mut(), |device| device.pointer), std::ptr::null_mut()];
        // SAFETY: the defaults are plain data. Everything the parameters point to (devices, the progress function) lives
        // until the call returns, and the library does not use it afterwards.
        let pointer = unsafe {
            let mut parameters = sys::llama_model_default_params();
            parameters.n_gpu_layers = i32::try_from(options.gpu_layers).unwrap_or(i32::MAX);
            parameters.use_extra_bufts = options.repack;
            parameters.devices = devices.as_mut_ptr();
            parameters.progress_callback = Some(progressed);
            parameters.progress_callback_user_data = (&raw mut hear).cast();
            sys::llama_model_load_from_file(name.as_ptr(), parameters)
        };
        if !pointer.is_null() {
            return Ok(Self { pointer });
        }
        if cancelled {
            return Err(BackendError::cancelled());
        }
        let errors = log::errors();
        let message = format!("{}: llama.cpp cannot load it: {errors}", path.display());
        if log::tells_of_memory(&errors) {
            return Err(BackendError::new(ErrorCode::OutOfResources, message).with_help(
                "Put fewer layers on the accelerator (`gpu_layers`), all on the processor (`device = \"cpu\"`), or \
                 free memory.",
            ));
        }
        Err(BackendError::new(ErrorCode::UnsupportedInput, message)
            .with_help("Convert the model again from its source, or load it with another backend."))
    }

    /// Token ids.
    pub(crate) fn vocabulary(&self) -> u32 {
        // SAFETY: the model is loaded; its vocabulary lives as long as it.
        unsafe { sys::llama_vocab_n_tokens(sys::llama_model_get_vocab(self.pointer)) as u32 }
    }

    /// Width of a hidden state.
    pub(crate) fn hidden(&self) -> u32 {
        // SAFETY: the model is loaded.
        unsafe { sys::llama_model_n_embd_out(self.pointer) as u32 }
    }
}

impl Drop for Model {
    fn drop(&mut self) {
        // SAFETY: loaded, not freed yet, and no context or adapter is left: they hold the model.
        unsafe { sys::llama_model_free(self.pointer) }
    }
}

unsafe extern "C" fn progressed(share: f32, user_data: *mut c_void) -> bool {
    // SAFETY: `load` passes a pointer to this very type, alive and not otherwise used during the call.
    let hear = unsafe { &mut *user_data.cast::<&mut dyn FnMut(f32) -> bool>() };
    hear(share)
}

/// A low-rank adapter, freed with its model.
#[derive(Debug)]
pub(crate) struct Adapter {
    pub(super) pointer: *mut sys::llama_adapter_lora,
    /// Adapters belong to their model.
    _model: Arc<Model>,
}

// SAFETY: as for the model.
unsafe impl Send for Adapter {}

impl Adapter {
    /// Loads a GGUF adapter that our own parser has accepted.
    ///
    /// # Errors
    /// The library's own words, for adapters of other models.
    pub(crate) fn load(model: &Arc<Model>, path: &Path) -> Result<Self> {
        let name = c_path(path)?;
        log::clear_errors();
        // SAFETY: model and path live during the call.
        let pointer = unsafe { sys::llama_adapter_lora_init(model.pointer, name.as_ptr()) };
        if pointer.is_null() {
            let message = format!("{}: not an adapter of this model: {}", path.display(), log::errors());
            return Err(BackendError::new(ErrorCode::InvalidInput, message)
                .with_help("Choose the adapter that was trained on this very model."));
        }
        Ok(Self { pointer, _model: Arc::clone(model) })
    }
}

/// Whether libllama knows an architecture: it is asked with a header that says nothing else.
pub(crate) fn knows(architecture: &str) -> bool {
    start();
    let Ok(architecture) = CString::new(architecture) else { return false };
    log::clear_errors();
    // SAFETY: the header is made and freed here; the model that cannot come of it is not used. No weights are asked for, so
    // the function that would give them is never called.
    log::aside(|| unsafe {
        let header = sys::gguf_init_empty();
        sys::gguf_set_val_str(header, c"general.architecture".as_ptr(), architecture.as_ptr());
        let mut parameters = sys::llama_model_default_params();
        parameters.vocab_only = true;
        let model = sys::llama_model_init_from_user(header, Some(nothing), std::ptr::null_mut(), parameters);
        if !model.is_null() {
            sys::llama_model_free(model);
        }
        sys::gguf_free(header);
    });
    // Every header this bare fails; an unknown architecture fails for that reason.
    !log::errors().contains("unknown model architecture")
}

unsafe extern "C" fn nothing(_: *mut sys::ggml_tensor, _: *mut c_void) {}
