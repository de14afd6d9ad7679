//! What this backend can do here, and what a goal would take.

use drophammer_forge::gguf;
use drophammer_formats::SourceKind;
use drophammer_sdk::{Device, FormatSupport, ProbeReport, ProbeRequest, Result};

use crate::kernels::Path;

/// What is offered where the host names no goal.
const OFFERED: [&str; 3] = ["q8_0", "q4_k_m", "f16"];

/// Describes the machine and plans the request's goals.
///
/// # Errors
/// When the source cannot be read.
pub(crate) fn report(request: &ProbeRequest) -> Result<ProbeReport> {
    let mut report = ProbeReport {
        runtime_version: Some(env!("CARGO_PKG_VERSION").into()),
        devices: vec![Device {
            id: "cpu".into(),
            name: format!("{} with {} kernels", std::env::consts::ARCH, Path::chosen().name()),
            kind: "cpu".into(),
            ..Device::default()
        }],
        formats: vec![
            FormatSupport {
                format: "gguf".into(),
                schemes: gguf::schemes().map(str::to_owned).collect(),
                make: true,
                run: true,
            },
            runs(SourceKind::HuggingFace),
            runs(SourceKind::Safetensors),
            runs(SourceKind::Mlx),
        ],
        ..ProbeReport::default()
    };
    if let Some(source) = &request.source {
        let goals = request.goals_or("gguf", &OFFERED);
        report.estimates = goals.iter().map(|goal| gguf::estimate(source, goal)).collect::<Result<_>>()?;
    }
    Ok(report)
}

/// A kind of source that is run as it lies, in reference mode above all.
fn runs(kind: SourceKind) -> FormatSupport {
    FormatSupport { format: kind.name().into(), schemes: Vec::new(), make: false, run: true }
}
