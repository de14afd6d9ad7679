//! A model at work: its cache, its threads, its outputs.

use std::ffi::{CStr, c_void};
use std::sync::Arc;

use drophammer_sdk::{BackendError, Batch, ErrorCode, JobContext, Result};
use llama_cpp_sys_2 as sys;

use super::log;
use super::model::{Adapter, Model};

/// What a context is made for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Settings {
    /// Longest sequence, in tokens.
    pub(crate) context: u32,
    /// Sequences held at once.
    pub(crate) sequences: u32,
    /// Most tokens of a call.
    pub(crate) batch: u32,
    /// Most tokens that go through the layers together.
    pub(crate) chunk: u32,
    pub(crate) threads: u32,
    /// Types of cached keys and values.
    pub(crate) keys: Stored,
    pub(crate) values: Stored,
    pub(crate) flash: Flash,
    /// Hidden states instead of logits, and how they are pooled.
    pub(crate) pooling: Option<Pooling>,
}

/// How a number of the cache is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stored {
    F32,
    F16,
    Q8_0,
    Q4_0,
}

impl Stored {
    /// The name under which it is asked for.
    pub(crate) const NAMES: [(&'static str, Self); 4] =
        [("f32", Self::F32), ("f16", Self::F16), ("q8_0", Self::Q8_0), ("q4_0", Self::Q4_0)];

    fn raw(self) -> sys::ggml_type {
        match self {
            Self::F32 => sys::GGML_TYPE_F32,
            Self::F16 => sys::GGML_TYPE_F16,
            Self::Q8_0 => sys::GGML_TYPE_Q8_0,
            Self::Q4_0 => sys::GGML_TYPE_Q4_0,
        }
    }

    /// Bytes of so many numbers.
    pub(crate) fn bytes(self, numbers: u64) -> u64 {
        match self {
            Self::F32 => numbers * 4,
            Self::F16 => numbers * 2,
            Self::Q8_0 => numbers.div_ceil(32) * 34,
            Self::Q4_0 => numbers.div_ceil(32) * 18,
        }
    }
}

/// Flash attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flash {
    /// Where the model and the device allow it.
    Auto,
    On,
    Off,
}

/// How hidden states of a sequence become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pooling {
    None,
    Mean,
    First,
    Last,
}

/// A context with its threads.
pub(crate) struct Context {
    pointer: *mut sys::llama_context,
    pool: *mut sys::ggml_threadpool,
    settings: Settings,
    width: usize,
    /// Whether there is a cache: encoders keep none.
    remembers: bool,
    tokens: Tokens,
    /// Asked by the library whether to go on; boxed twice, because C holds one thin pointer.
    job: Box<Arc<dyn JobContext>>,
    adapters: Vec<Adapter>,
    model: Arc<Model>,
}

// SAFETY: used by one thread at a time, which `&mut self` of every method that computes sees to.
unsafe impl Send for Context {}

/// The arrays of a `llama_batch`, kept between calls.
#[derive(Default)]
struct Tokens {
    /// Tokens of the batch by sequence, as the library gets them.
    order: Vec<usize>,
    /// Where each of them went.
    places: Vec<i32>,
    ids: Vec<i32>,
    positions: Vec<i32>,
    sequences: Vec<i32>,
    counts: Vec<i32>,
    pointers: Vec<*mut i32>,
    wanted: Vec<i8>,
}

