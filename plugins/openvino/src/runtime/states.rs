//! Keys and values of requests, read and written.
//!
//! The C interface has no access to variables. This calls the C++ functions that have, by the names that g++ gives them:
//! `ov::InferRequest::query_state` and `reset_state`, `ov::VariableState::get_state`, `set_state` and destructor, and that of `ov::Tensor`. All that is known of
//! the objects is their size (two shared pointers each) and that an `ov_infer_request_t` and an `ov_tensor_t` begin with a
//! pointer to theirs. Where the library has no functions of these very names, states cannot be asked for.

use std::ffi::c_void;
use std::ptr::null_mut;

use drophammer_sdk::{BackendError, ErrorCode, Result};
use libloading::Library;

use super::api::{Object, Shape};
use super::{Compiled, F32, Request};

/// `std::vector` of libstdc++.
#[repr(C)]
struct List {
    begin: *mut Pair,
    end: *mut Pair,
    room: *mut Pair,
}

/// Two shared pointers: an `ov::VariableState`, or an `ov::Tensor`.
#[repr(C)]
struct Pair([*mut c_void; 4]);

/// What a shared pointer to something points to, and that nobody counts it.
#[repr(C)]
struct Uncounted(*mut c_void, *mut c_void);

/// Results that are no plain numbers are written where the first argument says.
pub(super) struct Functions {
    query: unsafe extern "C-unwind" fn(*mut List, *mut c_void),
    reset: unsafe extern "C-unwind" fn(*mut c_void),
    get: unsafe extern "C-unwind" fn(*mut Pair, *const Pair),
    set: unsafe extern "C-unwind" fn(*mut Pair, *mut c_void),
    end_state: unsafe extern "C" fn(*mut Pair),
    end_tensor: unsafe extern "C" fn(*mut Pair),
    free: unsafe extern "C" fn(*mut c_void),
}

impl Functions {
    /// The functions, if the library and those that it uses have all of them.
    pub(super) fn of(library: &Library) -> Option<Self> {
        // SAFETY: the names tell the arguments' types, and they are declared so.
        unsafe {
            Some(Self {
                query: *library.get(b"_ZN2ov12InferRequest11query_stateEv\0").ok()?,
                reset: *library.get(b"_ZN2ov12InferRequest11reset_stateEv\0").ok()?,
                get: *library.get(b"_ZNK2ov13VariableState9get_stateEv\0").ok()?,
                set: *library.get(b"_ZN2ov13VariableState9set_stateERKNS_6TensorE\0").ok()?,
                end_state: *library.get(b"_ZN2ov13VariableStateD1Ev\0").ok()?,
                end_tensor: *library.get(b"_ZN2ov6TensorD1Ev\0").ok()?,
                free: *library.get(b"_ZdlPv\0").ok()?,
            })
        }
    }
}

/// The object behind one of the C interface.
///
/// # Safety
/// `object` begins with a pointer to it.
unsafe fn behind(object: Object) -> *mut c_void {
    // SAFETY: the caller's promise.
    unsafe { *object.cast::<*mut c_void>() }
}

/// One variable's numbers: rows (one per sequence) × heads × tokens × width.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct State {
    pub(crate) shape: [usize; 4],
    pub(crate) numbers: Vec<f32>,
}

impl Request {
    /// Runs `each` for every variable of the request, in an order that all requests of a model have.
    fn states(&mut self, mut each: impl FnMut(&Functions, *mut Pair, usize) -> Result<()>) -> Result<()> {
        let functions = self.runtime.api.states.as_ref().ok_or_else(no_states)?;
        let mut list = List { begin: null_mut(), end: null_mut(), room: null_mut() };
        // SAFETY: the list is written, read from its beginning to its end, and ended as C++ would.
        unsafe {
            (functions.query)(&raw mut list, behind(self.object));
            let count = list.end.offset_from_unsigned(list.begin);
            let done = (0..count).try_for_each(|number| each(functions, list.begin.add(number), number));
            (0..count).for_each(|number| (functions.end_state)(list.begin.add(number)));
            if !list.begin.is_null() {
                (functions.free)(list.begin.cast());
            }
            done
        }
    }

    /// Empties all variables; their memory stays. Says whether it could.
    pub(crate) fn forget(&mut self) -> bool {
        let Some(functions) = &self.runtime.api.states else { return false };
        // SAFETY: the request is ours.
        unsafe { (functions.reset)(behind(self.object)) };
        true
    }

    /// What all variables hold, as floats.
    ///
    /// # Errors
    /// Where the library cannot be asked; variables that are no floats of four dimensions.
    pub(crate) fn read_states(&mut self) -> Result<Vec<State>> {
        let runtime = std::sync::Arc::clone(&self.runtime);
        let api = &runtime.api;
        let mut all = Vec::new();
        self.states(|functions, state, _| {
            let mut tensor = Pair([null_mut(); 4]);
            // SAFETY: the tensor is written, looked at through the C interface, and ended.
            unsafe {
                (functions.get)(&raw mut tensor, state);
                let mut as_c = Uncounted((&raw mut tensor).cast(), null_mut());
                let as_c: Object = (&raw mut as_c).cast();
                let mut shape = Shape { rank: 0, dims: null_mut() };
                let (mut data, mut bytes, mut kind) = (null_mut(), 0, 0);
                let statuses = [
                    (api.ov_tensor_get_shape)(as_c, &raw mut shape),
                    (api.ov_tensor_get_element_type)(as_c, &raw mut kind),
                    (api.ov_tensor_get_byte_size)(as_c, &raw mut bytes),
                ];
                let read = if statuses == [0; 3] && kind == F32 && shape.rank == 4 {
                    let dims = std::slice::from_raw_parts(shape.dims, 4);
                    let shape = [0, 1, 2, 3].map(|axis| dims[axis] as usize);
                    let empty = bytes == 0;
                    if !empty && (api.ov_tensor_data)(as_c, &raw mut data) != 0 {
                        Err(no_states())
                    } else {
                        let numbers = if empty {
                            &[]
                        } else {
                            std::slice::from_raw_parts(data.cast::<f32>(), bytes / 4)
                        };
                        all.push(State { shape, numbers: numbers.to_vec() });
                        Ok(())
                    }
                } else {
                    Err(no_states())
                };
                if !shape.dims.is_null() {
                    (api.ov_shape_free)(&raw mut shape);
                }
                (functions.end_tensor)(&raw mut tensor);
                read
            }
        })?;
        Ok(all)
    }

    /// Gives all variables other numbers; as many as [`Request::read_states`] gives.
    ///
    /// # Errors
    /// As there, and where no memory is left.
    pub(crate) fn write_states(&mut self, states: &[State]) -> Result<()> {
        let runtime = std::sync::Arc::clone(&self.runtime);
        self.states(|functions, state, number| {
            let given = states.get(number).ok_or_else(no_states)?;
            let tensor = runtime.tensor(F32, &given.shape.map(|size| size as i64), &given.numbers)?;
            // SAFETY: the tensor lives until it has been copied.
            unsafe {
                (functions.set)(state, behind(tensor));
                (runtime.api.ov_tensor_free)(tensor);
            }
            Ok(())
        })
    }
}

impl Compiled {
    /// Whether states of its requests can be read and written.
    pub(crate) fn tells_states(&self) -> bool {
        self.runtime.api.states.is_some()
    }
}

fn no_states() -> BackendError {
    BackendError::new(ErrorCode::Failed, "this build of OpenVINO does not tell what its variables hold")
        .with_help("Use the Linux build that `drophammer runtime install openvino` fetches.")
}
