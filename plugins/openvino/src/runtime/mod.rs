//! OpenVINO's runtime as safe objects: core, compiled model, infer request.
#![allow(unsafe_code)] // calls into the C interface; pointers it gives are used and freed as its header says

mod api;
mod states;

use std::ffi::{CStr, CString, c_char};
use std::path::Path;
use std::ptr::null_mut;
use std::sync::{Arc, Mutex, PoisonError};

use drophammer_runtimes::Unavailable;
use drophammer_sdk::{BackendError, ErrorCode, HostInfo, Result};

pub(crate) use states::State;

use api::{Api, Devices, Dimension, Object, PartialShape, Property, Shape, Version, WideText};

/// `ov_element_type_e` of what sessions exchange.
const F32: u32 = 4;
const I32: u32 = 9;
const I64: u32 = 10;

/// The opened runtime with its core. One per process, never closed: its plugins keep threads.
pub(crate) struct Runtime {
    api: Api,
    core: Object,
    version: String,
}

// SAFETY: the core may be used from any thread; it locks inside.
unsafe impl Send for Runtime {}
// SAFETY: as above.
unsafe impl Sync for Runtime {}

/// Text for the C interface; what follows a NUL is lost, which no path or property has.
fn text(text: &str) -> CString {
    CString::new(text.split('\0').next().unwrap_or_default()).unwrap_or_default()
}

/// Text from the C interface.
///
/// # Safety
/// `pointer` is null or ends with NUL.
unsafe fn owned(pointer: *const c_char) -> String {
    if pointer.is_null() {
        return String::new();
    }
    // SAFETY: the caller's promise.
    unsafe { CStr::from_ptr(pointer) }.to_string_lossy().into_owned()
}

impl Runtime {
    /// Finds and opens the runtime, once per process.
    ///
    /// # Errors
    /// [`ErrorCode::MissingRuntime`]: that it is missing, too old or broken, and what to do.
    pub(crate) fn open(host: &HostInfo) -> Result<Arc<Self>> {
        static OPENED: Mutex<Option<Arc<Runtime>>> = Mutex::new(None);
        let mut opened = OPENED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(runtime) = opened.as_ref() {
            return Ok(Arc::clone(runtime));
        }
        let runtime = Arc::new(Self::find(host)?);
        *opened = Some(Arc::clone(&runtime));
        Ok(runtime)
    }

    fn find(host: &HostInfo) -> Result<Self, BackendError> {
        let pinned = drophammer_runtimes::runtime("openvino")
            .ok_or_else(|| BackendError::new(ErrorCode::Failed, "config/runtimes.toml has no openvino"))?;
        let configured = host.config.get("library").and_then(serde_json::Value::as_str).map(Path::new);
        let found = pinned.find(&host.runtimes, configured)?;
        let broken = |why: String| -> Unavailable { pinned.broken(&found.library, why) };
        let api = Api::open(&found.library).map_err(broken)?;
        let mut version = Version { build: null_mut(), description: null_mut() };
        // SAFETY: a place for the answer, which is freed once it is copied.
        let version = unsafe {
            if (api.ov_get_openvino_version)(&raw mut version) != 0 {
                return Err(broken("it does not tell its version".into()).into());
            }
            let build = owned(version.build);
            (api.ov_version_free)(&raw mut version);
            build
        };
        pinned.accept(&found.library, &version)?;
        let mut core = null_mut();
        // SAFETY: a place for the answer.
        if unsafe { (api.ov_core_create)(&raw mut core) } != 0 || core.is_null() {
            return Err(broken(format!("it cannot be started: {}", last_error(&api))).into());
        }
        Ok(Self { api, core, version })
    }

    /// The build's own version.
    pub(crate) fn version(&self) -> &str {
        &self.version
    }

    /// Devices by id, with the names people know.
    pub(crate) fn devices(&self) -> Vec<(String, String)> {
        let mut devices = Devices { names: null_mut(), count: 0 };
        // SAFETY: the list holds `count` texts until it is freed.
        let ids: Vec<String> = unsafe {
            if (self.api.ov_core_get_available_devices)(self.core, &raw mut devices) != 0 {
                return Vec::new();
            }
            let ids = (0..devices.count).map(|i| owned(*devices.names.add(i))).collect();
            (self.api.ov_available_devices_free)(&raw mut devices);
            ids
        };
        ids.into_iter().map(|id| (id.clone(), self.property(&id, "FULL_DEVICE_NAME").unwrap_or(id))).collect()
    }