impl Context {
    /// Makes a context of a model.
    ///
    /// # Errors
    /// [`ErrorCode::OutOfResources`] where cache or buffers cannot be had, with the library's words.
    pub(crate) fn new(
        model: &Arc<Model>,
        settings: Settings,
        adapters: Vec<Adapter>,
        job: &Arc<dyn JobContext>,
    ) -> Result<Self> {
        let job = Box::new(Arc::clone(job));
        log::clear_errors();
        // SAFETY: the parameters are plain data besides the pointer to the job, which is boxed and outlives the context.
        let pointer = unsafe {
            let mut parameters = sys::llama_context_default_params();
            parameters.n_ctx = settings.context.saturating_mul(settings.sequences);
            parameters.n_batch = settings.batch;
            parameters.n_ubatch = settings.chunk;
            parameters.n_seq_max = settings.sequences;
            parameters.n_threads = settings.threads as i32;
            parameters.n_threads_batch = settings.threads as i32;
            parameters.type_k = settings.keys.raw();
            parameters.type_v = settings.values.raw();
            parameters.flash_attn_type = match settings.flash {
                Flash::Auto => sys::LLAMA_FLASH_ATTN_TYPE_AUTO,
                Flash::On => sys::LLAMA_FLASH_ATTN_TYPE_ENABLED,
                Flash::Off => sys::LLAMA_FLASH_ATTN_TYPE_DISABLED,
            };
            parameters.embeddings = settings.pooling.is_some();
            parameters.pooling_type = match settings.pooling {
                None => sys::LLAMA_POOLING_TYPE_UNSPECIFIED,
                Some(Pooling::None) => sys::LLAMA_POOLING_TYPE_NONE,
                Some(Pooling::Mean) => sys::LLAMA_POOLING_TYPE_MEAN,
                Some(Pooling::First) => sys::LLAMA_POOLING_TYPE_CLS,
                Some(Pooling::Last) => sys::LLAMA_POOLING_TYPE_LAST,
            };
            // A window's cache that forgets could not give a shortened sequence again what it saw before.
            parameters.swa_full = true;
            // One cache per sequence: a batch pays for its own tokens only.
            parameters.kv_unified = false;
            parameters.no_perf = true;
            parameters.abort_callback = Some(aborts);
            parameters.abort_callback_data = (&raw const *job).cast_mut().cast();
            sys::llama_init_from_model(model.pointer, parameters)
        };
        if pointer.is_null() {
            let message = format!(
                "a context of {} tokens for {} sequence(s) cannot be made: {}",
                settings.context,
                settings.sequences,
                log::errors()
            );
            return Err(BackendError::new(ErrorCode::OutOfResources, message)
                .with_help("Ask for a shorter context, fewer sequences or another type of cache."));
        }
        // SAFETY: the context is there; null means that it keeps no cache.
        let remembers = unsafe { !sys::llama_get_memory(pointer).is_null() };
        let width = if settings.pooling.is_some() { model.hidden() } else { model.vocabulary() } as usize;
        let mut context = Self {
            pointer,
            pool: std::ptr::null_mut(),
            settings,
            width,
            remembers,
            tokens: Tokens::default(),
            job,
            adapters,
            model: Arc::clone(model),
        };
        context.start_threads();
        context.attach()?;
        Ok(context)
    }

    /// Threads that live as long as the context: the library would start new ones for every call.
    fn start_threads(&mut self) {
        // SAFETY: parameters are plain data; pool and context are freed in order when this is dropped.
        unsafe {
            let mut parameters = sys::ggml_threadpool_params_default(self.settings.threads as i32);
            let Some(new) = pools::<NewPool>(c"ggml_threadpool_new") else { return };
            self.pool = new(&raw mut parameters);
            if !self.pool.is_null() {
                sys::llama_attach_threadpool(self.pointer, self.pool, self.pool);
            }
        }
    }

    fn attach(&mut self) -> Result<()> {
        if self.adapters.is_empty() {
            return Ok(());
        }
        let mut pointers: Vec<_> = self.adapters.iter().map(|adapter| adapter.pointer).collect();
        let mut scales = vec![1.0; pointers.len()];
        // SAFETY: both arrays have this length and are copied.
        let code = unsafe {
            let (adapters, scales) = (pointers.as_mut_ptr(), scales.as_mut_ptr());
            sys::llama_set_adapters_lora(self.pointer, adapters, pointers.len(), scales)
        };
        if code == 0 {
            Ok(())
        } else {
            Err(failed(&format!("adapters cannot be attached: {}", log::errors())))
        }
    }

