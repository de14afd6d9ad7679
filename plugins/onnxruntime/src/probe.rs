//! What this backend can do here, and what a goal would take.

use drophammer_forge::plain::PlainGraph;
use drophammer_models::export::onnx::SCHEMES;
use drophammer_sdk::{Device, FormatSupport, Goal, HostInfo, ProbeReport, ProbeRequest, Problem, Result};

use crate::{forge, plain};

/// What is offered where the host names no goal.
const OFFERED: [&str; 3] = ["int4", "int8", "fp16"];

/// Describes the machine and plans the request's goals. Files are looked for; the library is opened where there is a model to ask its
/// providers about.
///
/// # Errors
/// When the source cannot be read.
pub(crate) fn report(host: &HostInfo, request: &ProbeRequest) -> Result<ProbeReport> {
    let found = drophammer_ort::find(host, "onnxruntime", "library");
    let runs = found.is_ok();
    let graphs = plain::SCHEMES.iter().filter(|name| !SCHEMES.contains(name));
    let schemes = SCHEMES.iter().chain(graphs);
    let mut report = ProbeReport {
        formats: vec![FormatSupport {
            format: "onnx".into(),
            schemes: schemes.map(|name| (*name).to_owned()).collect(),
            make: true,
            run: runs,
        }],
        ..ProbeReport::default()
    };
    match found {
        Ok(found) => {
            report.runtime_version = found.version.map(|version| version.to_string());
            report.devices.push(Device {
                id: "cpu".into(),
                name: "ONNX Runtime's own kernels".into(),
                kind: "cpu".into(),
                ..Device::default()
            });
        }
        Err(error) => report.problems.push(Problem { message: error.message, help: error.help }),
    }
    if let Some(source) = &request.source {
        let file = PlainGraph::find(source);
        let goals = request.goals_or("onnx", if file.is_some() { &plain::OFFERED } else { &OFFERED });
        let estimate = |goal: &Goal| match &file {
            Some(file) => Ok(plain::estimate(host, file, goal)),
            None => forge::estimate(host, source, goal),
        };
        report.estimates = goals.iter().map(estimate).collect::<Result<_>>()?;
    }
    Ok(report)
}