    fn property(&self, device: &str, key: &str) -> Option<String> {
        let (device, key) = (text(device), text(key));
        let mut value = null_mut();
        // SAFETY: the text is copied and freed.
        unsafe {
            let status =
                (self.api.ov_core_get_property)(self.core, device.as_ptr(), key.as_ptr(), &raw mut value);
            (status == 0).then(|| {
                let copied = owned(value);
                (self.api.ov_free)(value);
                copied
            })
        }
    }

    /// A tensor with a copy of these numbers, whose type `kind` names.
    fn tensor<T: Copy>(&self, kind: u32, shape: &[i64], numbers: &[T]) -> Result<Object> {
        let api = &self.api;
        let mut dims = shape.to_vec();
        let shape = Shape { rank: dims.len() as i64, dims: dims.as_mut_ptr() };
        let (bytes, mut tensor) = (size_of_val(numbers), null_mut());
        // SAFETY: the tensor has room for what is copied, which is checked.
        unsafe {
            self.check((api.ov_tensor_create)(kind, shape, &raw mut tensor), "making a tensor")?;
            let (mut data, mut room) = (null_mut(), 0);
            let mut status = (api.ov_tensor_get_byte_size)(tensor, &raw mut room);
            if status == 0 && bytes > 0 {
                status = (api.ov_tensor_data)(tensor, &raw mut data);
            }
            if status == 0 && room != bytes {
                status = -6; // OUT_OF_BOUNDS
            }
            if status == 0 && bytes > 0 {
                std::ptr::copy_nonoverlapping(numbers.as_ptr().cast::<u8>(), data.cast(), bytes);
            }
            if let Err(error) = self.check(status, "filling a tensor") {
                (api.ov_tensor_free)(tensor);
                return Err(error);
            }
        }
        Ok(tensor)
    }

    fn check(&self, status: i32, doing: &str) -> Result<()> {
        if status == 0 {
            return Ok(());
        }
        let said = last_error(&self.api);
        let why = said.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("no reason given").trim();
        Err(BackendError::new(ErrorCode::Failed, format!("OpenVINO failed {doing}: {why} (status {status})"))
            .with_help("The job's log holds what the runtime printed."))
    }

    /// Reads a model of any format that the runtime has a frontend for, and saves it as IR (the weights' file beside it), float32
    /// weights as float16 if that is asked for.
    ///
    /// The C interface saves nothing, so this calls the one C++ function that does. Where it fails, it throws, which ends the
    /// worker: that the files can be written is tried before.
    ///
    /// # Errors
    /// What the runtime says; a build of it that has no such function.
    pub(crate) fn save_as_ir(&self, model: &Path, graph: &Path, half: bool) -> Result<()> {
        let Some(save) = self.api.save_model else {
            let message = format!("OpenVINO {} has no ov::save_model to call", self.version);
            return Err(BackendError::new(ErrorCode::MissingRuntime, message)
                .with_help("Use the Linux build that `drophammer runtime install openvino` fetches."));
        };
        for path in [graph.to_path_buf(), graph.with_extension("bin")] {
            std::fs::File::create(&path).map_err(|error| {
                BackendError::new(ErrorCode::Failed, format!("{}: {error}", path.display()))
                    .with_help("Check free space and permissions.")
            })?;
        }
        let source = text(&model.to_string_lossy());
        let mut object = null_mut();
        // SAFETY: a path is a text; without weights the frontend finds its own; a place for the answer.
        let status = unsafe {
            (self.api.ov_core_read_model)(self.core, source.as_ptr(), std::ptr::null(), &raw mut object)
        };
        self.check(status, &format!("reading {}", model.display()))?;
        let characters: Vec<i32> = graph.to_string_lossy().chars().map(|c| c as i32).chain([0]).collect();
        let path = WideText { characters: characters.as_ptr(), length: characters.len() - 1, own: [0; 4] };
        // SAFETY: the model and the path live until the call ends, which only reads them.
        unsafe {
            save(object, &raw const path, half);
            (self.api.ov_model_free)(object);
        }
        Ok(())
    }

