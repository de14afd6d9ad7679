//! What ggml can compute on.

use std::ffi::c_void;

use llama_cpp_sys_2 as sys;

use super::{owned, start};

/// A device as ggml reports it.
#[derive(Debug, Clone)]
pub(crate) struct Device {
    /// ggml's name, lower case: `cpu`, `cuda0`, `vulkan1`.
    pub(crate) id: String,
    /// What a person calls it.
    pub(crate) description: String,
    /// What it is.
    pub(crate) kind: Kind,
    /// Bytes free and in all; 0 where unknown.
    pub(crate) free: u64,
    pub(crate) total: u64,
    pub(super) pointer: sys::ggml_backend_dev_t,
}

/// What a device is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Cpu,
    Gpu,
    /// Helps the processor with some operations (BLAS, AMX); holds no layers.
    Helper,
}

/// All devices, in ggml's order.
pub(crate) fn all() -> Vec<Device> {
    start();
    // SAFETY: an index below the count gives a device that lives as long as the program; the two numbers are written
    // before they are read.
    unsafe {
        let count = sys::ggml_backend_dev_count();
        let device = |index| {
            let pointer = sys::ggml_backend_dev_get(index);
            let (mut free, mut total) = (0, 0);
            sys::ggml_backend_dev_memory(pointer, &raw mut free, &raw mut total);
            Device {
                id: owned(sys::ggml_backend_dev_name(pointer)).to_lowercase(),
                description: owned(sys::ggml_backend_dev_description(pointer)),
                kind: match sys::ggml_backend_dev_type(pointer) {
                    sys::GGML_BACKEND_DEVICE_TYPE_CPU => Kind::Cpu,
                    sys::GGML_BACKEND_DEVICE_TYPE_GPU | sys::GGML_BACKEND_DEVICE_TYPE_IGPU => Kind::Gpu,
                    _ => Kind::Helper,
                },
                free: free as u64,
                total: total as u64,
                pointer,
            }
        };
        // Libraries with kernels that are found twice (beside the plugin, and where the library looks itself) count once.
        let mut devices: Vec<Device> = Vec::new();
        for device in (0..count).map(device) {
            if !devices.iter().any(|known| known.id == device.id) {
                devices.push(device);
            }
        }
        devices
    }
}

/// What each backend was compiled with: `CPU: AVX2, FMA`.
pub(crate) fn compiled_in() -> Vec<String> {
    start();
    let mut found = Vec::new();
    // SAFETY: as above; the address under this name is a function of this type or null, and its list ends with a null
    // name.
    unsafe {
        for index in 0..sys::ggml_backend_reg_count() {
            let backend = sys::ggml_backend_reg_get(index);
            let name = owned(sys::ggml_backend_reg_name(backend));
            let ask = sys::ggml_backend_reg_get_proc_address(backend, c"ggml_backend_get_features".as_ptr());
            let ask = std::mem::transmute::<*mut c_void, sys::ggml_backend_get_features_t>(ask);
            let mut features = Vec::new();
            if let Some(ask) = ask {
                let mut feature = ask(backend);
                while !feature.is_null() && !(*feature).name.is_null() {
                    if owned((*feature).value) != "0" {
                        features.push(owned((*feature).name));
                    }
                    feature = feature.add(1);
                }
            }
            found.push(if features.is_empty() { name } else { format!("{name}: {}", features.join(", ")) });
        }
    }
    found
}
