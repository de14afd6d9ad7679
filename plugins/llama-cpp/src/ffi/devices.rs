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
    /// Where it is plugged in: the same for a card that two backends reach. Empty where unknown.
    pub(crate) place: String,
    /// Bytes free and in all; 0 where unknown.
    pub(crate) free: u64,
    pub(crate) total: u64,
    pub(super) pointer: sys::ggml_backend_dev_t,
}

impl Device {
    /// One that tests place layers on; the library never sees it.
    #[cfg(test)]
    pub(crate) fn imagined(id: &str, kind: Kind, place: &str, free: u64) -> Self {
        let (id, place) = (id.to_owned(), place.to_owned());
        Self { id, description: String::new(), kind, place, free, total: free, pointer: std::ptr::null_mut() }
    }

    /// Whether layers can be put on it.
    pub(crate) fn holds_layers(&self) -> bool {
        matches!(self.kind, Kind::Gpu | Kind::Integrated)
    }
}

/// What a device is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Cpu,
    /// With memory of its own.
    Gpu,
    /// Shares the processor's memory.
    Integrated,
    /// Helps the processor with some operations (BLAS, AMX); holds no layers.
    Helper,
}

/// Whether there are kernels for the processor. Unlike [`all`] it wakes no accelerator, which takes time and memory.
pub(crate) fn has_processor() -> bool {
    start();
    // SAFETY: gives a device or null.
    unsafe { !sys::ggml_backend_dev_by_type(sys::GGML_BACKEND_DEVICE_TYPE_CPU).is_null() }
}

/// All devices, in ggml's order.
pub(crate) fn all() -> Vec<Device> {
    start();
    // SAFETY: an index below the count gives a device that lives as long as the program; its properties are plain data, which
    // it fills.
    unsafe {
        let count = sys::ggml_backend_dev_count();
        let device = |index| {
            let pointer = sys::ggml_backend_dev_get(index);
            let mut told = std::mem::zeroed::<sys::ggml_backend_dev_props>();
            sys::ggml_backend_dev_get_props(pointer, &raw mut told);
            Device {
                id: owned(told.name).to_lowercase(),
                description: owned(told.description),
                kind: match told.type_ {
                    sys::GGML_BACKEND_DEVICE_TYPE_CPU => Kind::Cpu,
                    sys::GGML_BACKEND_DEVICE_TYPE_GPU => Kind::Gpu,
                    sys::GGML_BACKEND_DEVICE_TYPE_IGPU => Kind::Integrated,
                    _ => Kind::Helper,
                },
                place: owned(told.device_id),
                free: told.memory_free as u64,
                total: told.memory_total as u64,
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