    /// Reads a graph and compiles it for a device.
    ///
    /// # Errors
    /// What the runtime says.
    pub(crate) fn compile(
        self: &Arc<Self>,
        graph: &Path,
        weights: &Path,
        device: &str,
        properties: &[(String, String)],
    ) -> Result<Compiled> {
        let path = |path: &Path| text(&path.to_string_lossy());
        let (xml, bin, name) = (path(graph), path(weights), text(device));
        let mut model = null_mut();
        // SAFETY: paths are texts; a place for the answer.
        let status =
            unsafe { (self.api.ov_core_read_model)(self.core, xml.as_ptr(), bin.as_ptr(), &raw mut model) };
        self.check(status, &format!("reading {}", graph.display()))?;
        let texts: Vec<(CString, CString)> =
            properties.iter().map(|(key, value)| (text(key), text(value))).collect();
        let properties: Vec<Property> =
            texts.iter().map(|(key, value)| Property { key: key.as_ptr(), value: value.as_ptr() }).collect();
        let mut compiled = null_mut();
        // SAFETY: `properties` lives until the call ends; the model is the runtime's own afterwards.
        let status = unsafe {
            let status = (self.api.ov_core_compile_model_props)(
                self.core,
                model,
                name.as_ptr(),
                properties.len(),
                properties.as_ptr(),
                &raw mut compiled,
            );
            (self.api.ov_model_free)(model);
            status
        };
        self.check(status, &format!("compiling {} for {device}", graph.display()))?;
        Ok(Compiled { runtime: Arc::clone(self), object: compiled })
    }
}

fn last_error(api: &Api) -> String {
    // SAFETY: the message stays valid until the next failure on this thread.
    unsafe { owned((api.ov_get_last_err_msg)()) }
}

/// A model compiled for a device.
pub(crate) struct Compiled {
    runtime: Arc<Runtime>,
    object: Object,
}

// SAFETY: compiled models may be used from any thread.
unsafe impl Send for Compiled {}

impl Drop for Compiled {
    fn drop(&mut self) {
        // SAFETY: it is ours.
        unsafe { (self.runtime.api.ov_compiled_model_free)(self.object) }
    }
}

impl Compiled {
    /// Names of its inputs.
    ///
    /// # Errors
    /// What the runtime says.
    pub(crate) fn inputs(&self) -> Result<Vec<String>> {
        let api = &self.runtime.api;
        let mut count = 0;
        // SAFETY: places for the answers; the port and its name are freed once used.
        unsafe {
            self.runtime
                .check((api.ov_compiled_model_inputs_size)(self.object, &raw mut count), "counting inputs")?;
            (0..count)
                .map(|index| {
                    let mut port = null_mut();
                    let status = (api.ov_compiled_model_input_by_index)(self.object, index, &raw mut port);
                    self.runtime.check(status, "looking at an input")?;
                    let mut name = null_mut();
                    let status = (api.ov_port_get_any_name)(port, &raw mut name);
                    (api.ov_output_const_port_free)(port);
                    self.runtime.check(status, "naming an input")?;
                    let copied = owned(name);
                    (api.ov_free)(name);
                    Ok(copied)
                })
                .collect()
        }
    }

    /// Width of the rows of its first output; `None` where it is not fixed.
    ///
    /// # Errors
    /// What the runtime says.
    pub(crate) fn output_width(&self) -> Result<Option<u32>> {
        let api = &self.runtime.api;
        let unknown = || Dimension { min: 0, max: 0 };
        let mut shape = PartialShape { rank: unknown(), dims: null_mut() };
        // SAFETY: places for the answers; the shape has `rank` dimensions until it is freed.
        unsafe {
            let mut port = null_mut();
            let status = (api.ov_compiled_model_output_by_index)(self.object, 0, &raw mut port);
            self.runtime.check(status, "looking at the output")?;
            let status = (api.ov_port_get_partial_shape)(port, &raw mut shape);
            (api.ov_output_const_port_free)(port);
            self.runtime.check(status, "looking at the output's shape")?;
            let last = usize::try_from(shape.rank.max).ok().filter(|rank| *rank > 0 && !shape.dims.is_null());
            let width = last.map(|rank| &*shape.dims.add(rank - 1)).filter(|width| width.min == width.max);
            let width = width.and_then(|width| u32::try_from(width.max).ok());
            (api.ov_partial_shape_free)(&raw mut shape);
            Ok(width)
        }
    }

