//! What this backend can do here, and what a goal would take.

use drophammer_formats::SourceKind;
use drophammer_models::export::mlx;
use drophammer_sdk::{Device, FormatSupport, HostInfo, ProbeReport, ProbeRequest, Problem, Result};

use crate::forge;
use crate::runtime::{self, Runtime};

/// What is offered where the host names no goal.
const OFFERED: [&str; 2] = ["affine_4_g64", "bf16"];

/// Describes the machine and plans the request's goals.
///
/// # Errors
/// When the source cannot be read.
pub(crate) fn report(host: &HostInfo, request: &ProbeRequest) -> Result<ProbeReport> {
    let mut report = ProbeReport::default();
    let run = match runtime::open(host) {
        Ok(found) => {
            report.runtime_version = Some(runtime::VERSION.to_owned());
            report.devices = devices(&found);
            true
        }
        Err(error) => {
            report.problems.push(Problem { message: error.message, help: error.help });
            false
        }
    };
    report.formats = vec![
        FormatSupport { format: "mlx".into(), schemes: mlx::schemes(), make: true, run },
        FormatSupport {
            format: SourceKind::HuggingFace.name().into(),
            schemes: Vec::new(),
            make: false,
            run,
        },
    ];
    if let Some(source) = &request.source {
        let goals = request.goals_or("mlx", &OFFERED);
        report.estimates = goals.iter().map(|goal| forge::estimate(source, goal)).collect::<Result<_>>()?;
    }
    Ok(report)
}

/// The processor, and the GPU that shares its memory where there is one.
fn devices(runtime: &Runtime) -> Vec<Device> {
    let gpu = if runtime.has_gpu() { runtime.device(true).ok() } else { None };
    let (total, free) = system_memory();
    // Unified memory: what libmlx tells of the GPU's is all there is.
    let total = gpu.as_ref().map(|facts| facts.memory).filter(|bytes| *bytes > 0).or(total);
    let mut devices = vec![Device {
        id: "cpu".into(),
        name: format!("{} on libmlx {}", std::env::consts::ARCH, runtime::VERSION),
        kind: "cpu".into(),
        memory_bytes: total,
        free_bytes: free,
        emulated: false,
    }];
    if let Some(facts) = gpu {
        // What the system recommends to use at most, less what is in use.
        let most = Some(facts.recommended).filter(|bytes| *bytes > 0);
        let device = Device {
            id: "gpu".into(),
            name: facts.name,
            kind: "gpu".into(),
            memory_bytes: total,
            free_bytes: most.map(|most| most.saturating_sub(runtime.memory().0)),
            emulated: false,
        };
        devices.insert(0, device);
    }
    devices
}

/// Bytes of memory in all and free.
#[cfg(target_os = "linux")]
fn system_memory() -> (Option<u64>, Option<u64>) {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let of = |key: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(key))?;
        line.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib * 1024)
    };
    (of("MemTotal:"), of("MemAvailable:"))
}

/// The system is not asked here: libmlx tells.
#[cfg(not(target_os = "linux"))]
fn system_memory() -> (Option<u64>, Option<u64>) {
    (None, None)
}