    /// Floats of an output row.
    pub(crate) fn width(&self) -> usize {
        self.width
    }

    /// The model.
    pub(crate) fn model(&self) -> &Model {
        &self.model
    }

    /// Runs a batch that was checked against the limits; rows in the order of `batch.outputs`.
    ///
    /// # Errors
    /// Batches whose positions do not continue their sequences, cancelling, and the library's own failures.
    pub(crate) fn run(&mut self, batch: Batch<'_>, output: &mut [f32]) -> Result<()> {
        self.fill(batch);
        log::clear_errors();
        let tokens = &mut self.tokens;
        // SAFETY: every array holds as many elements as there are tokens, `pointers` points into `sequences`, and all live
        // during the call.
        let code = unsafe {
            let raw = sys::llama_batch {
                n_tokens: tokens.ids.len() as i32,
                token: tokens.ids.as_mut_ptr(),
                embd: std::ptr::null_mut(),
                pos: tokens.positions.as_mut_ptr(),
                n_seq_id: tokens.counts.as_mut_ptr(),
                seq_id: tokens.pointers.as_mut_ptr(),
                logits: tokens.wanted.as_mut_ptr(),
            };
            if self.remembers {
                sys::llama_decode(self.pointer, raw)
            } else {
                sys::llama_encode(self.pointer, raw)
            }
        };
        match code {
            0 => self.collect(batch, output),
            _ if self.job.cancelled() => Err(BackendError::cancelled()),
            -1 => Err(BackendError::new(ErrorCode::InvalidRequest, log::errors())
                .with_help("Positions go on where the sequence's cache ends.")),
            1 => Err(BackendError::new(ErrorCode::OutOfResources, "the cache has no room for this batch")
                .with_help("Ask for a longer context, or end other sequences.")),
            code => Err(failed(&format!("llama.cpp failed to compute (code {code}): {}", log::errors()))),
        }
    }

    fn fill(&mut self, batch: Batch<'_>) {
        let pooled = !matches!(self.settings.pooling, None | Some(Pooling::None));
        let tokens = &mut self.tokens;
        let count = batch.tokens.len();
        // The library takes sequences together only while their numbers go up one by one; others wait for the next pass.
        tokens.order.clear();
        tokens.order.extend(0..count);
        tokens.order.sort_by_key(|&index| batch.sequences[index]);
        tokens.places.clear();
        tokens.places.resize(count, 0);
        for (place, &index) in tokens.order.iter().enumerate() {
            tokens.places[index] = place as i32;
        }
        let copy = |to: &mut Vec<i32>, from: &[u32]| {
            to.clear();
            to.extend(tokens.order.iter().map(|&index| from[index] as i32));
        };
        copy(&mut tokens.ids, batch.tokens);
        copy(&mut tokens.positions, batch.positions);
        copy(&mut tokens.sequences, batch.sequences);
        tokens.counts.clear();
        tokens.counts.resize(count, 1);
        tokens.wanted.clear();
        // A pooled embedding needs all tokens.
        tokens.wanted.resize(count, i8::from(pooled));
        for &index in batch.outputs {
            tokens.wanted[tokens.places[index as usize] as usize] = 1;
        }
        tokens.pointers.clear();
        tokens.pointers.extend(tokens.sequences.iter_mut().map(std::ptr::from_mut));
    }