    /// A new request, with state of its own.
    ///
    /// # Errors
    /// What the runtime says.
    pub(crate) fn request(&self) -> Result<Request> {
        let mut object = null_mut();
        // SAFETY: a place for the answer.
        let status = unsafe {
            (self.runtime.api.ov_compiled_model_create_infer_request)(self.object, &raw mut object)
        };
        self.runtime.check(status, "making a request")?;
        Ok(Request { runtime: Arc::clone(&self.runtime), object })
    }
}

/// A request: inputs, outputs and state of one run after another.
pub(crate) struct Request {
    runtime: Arc<Runtime>,
    object: Object,
}

// SAFETY: a request may be used from any thread, by one at a time.
unsafe impl Send for Request {}

impl Drop for Request {
    fn drop(&mut self) {
        // SAFETY: it is ours.
        unsafe { (self.runtime.api.ov_infer_request_free)(self.object) }
    }
}

/// Numbers of an input.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Numbers<'a> {
    I64(&'a [i64]),
    I32(&'a [i32]),
}

impl Request {
    /// Sets an input; `shape` has as many elements as there are numbers.
    ///
    /// # Errors
    /// What the runtime says.
    pub(crate) fn set(&mut self, name: &str, shape: &[i64], numbers: Numbers<'_>) -> Result<()> {
        let tensor = match numbers {
            Numbers::I64(numbers) => self.runtime.tensor(I64, shape, numbers)?,
            Numbers::I32(numbers) => self.runtime.tensor(I32, shape, numbers)?,
        };
        let (api, name) = (&self.runtime.api, text(name));
        // SAFETY: the request holds the tensor from then on.
        let status = unsafe {
            let status = (api.ov_infer_request_set_tensor)(self.object, name.as_ptr(), tensor);
            (api.ov_tensor_free)(tensor);
            status
        };
        self.runtime.check(status, "setting an input")
    }

    /// Runs it.
    ///
    /// # Errors
    /// What the runtime says.
    pub(crate) fn infer(&mut self) -> Result<()> {
        // SAFETY: the request is ours alone.
        let status = unsafe { (self.runtime.api.ov_infer_request_infer)(self.object) };
        self.runtime.check(status, "running the model")
    }

    /// Shows the first output's numbers.
    ///
    /// # Errors
    /// What the runtime says; outputs of other types than float32.
    pub(crate) fn output<T>(&mut self, look: impl FnOnce(&[f32]) -> Result<T>) -> Result<T> {
        let api = &self.runtime.api;
        let mut tensor = null_mut();
        // SAFETY: the tensor's numbers stay where they are until it is freed or the request runs again.
        unsafe {
            let status = (api.ov_infer_request_get_output_tensor_by_index)(self.object, 0, &raw mut tensor);
            self.runtime.check(status, "taking the output")?;
            let (mut data, mut bytes, mut kind) = (null_mut(), 0, 0);
            let statuses = [
                (api.ov_tensor_get_element_type)(tensor, &raw mut kind),
                (api.ov_tensor_get_byte_size)(tensor, &raw mut bytes),
                (api.ov_tensor_data)(tensor, &raw mut data),
            ];
            let looked = if statuses != [0; 3] || kind != F32 || data.is_null() {
                Err(BackendError::new(ErrorCode::UnsupportedInput, "the model's output is not float32")
                    .with_help("Export the model with outputs in 32 bits."))
            } else {
                look(std::slice::from_raw_parts(data.cast::<f32>(), bytes / 4))
            };
            (api.ov_tensor_free)(tensor);
            looked
        }
    }
}
