//! The C interface of OpenVINO (`openvino/c/openvino.h`), opened while running.
//!
//! Only what sessions need is here; every function exists in all versions from 2025.0 on. The interface has neither graph
//! construction, which sessions do without, nor access to variables: see [`states`](super::states).
#![allow(unsafe_code)] // each function is declared as the header of 2026.4 declares it
#![allow(dead_code)] // fields that only the other side reads

use std::ffi::{c_char, c_void};
use std::path::Path;

use libloading::Library;

use super::states::Functions;

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

/// `std::wstring` of libstdc++, as much as a function that only reads it looks at.
#[repr(C)]
pub(super) struct WideText {
    pub(super) characters: *const i32,
    pub(super) length: usize,
    /// Room for short texts, which lie elsewhere here.
    pub(super) own: [i32; 4],
}

/// `void ov::save_model(const std::shared_ptr<const ov::Model>&, const std::wstring&, bool)`. An `ov_model_t` is such a
/// pointer to a model and nothing else.
pub(super) type SaveModel = unsafe extern "C-unwind" fn(Object, *const WideText, bool);
const SAVE_MODEL: &[u8] = b"_ZN2ov10save_modelERKSt10shared_ptrIKNS_5ModelEERKNSt7__cxx1112basic_stringIwSt11char_traitsIwESaIwEEEb\0";

macro_rules! functions {
    ($($name:ident($($argument:ty),*) $(-> $result:ty)?;)*) => {
        /// The functions.
        pub(super) struct Api {
            $(pub(super) $name: unsafe extern "C" fn($($argument),*) $(-> $result)?,)*
            /// `ov::save_model` of the C++ interface, which the C interface has no form of. Where the library has no function of
            /// this very name it is built in another way, and cannot be asked.
            pub(super) save_model: Option<SaveModel>,
            /// The same of what reads and writes variables.
            pub(super) states: Option<Functions>,
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
                // SAFETY: the name tells the arguments' types, and they are declared so.
                let save_model = unsafe { library.get::<SaveModel>(SAVE_MODEL) }.ok().map(|function| *function);
                Ok(Self {
                    save_model,
                    states: Functions::of(&library),
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
    ov_tensor_get_shape(Object, *mut Shape) -> Status;
    ov_shape_free(*mut Shape) -> Status;
    ov_tensor_get_element_type(Object, *mut u32) -> Status;
    ov_tensor_free(Object);
}
