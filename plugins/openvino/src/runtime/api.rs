//! The C interface of OpenVINO (`openvino/c/openvino.h`), opened while running.
//!
//! Only what sessions need is here; every function exists in all versions from 2025.0 on. The interface has neither graph
//! construction nor access to variables' state, which sessions do without.
#![allow(unsafe_code)] // each function is declared as the header of 2026.4 declares it
#![allow(dead_code)] // fields that only the other side reads

use std::ffi::{c_char, c_void};
use std::path::Path;

use libloading::Library;

/// An opaque object of the runtime.
pub(super) type Object = *mut c_void;
/// 0, or a negative number that says what kind of failure it was.
pub(super) type Status = i32;

/// `ov_version_t`.
#[repr(C)]
pub(super) struct Version {
    pub(super) build: *const c_char,
    pub(super) description: *const c_char,
}

/// `ov_available_devices_t`.
#[repr(C)]
pub(super) struct Devices {
    pub(super) names: *mut *mut c_char,
    pub(super) count: usize,
}

/// `ov_shape_t`.
#[repr(C)]
pub(super) struct Shape {
    pub(super) rank: i64,
    pub(super) dims: *mut i64,
}

/// `ov_dimension_t`, and `ov_rank_t`, which is the same.
#[repr(C)]
pub(super) struct Dimension {
    pub(super) min: i64,
    pub(super) max: i64,
}

/// `ov_partial_shape_t`.
#[repr(C)]
pub(super) struct PartialShape {
    pub(super) rank: Dimension,
    pub(super) dims: *mut Dimension,
}

/// `ov_property_t`.
#[repr(C)]
pub(super) struct Property {
    pub(super) key: *const c_char,
    pub(super) value: *const c_char,
}

macro_rules! functions {
    ($($name:ident($($argument:ty),*) $(-> $result:ty)?;)*) => {
        /// The functions.
        pub(super) struct Api {
            $(pub(super) $name: unsafe extern "C" fn($($argument),*) $(-> $result)?,)*
            /// Keeps the functions where they are.
            _library: Library,
        }

        impl Api {
            /// Opens the library.
            ///
            /// # Errors
            /// What the system's loader says, or which function is not there.
            pub(super) fn open(path: &Path) -> Result<Self, String> {
                // SAFETY: the runtime's initializers are meant to run when it is opened.
                let library = unsafe { Library::new(path) }.map_err(|error| error.to_string())?;
                Ok(Self {
                    // SAFETY: the functions have these signatures; the library stays open as long as they are known.
                    $($name: *unsafe { library.get(concat!(stringify!($name), "\0").as_bytes()) }
                        .map_err(|_| concat!("it has no function ", stringify!($name)).to_owned())?,)*
                    _library: library,
                })
            }
        }
    };
}

functions! {
    ov_get_openvino_version(*mut Version) -> Status;
    ov_version_free(*mut Version);
    ov_get_last_err_msg() -> *const c_char;
    ov_free(*const c_char);
    ov_core_create(*mut Object) -> Status;
    ov_core_get_available_devices(Object, *mut Devices) -> Status;
    ov_available_devices_free(*mut Devices);
    ov_core_get_property(Object, *const c_char, *const c_char, *mut *mut c_char) -> Status;
    ov_core_read_model(Object, *const c_char, *const c_char, *mut Object) -> Status;
    ov_model_free(Object);
    ov_core_compile_model_props(Object, Object, *const c_char, usize, *const Property, *mut Object) -> Status;
    ov_compiled_model_free(Object);
    ov_compiled_model_inputs_size(Object, *mut usize) -> Status;
    ov_compiled_model_input_by_index(Object, usize, *mut Object) -> Status;
    ov_compiled_model_output_by_index(Object, usize, *mut Object) -> Status;
    ov_port_get_any_name(Object, *mut *mut c_char) -> Status;
    ov_port_get_partial_shape(Object, *mut PartialShape) -> Status;
    ov_partial_shape_free(*mut PartialShape);
    ov_output_const_port_free(Object);
    ov_compiled_model_create_infer_request(Object, *mut Object) -> Status;
    ov_infer_request_free(Object);
    ov_infer_request_set_tensor(Object, *const c_char, Object) -> Status;
    ov_infer_request_infer(Object) -> Status;
    ov_infer_request_get_output_tensor_by_index(Object, usize, *mut Object) -> Status;
    ov_tensor_create(u32, Shape, *mut Object) -> Status;
    ov_tensor_data(Object, *mut *mut c_void) -> Status;
    ov_tensor_get_byte_size(Object, *mut usize) -> Status;
    ov_tensor_get_element_type(Object, *mut u32) -> Status;
    ov_tensor_free(Object);
}
