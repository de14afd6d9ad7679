//! What this backend can do here, and what a goal would take.

use std::path::Path;

use drophammer_forge::gguf;
use drophammer_sdk::{
    Device as Told, Estimate, FormatSupport, Goal, ProbeReport, ProbeRequest, Problem, Result,
};
use serde_json::Value;

use crate::ffi;
use crate::ffi::context::Stored;
use crate::ffi::devices::{self, Device, Kind};
use crate::{check, fit};

/// What is offered where the host names no goal.
const OFFERED: [&str; 3] = ["q8_0", "q4_k_m", "f16"];
/// Tokens that the placement of layers is told for.
const CONTEXT: u64 = 4096;

/// Kinds of accelerator, and whether this build has kernels for them.
const ACCELERATORS: [(&str, bool); 5] = [
    ("cuda", cfg!(feature = "cuda")),
    ("hip", cfg!(feature = "hip")),
    ("metal", cfg!(feature = "metal")),
    ("opencl", cfg!(feature = "opencl")),
    ("vulkan", cfg!(feature = "vulkan")),
];

/// Describes the machine and plans the request's goals.
///
/// # Errors
/// When the source cannot be read.
pub(crate) fn report(request: &ProbeRequest) -> Result<ProbeReport> {
    let compiled = devices::compiled_in();
    let all = devices::all();
    let mut report = ProbeReport {
        runtime_version: Some(ffi::version()),
        problems: unused(&ACCELERATORS, all.iter().any(Device::holds_layers)).into_iter().collect(),
        devices: all.iter().map(|device| told(device, &compiled)).collect(),
        formats: vec![FormatSupport {
            format: "gguf".into(),
            schemes: gguf::schemes().map(str::to_owned).collect(),
            make: true,
            run: true,
        }],
        ..ProbeReport::default()
    };
    if let Some(source) = &request.source {
        let goals = request.goals_or("gguf", &OFFERED);
        report.estimates = goals.iter().map(|goal| estimate(source, goal)).collect::<Result<_>>()?;
    }
    Ok(report)
}

/// What to say of kernels for accelerators where there is none: without it models would be slow for no reason anybody can see.
fn unused(kinds: &[(&str, bool)], found: bool) -> Option<Problem> {
    let compiled: Vec<_> = kinds.iter().filter(|(_, there)| *there).map(|(name, _)| *name).collect();
    (!compiled.is_empty() && !found).then(|| Problem {
        message: format!(
            "built with {}, but no such accelerator answers: models run on the processor",
            compiled.join(" and ")
        ),
        help: "Install its driver and the libraries this build was linked against, or build the plugin without it."
            .into(),
    })
}

fn told(device: &Device, compiled: &[String]) -> Told {
    let known = |bytes: u64| Some(bytes).filter(|bytes| *bytes > 0);
    let name = match device.kind {
        Kind::Cpu => {
            let features = compiled.iter().find_map(|line| line.strip_prefix("CPU: "));
            let kernels = ffi::kernels().map(|kind| format!(", kernels for {kind}")).unwrap_or_default();
            let features = features.map(|features| format!(" ({features})")).unwrap_or_default();
            format!("{}{kernels}{features}", device.description)
        }
        _ => device.description.clone(),
    };
    Told {
        id: device.id.clone(),
        name,
        kind: if device.holds_layers() { "gpu" } else { "cpu" }.into(),
        memory_bytes: known(device.total),
        free_bytes: known(device.free),
        emulated: false,
    }
}

fn estimate(source: &Path, goal: &Goal) -> Result<Estimate> {
    let mut estimate = gguf::estimate(source, goal)?;
    if !estimate.supported {
        return Ok(estimate);
    }
    let mut notes: Vec<String> = estimate.reason.take().into_iter().collect();
    if goal.options.get("engine").and_then(Value::as_str) == Some("upstream") {
        estimate.steps = vec![
            "write the model at its own precision".into(),
            format!("have llama.cpp quantize it to {}", estimate.scheme),
        ];
        estimate.seconds *= 3.0;
    }
    let checkpoint = drophammer_forge::open(source, &[])?;
    let architecture = checkpoint.family().gguf.map(|gguf| gguf.architecture).unwrap_or_default();
    if !ffi::model::knows(architecture) {
        notes.push(format!("{} has no architecture {architecture:?} and cannot run it", ffi::version()));
    }
    // Where the source is a GGUF file already, its own layers tell where they would go.
    if let Ok(model) = check::model(source) {
        let cache = fit::cache_per_token(&model, Stored::F16, Stored::F16);
        let cache: Vec<u64> = cache.iter().map(|bytes| bytes * CONTEXT).collect();
        let placement = fit::place(&model.source, &cache, None, None)?;
        if placement.device.is_some() {
            notes.push(placement.told);
        }
    }
    estimate.reason = (!notes.is_empty()).then(|| notes.join("; "));
    Ok(estimate)
}

#[cfg(test)]
mod tests {
    use super::unused;

    #[test]
    fn kernels_without_their_accelerator_are_told() {
        assert_eq!(unused(&[("cuda", false)], false), None);
        assert_eq!(unused(&[("cuda", true)], true), None);
        let told = unused(&[("cuda", true), ("hip", false), ("vulkan", true)], false).unwrap();
        assert!(told.message.starts_with("built with cuda and vulkan, but"), "{told:?}");
    }
}