    fn collect(&mut self, batch: Batch<'_>, output: &mut [f32]) -> Result<()> {
        for (&index, row) in batch.outputs.iter().zip(output.chunks_exact_mut(self.width)) {
            let place = self.tokens.places[index as usize];
            // SAFETY: the call before was successful. A pointer that is not null has `width` floats: the vocabulary's
            // size, or the hidden state's.
            unsafe {
                let found = match self.settings.pooling {
                    None => sys::llama_get_logits_ith(self.pointer, place),
                    Some(Pooling::None) => sys::llama_get_embeddings_ith(self.pointer, place),
                    Some(_) => {
                        let sequence = batch.sequences[index as usize];
                        sys::llama_get_embeddings_seq(self.pointer, sequence as i32)
                    }
                };
                if found.is_null() {
                    return Err(failed(&format!(
                        "llama.cpp has no output for token {index}: {}",
                        log::errors()
                    )));
                }
                row.copy_from_slice(std::slice::from_raw_parts(found, row.len()));
            }
        }
        Ok(())
    }

    /// Forgets positions `from..to` of a sequence.
    ///
    /// # Errors
    /// [`ErrorCode::UnsupportedInput`] where the model's state cannot be cut there.
    pub(crate) fn remove(&mut self, sequence: u32, from: u32, to: u32) -> Result<()> {
        if !self.remembers || from >= to {
            return Ok(());
        }
        let end = i32::try_from(to).unwrap_or(-1);
        // SAFETY: the sequence is below the limit; there is a cache.
        let done = unsafe {
            let memory = sys::llama_get_memory(self.pointer);
            sys::llama_memory_seq_rm(memory, sequence as i32, from as i32, end)
        };
        if done {
            return Ok(());
        }
        let message = format!("positions {from}..{to} cannot be removed from this model's state");
        Err(BackendError::new(ErrorCode::UnsupportedInput, message)
            .with_help("Start the sequence again from its beginning."))
    }

    /// Makes positions `from..to` of `source` the content of `target`.
    ///
    /// # Errors
    /// As for [`Context::remove`].
    pub(crate) fn copy(&mut self, source: u32, target: u32, from: u32, to: u32) -> Result<()> {
        if source != target && self.remembers {
            self.remove(target, 0, u32::MAX)?;
            // Caches of different sequences are copied whole; what is not wanted is cut away afterwards.
            // SAFETY: both sequences are below the limit; there is a cache.
            unsafe {
                let memory = sys::llama_get_memory(self.pointer);
                sys::llama_memory_seq_cp(memory, source as i32, target as i32, -1, -1);
            }
        }
        self.remove(target, to, u32::MAX)?;
        self.remove(target, 0, from)
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: the context goes before its threads, its adapters and its model.
        unsafe {
            sys::llama_free(self.pointer);
            if let Some(free) = pools::<FreePool>(c"ggml_threadpool_free").filter(|_| !self.pool.is_null()) {
                free(self.pool);
            }
        }
    }
}

type NewPool = unsafe extern "C" fn(*mut sys::ggml_threadpool_params) -> *mut sys::ggml_threadpool;
type FreePool = unsafe extern "C" fn(*mut sys::ggml_threadpool);

/// A function of the processor's kernels by its name: they may lie in a library that was chosen when the program started.
///
/// # Safety
/// `F` is the type of the function of this name.
unsafe fn pools<F: Copy>(name: &CStr) -> Option<F> {
    // SAFETY: the device and its backend live as long as the program; the address is that of a function of type `F`, as
    // the caller says, or null. A function's address is as large as a pointer.
    unsafe {
        let device = sys::ggml_backend_dev_by_type(sys::GGML_BACKEND_DEVICE_TYPE_CPU);
        if device.is_null() {
            return None;
        }
        let backend = sys::ggml_backend_dev_backend_reg(device);
        let address = sys::ggml_backend_reg_get_proc_address(backend, name.as_ptr());
        (!address.is_null()).then(|| std::mem::transmute_copy(&address))
    }
}

fn failed(message: &str) -> BackendError {
    BackendError::new(ErrorCode::Failed, message).with_help("The job's log holds what llama.cpp said before.")
}

unsafe extern "C" fn aborts(data: *mut c_void) -> bool {
    // SAFETY: `Context::new` passes a pointer to this very type, and the box outlives the context.
    let job = unsafe { &*data.cast::<Arc<dyn JobContext>>() };
    job.cancelled()
}
