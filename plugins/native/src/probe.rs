//! What this backend can do here.

use drophammer_sdk::{Device, FormatSupport, ProbeReport, ProbeRequest};

use crate::kernels::Path;

/// Describes the machine and what can be run on it.
pub(crate) fn report(_request: &ProbeRequest) -> ProbeReport {
    let run =
        |format: &str| FormatSupport { format: format.into(), schemes: Vec::new(), make: false, run: true };
    ProbeReport {
        runtime_version: Some(env!("CARGO_PKG_VERSION").into()),
        devices: vec![Device {
            id: "cpu".into(),
            name: format!("{} with {} kernels", std::env::consts::ARCH, Path::chosen().name()),
            kind: "cpu".into(),
            ..Device::default()
        }],
        formats: vec![run("gguf"), run("safetensors")],
        ..ProbeReport::default()
    }
}
