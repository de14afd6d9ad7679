//! What this backend can do here, and what a goal would take.

use drophammer_sdk::{Device, FormatSupport, HostInfo, ProbeReport, ProbeRequest, Result};

use crate::plain::{self, PlainGraph};
use crate::runtime::Runtime;
use crate::{forge, scheme};

/// What is offered where the host names no goal.
const OFFERED: [&str; 3] = ["int8_asym", "int4_asym", "fp16"];

/// Describes the machine and plans the request's goals.
///
/// # Errors
/// When the source cannot be read.
pub(crate) fn report(host: &HostInfo, request: &ProbeRequest) -> Result<ProbeReport> {
    let mut report = ProbeReport::default();
    match Runtime::open(host) {
        Ok(runtime) => {
            report.runtime_version = Some(runtime.version().to_owned());
            report.devices = runtime.devices().into_iter().map(device).collect();
        }
        Err(error) => {
            report.problems.push(drophammer_sdk::Problem { message: error.message, help: error.help });
        }
    }
    let run = report.problems.is_empty();
    report.formats =
        vec![FormatSupport { format: "openvino".into(), schemes: scheme::names(), make: true, run }];
    if let Some(source) = &request.source {
        let goals = request.goals_or("openvino", &OFFERED);
        let plain = PlainGraph::find(source);
        let estimate = |goal| match &plain {
            Some(graph) => Ok(plain::estimate(host, graph, goal)),
            None => forge::estimate(source, goal),
        };
        report.estimates = goals.iter().map(estimate).collect::<Result<_>>()?;
    }
    Ok(report)
}

fn device((id, name): (String, String)) -> Device {
    let kind = id.split('.').next().unwrap_or_default().to_lowercase();
    Device { id, name, kind, ..Device::default() }
}
